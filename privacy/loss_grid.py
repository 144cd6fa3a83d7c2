"""Put the privacy loss of one round on an even grid, so that the curve delta(epsilon) never drops.

One user in or out changes the noisy sum from N(0, z^2) to (1 - q) N(0, z^2) + q N(1, z^2), in units
of the clip norm. The loss at x is ln(1 - q + q e^((2x - 1) / 2 z^2)), or minus that when the user
is added. Each cell between two grid points is split onto the two points so that its mass under both
distributions stays what it was ("connect the dots"): delta is exact on the grid, too large between.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from privacy.event import AccountingEvent

Floats = NDArray[np.float64]
Direction = Literal["add", "remove"]


@dataclass(frozen=True)
class LossGrid:
    """Hold a discretised privacy loss.

    weights: (points,) probabilities of the losses interval * (first, first + 1, ...).
    infinite: probability of a loss that counts as infinite.
    """

    interval: float
    first: int
    weights: Floats
    infinite: float

    @property
    def losses(self) -> Floats:
        """Give the grid points, (points,)."""
        return self.interval * np.arange(
            self.first, self.first + len(self.weights), dtype=np.float64
        )


def one_round(
    event: AccountingEvent, direction: Direction, interval: float, tail: float, low: float
) -> LossGrid:
    """Discretise the loss of one Poisson-sampled Gaussian round.

    tail: mass of large losses that may be counted as infinite.
    low: mass of small losses that may be raised to the lowest grid point.

    >>> grid = one_round(AccountingEvent("poisson", 1000, 10, 1.0), "remove", 0.01, 1e-20, 1e-9)
    >>> round(float(grid.weights.sum() + grid.infinite), 12)
    1.0

    Reference: Doroshenko et al. 2022 (arXiv 2207.04380), Algorithm 1; the masses are taken from the
    nearer tail of the normal distribution, so that a mass of 1e-30 keeps its digits.
    Guarantee: the curve delta(epsilon) of the grid lies nowhere below that of the round.
    Not covered: fixed-size cohorts and cohorts with a cap.
    """
    top, bottom = (tail, low) if direction == "remove" else (low, tail)
    points = _points_between(event, interval, top, bottom)
    noise, shifted = _masses(event, interval * points.astype(np.float64))
    mixture = (1 - event.sample_rate) * noise + event.sample_rate * shifted
    if direction == "remove":
        above, below = mixture[-1], mixture[0]
        return _connect(interval, points, mixture[1:-1], noise[1:-1], below, above)
    cells = (noise[-2:0:-1], mixture[-2:0:-1])
    return _connect(interval, -points[::-1], *cells, noise[-1], noise[0])


def _points_between(
    event: AccountingEvent, interval: float, top: float, bottom: float
) -> NDArray[np.int64]:
    """List the grid points that cover all outputs but `top` mass on the right, `bottom` left."""
    from scipy.special import ndtri

    z, q = event.noise_multiplier, event.sample_rate
    right = max(-z * ndtri(top / 2), 1 - z * ndtri(min(0.5, top / 2 / q)))
    left = z * ndtri(bottom / 2)
    first, last = (float(_loss(event, x)) for x in (left, right))
    return np.arange(np.floor(first / interval), np.ceil(last / interval) + 1).astype(np.int64)


def _loss(event: AccountingEvent, output: float) -> float:
    with np.errstate(divide="ignore"):
        stays = np.log1p(-event.sample_rate)
    exponent = (2 * output - 1) / 2 / event.noise_multiplier / event.noise_multiplier
    return float(np.logaddexp(stays, np.log(event.sample_rate) + exponent))


def _masses(event: AccountingEvent, losses: Floats) -> tuple[Floats, Floats]:
    """Give the masses of N(0, z^2) and N(1, z^2) between the outputs of these losses.

    Returns two arrays (points + 1,): first the mass below the first loss, last that above the last.
    """
    z, q = event.noise_multiplier, event.sample_rate
    with np.errstate(divide="ignore", invalid="ignore"):
        small = np.log1p(np.expm1(np.minimum(losses, 1.0)) / q)
        large = losses - np.log(q) + np.log1p((q - 1) * np.exp(-np.maximum(losses, 1.0)))
        outputs = z * z * np.where(losses < 1.0, small, large) + 0.5
    # Below ln(1 - q), the smallest loss there is, no output lies.
    edges = np.concatenate([[-np.inf], np.nan_to_num(outputs, nan=-np.inf), [np.inf]])
    return _normal_mass(edges / z), _normal_mass((edges - 1) / z)


def _normal_mass(edges: Floats) -> Floats:
    from scipy.special import ndtr

    left, right = ndtr(edges), ndtr(-edges)
    masses: Floats = np.where(edges[:-1] > 0, right[:-1] - right[1:], left[1:] - left[:-1])
    return masses


def _connect(
    interval: float,
    points: NDArray[np.int64],
    upper: Floats,
    lower: Floats,
    below: float,
    above: float,
) -> LossGrid:
    """Split the mass of each cell onto its ends, keeping its mass under both distributions."""
    with np.errstate(over="ignore", invalid="ignore"):
        excess = upper - lower * np.exp(interval * points[:-1])
    raised = np.clip(np.nan_to_num(excess) / -np.expm1(-interval), 0.0, upper)
    weights = np.zeros(len(points))
    weights[1:] += raised
    weights[:-1] += upper - raised
    weights[0] += below
    return LossGrid(interval, int(points[0]), weights, float(above))
