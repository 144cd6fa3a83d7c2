"""Run client work in this process behind Flower's Grid: the reference and the debugger.

Flower's private symbols are touched here and nowhere else, under a version guard.
"""

from __future__ import annotations

import itertools
import traceback
from collections.abc import Callable, Iterable
from importlib.metadata import version
from typing import Any, NoReturn

from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid

from fedopt.doctor import KNOWN_FLOWER
from privacy.errors import SettingsError

SERVER_NODE = 1
ClientCall = Callable[[Message, Context], Message]

CLIENT_APP_RAISED = 2
WORKER_LOST = 0


def claim_flower_identity() -> None:
    """Let messages be created outside a Flower run, as Flower's own runtime does at its start.

    Raises: SettingsError where Flower's version is not the one whose internals are known.
    """
    installed = version("flwr")
    if not installed.startswith(KNOWN_FLOWER):
        raise SettingsError(
            f"flwr must be version {KNOWN_FLOWER}x for fedopt's own engines, got {installed}; "
            "install the pinned version or use flwr run"
        )
    from flwr.supercore.task_identity import TaskIdentity

    TaskIdentity.task_id = 1
    TaskIdentity.run_id = 1
    TaskIdentity.node_id = SERVER_NODE


class WorkerGrid(Grid):
    """Offer what a Strategy needs of a Grid: node ids, and messages answered in one call.

    Nodes are workers, numbered from 2; a node is not a user.
    """

    def __init__(self, workers: int) -> None:
        claim_flower_identity()
        self.nodes = list(range(SERVER_NODE + 1, SERVER_NODE + 1 + workers))
        self._message_numbers = itertools.count(1)

    def get_node_ids(self) -> Iterable[int]:
        """List the workers."""
        return list(self.nodes)

    def number(self, message: Message) -> Message:
        """Give a message the id that Flower's link would give it."""
        message.metadata.__dict__["_message_id"] = str(next(self._message_numbers))
        return message

    def close(self) -> None:
        """Let go of the workers."""

    def set_run(self, run: Any) -> None:
        """Do nothing: there is no Flower run behind this grid."""

    @property
    def run(self) -> NoReturn:
        """Refuse: there is no Flower run behind this grid."""
        raise SettingsError("this grid has no Flower run; use flwr run where one is needed")

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Create a message as Flower's older interface does."""
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def push_messages(self, messages: Iterable[Message]) -> NoReturn:
        """Refuse: this grid answers in one call."""
        raise SettingsError("this grid has no mailbox; call send_and_receive")

    def pull_messages(self, message_ids: Iterable[str]) -> NoReturn:
        """Refuse: this grid answers in one call."""
        raise SettingsError("this grid has no mailbox; call send_and_receive")


def worker_context(node: int, workers: int) -> Context:
    """Build the context that a ClientApp gets on a worker."""
    return Context(
        run_id=1,
        node_id=node,
        node_config={"partition-id": node - SERVER_NODE - 1, "num-partitions": workers},
        state=RecordDict(),
        run_config={},
    )


def answer(app: ClientCall, message: Message, context: Context) -> Message:
    """Call a ClientApp; an exception becomes Flower's error reply with the traceback."""
    try:
        return app(message, context)
    except Exception:
        return Message(Error(CLIENT_APP_RAISED, traceback.format_exc()), reply_to=message)


class LocalGrid(WorkerGrid):
    """Answer messages in this process, one after another."""

    def __init__(self, app: ClientCall) -> None:
        super().__init__(workers=1)
        self.app = app
        self.contexts = {node: worker_context(node, 1) for node in self.nodes}

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Run each message's work here and return the replies."""
        return [
            answer(self.app, self.number(message), self.contexts[message.metadata.dst_node_id])
            for message in messages
        ]
