"""Draw the privacy of all releases as curves: epsilon on a quick grid, the profile, the trade-off.

Curves are for reading. They come from dp-accounting alone, on one grid that is fine enough to draw:
up to about one percent above the truth, and unsure by rounding where delta is below 1e-10. What is
quoted comes from privacy.accounting.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from privacy.accounting import Releases, available_accountants, epsilon_spent
from privacy.accounting_values import merge_releases
from privacy.event import AccountingEvent

LARGEST_EPSILON = 200.0
"""Above it a grid of losses takes minutes, and the curve would say nothing to anybody."""
_POINTS, _MOST_POINTS, _MOST_GRIDS = 41, 50_000, 3
_RATES = (0.001, 0.002, 0.005, 0.01, 0.02, *(step / 40 for step in range(2, 39)), 0.98, 0.99, 0.999)


@dataclass(frozen=True)
class Profile:
    """Hold delta at ascending epsilons, the first of which is 0."""

    epsilons: tuple[float, ...]
    deltas: tuple[float, ...]


@dataclass(frozen=True)
class TradeOff:
    """Hold what nobody who tests for one user can beat: false negatives at false positives.

    mu: smallest strength whose Gaussian curve lies nowhere above the computed one.
    gaussian: false negative rates of that curve. gap: largest distance between the two.
    """

    false_positive: tuple[float, ...]
    false_negative: tuple[float, ...]
    mu: float
    gaussian: tuple[float, ...]
    gap: float


def quick_epsilon(releases: Releases, delta: float, guess: float | None = None) -> float | None:
    """Bound epsilon by PLD on a grid for drawing; None where PLD cannot answer in seconds.

    guess: about the answer, or somewhat more; it sizes the grid and saves time, it bounds nothing.

    >>> from privacy.event import AccountingEvent
    >>> releases = [(AccountingEvent("everyone", 1000, 1000, 2.0), 4)]  # exactly 4.3772
    >>> round(quick_epsilon(releases, 1e-5), 1)
    4.4

    Reference: Doroshenko et al. 2022 (arXiv 2207.04380), Algorithm 1, "connect the dots".
    Guarantee: (epsilon, delta)-DP of all releases together up to the rounding named above.
    Not covered: fixed-size cohorts (None).
    """
    merged = merge_releases(releases)
    found = _composed(merged, delta, guess)
    return None if found is None else found[1]


def privacy_profile(releases: Releases, delta: float) -> Profile | None:
    """Bound delta at epsilons from 0 to a quarter beyond the epsilon at `delta`, by PLD.

    None where quick_epsilon gives None, and where epsilon is 0.

    Reference, Guarantee, Not covered: as quick_epsilon.
    """
    found = _composed(merge_releases(releases), delta, None)
    if found is None or found[1] <= 0.0:
        return None
    accountant, top = found
    epsilons = tuple(1.25 * top * (step / (_POINTS - 1)) ** 1.5 for step in range(_POINTS))
    deltas = (float(accountant.get_delta(epsilon)) for epsilon in epsilons)
    return Profile(epsilons, tuple(min(max(delta, 0.0), 1.0) for delta in deltas))


def trade_off(profile: Profile) -> TradeOff:
    """Turn a profile into the least false negative rate at each false positive rate.

    It is at least max over epsilon of 1 - delta - e^epsilon a and e^-epsilon (1 - delta - a).

    >>> exact = trade_off(Profile((0.0,), (0.25,)))
    >>> round(exact.false_negative[exact.false_positive.index(0.5)], 6)
    0.25

    Reference: Dong, Roth and Su 2022 (arXiv 1905.02383), Proposition 2.12; mu as the conservative
    summary of Kulynych et al. 2025 (arXiv 2503.10945), over the rates that are drawn.
    Not covered: mu describes the curve between false positive rates 0.001 and 0.999, no further.
    """
    from scipy.special import ndtr, ndtri

    missed = [_least_missed(profile, rate) for rate in _RATES]
    strengths = [
        float(ndtri(1 - rate) - ndtri(miss)) if miss > 0.0 else math.inf
        for rate, miss in zip(_RATES, missed, strict=True)
    ]
    mu = max(max(strengths), 0.0)
    gaussian = [float(ndtr(ndtri(1 - rate) - mu)) for rate in _RATES]
    gap = max(miss - other for miss, other in zip(missed, gaussian, strict=True))
    return TradeOff(_RATES, tuple(missed), mu, tuple(gaussian), max(gap, 0.0))


def _least_missed(profile: Profile, rate: float) -> float:
    best = 0.0
    for epsilon, delta in zip(profile.epsilons, profile.deltas, strict=True):
        steep = 1 - delta - math.exp(min(epsilon, 700.0)) * rate
        flat = math.exp(-epsilon) * (1 - delta - rate)
        best = max(best, steep, flat)
    return best


def _composed(merged: Releases, delta: float, guess: float | None) -> tuple[Any, float] | None:
    """Compose on a grid that fits epsilon, refined while epsilon shrinks far below the guess."""
    if not merged or any(event.noise_multiplier == 0 for event, _ in merged):
        return None
    if any("pld" not in available_accountants(event) for event, _ in merged):
        return None
    uncapped = [(replace(event, cohort_cap=None), rounds) for event, rounds in merged]
    epsilon = guess or epsilon_spent(uncapped, delta, "rdp").epsilon
    if epsilon > LARGEST_EPSILON:
        return None
    before, grids = math.inf, 0
    while epsilon < before / 3 and grids < _MOST_GRIDS:
        before, grids = epsilon, grids + 1
        accountant = _accountant(merged, _interval(merged, before))
        epsilon = max(float(accountant.get_epsilon(delta)), 0.0)
    return accountant, epsilon


def _interval(merged: Releases, epsilon: float) -> float:
    """Choose a grid: errors of rounds add up like their square root."""
    rounds = sum(count for _, count in merged)
    reach = max(_reach(event) for event, _ in merged)
    wanted = min(epsilon / 50 / math.sqrt(rounds), epsilon / 400)
    return max(wanted, reach / _MOST_POINTS, 1e-7)


def _reach(event: AccountingEvent) -> float:
    """Estimate the largest privacy loss of one round that a grid has to hold."""
    excess = 9.8 / event.noise_multiplier + 0.5 / event.noise_multiplier**2
    excess += math.log(event.sample_rate)
    return excess if excess > 30 else math.log1p(math.exp(excess))


def _accountant(merged: Sequence[tuple[AccountingEvent, int]], interval: float) -> Any:
    import dp_accounting

    accountant = dp_accounting.pld.PLDAccountant(value_discretization_interval=interval)
    for event, rounds in merged:
        accountant.compose(_dp_event(event), rounds)
    return accountant


def _dp_event(event: AccountingEvent) -> Any:
    import dp_accounting

    if event.cohort_cap is not None:
        return dp_accounting.TruncatedSubsampledGaussianDpEvent(
            event.population, event.sample_rate, event.cohort_cap, event.noise_multiplier
        )
    gaussian = dp_accounting.GaussianDpEvent(event.noise_multiplier)
    if event.sample_rate == 1.0:
        return gaussian
    return dp_accounting.PoissonSampledDpEvent(event.sample_rate, gaussian)
