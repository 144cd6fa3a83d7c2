"""Train many users of a small model at once: stacked weights, one step of operations for all.

Which users share a stack changes no bit of any user's update (checked before a run chooses this
path), so a user that has to be trained again elsewhere adds what it would have added here.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from clients.batches import mapped
from clients.local_training import LocalTrainer, UserFault, local_batches, move
from clients.stacked_step import StackedStep, steps_plainly
from clients.stacked_trace import Tensors, Unstackable, trace

if TYPE_CHECKING:
    import numpy as np

    from clients.protocol import LocalWork
    from clients.task import Batch, UserData

FEWEST = 2
"""Width of the narrowest stack: alone, some operations take another path with other last bits."""

MOST_STEPS = 64
"""Traced steps that are kept, one for each shape of batch and width of stack."""

Signature = tuple[Any, ...]


@dataclass(frozen=True)
class LoadedUser:
    """Hold what one user's local steps need, read beforehand.

    batches: flat tensors by step. signature: their shapes; users share a stack where it is equal.
    rebuild: makes a batch of the flat tensors. state: of torch's generator when the user begins.
    """

    user: int
    batches: tuple[Tensors, ...]
    signature: Signature
    rebuild: Callable[[Sequence[torch.Tensor]], Batch]
    state: torch.Tensor


def load_user(
    user: int,
    data: UserData,
    work: LocalWork,
    generator: np.random.Generator,
    trainer: LocalTrainer,
) -> LoadedUser:
    """Read all batches of a user's local training.

    Raises: UserFault where there are none, Unstackable where a batch holds other than tensors.
    """
    found = list(local_batches(data, work, generator))
    if trainer.moves:
        found = [move(trainer.task, batch, trainer.device) for batch in found]
    if not found:
        raise UserFault("has no data")
    batches, layouts = zip(*map(flattened, found), strict=True)
    if any(layout != layouts[0] for layout in layouts):
        raise Unstackable("the batches differ in their layout")
    shapes = [tuple([(leaf.shape, leaf.dtype) for leaf in batch]) for batch in batches]
    first = found[0]
    return LoadedUser(
        user,
        batches,
        (layouts[0], *shapes),
        lambda flat: rebuilt(first, iter(flat)),
        torch.random.get_rng_state(),
    )


def flattened(batch: Batch) -> tuple[Tensors, Any]:
    """List the tensors of a batch of tuples, lists and dicts, and how they are put together.

    Raises: Unstackable where it holds anything else.
    """
    kind: Any = type(batch)
    if kind is tuple or kind is list:
        values = list(batch)
    elif kind is dict:
        kind, values = tuple(batch), list(batch.values())
    elif isinstance(batch, torch.Tensor):
        return [batch], None
    else:
        raise Unstackable(f"the batches hold a {type(batch).__name__}")
    if set(map(type, values)) == {torch.Tensor}:
        return values, (kind, len(values))
    parts, layouts = zip(*map(flattened, values), strict=True)
    return [leaf for part in parts for leaf in part], (kind, layouts)


def rebuilt(like: Batch, flat: Iterator[torch.Tensor]) -> Batch:
    """Put flat tensors together as another batch is."""
    return mapped(like, lambda _: next(flat))


class StackTrainer:
    """Hold the stacks of one worker and train users in them.

    width: users of the widest stack; it takes width times the memory of the weights, and as much
    again for gradients and intermediate results.
    """

    def __init__(self, trainer: LocalTrainer, width: int) -> None:
        self.trainer, self.width = trainer, width
        shapes = [parameter.shape for parameter in trainer.parameters]
        self.received = [
            view.view(shape)
            for view, shape in zip(
                torch.split(trainer.received, trainer.sizes), shapes, strict=True
            )
        ]
        self.stack = [torch.empty(width, *shape, device=trainer.device) for shape in shapes]
        self.steps: OrderedDict[Any, StackedStep] = OrderedDict()
        self.generators = [torch.Generator() for _ in range(width)]

    def train(self, users: Sequence[LoadedUser], work: LocalWork) -> list[float]:
        """Train up to `width` users of one signature; returns each user's mean loss.

        The weights stay in the stack: `updates` turns them into the users' updates.
        Raises: Unstackable where the task's loss cannot be traced.
        """
        padded = [*users, *[users[-1]] * (width_for(len(users), self.width) - len(users))]
        weights = [layer[: len(padded)] for layer in self.stack]
        for layer, start in zip(weights, self.received, strict=True):
            layer.copy_(start.expand_as(layer))
        for generator, user in zip(self.generators, padded, strict=False):
            generator.set_state(user.state)
        self.trainer.model.train()
        momenta: Tensors = []
        losses = []
        for number in range(len(users[0].batches)):
            columns = zip(*(user.batches[number] for user in padded), strict=True)
            batch = [torch.stack(parts) for parts in columns]
            step = self._step(users[0], number, weights, batch, work)
            generators = self.generators[: len(padded)]
            losses.append(step(weights, self.received, batch, momenta, generators))
        means: list[float] = torch.stack(losses).mean(dim=0)[: len(users)].tolist()
        return means

    def updates(self, users: int) -> Tensors:
        """Turn the weights of the first users of the stack into their updates, (users, *shape)."""
        found = [layer[:users] for layer in self.stack]
        for layer, start in zip(found, self.received, strict=True):
            layer.sub_(start)
        return found

    def _step(
        self, user: LoadedUser, number: int, weights: Tensors, batch: Tensors, work: LocalWork
    ) -> StackedStep:
        """Find the traced step of a shape of batch, or trace it."""
        key = (user.signature[0], user.signature[1 + number], len(weights[0]), work)
        if key not in self.steps:
            trainer = self.trainer
            traced = trace(
                trainer.task,
                trainer.model,
                trainer.names,
                weights,
                batch,
                user.rebuild,
                fuse=steps_plainly(work),
            )
            self.steps[key] = StackedStep(traced, work)
            if len(self.steps) > MOST_STEPS:
                self.steps.popitem(last=False)
        self.steps.move_to_end(key)
        return self.steps[key]


def width_for(users: int, most: int) -> int:
    """Choose the width of a stack from a ladder of halves, so that few widths are traced.

    >>> [width_for(users, 100) for users in (100, 60, 50, 13, 1)]
    [100, 100, 50, 13, 2]
    """
    width = most
    while width > FEWEST and math.ceil(width / 2) >= max(users, FEWEST):
        width = math.ceil(width / 2)
    return width


def stacks_of(users: Sequence[LoadedUser], width: int) -> Iterator[list[LoadedUser]]:
    """Put users of equal signature into stacks of at most `width`, in the order they come."""
    buckets: dict[Signature, list[LoadedUser]] = {}
    for user in users:
        buckets.setdefault(user.signature, []).append(user)
    for bucket in buckets.values():
        for start in range(0, len(bucket), width):
            yield bucket[start : start + width]
