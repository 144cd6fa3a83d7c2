"""Clip the updates of many users at once, where they lie stacked, and add them to an exact sum.

Norms, factors and integers are, bit by bit, those of `ClippedSum.add` for one user after another;
only the calls are fewer, which is what a small model's time goes into.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from privacy.clipped_sum import LARGEST_FACTOR, Clipped, ClippedSum, Span
from privacy.clipping import CHUNK

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray


class Piece(NamedTuple):
    """Name the part of a layer that lies in one span: where it begins in the layer and the sum."""

    layer: int
    begin: int
    place: int
    length: int


def add_stack(summed: ClippedSum, stack: Sequence[torch.Tensor]) -> list[Clipped]:
    """Clip the updates of a stack and add them; a user with NaN or infinity adds nothing.

    stack: float32 (users, *shape) by layer; rows of users that add nothing become zeros.
    Returns: what clipping did to each user.

    Reference: as `ClippedSum.add`.
    Guarantee: as `ClippedSum` for each user, whoever else is in the stack.
    Not covered: norms and factors that are returned are not private.

    >>> import torch
    >>> summed = ClippedSum([2], "cpu")
    >>> summed.start("global", [1.0], 2.0**-40)
    >>> [one.whole_norm for one in add_stack(summed, [torch.tensor([[3.0, 4.0], [0.375, 0.5]])])]
    [5.0, 0.625]
    """
    import numpy as np

    rows = [layer.reshape(len(layer), -1) for layer in stack]
    if not rows:
        return []
    squares = _squares(summed, rows) if summed.on_cpu else _squares_on_device(rows)
    found = [summed.clip(one) for one in squares]
    factors = np.array([[scale / summed.spacing for scale in one.scales] for one in found])
    for user, one in enumerate(found):
        if one.finite and factors[user].max() < LARGEST_FACTOR:
            continue
        if one.finite:
            import torch

            summed.add(torch.cat([layer[user] for layer in rows]))
        for layer in rows:
            layer[user] = 0.0
        factors[user] = 0.0
    scale_and_add = _add_scaled if summed.on_cpu else _add_scaled_on_device
    scale_and_add(summed, rows, factors.astype(np.float32))
    return found


def pieces_of(spans: Sequence[Span]) -> Iterator[Piece]:
    """Cut layers where spans end, so that sums of squares are rounded as for one user.

    >>> list(pieces_of([Span(0, 3, (0, 1), (2, 1)), Span(3, 5, (1,), (2,))]))[1:]
    [Piece(layer=1, begin=0, place=2, length=1), Piece(layer=1, begin=1, place=3, length=2)]
    """
    done: defaultdict[int, int] = defaultdict(int)
    for span in spans:
        place = span.start
        for layer, length in zip(span.layers, span.lengths, strict=True):
            yield Piece(layer, done[layer], place, length)
            done[layer] += length
            place += length


def tiles(
    summed: ClippedSum, rows: Sequence[torch.Tensor]
) -> Iterator[tuple[Piece, slice, NDArray[np.float32]]]:
    """Give the stack in parts of a few users that stay in the processor's cache."""
    arrays = [layer.numpy() for layer in rows]
    for piece in pieces_of(summed.spans):
        users = max(1, CHUNK // piece.length)
        for first in range(0, len(arrays[piece.layer]), users):
            chosen = slice(first, first + users)
            columns = slice(piece.begin, piece.begin + piece.length)
            yield piece, chosen, arrays[piece.layer][chosen, columns]


def _squares(summed: ClippedSum, rows: Sequence[torch.Tensor]) -> list[list[float]]:
    """Sum the squares of each user's layers in float64."""
    import numpy as np

    squares = np.zeros((len(rows[0]), len(rows)))
    wide = np.empty(CHUNK)
    for piece, chosen, given in tiles(summed, rows):
        flat = wide[: given.size]
        np.copyto(flat.reshape(given.shape), given)
        np.multiply(flat, flat, out=flat)
        starts = np.arange(0, given.size, piece.length)
        squares[chosen, piece.layer] += np.add.reduceat(flat, starts)
    found: list[list[float]] = squares.tolist()
    return found


def _add_scaled(
    summed: ClippedSum, rows: Sequence[torch.Tensor], factors: NDArray[np.float32]
) -> None:
    """Scale and round each user's layers and add up the users' integers."""
    import numpy as np

    total = summed.total.numpy()
    products, integers = np.empty(CHUNK, dtype=np.float32), np.empty(CHUNK, dtype=np.int64)
    for piece, chosen, given in tiles(summed, rows):
        product = products[: given.size].reshape(given.shape)
        whole = integers[: given.size].reshape(given.shape)
        np.multiply(given, factors[chosen, piece.layer, None], out=product)
        np.copyto(whole, product, casting="unsafe")
        total[piece.place : piece.place + piece.length] += whole.sum(axis=0)


def _squares_on_device(rows: Sequence[torch.Tensor]) -> list[list[float]]:
    """Sum the squares of each user's layers in float64; one wait for the device."""
    import torch

    norms = [torch.linalg.vector_norm(layer, dim=1, dtype=torch.float64) for layer in rows]
    squares: list[list[float]] = torch.stack(norms, dim=1).square_().tolist()
    return squares


def _add_scaled_on_device(
    summed: ClippedSum, rows: Sequence[torch.Tensor], factors: NDArray[np.float32]
) -> None:
    """Scale and round each user's layers and add up the users' integers, a layer at a time."""
    import torch

    there = torch.from_numpy(factors).to(summed.total.device)
    parts = torch.split(summed.total, summed.sizes)
    for number, (part, layer) in enumerate(zip(parts, rows, strict=True)):
        part.add_((layer * there[:, number, None]).to(torch.int64).sum(dim=0))
