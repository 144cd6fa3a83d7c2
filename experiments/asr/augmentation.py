"""Vary features at random, so that a model hears more speakers than there are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


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

    def __call__(self, features: Floats, generator: np.random.Generator) -> Floats:
        """Give a varied copy of (frames, bins) features; the number of frames may change."""
        varied = features
        if self.speed:
            varied = stretch(varied, 1.0 + generator.uniform(-self.speed, self.speed), axis=0)
        if self.tract:
            varied = warp_bins(varied, 1.0 + generator.uniform(-self.tract, self.tract))
        if self.frequency_masks or self.time_masks:
            varied = self._masked(varied, generator)
        return varied

    def _masked(self, features: Floats, generator: np.random.Generator) -> Floats:
        frames, bins = features.shape
        masked = features.copy()
        for _ in range(self.frequency_masks):
            start, end = _draw_mask(bins, self.frequency_width, generator)
            masked[:, start:end] = 0.0
        bound = min(self.time_width, int(self.time_fraction * frames))
        for _ in range(self.time_masks):
            start, end = _draw_mask(frames, bound, generator)
            masked[start:end] = 0.0
        return masked


PAPER_SPEC_AUGMENT = Augmentation(frequency_masks=2, time_masks=10)
"""SpecAugment with the constants of arXiv 2310.00098."""


def _draw_mask(size: int, bound: int, generator: np.random.Generator) -> tuple[int, int]:
    """Draw a mask narrower than `bound`, anywhere inside `size`."""
    width = int(generator.integers(0, max(1, min(bound, size + 1))))
    start = int(generator.integers(0, size - width + 1))
    return start, start + width


def stretch(features: Floats, factor: float, axis: int) -> Floats:
    """Make an axis `factor` times as long, by linear interpolation."""
    size = features.shape[axis]
    positions = np.linspace(0.0, size - 1.0, max(1, round(size * factor)))
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
