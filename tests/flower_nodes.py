"""Give tests Flower nodes in this process: one ClientApp call per node, faults on request."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedopt.local_grid import WorkerGrid, answer, worker_context

Fault = Callable[[Message], Message | None]


class NodeGrid(WorkerGrid):
    """Answer messages for `nodes` nodes; `faults` changes, drops or adds replies by node id."""

    def __init__(self, app: ClientApp, nodes: int, faults: dict[int, Fault] | None = None) -> None:
        super().__init__(nodes)
        self.app = app
        self.faults = faults or {}
        self.contexts = {node: worker_context(node, nodes) for node in self.nodes}
        self.asked: list[list[int]] = []

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        asked = [self.number(message) for message in messages]
        self.asked.append([message.metadata.dst_node_id for message in asked])
        replies = []
        for message in asked:
            node = message.metadata.dst_node_id
            reply = answer(self.app, message, self.contexts[node])
            changed = self.faults[node](reply) if node in self.faults else reply
            if changed is not None:
                replies.append(changed)
        return replies


def adding_app(step: float = 0.5, mods: list[object] | None = None) -> ClientApp:
    """Build an app whose training adds `step` to every array, with node id as example count."""
    app = ClientApp(mods=mods or [])  # type: ignore[arg-type]

    @app.train()
    def train(message: Message, context: Context) -> Message:
        trained = {
            name: np.asarray(array.numpy() + np.asarray(step, array.numpy().dtype))
            for name, array in message.content["arrays"].items()
        }
        metrics = MetricRecord({"num-examples": context.node_id, "loss": 1.0})
        content = RecordDict({"arrays": record(trained), "metrics": metrics})
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        metrics = MetricRecord({"num-examples": 1, "accuracy": 0.5})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def record(arrays: dict[str, np.ndarray]) -> ArrayRecord:
    """Pack arrays as Flower does."""
    return ArrayRecord({name: Array(array) for name, array in arrays.items()})


def weights(rows: int = 300) -> ArrayRecord:
    """Give float32 zeros: a matrix and a vector."""
    return record({"w": np.zeros((rows, 200), np.float32), "b": np.zeros(rows, np.float32)})
