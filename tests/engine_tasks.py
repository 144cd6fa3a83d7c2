"""Offer a tiny task whose users fail on order; imported by name in workers and child processes.

What a user does is read from the file `behaviours.json` of the task's folder at each visit. It is
no setting of the run, so a run with faults has the same random streams as one without.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from privacy.errors import SettingsError


class TwoLayers(nn.Module):
    """Hold two vectors."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.zeros(size))
        self.second = nn.Parameter(torch.ones(3))


class Points:
    """Hold one user's target, and what its user does wrong."""

    def __init__(self, target: torch.Tensor, behaviour: str) -> None:
        self.target = target
        self.behaviour = behaviour

    def batches(self, generator: np.random.Generator) -> Iterator[tuple[torch.Tensor, str]]:
        """Yield three batches, shifted at random."""
        for _ in range(3):
            shift = torch.from_numpy(generator.normal(size=len(self.target)).astype(np.float32))
            yield self.target + 0.1 * shift, self.behaviour


class EngineTask:
    """Pull two vectors towards each user's target.

    zero: updates are exactly zero. folder: of behaviours.json; users also leave marks there.
    """

    metric = "distance"
    splits = ("dev",)

    def __init__(self, users: int, size: int, zero: bool, folder: str, pause: float) -> None:
        self.users, self.size, self.zero, self.pause = users, size, zero, pause
        self.folder = Path(folder) if folder else None

    def user_ids(self) -> Sequence[str]:
        """List the users."""
        return [f"{number:04d}" for number in range(self.users)]

    def user_data(self, user_id: str) -> Points:
        """Give one user's data; some behaviours act here."""
        time.sleep(self.pause)
        behaviour = self._behaviour(int(user_id))
        misbehave(behaviour)
        generator = np.random.default_rng(int(user_id))
        target = torch.from_numpy(generator.normal(size=self.size).astype(np.float32))
        return Points(target[:0] if behaviour == "empty" else target, behaviour)

    def _behaviour(self, user: int) -> str:
        if self.folder is None:
            return ""
        (self.folder / f"visit-{os.getpid()}").write_text(str(user))
        orders: dict[str, str] = json.loads((self.folder / "behaviours.json").read_text())
        return orders.get(str(user), "")

    def model(self) -> nn.Module:
        """Build the model."""
        return TwoLayers(self.size)

    def loss(self, model: nn.Module, batch: tuple[torch.Tensor, str]) -> torch.Tensor:
        """Measure the distance to the target."""
        target, behaviour = batch
        assert isinstance(model, TwoLayers)
        distance = (model.first - target).square().mean() + model.second.square().mean()
        if behaviour == "nan":
            return distance * float("nan")
        if behaviour == "slow":
            time.sleep(0.3)
        return distance * 0.0 if self.zero else distance

    def evaluate(self, model: nn.Module, split: str) -> Mapping[str, float]:
        """Measure how far the weights are from zero."""
        assert isinstance(model, TwoLayers)
        return {"loss": 1.0, "distance": float(model.first.square().sum())}


def misbehave(behaviour: str) -> None:
    """Do what a broken user does to the process that trains it."""
    if behaviour == "raise":
        raise ValueError("this user is broken")
    if behaviour == "exit":
        sys.exit("this user leaves")
    if behaviour == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if behaviour == "hang":
        time.sleep(3600)
    if behaviour == "greedy":
        np.empty(30 * 10**9, np.uint8)


def task(
    users: int = 24,
    size: int = 16,
    zero: bool = False,
    folder: str = "",
    pause: float = 0.0,
    builds: int = 0,
) -> EngineTask:
    """Build the task from its options.

    builds: how many processes may build it; 0 for any number.
    """
    if builds:
        (Path(folder) / f"built-{os.getpid()}").touch()
        if len(list(Path(folder).glob("built-*"))) > builds:
            raise SettingsError("the task cannot be built here; this is for a test")
    return EngineTask(users, size, zero, folder, pause)
