"""Say who the canaries of an audit are: which direction each has, and which are left out.

A canary's direction has random signs, so that its part in each layer is exactly as long as that
layer's bound. Half of the canaries lie in all layers; each of the others lies in one layer alone,
where a clip that bounds layers but not their sum would show.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from privacy.seeds import Streams

FEWEST_CANARIES = 16
WEIGHTS_PER_CANARY = 10
EXCESS = 4.0
"""A canary's update is so many times too long: without the clip it would show as such."""
SMALLEST_LAYER = 1000
"""Canaries of one layer lie in layers of this size or more: in fewer directions they collide."""
CHUNK = 1 << 20

Vector = NDArray[np.float32]


@dataclass(frozen=True)
class Canaries:
    """Derive every canary from the streams of a run; nothing is kept.

    sizes: elements of each layer. bounds: the plan's bound of each layer ("global": C for all).
    """

    count: int
    streams: Streams
    sizes: tuple[int, ...]
    clipping: str
    bounds: tuple[float, ...]

    @cached_property
    def layers(self) -> list[int]:
        """List the layers that have canaries of their own: the large ones, or the largest."""
        large = [layer for layer, size in enumerate(self.sizes) if size >= SMALLEST_LAYER]
        return large or [int(np.argmax(self.sizes))]

    @cached_property
    def included(self) -> NDArray[np.bool_]:
        """Toss each canary's fair coin: heads takes part, tails contributes zeros."""
        return np.array([self.takes_part(index) for index in range(self.count)])

    def takes_part(self, index: int) -> bool:
        """Toss one canary's coin."""
        return bool(self._generator(index).random() < 0.5)

    @cached_property
    def starts(self) -> list[int]:
        """Give the place of each layer's first coordinate."""
        return [0, *map(int, np.cumsum(self.sizes)[:-1])]

    def layer(self, index: int) -> int | None:
        """Name the one layer that a canary lies in; None where it lies in all."""
        if index % 2 == 0:
            return None
        return self.layers[index // 2 % len(self.layers)]

    def lengths(self) -> list[float]:
        """Give the L2 norm that a canary of all layers has in each layer after the clip."""
        if self.clipping != "global":
            return list(self.bounds)
        total = sum(self.sizes)
        return [self.bounds[0] * math.sqrt(size / total) for size in self.sizes]

    def signs(self, index: int) -> Vector:
        """Draw a canary's random signs, for the layers that it lies in."""
        layer = self.layer(index)
        size = sum(self.sizes) if layer is None else self.sizes[layer]
        generator = self._generator(index)
        generator.random()  # the coin
        bits = np.frombuffer(generator.bytes(-(-size // 8)), dtype=np.uint8)
        return np.unpackbits(bits, count=size).astype(np.float32) * 2 - 1

    def update(self, index: int) -> list[Vector | None]:
        """Build a canary's update by layer; None for layers without it.

        Its norm is EXCESS times the clip norm, in one layer as in all.
        """
        if not self.takes_part(index):
            return [None] * len(self.sizes)
        layer, signs = self.layer(index), self.signs(index)
        if layer is not None:
            length = EXCESS * math.hypot(*self.lengths()) / math.sqrt(self.sizes[layer])
            return [
                signs * np.float32(length) if h == layer else None for h in range(len(self.sizes))
            ]
        parts = np.split(signs, self.starts[1:])
        return [
            part * np.float32(EXCESS * length / math.sqrt(max(size, 1)))
            for part, length, size in zip(parts, self.lengths(), self.sizes, strict=True)
        ]

    def scores(self, vector: NDArray[np.float64]) -> NDArray[np.float64]:
        """Take the inner product of a vector with every canary's unit direction.

        vector: (coordinates,), all layers in order. Returns (canaries,).
        """
        whole = self._weighted(vector)
        found = np.empty(self.count)
        for index in range(self.count):
            layer = self.layer(index)
            if layer is None:
                found[index] = _dot(self.signs(index), whole)
                continue
            size = self.sizes[layer]
            part = vector[self.starts[layer] : self.starts[layer] + size]
            found[index] = _dot(self.signs(index), part) / math.sqrt(size)
        return found

    def _weighted(self, vector: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scale each layer by the size of a coordinate of a whole canary's unit direction."""
        lengths = self.lengths()
        norm = math.hypot(*lengths)
        scales = [
            length / norm / math.sqrt(max(size, 1))
            for length, size in zip(lengths, self.sizes, strict=True)
        ]
        weighted: NDArray[np.float64] = vector * np.repeat(scales, self.sizes)
        return weighted

    def dimensions(self, *, one_layer: bool) -> float:
        """Count the independent coordinates in which noise meets the canaries' directions.

        A small layer with a large share of the bound counts for more than its size.
        """
        if one_layer:
            return float(min(self.sizes[layer] for layer in self.layers))
        lengths = np.array(self.lengths())
        shares = lengths**2 / (lengths**2).sum()
        return float(1 / (shares**2 / np.maximum(self.sizes, 1)).sum())

    def whole(self) -> NDArray[np.bool_]:
        """Mark the canaries that lie in all layers."""
        return np.array([self.layer(index) is None for index in range(self.count)])

    def _generator(self, index: int) -> np.random.Generator:
        return self.streams.generator("canary", 0, index)


def canary_problems(count: int, sizes: Sequence[int]) -> list[str]:
    """Refuse more canaries than the model has room for: their directions must hardly overlap."""
    most = sum(sizes) // WEIGHTS_PER_CANARY
    if count <= most:
        return []
    return [
        f"audit must be at most {most} canary users for a model of {sum(sizes):,} weights, "
        f"got {count}; lower --audit or take a larger model"
    ]


def _dot(signs: Vector, vector: NDArray[np.float64]) -> float:
    """Sum up in float64, chunk by chunk, so that no copy of the whole vector is made."""
    return math.fsum(
        float(np.dot(signs[start : start + CHUNK], vector[start : start + CHUNK]))
        for start in range(0, len(signs), CHUNK)
    )
