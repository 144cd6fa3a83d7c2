"""Show that local training is plain SGD, bit for bit, and that users leave nothing behind."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from clients.local_training import LocalTrainer, UserFault, local_batches, trainable
from clients.protocol import LocalWork
from experiments.classification.task import ClassificationTask
from privacy.errors import SettingsError


def trainer_and_weights() -> tuple[LocalTrainer, ClassificationTask]:
    torch.manual_seed(5)
    task = ClassificationTask(users=3, examples=25, batch_size=10, hidden=8)
    trainer = LocalTrainer(task)
    trainer.receive({n: p.detach().numpy().copy() for n, p in trainable(trainer.model).items()})
    return trainer, task


def plain_loop(trainer: LocalTrainer, task: Any, work: LocalWork) -> list[torch.Tensor]:
    """Train as any torch program would, from the received weights; returns trained minus start."""
    torch.manual_seed(5)
    model = task.model()
    start = [view.clone() for view in torch.split(trainer.received, trainer.sizes)]
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=work.client_lr,
        momentum=work.momentum,
        weight_decay=work.weight_decay,
    )
    for batch in local_batches(task.user_data("user-000001"), work, np.random.default_rng(9)):
        optimizer.zero_grad()
        task.loss(model, batch).backward()
        for parameter, first in zip(model.parameters(), start, strict=True):
            assert parameter.grad is not None
            if work.proximal:
                parameter.grad.add_(parameter.detach() - first.view_as(parameter), alpha=0.3)
        if work.gradient_clip:
            nn.utils.clip_grad_norm_(model.parameters(), work.gradient_clip)
        optimizer.step()
    trained = [parameter.detach().reshape(-1) for parameter in model.parameters()]
    return [new - old for new, old in zip(trained, start, strict=True)]


@pytest.mark.parametrize(
    "work",
    [
        LocalWork(client_lr=0.5, local_steps=7),
        LocalWork(client_lr=0.5, local_steps=7, gradient_clip=0.3),
        LocalWork(client_lr=0.2, local_steps=7, momentum=0.9),
        LocalWork(client_lr=0.2, local_steps=7, weight_decay=0.05, gradient_clip=1.0),
        LocalWork(client_lr=0.2, local_steps=7, momentum=0.5, weight_decay=0.05),
        LocalWork(client_lr=0.5, local_steps=7, proximal=0.3),
        LocalWork(client_lr=0.5, local_steps=0, local_epochs=2, gradient_clip=0.3),
    ],
    ids=["plain", "clip", "momentum", "decay", "momentum-decay", "proximal", "epochs"],
)
def test_an_update_equals_that_of_a_plain_torch_loop_bit_for_bit(work: LocalWork) -> None:
    trainer, task = trainer_and_weights()
    trainer.train(task.user_data("user-000001"), work, np.random.default_rng(9))
    for layer, wanted in zip(trainer.layers, plain_loop(trainer, task, work), strict=True):
        assert torch.equal(layer, wanted)
        assert layer.abs().max() > 0.0


def test_the_proximal_gradient_is_that_of_half_mu_times_the_squared_distance() -> None:
    trainer, task = trainer_and_weights()
    trainer.weights.add_(0.25)
    batch = next(task.user_data("user-000001").batches(np.random.default_rng(1)))
    found = trainer.direction(trainer.differentiate(batch)[1], LocalWork(proximal=0.8))
    starts = torch.split(trainer.received, trainer.sizes)
    distance = sum(
        (parameter - start.view_as(parameter)).square().sum()
        for parameter, start in zip(trainer.parameters, starts, strict=True)
    )
    whole = task.loss(trainer.model, batch) + 0.4 * distance
    for got, wanted in zip(found, torch.autograd.grad(whole, trainer.parameters), strict=True):
        torch.testing.assert_close(got, wanted)


def test_the_mean_loss_is_that_of_the_steps() -> None:
    trainer, task = trainer_and_weights()
    data = task.user_data("user-000000")
    loss = trainer.train(data, LocalWork(client_lr=1e-9, local_steps=3), np.random.default_rng(2))
    torch.manual_seed(5)
    model = task.model()
    losses = [task.loss(model, batch).item() for batch in data.batches(np.random.default_rng(2))]
    assert loss == pytest.approx(np.mean(losses), rel=1e-5)


def test_local_steps_run_over_epochs_and_stop_in_the_middle_of_one() -> None:
    data = ClassificationTask(users=1, examples=25, batch_size=10).user_data("user-000000")

    def sizes(work: LocalWork) -> list[int]:
        batches = local_batches(data, work, np.random.default_rng(0))
        return [len(points) for points, _ in batches]

    assert sizes(LocalWork(local_steps=5)) == [10, 10, 5, 10, 10]
    assert sizes(LocalWork(local_steps=0, local_epochs=2)) == [10, 10, 5, 10, 10, 5]


class Counting(nn.Module):
    """Add to a buffer at each call, as models with running statistics of their own do."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self) -> torch.Tensor:
        assert isinstance(self.calls, torch.Tensor)
        self.calls += 1.0
        return (self.weight * self.calls).sum()


class CountingTask:
    """Have a loss that depends on how often the model was called."""

    def __init__(self, model: nn.Module, factor: float = 1.0) -> None:
        self.built, self.factor = model, factor

    def user_ids(self) -> list[str]:
        return ["0"]

    def user_data(self, user_id: str) -> Any:
        return self

    def batches(self, generator: np.random.Generator) -> Iterator[None]:
        yield None

    def model(self) -> nn.Module:
        return self.built

    def loss(self, model: nn.Module, batch: None) -> torch.Tensor:
        found: torch.Tensor = model() * self.factor
        return found

    def evaluate(self, model: nn.Module, split: str) -> dict[str, float]:
        return {}


def test_a_buffer_that_one_user_changed_is_as_built_for_the_next() -> None:
    task = CountingTask(Counting())
    trainer = LocalTrainer(task)
    updates = []
    for _ in range(2):
        trainer.train(task, LocalWork(local_steps=1), np.random.default_rng(0))
        updates.append(trainer.update.clone())
    assert torch.equal(updates[0], updates[1])


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_a_fault_of_the_user(factor: float) -> None:
    task = CountingTask(Counting(), factor)
    with pytest.raises(UserFault, match="loss"):
        LocalTrainer(task).train(task, LocalWork(local_steps=1), np.random.default_rng(0))


def test_a_user_without_data_and_a_user_past_its_deadline_are_faults() -> None:
    trainer, task = trainer_and_weights()
    data = task.user_data("user-000000")
    generator = np.random.default_rng(0)
    with pytest.raises(UserFault, match="no data"):
        trainer.train(
            ClassificationTask(users=1, examples=0).user_data("user-000000"), LocalWork(), generator
        )
    with pytest.raises(UserFault, match="deadline"):
        trainer.train(data, LocalWork(user_seconds=1.0), generator, deadline=0.0)


def test_batch_norm_with_running_statistics_is_refused_and_without_them_taken() -> None:
    refused = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with pytest.raises(SettingsError, match="batch norm"):
        LocalTrainer(CountingTask(refused))
    taken = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False))
    assert LocalTrainer(CountingTask(taken)).sizes == [4, 2, 2, 2]


def test_only_trainable_parameters_are_layers_and_tied_ones_count_once() -> None:
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False), nn.Linear(2, 1))
    model[1].weight = model[0].weight
    model[2].weight.requires_grad = False
    assert list(trainable(model)) == ["0.weight", "2.bias"]


def test_weights_of_another_model_are_refused_by_name() -> None:
    trainer, _ = trainer_and_weights()
    with pytest.raises(SettingsError, match=r"0\.weight"):
        trainer.receive({"0.weight": np.zeros((1, 1), np.float32)})
