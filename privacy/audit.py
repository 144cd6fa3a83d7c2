"""Turn canaries' scores into lower bounds of epsilon, with and without assuming Gaussian scores.

A canary is a user made for the audit, whose update is known. Its score is what of it is found in
the releases. Canaries whose update was left out show what scores look like by chance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from privacy.errors import SettingsError
from privacy.gaussian import gaussian_epsilon

GUESSED_SHARE = 3
"""One of so many canaries is guessed in the one-run audit; fixed before any score is seen."""

LARGEST_ONE_RUN = 1e3
FEWEST = 2


@dataclass(frozen=True)
class Sample:
    """Hold the moments of a group of scores; variance: unbiased."""

    count: int
    mean: float
    variance: float


@dataclass(frozen=True)
class LowerBound:
    """State what scores show: at least so much was revealed.

    epsilon, mu: lower bounds, which fail with probability `miss`. fitted_epsilon, fitted_mu: the
    best guess without a margin; None where the method has none.
    """

    epsilon: float
    miss: float
    mu: float | None = None
    fitted_epsilon: float | None = None
    fitted_mu: float | None = None


def sample(scores: Sequence[float] | NDArray[np.float64]) -> Sample:
    """Compute the moments of scores; fewer than two have variance 0.

    >>> sample([1.0, 3.0])
    Sample(count=2, mean=2.0, variance=2.0)
    """
    values = np.asarray(scores, dtype=np.float64)
    if len(values) < FEWEST:
        return Sample(len(values), float(values.mean()) if len(values) else 0.0, 0.0)
    return Sample(len(values), float(values.mean()), float(values.var(ddof=1)))


def gaussian_bound(
    included: Sample, left_out: Sample, delta: float, miss: float, dimensions: float = math.inf
) -> LowerBound:
    """Bound mu of Gaussian DP, and by it epsilon, from two groups of scores taken as Gaussian.

    mu is the distance of the means in pooled standard deviations. dimensions: in how many
    independent coordinates the noise lies: all scores of a run share one draw of the noise, whose
    length is off by about 1 / sqrt(2 dimensions). Half of `miss` is spent on that.
    Groups of fewer than two scores show nothing: every number is 0.

    Raises: SettingsError where delta or miss is not between 0 and 1.
    Reference: Andrew et al. 2024 (arXiv 2302.03098), section 4, here with equal variances; the
    margin is the normal approximation of the noncentral t, Abramowitz and Stegun 26.7.10.
    Guarantee: where both groups are Gaussian with one variance, no (epsilon, delta)-DP mechanism
    with a smaller epsilon gives these scores, but for a chance of `miss`.
    Not covered: scores that are not Gaussian can make the bound too large; the one-run bound
    assumes nothing.

    >>> bound = gaussian_bound(Sample(500, 2.0, 1.0), Sample(500, 0.0, 1.0), 1e-5, 0.05)
    >>> round(bound.fitted_mu, 3), 1.8 < bound.mu < 2.0
    (2.0, True)
    """
    refuse_outside(delta=delta, miss=miss)
    if min(included.count, left_out.count) < FEWEST:
        return LowerBound(0.0, miss, 0.0, 0.0, 0.0)
    fitted, least = _distance(included, left_out, miss / 2)
    least *= _shortest_noise(miss / 2, dimensions)
    return LowerBound(
        epsilon=gaussian_epsilon(least, delta),
        miss=miss,
        mu=least,
        fitted_epsilon=gaussian_epsilon(fitted, delta),
        fitted_mu=fitted,
    )


def _distance(included: Sample, left_out: Sample, miss: float) -> tuple[float, float]:
    """Estimate the distance of the means in deviations, and bound it from below; both >= 0."""
    from scipy.special import ndtri

    freedom = included.count + left_out.count - 2
    squares = (included.count - 1) * included.variance + (left_out.count - 1) * left_out.variance
    difference = included.mean - left_out.mean
    if difference <= 0.0:
        return 0.0, 0.0
    if squares == 0.0:
        return math.inf, math.inf
    unit = math.sqrt(1 / included.count + 1 / left_out.count)
    fitted = difference / math.sqrt(squares / freedom)
    t = fitted / unit
    spread = math.sqrt(1 + t * t / (2 * freedom))
    least = t * (1 - 1 / (4 * freedom)) - float(ndtri(1 - miss)) * spread
    return fitted, max(least * unit, 0.0)


def _shortest_noise(miss: float, dimensions: float) -> float:
    """Bound by how much one draw of the noise may be shorter than its expectation."""
    from scipy.special import gammaincinv

    if math.isinf(dimensions):
        return 1.0
    return math.sqrt(2 * float(gammaincinv(dimensions / 2, miss)) / dimensions)


def count_right_guesses(
    scores: Sequence[float] | NDArray[np.float64], included: Sequence[bool] | NDArray[np.bool_]
) -> tuple[int, int]:
    """Guess the canaries with extreme scores, abstain on the rest; returns guesses, right ones.

    The highest sixth is guessed as included and the lowest sixth as left out.

    >>> count_right_guesses([9, 8, 5, 5, 1, 0], [True, True, False, True, True, False])
    (2, 2)
    """
    each = len(scores) // (2 * GUESSED_SHARE)
    order = np.argsort(np.asarray(scores, dtype=np.float64), kind="stable")
    inside = np.asarray(included, dtype=bool)
    right = inside[order[len(order) - each :]].sum() + (~inside[order[:each]]).sum()
    return 2 * each, int(right)


def one_run_bound(canaries: int, guesses: int, right: int, delta: float, miss: float) -> LowerBound:
    """Bound epsilon from right guesses which canaries were included, assuming nothing on scores.

    canaries: each was included by an independent fair coin. guesses: how many were guessed, fixed
    beforehand; right: how many guesses are right.

    Raises: SettingsError where a number is out of range.
    Reference: Steinke, Nasr and Jagielski 2023 (arXiv 2305.08846), Theorem 5.2.
    Guarantee: an (epsilon, delta)-DP training with a smaller epsilon leads to so many right
    guesses with probability `miss` at most.
    Not covered: what a stronger adversary could guess; the bound saturates at a few units.

    >>> round(one_run_bound(100, 100, 100, 0.0, 0.05).epsilon, 3)  # 0.05 = p^100
    3.493
    """
    refuse_outside(miss=miss)
    if not (0 <= right <= guesses <= canaries and 0.0 <= delta < 1.0):
        raise SettingsError(
            "a one-run audit needs 0 <= right <= guesses <= canaries and 0 <= delta < 1, got "
            f"{right}, {guesses}, {canaries} and {delta}; count the guesses again"
        )

    def likely(epsilon: float) -> float:
        return one_run_probability(canaries, guesses, right, epsilon, delta)

    if likely(0.0) >= miss:
        return LowerBound(0.0, miss)
    lower, upper = 0.0, 1.0
    while likely(upper) < miss and upper < LARGEST_ONE_RUN:
        lower, upper = upper, 2 * upper
    for _ in range(60):
        middle = (lower + upper) / 2
        lower, upper = (middle, upper) if likely(middle) < miss else (lower, middle)
    return LowerBound(lower, miss)


def one_run_probability(
    canaries: int, guesses: int, right: int, epsilon: float, delta: float
) -> float:
    """Bound the probability of so many right guesses against an (epsilon, delta)-DP training.

    P[W >= v] + 2 m delta max over i of P[v > W >= v - i] / i, with W ~ Bin(r, 1 / (1 + e^-eps)).

    Reference: Steinke, Nasr and Jagielski 2023 (arXiv 2305.08846), Theorem 5.2.
    """
    if right == 0:
        return 1.0
    chance = 1 / (1 + math.exp(-epsilon))
    enough = float(_at_least(np.array([right]), guesses, chance)[0])
    fewer = np.arange(1, right + 1)
    near = (_at_least(right - fewer, guesses, chance) - enough) / fewer
    return min(enough + 2 * canaries * delta * max(float(near.max()), 0.0), 1.0)


def _at_least(counts: NDArray[np.int64], trials: int, chance: float) -> NDArray[np.float64]:
    """Give P[Bin(trials, chance) >= count] for counts from 0 to trials."""
    from scipy.special import betainc

    tail = betainc(np.maximum(counts, 1), trials - np.maximum(counts, 1) + 1, chance)
    return np.where(counts <= 0, 1.0, np.asarray(tail, dtype=np.float64))


def refuse_outside(**values: float) -> None:
    """Raise SettingsError for every value that is not between 0 and 1."""
    problems = [
        f"{name} must be between 0 and 1, got {value}; try 0.05"
        for name, value in values.items()
        if not 0.0 < value < 1.0
    ]
    if problems:
        raise SettingsError(problems)
