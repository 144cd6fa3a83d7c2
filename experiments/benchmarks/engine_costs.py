"""Measure what a run costs besides training: start-up, workers, cohort, population, memory.

    python -m experiments.benchmarks.engine_costs '{"size": "1M", "cohort": 40, "rounds": 3}'

Runs one simulation in this fresh process and prints one JSON line about it.
"""

from __future__ import annotations

import importlib
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clients.protocol import MechanismSettings
from clients.worker import peak_megabytes
from experiments.benchmarks.engine_rounds import settings
from fedopt import simulate
from privacy.seeds import Streams


class TrivialUser:
    """Have an update at hand without any training; see clients.worker.ReadyUpdate."""

    def write_update(
        self, layers: Sequence[torch.Tensor], mechanism: MechanismSettings, streams: Streams
    ) -> None:
        """Move every weight by the same amount."""
        for layer in layers:
            layer.fill_(0.01)


class TrivialTask:
    """Do the least work that a client can do, so that what is left is the engine's own."""

    metric = "loss"
    splits = ("dev",)

    def __init__(self, parameters: int, users: int) -> None:
        self.parameters, self.users = parameters, users

    def user_ids(self) -> Sequence[str]:
        """List the users."""
        return [f"{number:04d}" for number in range(self.users)]

    def user_data(self, user_id: str) -> TrivialUser:
        """Give the update at hand."""
        return TrivialUser()

    def model(self) -> nn.Module:
        """Build ten layers of weights."""
        each = self.parameters // 10
        return nn.ParameterList([torch.zeros(each) for _ in range(10)])

    def loss(self, model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        """Give no loss: nothing is trained."""
        return torch.zeros(())

    def evaluate(self, model: nn.Module, split: str) -> Mapping[str, float]:
        """Measure nothing."""
        return {"loss": 0.0}


def task(parameters: int, users: int = 300) -> TrivialTask:
    """Build the trivial task by name, for workers."""
    return TrivialTask(parameters, users)


def measured(wish: Mapping[str, Any]) -> dict[str, Any]:
    """Run one simulation and measure it.

    wish: size and cohort and rounds as of engine_rounds.settings, further engine and client
    settings; `parameters` for the trivial task in place of a perceptron; `population` for virtual
    users.
    """
    torch.set_num_threads(1)
    given = dict(wish)
    parameters, population = given.pop("parameters", None), given.pop("population", None)
    tables = settings(given.pop("size", "10k"), given.pop("cohort"), given.pop("rounds"), **given)
    if parameters is not None:
        name = "experiments.benchmarks.engine_costs:task"
        tables["task"] = {"task": name, "options": {"parameters": parameters}}
        tables["privacy"] |= {"noise_multiplier": 0.0}  # the other side clips and adds no noise
    if population is not None:
        tables["privacy"] |= {"population": population, "virtual_users": True}
    import_everything(tables["engine"]["engine"])
    rows: list[Mapping[str, Any]] = []
    ready: list[float] = []

    def row(found: Mapping[str, Any]) -> None:
        ready.append(time.perf_counter())
        rows.append(found)

    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        simulate(tables, output=Path(folder) / "run", callbacks=[row], report=False)
    trained = [found for found in rows if found["round"]]
    seconds = [later - sooner for sooner, later in itertools.pairwise(ready)]
    users = [found["cohort"] for found in trained]
    return {
        "wish": dict(wish),
        "seconds_to_first_round": round(ready[0] - begun, 4),
        "seconds_per_round": round(statistics.median(seconds[1:] or seconds), 5),
        "users_per_second": round(sum(users[1:]) / max(sum(seconds[1:]), 1e-9), 2),
        "milliseconds_per_user": round(
            statistics.median(s / max(n, 1) for s, n in zip(seconds, users, strict=True)) * 1e3, 4
        ),
        "shares_of_round": shares(trained, seconds),
        "driver_megabytes": round(peak_megabytes(torch.device("cpu")), 1),
        "worker_megabytes": round(max(found["peak_memory_megabytes"] for found in trained), 1),
    }


def shares(rows: Sequence[Mapping[str, Any]], seconds: Sequence[float]) -> dict[str, float]:
    """Say where rounds went: charge and messages beforehand, workers and back, and what followed.

    seconds: of each round, until its line is in the log. What follows the exchange is the server's
    step, the checkpoint, the ledger's commit and the log.
    """
    whole = sum(seconds)
    spent = {
        name: sum(row["seconds_by_phase"][name] for row in rows) / whole
        for name in ("configure", "exchange")
    }
    spent["release"] = 1.0 - sum(spent.values())
    return {name: round(share, 3) for name, share in spent.items()}


def import_everything(engine: str) -> None:
    """Import what a run imports on its way, by a run of one user; start-up is timed after that."""
    with tempfile.TemporaryDirectory() as folder:
        simulate(settings("10k", 1, 1, users_at_once=1), output=Path(folder) / "run", report=False)
    importlib.import_module(f"fedopt.{engine}_grid")


if __name__ == "__main__":
    print(json.dumps(measured(json.loads(sys.argv[1]))))
