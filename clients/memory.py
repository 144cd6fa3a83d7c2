"""Take a batch in smaller pieces where the device's memory does not hold it whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from clients.batches import mapped, tensors_of

if TYPE_CHECKING:
    from clients.task import Batch, Task

Weighted = list[tuple[float, "Batch"]]
Tensors = list[torch.Tensor]
Differentiate = Callable[["Batch"], tuple[torch.Tensor, Tensors]]


class PiecewiseBatches:
    """Differentiate the loss of a batch, in pieces from the first time memory runs out.

    A piece that does not fit is halved again; once halved, the user's later batches begin there.
    The weighted sum of the pieces' gradients is the gradient of the whole batch, up to rounding.

    Not covered: random draws (dropout) differ between a batch and its pieces.
    """

    def __init__(self, task: Task, differentiate: Differentiate) -> None:
        self.task, self.differentiate = task, differentiate
        self.halvings = 0

    def __call__(self, batch: Batch) -> tuple[torch.Tensor, Tensors]:
        """Give the loss and the gradients of a batch.

        Raises: torch.OutOfMemoryError where not even a single example fits, or the task's batches
        cannot be cut.
        """
        while True:
            pieces = cut(self.task, batch, self.halvings)
            try:
                return self._summed(pieces)
            except torch.OutOfMemoryError:
                if len(cut(self.task, batch, self.halvings + 1)) == len(pieces):
                    raise
            self.halvings += 1
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _summed(self, pieces: Weighted) -> tuple[torch.Tensor, Tensors]:
        if len(pieces) == 1:
            return self.differentiate(pieces[0][1])
        total = torch.zeros(())
        sums: Tensors = []
        for weight, piece in pieces:
            loss, gradients = self.differentiate(piece)
            total = total.to(loss.device) + weight * loss.detach()
            if sums:
                torch._foreach_add_(sums, gradients, alpha=weight)
            else:
                sums = list(torch._foreach_mul(gradients, weight))
        return total, sums


def cut(task: Task, batch: Batch, halvings: int) -> Weighted:
    """Halve a batch so many times; the weights of the pieces sum to 1."""
    halve: Callable[[Batch], Weighted] = getattr(task, "halve", halve_rows)
    pieces: Weighted = [(1.0, batch)]
    for _ in range(halvings):
        pieces = [
            (weight * share, half) for weight, piece in pieces for share, half in halve(piece)
        ]
    return pieces


def halve_rows(batch: Batch) -> Weighted:
    """Cut tensors of equal first dimension in two, weighted by rows; a single row stays whole."""
    tensors = tensors_of(batch)
    rows = len(tensors[0]) if tensors and tensors[0].dim() else 1
    if rows < 2 or any(tensor.dim() == 0 or len(tensor) != rows for tensor in tensors):
        return [(1.0, batch)]
    middle = rows // 2
    return [
        (middle / rows, mapped(batch, lambda tensor: tensor[:middle])),
        ((rows - middle) / rows, mapped(batch, lambda tensor: tensor[middle:])),
    ]
