"""Say what a learning task must offer, so that any model and data can be trained."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch

from privacy.errors import SettingsError

if TYPE_CHECKING:
    import numpy as np

Batch = Any
"""Whatever the task's own `loss` understands: a tuple, a dict, a dataclass of tensors."""


class UserData(Protocol):
    """Hold all data of one user."""

    def batches(self, generator: np.random.Generator) -> Iterator[Batch]:
        """Yield the batches of one epoch, in an order drawn from `generator`, on the CPU."""
        ...


@runtime_checkable
class Task(Protocol):
    """Offer users, their data, a model, a loss and an evaluation.

    A task may also have these, all optional:
    `metric`: name of the headline metric that `evaluate` returns (default "loss");
    `splits`: tuple of the splits that `evaluate` knows (default ("dev",));
    `prepare(device)`: told before training on which device its batches will be used;
    `move(batch, device)`: put a batch on a device (default: tensors in tuples, lists, dicts);
    `halve(batch)`: cut a batch that the device's memory does not hold: list of (weight, batch),
    where the loss of the whole is the weighted sum of theirs (default: tensors by rows);
    `train_centrally(model, wanted, progress)`: train in one place, for `--strategy central`;
    `resumes_centrally`: True where that keeps and takes its state, for `--resume` of such a run;
    `signature()`: mapping of str to str, what the weights depend on and their shapes do not show,
    such as a token set: model files carry it, and `--init-from` refuses a file with another one;
    `describe()`: mapping of str to str, int or float for the report: corpus, hours, drops;
    `findings()`: sequence of clients.findings.Finding, which only grows: each file or record that
    was found faulty while reading, once; workers hand on what is new;
    `amounts()`: mapping of str to int, which only grow: what was trained on, for example frames;
    `describe_training(amounts, seconds)`: as `describe`, of a training whose workers took so many
    seconds to read and train on these amounts.
    """

    def user_ids(self) -> Sequence[str]:
        """List the training users, sorted; position in this list is the user's number."""
        ...

    def user_data(self, user_id: str) -> UserData:
        """Give all data of one user."""
        ...

    def model(self) -> torch.nn.Module:
        """Build the model with its initial weights, drawn from torch's global generator."""
        ...

    def loss(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Compute the scalar mean loss of one batch."""
        ...

    def evaluate(self, model: torch.nn.Module, split: str) -> Mapping[str, float]:
        """Measure the model on a held-out split, for example {"loss": 0.4, "wer": 0.2}."""
        ...


@dataclass(frozen=True)
class TensorUserData:
    """Hold one user's examples as tensors of equal first dimension, cut into batches.

    tensors: tuple of tensors (examples, ...); a batch is the tuple of their rows.
    """

    tensors: tuple[torch.Tensor, ...]
    batch_size: int

    def batches(self, generator: np.random.Generator) -> Iterator[tuple[torch.Tensor, ...]]:
        """Yield the examples once, shuffled."""
        order = torch.from_numpy(generator.permutation(len(self.tensors[0])))
        if not len(order):
            return
        rows = [tensor.index_select(0, order) for tensor in self.tensors]
        shuffled = [torch.unsafe_split(tensor, self.batch_size) for tensor in rows]
        yield from zip(*shuffled, strict=True)


def load_task(name: str, options: Mapping[str, Any]) -> Task:
    """Build a task from "module:name", a callable that takes the task's options.

    Raises: SettingsError when the module or the name is missing, or the options do not fit.
    """
    module_name, _, attribute = name.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as problem:
        raise SettingsError(
            f"task must be MODULE:NAME of something importable, got {name!r} ({problem}); "
            "for example experiments.classification.task:task"
        ) from problem
    try:
        built = factory(**options)
    except TypeError as problem:
        raise SettingsError(f"task {name!r} does not take these options: {problem}") from problem
    if not isinstance(built, Task):
        raise SettingsError(
            f"task {name!r} must offer user_ids, user_data, model, loss and evaluate, "
            f"got {type(built).__name__}"
        )
    return built
