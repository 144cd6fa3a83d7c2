"""Show that a batch which memory does not hold gives the same gradient in pieces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from clients.local_training import LocalTrainer
from clients.memory import cut, halve_rows
from clients.protocol import LocalWork
from clients.task import TensorUserData


class SmallDevice:
    """Train on batches whose loss needs memory by rows, on a device that holds so many rows."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.asked: list[int] = []

    def user_ids(self) -> Sequence[str]:
        """List one user."""
        return ["only"]

    def user_data(self, user_id: str) -> TensorUserData:
        """Draw 37 examples."""
        generator = torch.Generator().manual_seed(4)
        points = torch.randn(37, 6, generator=generator)
        return TensorUserData((points, (points.sum(dim=1) > 0).long()), batch_size=12)

    def model(self) -> nn.Module:
        """Build a small perceptron."""
        torch.manual_seed(2)
        return nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 2))

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        """Compute the mean loss, or run out of memory as a GPU does."""
        points, labels = batch
        self.asked.append(len(points))
        if len(points) > self.rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return nn.functional.cross_entropy(model(points), labels)

    def evaluate(self, model: nn.Module, split: str) -> Mapping[str, float]:
        """Measure nothing."""
        return {"loss": 0.0}


def update_of(task: SmallDevice, work: LocalWork) -> tuple[torch.Tensor, float]:
    trainer = LocalTrainer(task)
    weights = {n: p.detach().numpy().copy() for n, p in trainer.model.named_parameters()}
    trainer.receive(weights)
    loss = trainer.train(task.user_data("only"), work, np.random.default_rng(1))
    return trainer.update.clone(), loss


@pytest.mark.parametrize("rows", [1, 3, 5, 11])
def test_a_user_whose_batches_do_not_fit_gets_the_same_update_in_pieces(rows: int) -> None:
    work = LocalWork(client_lr=0.3, local_steps=6, momentum=0.5, gradient_clip=0.4)
    small = SmallDevice(rows)
    wanted, whole_loss = update_of(SmallDevice(100), work)
    found, loss = update_of(small, work)
    torch.testing.assert_close(found, wanted, rtol=2e-5, atol=1e-7)
    assert loss == pytest.approx(whole_loss, rel=1e-5)
    assert sum(size > rows for size in small.asked) <= 4, "later batches begin in pieces"


def test_memory_that_does_not_hold_a_single_example_is_an_error_of_that_user() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        update_of(SmallDevice(0), LocalWork(local_steps=2))


def test_the_next_user_begins_with_whole_batches_again() -> None:
    task = SmallDevice(8)
    trainer = LocalTrainer(task)
    data, work = task.user_data("only"), LocalWork(local_steps=1)
    for _ in range(2):
        trainer.train(data, work, np.random.default_rng(1))
    assert task.asked == [12, 6, 6, 12, 6, 6]


def test_halves_weigh_as_their_rows_and_a_single_row_stays_whole() -> None:
    rows = {"points": torch.arange(5), "more": (torch.arange(10).view(5, 2),)}
    pieces = cut(SmallDevice(1), rows, 2)
    assert [weight for weight, _ in pieces] == pytest.approx([0.2, 0.2, 0.2, 0.4])
    assert torch.cat([piece["points"] for _, piece in pieces]).tolist() == list(range(5))
    assert [piece["more"][0].shape[0] for _, piece in pieces] == [1, 1, 1, 2]
    assert len(cut(SmallDevice(1), rows, 10)) == 5


@pytest.mark.parametrize(
    "batch", ["text", torch.tensor(3.0), (torch.zeros(4), torch.zeros(3)), [], None]
)
def test_batches_that_cannot_be_cut_by_rows_stay_whole(batch: Any) -> None:
    assert halve_rows(batch) == [(1.0, batch)] or isinstance(batch, tuple)
    assert len(halve_rows(batch)) == 1


def test_a_task_may_halve_its_batches_itself() -> None:
    class Halving(SmallDevice):
        def halve(self, batch: Any) -> list[tuple[float, Any]]:
            """Cut off the first row."""
            weight = 1.0 / len(batch)
            return (
                [(weight, batch[:1]), (1.0 - weight, batch[1:])]
                if len(batch) > 1
                else [(1.0, batch)]
            )

    pieces = cut(Halving(1), torch.arange(4.0), 2)
    assert sum(weight * float(piece.mean()) for weight, piece in pieces) == pytest.approx(1.5)
