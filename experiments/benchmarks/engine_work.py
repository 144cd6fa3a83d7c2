"""Give every engine the same work: synthetic users, perceptrons of four sizes, a plain loop.

This file needs torch alone, so that it also runs beside other frameworks in their environments.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTHS = {
    "10k": (64, 128, 10),
    "100k": (256, 300, 100, 10),
    "1M": (784, 1000, 200, 10),
    "10M": (784, 3000, 2400, 10),
}
USERS, STEPS, BATCH, CLASSES = 300, 10, 10, 10
CLIENT_LR, CLIP_NORM, NOISE_MULTIPLIER = 0.1, 0.5, 0.8


def perceptron(size: str) -> nn.Sequential:
    """Build a perceptron of a named size: "10k" has 9,610 parameters, "1M" 987,210."""
    torch.manual_seed(0)
    widths = WIDTHS[size]
    layers: list[nn.Module] = []
    for wide, narrow in itertools.pairwise(widths):
        layers += [nn.Linear(wide, narrow), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def parameter_count(size: str) -> int:
    """Count the parameters of a named size."""
    return sum(parameter.numel() for parameter in perceptron(size).parameters())


@functools.cache
def examples(size: str) -> tuple[Tensor, Tensor]:
    """Draw all users' examples: (users, steps * batch, features) and their labels."""
    generator = torch.Generator().manual_seed(0)
    count = STEPS * BATCH
    points = torch.randn(USERS, count, WIDTHS[size][0], generator=generator)
    return points, torch.randint(0, CLASSES, (USERS, count), generator=generator)


@dataclass
class PlainLoop:
    """Train cohorts as a careful person writes it: one module, torch.optim.SGD, DP by hand."""

    size: str

    def __post_init__(self) -> None:
        self.model = perceptron(self.size)
        self.points, self.labels = examples(self.size)
        self.parameters = list(self.model.parameters())
        self.weights = [parameter.detach().clone() for parameter in self.parameters]
        self.generator = torch.Generator().manual_seed(1)

    def round(self, users: Sequence[int]) -> None:
        """Train one cohort and step the weights: clip, sum, one Gaussian noise, mean."""
        total = [torch.zeros_like(weight) for weight in self.weights]
        for user in users:
            self._train(user % USERS)
            with torch.no_grad():
                update = [p - w for p, w in zip(self.parameters, self.weights, strict=True)]
                norm = torch.sqrt(sum((part.square().sum() for part in update), torch.zeros(())))
                if norm > CLIP_NORM:
                    torch._foreach_mul_(update, float(CLIP_NORM / norm))
                torch._foreach_add_(total, update)
        with torch.no_grad():
            for weight, part in zip(self.weights, total, strict=True):
                noise = torch.randn(part.shape, generator=self.generator)
                part.add_(noise, alpha=CLIP_NORM * NOISE_MULTIPLIER)
                weight.add_(part, alpha=1.0 / len(users))

    def _train(self, user: int) -> None:
        with torch.no_grad():
            for parameter, weight in zip(self.parameters, self.weights, strict=True):
                parameter.copy_(weight)
        optimizer = torch.optim.SGD(self.parameters, lr=CLIENT_LR)
        points, labels = self.points[user], self.labels[user]
        for start in range(0, STEPS * BATCH, BATCH):
            optimizer.zero_grad()
            batch = slice(start, start + BATCH)
            functional.cross_entropy(self.model(points[batch]), labels[batch]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
