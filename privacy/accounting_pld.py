"""Bound epsilon by privacy loss distributions, on a grid that fits the size of epsilon.

dp-accounting answers where its Fourier transform is precise enough. With many rounds or a tiny
delta its rounding is as large as delta (at delta 1e-12 and 2000 rounds it can answer 1.7 % too
little, at delta 1e-11 and 10^5 rounds ten times too much): there the project's own grid and tilted
transform answer, by name. A coarse grid is loose and a fine one slow, so it is refined until
epsilon stands still.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from privacy.event import AccountingEvent
from privacy.loss_composition import Composition, compose
from privacy.loss_grid import one_round

Releases = Sequence[tuple[AccountingEvent, int]]

LARGEST_EPSILON = 600.0
"""Above it e^epsilon comes near the largest float, and the bound says nothing to anybody."""
OWN = "fedopt"
_STANDS_STILL = 0.002
# A grid below 1e-6 is tried only where epsilon is not below 1e-6 anyway.
_FINE, _FINEST = 1e-6, 1e-10
_MOST_POINTS, _MOST_OWN_POINTS = 400_000, 2_000_000
# Measured on full participation, where the truth is known: the rounding of dp-accounting 0.6.0 in
# delta stays below 2e-16 per round. It may answer while that is at most 0.2 % of delta.
_ROUNDING_PER_ROUND, _ROUNDING_SHARE = 2e-16, 0.002
_MOST_ROUNDS = 100_000


@dataclass(frozen=True)
class LossBound:
    """Hold epsilon, the grid interval that gave it, and who computed it."""

    epsilon: float
    interval: float
    distribution: str


def loss_bound(releases: Releases, delta: float, guess: float, order: float) -> LossBound:
    """Bound epsilon of all releases together, refining the grid until epsilon moves under 0.2 %.

    releases: merged and checked, add-or-remove-one, each noise multiplier > 0.
    guess, order: an upper bound of epsilon and the Renyi order that gave it; they size the grid.

    >>> found = loss_bound([(AccountingEvent("poisson", 1000, 10, 1.0), 100)], 1e-5, 1.22, 8.8)
    >>> round(found.epsilon, 2)
    0.72

    Raises: MemoryError where even the first grid is too large.
    Reference: Doroshenko et al. 2022 (arXiv 2207.04380), Algorithm 1, "connect the dots".
    Guarantee: (epsilon, delta)-DP of all releases together, add-or-remove-one, Poisson sampling
    (with a cap: the truncated event of arXiv 2508.15089) or everyone.
    Not covered: fixed-size cohorts; with a cap, the transform's rounding at delta below 1e-10.
    """
    start = _first_interval(releases, guess, order)
    reach = max(_reach(event) for event, _ in releases)

    def theirs(interval: float) -> float:
        # Epsilon at a slightly smaller delta pays for the rounding of the transform.
        safe = delta - min(_ROUNDING_PER_ROUND * _sampled_rounds(releases), delta / 2)
        return float(_accountant(releases, interval).get_epsilon(safe))

    def ours(interval: float) -> float:
        return _own_epsilon(releases, delta, order - 1, interval)

    if not _needs_own(releases, delta):
        found, settled = _refine(theirs, start, reach / _MOST_POINTS)
        if settled or _capped(releases):
            return LossBound(max(found[0], 0.0), found[1], "dp-accounting")
        start = found[1]
    (epsilon, interval), _ = _refine(ours, start, reach / _MOST_OWN_POINTS)
    return LossBound(max(epsilon, 0.0), interval, OWN)


def delta_of(releases: Releases, epsilon: float, interval: float, order: float) -> float:
    """Bound delta at epsilon, on a grid of the given interval, precise where delta is near 1e-9.

    Guarantee, Not covered: as loss_bound.
    """
    if _capped(releases):
        return float(_accountant(releases, interval).get_delta(epsilon))
    return max(sums.delta(epsilon) for sums in _own_sums(releases, 1e-9, order - 1, interval))


def _refine(
    bound: Callable[[float], float], start: float, finest: float
) -> tuple[tuple[float, float], bool]:
    """Halve the interval until epsilon stands still; give the best pair, and whether it did."""
    interval, epsilon = start, bound(start)
    while interval / 2 > max(finest, _FINEST):
        if interval <= _FINE and epsilon < 1.5 * _FINE:
            break
        finer = max(interval / 2, _FINE) if interval > _FINE else interval / 2
        try:
            again = bound(finer)
        except MemoryError:
            return (epsilon, interval), False
        if interval / finer > 1.9 and again >= epsilon * (1 - _STANDS_STILL):
            return min((epsilon, interval), (again, finer)), True
        epsilon, interval = again, finer
    return (epsilon, interval), epsilon < 1.5 * _FINE


def _first_interval(releases: Releases, guess: float, order: float) -> float:
    """Choose a grid on which epsilon is about 0.2 % too large, if the losses spread evenly.

    A grid adds at most interval^2 / 4 to the variance of each round's loss, which adds at most
    order / 2 times that to epsilon.
    """
    rounds = sum(count for event, count in releases if event.sample_rate < 1) or 1
    return max(math.sqrt(0.025 * max(guess, 1e-6) / rounds / order), _FINE)


def _needs_own(releases: Releases, delta: float) -> bool:
    rounds = _sampled_rounds(releases)
    too_many = rounds > _MOST_ROUNDS or rounds * _ROUNDING_PER_ROUND > _ROUNDING_SHARE * delta
    return too_many and not _capped(releases)


def _sampled_rounds(releases: Releases) -> int:
    return sum(count for event, count in releases if event.sample_rate < 1)


def _capped(releases: Releases) -> bool:
    return any(event.cohort_cap is not None for event, _ in releases)


def _reach(event: AccountingEvent) -> float:
    """Estimate the largest privacy loss of one round that a grid has to hold."""
    noise = event.noise_multiplier
    unsampled = 9.8 / noise + 0.5 / noise / noise
    if unsampled > 500:
        return unsampled + math.log(event.sample_rate)
    return math.log1p(event.sample_rate * math.expm1(unsampled))


def _own_epsilon(releases: Releases, delta: float, theta: float, interval: float) -> float:
    # The last millionth of delta pays for rounding.
    target = delta * (1 - 1e-6)
    return max(sums.epsilon(target) for sums in _own_sums(releases, delta, theta, interval))


def _own_sums(
    releases: Releases, delta: float, theta: float, interval: float
) -> tuple[Composition, Composition]:
    rounds = sum(count for _, count in releases)
    tail, low = delta * 1e-6 / rounds, 1e-7 / rounds
    removed, added = (
        compose(
            [(one_round(event, way, interval, tail, low), count) for event, count in releases],
            theta,
        )
        for way in ("remove", "add")
    )
    return removed, added


def _accountant(releases: Releases, interval: float) -> Any:
    import dp_accounting

    accountant = dp_accounting.pld.PLDAccountant(value_discretization_interval=interval)
    for event, rounds in releases:
        accountant.compose(_dp_event(event), rounds)
    return accountant


def _dp_event(event: AccountingEvent) -> Any:
    import dp_accounting

    gaussian = dp_accounting.GaussianDpEvent(event.noise_multiplier)
    if event.cohort_cap is not None:
        return dp_accounting.TruncatedSubsampledGaussianDpEvent(
            event.population, event.sample_rate, event.cohort_cap, event.noise_multiplier
        )
    if event.sample_rate == 1.0:
        return gaussian
    return dp_accounting.PoissonSampledDpEvent(event.sample_rate, gaussian)
