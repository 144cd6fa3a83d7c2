"""Time rounds of Flower's stock simulation, one SuperNode per user, on a trivial client job.

    python -m experiments.benchmarks.engine_flower --bytes 10000 --users 100 --rounds 5

Prints one JSON line: the wall seconds of each round, from the strategy's first to its last word.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

LAYERS = 10


def start_weights(size: int) -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """Build float32 weights of so many bytes in ten layers."""
    return {f"layer{k}": np.full(size // 4 // LAYERS, 0.01 * k, np.float32) for k in range(LAYERS)}


def trivial_app() -> ClientApp:
    """Build a client whose whole training is one addition and a clip."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        update = {
            name: np.full_like(array.numpy(), 0.01)
            for name, array in message.content.array_records["arrays"].items()
        }
        norm = float(np.sqrt(sum(float(np.vdot(part, part)) for part in update.values())))
        scale = np.float32(min(1.0, 1.0 / norm))
        trained = {
            name: Array(array.numpy() + update[name] * scale)
            for name, array in message.content.array_records["arrays"].items()
        }
        content = {
            "arrays": ArrayRecord(trained),
            "metrics": MetricRecord({"num-examples": 1}),
        }
        return Message(RecordDict(content), reply_to=message)  # type: ignore[arg-type]

    return app


class TimedFedAvg(FedAvg):
    """Average, and note when each round begins and ends."""

    def __init__(self, users: int) -> None:
        super().__init__(
            fraction_train=1.0,
            fraction_evaluate=0.0,
            min_train_nodes=users,
            min_available_nodes=users,
        )
        self.seconds: list[float] = []

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Note the beginning."""
        self.begun = time.perf_counter()
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Note the end."""
        found = super().aggregate_train(server_round, replies)
        self.seconds.append(time.perf_counter() - self.begun)
        return found


def main() -> None:
    """Run the simulation and print the rounds' seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bytes", type=int, default=10_000)
    parser.add_argument("--users", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    strategy, server = TimedFedAvg(given.users), ServerApp()

    @server.main()
    def serve(grid: Grid, context: Context) -> None:
        arrays = {name: Array(values) for name, values in start_weights(given.bytes).items()}
        strategy.start(grid, ArrayRecord(arrays), num_rounds=given.rounds, timeout=3600.0)

    run_simulation(
        server,
        trivial_app(),
        num_supernodes=given.users,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )
    print(json.dumps({"seconds": strategy.seconds}))


if __name__ == "__main__":
    main()
