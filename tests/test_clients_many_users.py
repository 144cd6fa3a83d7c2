"""Show that users trained in a stack get what each would get alone, whoever shares the stack."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from clients.many_users import flattened, rebuilt, width_for
from clients.protocol import (
    LocalWork,
    MechanismSettings,
    PartialSum,
    Piece,
    StreamSettings,
    TrainRequest,
)
from clients.stacked_trace import Unstackable
from clients.task import TensorUserData
from clients.worker import Worker
from privacy.noise import grid_spacing

CLIP = 10.0


def perceptron() -> nn.Module:
    """Build what is fused: two linear layers."""
    return nn.Sequential(nn.Linear(12, 17), nn.ReLU(), nn.Linear(17, 5))


def normed() -> nn.Module:
    """Build layers whose gradients are no products."""
    return nn.Sequential(nn.Linear(12, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 5, bias=False))


def dropping() -> nn.Module:
    """Build a model that draws random numbers."""
    return nn.Sequential(nn.Linear(12, 30), nn.Dropout(0.4), nn.ReLU(), nn.Linear(30, 5))


class Convolution(nn.Module):
    """Convolve, and use one weight twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, 4, 3, padding=1)
        self.square = nn.Linear(12, 12, bias=False)
        self.last = nn.Linear(48, 5)

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        """Classify."""
        mixed = self.square(torch.tanh(self.square(points)))
        scores: torch.Tensor = self.last(torch.relu(self.first(mixed.unsqueeze(1))).flatten(1))
        return scores


class Counting(nn.Module):
    """Change a buffer at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 5)
        self.calls: torch.Tensor
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        """Classify and count."""
        self.calls += 1
        scores: torch.Tensor = self.linear(points)
        return scores


class Branching(nn.Module):
    """Decide by the data."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 5)

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        """Classify, in a way that depends on what is seen."""
        scores: torch.Tensor = self.linear(points)
        return scores * 2.0 if float(scores.detach().sum()) > 0.0 else scores


class Points:
    """Hold a user's examples in dictionaries, some of them broken."""

    def __init__(self, data: TensorUserData, fault: str) -> None:
        self.data, self.fault = data, fault

    def batches(self, generator: np.random.Generator) -> Iterator[Any]:
        """Yield the batches."""
        if self.fault == "raise":
            raise ValueError("this user is broken")
        for points, labels in self.data.batches(generator):
            if self.fault == "nan":
                yield {"points": points * float("nan"), "labels": [labels]}
            elif self.fault == "label":
                yield {"points": points, "labels": [labels + 100]}
            elif self.fault == "text":
                yield {"points": points, "labels": [labels], "note": "text"}
            else:
                yield {"points": points, "labels": [labels]}


class StackTask:
    """Classify points; each user has its own number of them."""

    def __init__(
        self, build: Callable[[], nn.Module] = perceptron, faults: Mapping[int, str] | None = None
    ) -> None:
        self.build, self.faults = build, faults or {}

    def user_ids(self) -> Sequence[str]:
        """List the users."""
        return [f"{number:03d}" for number in range(12)]

    def user_data(self, user_id: str) -> Points:
        """Give a user 18 or 19 examples."""
        user = int(user_id)
        generator = torch.Generator().manual_seed(user)
        points = torch.randn(18 + user % 2, 12, generator=generator)
        labels = torch.randint(0, 5, (len(points),), generator=generator)
        return Points(TensorUserData((points, labels), 6), self.faults.get(user, ""))

    def model(self) -> nn.Module:
        """Build the model."""
        torch.manual_seed(5)
        return self.build()

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        """Compute the cross entropy."""
        return nn.functional.cross_entropy(model(batch["points"]), batch["labels"][0])

    def evaluate(self, model: nn.Module, split: str) -> Mapping[str, float]:
        """Measure nothing."""
        return {"loss": 0.0}


def train(worker: Worker, users: Sequence[int], work: LocalWork) -> PartialSum:
    parameters = dict(worker.trainer.model.named_parameters())
    weights = {
        name: (np.sin(np.arange(p.numel())) * 0.3).astype(np.float32).reshape(tuple(p.shape))
        for name, p in parameters.items()
    }
    mechanism = MechanismSettings("global", (CLIP,) * len(weights), grid_spacing(CLIP), 0.0, 12)
    streams = StreamSettings(1, "ab", False, 4, 0)
    return worker.train(
        TrainRequest(weights, (Piece(0, tuple(users), 0),), mechanism, streams, work)
    )


def work_of(width: int, **changes: Any) -> LocalWork:
    return LocalWork(client_lr=0.2, local_steps=7, users_at_once=width, **changes)


RULES: list[dict[str, float]] = [
    {},
    {"gradient_clip": 0.3},
    {"momentum": 0.8},
    {"weight_decay": 0.1, "momentum": 0.5},
    {"proximal": 0.5, "gradient_clip": 0.5},
]


CASES = [(perceptron, rule) for rule in RULES]
CASES += [(build, rule) for build in (normed, dropping, Convolution) for rule in RULES[:2]]


@pytest.mark.parametrize(("build", "rule"), CASES)
def test_a_stack_trains_each_user_as_one_user_at_a_time_does(
    build: Callable[[], nn.Module], rule: dict[str, Any]
) -> None:
    users = range(12)
    alone = train(Worker(StackTask(build)), users, work_of(1, **rule))
    together = train(Worker(StackTask(build)), users, work_of(5, **rule))
    spacing = grid_spacing(CLIP)
    np.testing.assert_allclose(
        together.total * spacing, alone.total * spacing, rtol=2e-4, atol=2e-5
    )
    assert [outcome.user for outcome in together.outcomes] == list(users)
    losses = [[outcome.loss for outcome in partial.outcomes] for partial in (alone, together)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


@functools.cache
def kept_worker(build: Callable[[], nn.Module]) -> Worker:
    """Keep a worker with the steps that it has traced."""
    return Worker(StackTask(build))


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_who_shares_a_stack_changes_no_bit(data: st.DataObject) -> None:
    worker = kept_worker(data.draw(st.sampled_from([normed, dropping])))
    users = data.draw(st.permutations(range(12)))
    cut = data.draw(st.integers(1, 11))
    whole = train(worker, range(12), work_of(12)).total
    parts = [train(worker, part, work_of(12)).total for part in (users[:cut], users[cut:])]
    assert whole.tobytes() == (parts[0] + parts[1]).tobytes()


@pytest.mark.parametrize("fault", ["raise", "nan", "label", "text"])
def test_a_broken_user_changes_no_bit_of_the_others_in_its_stack(fault: str) -> None:
    healthy = train(Worker(StackTask()), [0, 3, 9], work_of(4)).total
    found = train(Worker(StackTask(faults={6: fault})), [0, 3, 6, 9], work_of(4))
    faults = {outcome.user: outcome.fault for outcome in found.outcomes}
    assert [user for user, why in faults.items() if why] == ([] if fault == "text" else [6])
    if fault == "text":  # its batches are no tensors, so it is trained by itself
        only = train(Worker(StackTask()), [6], work_of(1)).total
        healthy = healthy + only
    assert found.total.tobytes() == healthy.tobytes()


@pytest.mark.parametrize("build", [Counting, Branching])
def test_a_model_that_cannot_be_stacked_is_trained_one_user_at_a_time(
    build: Callable[[], nn.Module],
) -> None:
    alone = train(Worker(StackTask(build)), range(6), work_of(1))
    together = train(Worker(StackTask(build)), range(6), work_of(4))
    assert together.total.tobytes() == alone.total.tobytes()
    assert not any(outcome.fault for outcome in together.outcomes)


def test_a_deadline_is_kept_user_by_user() -> None:
    found = train(Worker(StackTask()), range(4), work_of(4, user_seconds=1e-9))
    assert all("deadline" in outcome.fault for outcome in found.outcomes)


def test_training_in_stacks_leaves_the_callers_random_numbers_alone() -> None:
    worker = Worker(StackTask(dropping))
    before = torch.random.get_rng_state()
    train(worker, range(6), work_of(4))
    assert torch.equal(before, torch.random.get_rng_state())


@given(users=st.integers(1, 200), most=st.integers(2, 200))
def test_a_width_holds_its_users_and_is_one_of_few(users: int, most: int) -> None:
    users = min(users, most)
    ladder = {width_for(n, most) for n in range(1, most + 1)}
    assert max(users, 2) <= width_for(users, most) <= most
    assert len(ladder) <= 9


def test_a_batch_is_put_together_as_it_was() -> None:
    batch = {"a": torch.zeros(2), "b": [torch.ones(1), (torch.ones(3), torch.zeros(4))]}
    flat, layout = flattened(batch)
    again = rebuilt(batch, iter(flat))
    assert [leaf.numel() for leaf in flat] == [2, 1, 3, 4]
    assert flattened(again)[1] == layout
    assert flattened({"a": torch.zeros(2)})[1] != flattened({"c": torch.zeros(2)})[1]
    with pytest.raises(Unstackable, match="hold a str"):
        flattened([torch.zeros(1), "text"])
