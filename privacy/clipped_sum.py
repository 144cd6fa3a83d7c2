"""Clip each user's update and add it to an exact sum, reading the update twice and copying nothing.

The sum is kept as 64-bit integers on the grid of privacy.noise. Norms are float64; the update is
scaled and rounded toward zero in pieces that stay in the processor's cache.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from privacy.clipping import CHUNK, clip_scales

if TYPE_CHECKING:
    import torch

MARGIN = 1.25 * 2.0**-23
"""What is kept free below every bound, relative: a float32 factor and a float32 product may each be
2**-24 too large, float64 sums of 10^9 squares far less."""

LARGEST_FACTOR = 3.4e38
"""Beyond it a factor is no float32; only where a layer of denormal numbers is normalised."""


@dataclass(frozen=True)
class Span:
    """Name a piece of the update that is worked on at once: small layers, or a part of a large one.

    layers: their numbers. lengths: how much of each lies here. starts: where each begins here.
    """

    start: int
    stop: int
    layers: tuple[int, ...]
    lengths: tuple[int, ...]

    @functools.cached_property
    def starts(self) -> list[int]:
        """Give the place of each layer's first element, counted from the span's."""
        return [0, *itertools.accumulate(self.lengths[:-1])]


@dataclass(frozen=True)
class Clipped:
    """Hold what clipping did to one update, layer by layer.

    norms: L2 norms before. scales: factors; 1.0 where a layer was left as it was.
    finite: False where the update held NaN or infinity and nothing was added.
    """

    norms: list[float]
    scales: list[float]
    finite: bool

    @property
    def whole_norm(self) -> float:
        """Give the L2 norm of the whole update before clipping."""
        return math.sqrt(math.fsum(norm**2 for norm in self.norms))

    @property
    def was_clipped(self) -> bool:
        """Tell whether any layer was changed."""
        return any(scale != 1.0 for scale in self.scales)


class ClippedSum:
    """Add up clipped updates of users as exact integers.

    sizes: elements of each layer, in order; an update is their flat concatenation.
    total: int64 (coordinates,), in units of the grid spacing; cleared by `start`.

    Guarantee: each added update has L2 norm at most C on the grid, rounding included, so adding or
    removing one user changes `total` by at most C; the order of adding changes no bit.
    Not covered: norms and factors that are returned are not private.

    >>> import torch
    >>> summed = ClippedSum([2], "cpu")
    >>> summed.start("global", [1.0], 2.0**-40)
    >>> summed.add(torch.tensor([3.0, 4.0])).whole_norm
    5.0
    >>> [round(value * 2.0**-40, 6) for value in summed.total.tolist()]
    [0.6, 0.8]
    """

    def __init__(self, sizes: Sequence[int], device: str | torch.device = "cpu") -> None:
        import numpy as np
        import torch

        self.sizes = list(sizes)
        self.total = torch.zeros(sum(sizes), dtype=torch.int64, device=device)
        self.spans = list(cut(self.sizes, CHUNK))
        longest = max((span.stop - span.start for span in self.spans), default=0)
        self.wide = np.empty(longest, dtype=np.float64)
        self.product = np.empty(longest, dtype=np.float32)
        self.integers = np.empty(longest, dtype=np.int64)
        self.on_cpu = self.total.device.type == "cpu"

    def start(self, clipping: str, bounds: Sequence[float], spacing: float) -> None:
        """Begin an empty sum under the bounds C_h of a clipping mode."""
        self.total.zero_()
        self.clipping, self.spacing = clipping, spacing
        self.bounds = [bound * (1.0 - MARGIN) for bound in bounds]

    def add(self, update: torch.Tensor) -> Clipped:
        """Clip one update and add it; nothing is added where it holds NaN or infinity.

        update: float32 (coordinates,), not changed.

        Reference: McMahan et al. 2018 (arXiv 1710.06963), Section 2; per layer: arXiv 2310.00098,
        Definition 3.
        """
        squares = self._squares(update) if self.on_cpu else self._squares_on_device(update)
        found = self.clip(squares)
        if found.finite and found.norms:
            factors = [scale / self.spacing for scale in found.scales]
            (self._add_scaled if self.on_cpu else self._add_scaled_on_device)(update, factors)
        return found

    def clip(self, squares: Sequence[float]) -> Clipped:
        """Say what clipping does to an update whose layers have these sums of squares."""
        norms = [math.sqrt(square) if square >= 0.0 else math.nan for square in squares]
        if not all(map(math.isfinite, norms)):
            return Clipped(norms, [0.0] * len(norms), finite=False)
        return Clipped(norms, clip_scales(self.clipping, norms, self.bounds) if norms else [], True)

    def _squares(self, update: torch.Tensor) -> list[float]:
        """Sum the squares of each layer in float64, a span at a time.

        NumPy adds up on one thread however many there are, so the bits hang on nothing else.
        """
        import numpy as np

        given = update.numpy()
        squares = [0.0] * len(self.sizes)
        for span in self.spans:
            wide = self.wide[: span.stop - span.start]
            np.copyto(wide, given[span.start : span.stop])
            np.multiply(wide, wide, out=wide)
            for layer, square in zip(
                span.layers, np.add.reduceat(wide, span.starts).tolist(), strict=True
            ):
                squares[layer] += square
        return squares

    def _add_scaled(self, update: torch.Tensor, factors: Sequence[float]) -> None:
        """Scale, round and add span by span; NumPy converts to integers twice as fast as torch."""
        import numpy as np

        given, total = update.numpy(), self.total.numpy()
        for span in self.spans:
            length = span.stop - span.start
            product, integers = self.product[:length], self.integers[:length]
            for factor, start, stop in equal_runs(span, factors):
                np.multiply(
                    given[span.start + start : span.start + stop],
                    factor,
                    out=product[start:stop],
                    dtype=np.float32 if factor < LARGEST_FACTOR else np.float64,
                    casting="same_kind",
                )
            np.copyto(integers, product, casting="unsafe")
            total[span.start : span.stop] += integers

    def _squares_on_device(self, update: torch.Tensor) -> list[float]:
        """Sum the squares of each layer in float64, all layers at once; one wait for the device."""
        import torch

        if not self.sizes:
            return []
        norms = torch._foreach_norm(torch.split(update, self.sizes), 2, dtype=torch.float64)
        squares: list[float] = torch.stack(norms).square_().tolist()
        return squares

    def _add_scaled_on_device(self, update: torch.Tensor, factors: Sequence[float]) -> None:
        """Scale, round and add all layers at once."""
        import torch

        layers = list(torch.split(update, self.sizes))
        for number, factor in enumerate(factors):
            if factor >= LARGEST_FACTOR:
                layers[number] = layers[number].to(torch.float64)
        scaled = torch._foreach_mul(layers, list(factors)) if layers else []
        parts = torch.split(self.total, self.sizes)
        for part, values in zip(parts, scaled, strict=True):
            part.add_(values.to(torch.float32).to(torch.int64))


def equal_runs(span: Span, factors: Sequence[float]) -> Iterator[tuple[float, int, int]]:
    """Join neighbouring layers of a span that have one factor: (factor, start, stop) in the span.

    >>> list(equal_runs(Span(0, 6, (0, 1, 2), (1, 2, 3)), [0.5, 0.5, 1.0]))
    [(0.5, 0, 3), (1.0, 3, 6)]
    """
    start = stop = 0
    factor = factors[span.layers[0]]
    for layer, length in zip(span.layers, span.lengths, strict=True):
        if factors[layer] != factor:
            yield factor, start, stop
            factor, start = factors[layer], stop
        stop += length
    yield factor, start, stop


def cut(sizes: Sequence[int], most: int) -> Iterator[Span]:
    """Cut layers into spans of at most `most` elements.

    >>> [(span.start, span.layers, span.lengths) for span in cut([2, 1, 5], 3)]
    [(0, (0, 1), (2, 1)), (3, (2,), (3,)), (6, (2,), (2,))]
    """
    start = 0
    layers: list[int] = []
    lengths: list[int] = []
    for layer, size in enumerate(sizes):
        left = size
        while left:
            if layers and sum(lengths) + left > most:
                yield Span(start, start + sum(lengths), tuple(layers), tuple(lengths))
                start, layers, lengths = start + sum(lengths), [], []
            layers.append(layer)
            lengths.append(min(left, most))
            left -= lengths[-1]
    if layers:
        yield Span(start, start + sum(lengths), tuple(layers), tuple(lengths))
