"""Add up many rounds of privacy loss with all digits in the far tail, where delta lives.

A plain Fourier transform has an error near 1e-16 of the whole mass, times the number of rounds: at
delta 1e-12 and 10^5 rounds nothing is left. So the losses are first tilted by e^(theta * loss),
which moves the bulk of the mass to the losses near epsilon, and tilted back after the transform.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from privacy.loss_grid import Floats, LossGrid

_OUTSIDE = 1e-25
"""Tilted mass that may fall outside the window of the transform; it is charged in full."""
_WIDEST = 1 << 23
Parts = Sequence[tuple[LossGrid, int]]


@dataclass(frozen=True)
class Composition:
    """Hold the sum of many rounds' losses.

    losses, weights: (points,), ascending losses and their probabilities.
    infinite: probability of a loss beyond the last one.
    """

    losses: Floats
    weights: Floats
    infinite: float

    def epsilon(self, delta: float) -> float:
        """Give the smallest epsilon >= 0 on the curve at delta; inf where there is none."""
        from scipy.signal import lfilter

        if self.infinite >= delta:
            return math.inf
        step = math.exp(self.losses[0] - self.losses[1]) if len(self.losses) > 1 else 1.0
        mass = self.infinite + np.cumsum(self.weights[::-1])[::-1]
        # The sum of e^(loss_k - loss_j) weight_j over j >= k, from the top down.
        discounted = lfilter([1.0], [1.0, -step], self.weights[::-1])[::-1]
        over = np.flatnonzero(mass - discounted > delta)
        if not len(over):
            return max(float(self.losses[0]), 0.0)
        above = min(int(over[-1]) + 1, len(self.losses) - 1)
        rest = math.log((mass[above] - delta) / discounted[above])
        return max(float(self.losses[above]) + rest, 0.0)

    def delta(self, epsilon: float) -> float:
        """Give delta on the curve at epsilon >= 0."""
        later = self.losses > epsilon
        kept = self.weights[later] * -np.expm1(epsilon - self.losses[later])
        return min(self.infinite + float(kept.sum()), 1.0)


def compose(parts: Parts, theta: float) -> Composition:
    """Add up rounds of privacy loss, precise for losses where e^(theta * loss) has its bulk.

    parts: grids of one interval, each with its number of rounds.
    theta: the tilt, > 0; the best Renyi order minus 1 puts the bulk near epsilon.

    >>> grid = LossGrid(0.5, -1, np.array([0.25, 0.5, 0.25]), 0.0)
    >>> [round(float(weight), 4) for weight in compose([(grid, 2)], 1.0).weights]
    [0.0625, 0.25, 0.375, 0.25, 0.0625, 0.0]

    Reference: the tilt is the change of measure of Daniels 1954, section 2 (saddle points).
    Guarantee: an upper bound of the curve of the given grids, up to about 1e-9 relative in delta.
    Not covered: the step from the true loss to the grid, see privacy.loss_grid.
    """
    interval = parts[0][0].interval
    low, high = _window(parts, theta, interval)
    size = _fast_length(high - low + 1)
    spectrum = np.ones(size // 2 + 1, dtype=np.complex128)
    centre, log_mass = 0, 0.0
    for grid, rounds in parts:
        tilted, log_moment = _tilt(grid, theta)
        middle = round(float(tilted @ np.arange(len(tilted))))
        folded = np.bincount(
            (np.arange(len(tilted)) - middle) % size, weights=tilted, minlength=size
        )
        spectrum *= np.fft.rfft(folded) ** rounds
        centre += rounds * (grid.first + middle)
        log_mass += rounds * log_moment
    sums = np.roll(np.fft.irfft(spectrum, size), centre - low)
    losses = interval * np.arange(low, low + size, dtype=np.float64)
    # Noise of the transform far below the bulk would overflow when it is tilted back.
    scale = np.exp(np.minimum(log_mass - theta * losses, 500.0))
    missed = math.exp(min(log_mass - theta * losses[-1], 0.0)) * _OUTSIDE
    infinite = sum(rounds * grid.infinite for grid, rounds in parts) + missed
    return Composition(losses, np.maximum(sums, 0.0) * scale, infinite)


def _tilt(grid: LossGrid, theta: float) -> tuple[Floats, float]:
    """Weigh each loss by e^(theta * loss); give the weights, adding to 1, and ln of their sum."""
    exponents = theta * grid.losses
    with np.errstate(divide="ignore"):
        logs = np.log(grid.weights) + exponents
    peak = float(logs.max())
    raw = np.exp(logs - peak)
    total = float(raw.sum())
    return raw / total, peak + math.log(total)


def _window(parts: Parts, theta: float, interval: float) -> tuple[int, int]:
    """Find grid points between which the tilted sum has all but a mass of 1e-25 on each side.

    Reference: Chernoff's bound P(sum > s) <= exp(K(theta + t) - K(theta) - t s), any t > 0.
    """
    least = sum(rounds * grid.first for grid, rounds in parts)
    most = sum(rounds * (grid.first + len(grid.weights) - 1) for grid, rounds in parts)
    spread = math.sqrt(sum(rounds * _tilted_variance(grid, theta) for grid, rounds in parts))
    here, room = _log_moment(parts, theta), -math.log(_OUTSIDE)
    for step in range(-8, 8):
        tilt = 2.0**step / max(spread, interval * 1e-3)
        upper = (_log_moment(parts, theta + tilt) - here + room) / tilt
        lower = (here - room - _log_moment(parts, theta - tilt)) / tilt
        most = min(most, math.ceil(upper / interval))
        least = max(least, math.floor(lower / interval))
    return least, max(most, least)


def _log_moment(parts: Parts, theta: float) -> float:
    return sum(rounds * _tilt(grid, theta)[1] for grid, rounds in parts)


def _tilted_variance(grid: LossGrid, theta: float) -> float:
    tilted, _ = _tilt(grid, theta)
    losses = grid.losses
    mean = float(tilted @ losses)
    return float(tilted @ (losses - mean) ** 2)


def _fast_length(points: int) -> int:
    from scipy.fft import next_fast_len

    if points > _WIDEST:
        raise MemoryError(f"a privacy loss of {points} grid points was refused")
    return int(next_fast_len(points + points % 2))
