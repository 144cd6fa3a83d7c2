"""Time whole private rounds of fedopt beside the same rounds of a plain loop, in turn."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clients.task import TensorUserData
from experiments.benchmarks.engine_work import (
    BATCH,
    CLIENT_LR,
    CLIP_NORM,
    NOISE_MULTIPLIER,
    STEPS,
    USERS,
    PlainLoop,
    examples,
    parameter_count,
    perceptron,
)
from fedopt import simulate

POPULATION = 1_000_000


class PerceptronTask:
    """Offer the benchmark's users and perceptron as a task."""

    metric = "loss"
    splits = ("dev",)

    def __init__(self, size: str) -> None:
        self.size = size
        self.points, self.labels = examples(size)

    def user_ids(self) -> Sequence[str]:
        """List the users."""
        return [f"{number:04d}" for number in range(USERS)]

    def user_data(self, user_id: str) -> TensorUserData:
        """Give one user's examples, ready in memory."""
        user = int(user_id)
        return TensorUserData((self.points[user], self.labels[user]), BATCH)

    def model(self) -> nn.Module:
        """Build the perceptron."""
        return perceptron(self.size)

    def loss(self, model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        """Compute the mean cross entropy."""
        points, labels = batch
        return nn.functional.cross_entropy(model(points), labels)

    def evaluate(self, model: nn.Module, split: str) -> Mapping[str, float]:
        """Measure nothing: only training is timed."""
        return {"loss": 0.0}


def task(size: str) -> PerceptronTask:
    """Build the task by name, for workers."""
    return PerceptronTask(size)


def settings(size: str, cohort: int, rounds: int, **changes: Any) -> dict[str, dict[str, Any]]:
    """Give the settings of a benchmark run; `changes` are further engine or client settings."""
    client = {"client_lr": CLIENT_LR, "local_steps": STEPS, "gradient_clip": 0.0}
    engine = {"engine": "local", "device": "cpu"}
    for name, value in changes.items():
        (engine if name in ("engine", "workers") else client)[name] = value
    return {
        "privacy": {
            "population": POPULATION,
            "cohort": 10 * cohort,
            "simulated_cohort": cohort,
            "rounds": rounds,
            "noise_multiplier": NOISE_MULTIPLIER,
            "clip_norm": CLIP_NORM,
            "clipping": "global",
        },
        "server": {"strategy": "fedavg", "server_lr": 1.0},
        "client": client,
        "task": {"task": "experiments.benchmarks.engine_rounds:task", "options": {"size": size}},
        "engine": engine,
        "run": {"eval_every": 10**6},
    }


@dataclass
class Stopwatch:
    """Time fedopt's rounds and, between them, as many users in the plain loop.

    Everything between two rows of the log counts: cohort, ledger, messages, training, clipping,
    noise, server step, checkpoint. CPU seconds are this process's.
    """

    plain: PlainLoop | None
    ours: list[tuple[float, float]] = field(default_factory=list)
    plains: list[tuple[float, float]] = field(default_factory=list)
    rows: list[Mapping[str, Any]] = field(default_factory=list)
    chosen: dict[str, Any] = field(default_factory=dict)
    cpu: float = 0.0
    wall: float = 0.0

    def start(self, facts: Mapping[str, Any]) -> None:
        """Note what is about to run."""
        self.chosen = dict(facts)

    def row(self, row: Mapping[str, Any]) -> None:
        """Take a round's time per user, then give the plain loop its turn."""
        users = row["cohort"]
        if row["round"] and users:
            self.rows.append(row)
            cpu, wall = time.process_time() - self.cpu, time.perf_counter() - self.wall
            self.ours.append((cpu / users, wall / users))
            if self.plain is not None:
                cpu, wall = time.process_time(), time.perf_counter()
                self.plain.round(range(users))
                spent = time.process_time() - cpu, time.perf_counter() - wall
                self.plains.append((spent[0] / users, spent[1] / users))
        self.cpu, self.wall = time.process_time(), time.perf_counter()


def milliseconds(times: Sequence[tuple[float, float]], warm_up: int = 1) -> dict[str, float]:
    """Give the medians after the first rounds, milliseconds per user."""
    cpu, wall = zip(*times[warm_up:], strict=True)
    return {
        "cpu": round(statistics.median(cpu) * 1e3, 4),
        "wall": round(statistics.median(wall) * 1e3, 4),
    }


def beside_plain(size: str, cohort: int, rounds: int, users_at_once: int | None) -> dict[str, Any]:
    """Time private rounds of one size; users_at_once: None lets the run choose."""
    torch.set_num_threads(1)
    watch = Stopwatch(PlainLoop(size))
    with tempfile.TemporaryDirectory() as folder:
        simulate(
            settings(size, cohort, rounds + 1, users_at_once=users_at_once),
            output=Path(folder) / "run",
            callbacks=[watch.row],
            on_start=watch.start,
            report=False,
        )
    ours, plain = milliseconds(watch.ours), milliseconds(watch.plains)
    turns = zip(watch.ours[1:], watch.plains[1:], strict=True)
    ratios = [ours_turn[0] / plain_turn[0] for ours_turn, plain_turn in turns]
    return {
        "size": size,
        "parameters": parameter_count(size),
        "cohort": cohort,
        "rounds": rounds,
        "users_at_once": watch.chosen["users_at_once"],
        "note": watch.chosen["note"],
        "fedopt_ms_per_user": ours,
        "plain_ms_per_user": plain,
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "share_outside_training": outside_training(watch.rows[1:]),
    }


def outside_training(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Give each phase's share of the rounds' time that is not training steps."""
    whole = sum(row["seconds"] for row in rows)
    phases = {name for row in rows for name in row["seconds_by_phase"]}
    spent = {
        name: sum(row["seconds_by_phase"].get(name, 0.0) for row in rows) / whole
        for name in sorted(phases - {"exchange"})
    }
    spent["rest"] = 1.0 - sum(spent.values())
    return {name: round(share, 4) for name, share in spent.items() if name != "training"}
