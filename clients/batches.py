"""Walk through batches that are put together of tuples, lists and dictionaries of tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from clients.task import Batch


def mapped(batch: Batch, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
    """Put a batch together of its changed tensors; what is no tensor stays as it is.

    >>> mapped({"points": [torch.ones(2)], "name": "a"}, lambda tensor: tensor.sum())
    {'points': [tensor(2.)], 'name': 'a'}
    """
    if isinstance(batch, torch.Tensor):
        return change(batch)
    if isinstance(batch, dict):
        return {key: mapped(value, change) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return type(batch)(mapped(value, change) for value in batch)
    return batch


def tensors_of(batch: Batch) -> list[torch.Tensor]:
    """List a batch's tensors in the order in which `mapped` meets them."""
    found: list[torch.Tensor] = []

    def kept(tensor: torch.Tensor) -> torch.Tensor:
        found.append(tensor)
        return tensor

    mapped(batch, kept)
    return found
