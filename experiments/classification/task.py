"""Offer a small classification task whose users see different classes; no download, no speech.

Copy this file to bring a task of your own: five methods are all that fedopt asks for;
`train_centrally` is an extra, for `fedopt run --strategy central`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from clients.task import TensorUserData
from privacy.errors import SettingsError

if TYPE_CHECKING:
    from fedopt.central import CentralTraining, Progress

FEATURES, CLASSES = 32, 10
CENTRAL_STEPS, CENTRAL_REPORT_EVERY, CENTRAL_RATE = 500, 100, 0.2


class ClassificationTask:
    """Draw points around class centres; each user has a class mix of its own.

    users: number of training users. examples: per user. hidden: width of the perceptron.
    concentration: of the Dirichlet class mix; small values make users more unlike.
    spread: deviation of points around their centre; larger is harder.

    Reference: Hsu et al. 2019 (arXiv 1909.06335) for the Dirichlet mix.
    """

    metric = "accuracy"
    splits = ("dev", "test")

    def __init__(
        self,
        users: int = 100,
        examples: int = 40,
        batch_size: int = 10,
        hidden: int = 64,
        concentration: float = 0.3,
        spread: float = 1.0,
        corpus_seed: int = 1,
    ) -> None:
        self.examples, self.batch_size, self.hidden = examples, batch_size, hidden
        self.concentration, self.spread, self.corpus_seed = concentration, spread, corpus_seed
        self.names = [f"user-{number:06d}" for number in range(users)]
        self.centres = np.random.default_rng(corpus_seed).normal(size=(CLASSES, FEATURES)) * 0.6

    def user_ids(self) -> Sequence[str]:
        """List the training users."""
        return self.names

    def user_data(self, user_id: str) -> TensorUserData:
        """Draw one user's examples, the same each time."""
        generator = np.random.default_rng([self.corpus_seed, 2, int(user_id.rpartition("-")[2])])
        mix = generator.dirichlet([self.concentration] * CLASSES)
        labels = generator.choice(CLASSES, size=self.examples, p=mix)
        return TensorUserData(self._points(labels, generator), self.batch_size)

    def model(self) -> nn.Module:
        """Build a perceptron with layer norm (batch norm would leak unclipped statistics)."""
        return nn.Sequential(
            nn.Linear(FEATURES, self.hidden),
            nn.LayerNorm(self.hidden),
            nn.ReLU(),
            nn.Linear(self.hidden, CLASSES),
        )

    def loss(self, model: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Compute the mean cross entropy of a batch."""
        points, labels = batch
        return nn.functional.cross_entropy(model(points), labels)

    def evaluate(self, model: nn.Module, split: str) -> Mapping[str, float]:
        """Measure loss and accuracy on points of unseen users."""
        generator = np.random.default_rng([self.corpus_seed, 3, self.splits.index(split)])
        labels = generator.integers(0, CLASSES, size=1000)
        points, targets = self._points(labels, generator)
        logits = model(points)
        return {
            "loss": float(nn.functional.cross_entropy(logits, targets)),
            "accuracy": float((logits.argmax(dim=1) == targets).float().mean()),
        }

    def train_centrally(
        self, model: nn.Module, wanted: CentralTraining, progress: Progress
    ) -> None:
        """Train a model in place by plain SGD on all users' points together.

        Raises: SettingsError where options are given: there are none.
        """
        if wanted.options:
            raise SettingsError(
                f"central training here has no hyperparameters, got {', '.join(wanted.options)}; "
                "leave them out"
            )
        kept = [self.user_data(user).tensors for user in self.user_ids()]
        everyone = TensorUserData(
            tuple(torch.cat(column) for column in zip(*kept, strict=True)), self.batch_size
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=wanted.learning_rate or CENTRAL_RATE)
        steps, every = wanted.steps or CENTRAL_STEPS, wanted.report_every or CENTRAL_REPORT_EVERY
        batches = _endless(everyone, np.random.default_rng(wanted.seed))
        losses = []
        for step in range(1, steps + 1):
            optimizer.zero_grad()
            loss = self.loss(model.train(), next(batches))
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(loss.item())
            if step % every == 0 or step == steps:
                with torch.inference_mode():
                    progress(step, float(np.mean(losses)), self.evaluate(model.eval(), "dev"))
                losses.clear()

    def _points(
        self, labels: NDArray[np.int64], generator: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        noise = generator.normal(size=(len(labels), FEATURES)) * self.spread
        points = (self.centres[labels] + noise).astype(np.float32)
        return torch.from_numpy(points), torch.from_numpy(labels.astype(np.int64))


def _endless(
    data: TensorUserData, generator: np.random.Generator
) -> Iterator[tuple[torch.Tensor, ...]]:
    while True:
        yield from data.batches(generator)


def task(
    users: int = 100,
    examples: int = 40,
    batch_size: int = 10,
    hidden: int = 64,
    concentration: float = 0.3,
    spread: float = 1.0,
    corpus_seed: int = 1,
) -> ClassificationTask:
    """Build the task from its options."""
    return ClassificationTask(
        users, examples, batch_size, hidden, concentration, spread, corpus_seed
    )
