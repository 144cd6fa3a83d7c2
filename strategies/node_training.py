"""Train in plug-in mode: every connected Flower node is one user, drawn by the plan."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from privacy.plan import PrivacyPlan
from strategies.checkpoint import CheckpointFolder
from strategies.node_round import NodeRound
from strategies.private_training import Account, PrivateTraining, RoundInFlight, Send
from strategies.round_record import RoundRecord
from strategies.server_model import ServerModel

FLOWER_LOG = "flwr"


@dataclass
class NodeMessages:
    """State how an app wants its training messages, under Flower's own keywords."""

    arrayrecord_key: str
    configrecord_key: str
    min_available_nodes: int
    config: ConfigRecord


class NodeTraining(PrivateTraining):
    """Carry a private training of somebody's Flower app from round to round.

    Guarantee: each connected node is drawn independently with the plan's rate; whoever was drawn
    and does not reply counts as zeros, and the noise is completed on the server.
    Not covered: that one node is one person is the operator's duty. The server sees single
    updates.
    """

    in_flight: NodeRound | None = None
    messages: NodeMessages

    def __init__(
        self,
        plan: PrivacyPlan,
        account: Account,
        model: ServerModel,
        checkpoints: CheckpointFolder | None,
    ) -> None:
        super().__init__(plan, account, model, checkpoints)
        self._counts: dict[str, int] = {}

    told: bool = False

    @property
    def counts(self) -> dict[str, int]:
        """Count replies so far by who clipped them and who added noise; nodes connected last."""
        return dict(self._counts)

    def _count(self) -> None:
        assert self.in_flight is not None
        current = self.in_flight
        self._counts["connected"] = current.connected
        for name, more in (
            ("replies_with_noise_shares", current.trusted),
            ("replies_clipped_by_nodes", current.clipped_by_nodes),
            ("replies_clipped_by_server", current.clipped_by_server),
        ):
            self._counts[name] = self._counts.get(name, 0) + more

    def configure(self, number: int, grid: Grid) -> list[Message]:
        """Charge the round, draw connected nodes and build a message to each.

        Raises: BudgetExhausted where the round would pass the ceiling; nothing is charged then.
        """
        connected = connected_nodes(grid, self.messages.min_available_nodes)
        attempt = self.charge(number)
        streams = self.account.streams
        drawn = self.plan.draw_connected(streams, number, attempt, len(connected))
        self.in_flight = NodeRound(
            plan=self.plan,
            streams=streams,
            number=number,
            attempt=attempt,
            weights={name: p.detach() for name, p in self.model.parameters.items()},
            nodes=[connected[index] for index in drawn],
            connected=len(connected),
        )
        return [self._message(node, number) for node in self.in_flight.nodes]

    def _message(self, node: int, number: int) -> Message:
        assert self.in_flight is not None
        entries = dict(self.messages.config.items()) | {"server-round": number}
        content = RecordDict(
            {
                self.messages.arrayrecord_key: self.arrays,
                self.messages.configrecord_key: ConfigRecord(
                    entries | self.in_flight.order().entries()
                ),
            }
        )
        return Message(content, dst_node_id=node, message_type="train")

    def _record(
        self, current: RoundInFlight, step_norm: float, timed: dict[str, float]
    ) -> RoundRecord:
        """Describe the round; losses stay with the app, norms inside noised updates are unknown."""
        record = super()._record(current, step_norm, timed)
        assert self.in_flight is not None
        unknown = self.in_flight.trusted > 0
        return replace(
            record,
            train_loss=None,
            update_norm=None if unknown else record.update_norm,
            clipped_fraction=None if unknown else record.clipped_fraction,
        )

    def collect(self, send: Send, messages: list[Message], grid: Grid) -> None:
        """Send messages, take the replies, and say once who clips."""
        super().collect(send, messages, grid)
        assert self.in_flight is not None
        self._count()
        if self.told or not self.in_flight.outcomes:
            return
        self.told = True
        if self.in_flight.trusted:
            text = "%d replies hold noise shares: their nodes are trusted to have clipped."
            logging.getLogger(FLOWER_LOG).info(text, self.in_flight.trusted)
        elif self.in_flight.clipped_by_server:
            text = "The server clips updates itself; add per_layer_clip_mod to clip on the nodes."
            logging.getLogger(FLOWER_LOG).info(text)


def connected_nodes(grid: Grid, least: int) -> list[int]:
    """Wait until at least `least` nodes are connected; returns their ids, ascending."""
    while len(nodes := sorted(grid.get_node_ids())) < least:
        logging.getLogger(FLOWER_LOG).info("Waiting for nodes: %d of %d.", len(nodes), least)
        time.sleep(1.0)
    return nodes
