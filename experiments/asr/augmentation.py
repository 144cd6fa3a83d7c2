"""Vary features at random, so that a model hears more speakers than there are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Span = tuple[int, int]


@dataclass(frozen=True)
class Variation:
    """Hold how one utterance is varied, as it was drawn.

    frames: of the varied features. speed, tract: factors on time and on the frequency axis; 1.0
    leaves it alone. bin_masks, frame_masks: (start, end) of what is filled with 0.
    """

    frames: int
    speed: float = 1.0
    tract: float = 1.0
    bin_masks: tuple[Span, ...] = ()
    frame_masks: tuple[Span, ...] = ()

    def __call__(self, features: Floats) -> Floats:
        """Give a varied copy of (frames, bins) features; what is not varied is given as it is."""
        varied = features
        if self.speed != 1.0:
            varied = stretch(varied, self.speed, axis=0)
        if self.tract != 1.0:
            varied = warp_bins(varied, self.tract)
        if self.bin_masks or self.frame_masks:
            varied = varied.copy()
        for start, end in self.bin_masks:
            varied[:, start:end] = 0.0
        for start, end in self.frame_masks:
            varied[start:end] = 0.0
        return varied


@dataclass(frozen=True)
class Augmentation:
    """Say how features are varied; the defaults leave them alone.

    speed, tract: largest relative stretch of time and of the frequency axis (vocal tract);
    masks are filled with 0, the mean. A mask is narrower than its bound: bounds are exclusive.
    time_fraction: a time mask is also shorter than this share of the utterance.
    """

    speed: float = 0.0
    tract: float = 0.0
    frequency_masks: int = 0
    frequency_width: int = 30
    time_masks: int = 0
    time_width: int = 50
    time_fraction: float = 0.1

    def draw(self, frames: int, bins: int, generator: np.random.Generator) -> Variation:
        """Draw how features of (frames, bins) are varied."""
        speed = tract = 1.0
        if self.speed:
            speed += generator.uniform(-self.speed, self.speed)
            frames = stretched_length(frames, speed)
        if self.tract:
            tract += generator.uniform(-self.tract, self.tract)
        bound = min(self.time_width, int(self.time_fraction * frames))
        return Variation(
            frames,
            speed,
            tract,
            tuple(
                _draw_mask(bins, self.frequency_width, generator)
                for _ in range(self.frequency_masks)
            ),
            tuple(_draw_mask(frames, bound, generator) for _ in range(self.time_masks)),
        )

    def __call__(self, features: Floats, generator: np.random.Generator) -> Floats:
        """Give a varied copy of (frames, bins) features; the number of frames may change."""
        frames, bins = features.shape
        return self.draw(frames, bins, generator)(features)


PAPER_SPEC_AUGMENT = Augmentation(frequency_masks=2, time_masks=10)
"""SpecAugment with the constants of arXiv 2310.00098."""


def _draw_mask(size: int, bound: int, generator: np.random.Generator) -> Span:
    """Draw a mask narrower than `bound`, anywhere inside `size`."""
    width = int(generator.integers(0, max(1, min(bound, size + 1))))
    start = int(generator.integers(0, size - width + 1))
    return start, start + width


def stretched_length(size: int, factor: float) -> int:
    """Give the length of an axis that is made `factor` times as long."""
    return max(1, round(size * factor))


def stretch(features: Floats, factor: float, axis: int) -> Floats:
    """Make an axis `factor` times as long, by linear interpolation."""
    size = features.shape[axis]
    positions = np.linspace(0.0, size - 1.0, stretched_length(size, factor))
    return _interpolate(features, positions, axis)


def warp_bins(features: Floats, factor: float) -> Floats:
    """Move what is in mel bin b to bin b * factor; bins beyond the last keep its value.

    A stretch of the mel axis stands in for another length of the vocal tract.
    Reference: vocal tract length perturbation, Jaitly and Hinton 2013, here on mel bins.
    """
    bins = features.shape[1]
    positions = np.minimum(np.arange(bins) / factor, bins - 1.0)
    return _interpolate(features, positions, axis=1)


def _interpolate(features: Floats, positions: NDArray[np.float64], axis: int) -> Floats:
    lower = np.floor(positions).astype(np.int64)
    upper = np.minimum(lower + 1, features.shape[axis] - 1)
    share = (positions - lower).astype(np.float32)
    share = share[:, None] if axis == 0 else share[None, :]
    below, above = features.take(lower, axis), features.take(upper, axis)
    return np.asarray(below + share * (above - below), dtype=np.float32)
