"""Solve for what meets a target epsilon: noise multiplier, rounds, cohort or population.

Every answer is the safe end of its search: the accountant itself said that epsilon is met there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from privacy.accounting import Accountant
from privacy.accounting_rdp import renyi_floor
from privacy.calibration_search import (
    MOST_POPULATION,
    MOST_ROUNDS,
    Hold,
    Target,
    check,
    cohort_search_problems,
    everyone_problems,
    impossible,
    largest_whole,
    smallest_real,
    smallest_whole,
)
from privacy.errors import SettingsError
from privacy.event import Sampling
from privacy.gaussian import gaussian_mu

_LEAST_NOISE, _MOST_NOISE = 1e-3, 1e9


@dataclass(frozen=True)
class ScaledCohort:
    """Hold a cohort with the population and noise multiplier that go with it."""

    population: int
    cohort: int
    noise_multiplier: float


def noise_multiplier_for(
    *,
    population: int,
    cohort: int,
    rounds: int,
    delta: float,
    epsilon: float,
    sampling: Sampling = "poisson",
    accountant: Accountant = "rdp",
) -> float:
    """Find the smallest noise multiplier that meets epsilon, to 1e-4 relative, on the safe side.

    Raises: SettingsError when a value is out of range, or no noise can show so small an epsilon.
    Reference: the search is on the noise, not on epsilon; see privacy.accounting for the bound.
    Guarantee: epsilon_spent at the returned value is at most epsilon.
    Not covered: what epsilon_spent does not cover.

    >>> z = noise_multiplier_for(
    ...     population=34_753, cohort=1024, rounds=2000, delta=1e-9, epsilon=8.0
    ... )
    >>> round(z, 3)
    1.334
    """
    target = Target(delta, epsilon, sampling, accountant)
    check(target, population=population, cohort=cohort, rounds=rounds)
    rate = 1.0 if sampling == "everyone" else cohort / population

    def spent(noise_multiplier: float) -> float:
        return target.spent(population, cohort, noise_multiplier, rounds)

    start = max(0.5, rate * math.sqrt(rounds) / gaussian_mu(epsilon, delta))
    floor = renyi_floor(delta) if accountant == "rdp" else 0.0
    found = None
    if epsilon > floor:
        found = smallest_real(spent, epsilon, start, _LEAST_NOISE, _MOST_NOISE)
    if found is None:
        floor = floor or target.spent(population, cohort, _MOST_NOISE, rounds)
        raise SettingsError(
            f"epsilon must be above {floor:.3g} for accountant {accountant} at delta {delta:g}, "
            f"got {epsilon:g}; no noise can show less, choose "
            f"{'accountant pld or ' if accountant == 'rdp' else ''}a larger epsilon or delta"
        )
    return found


def rounds_for(
    *,
    population: int,
    cohort: int,
    delta: float,
    epsilon: float,
    noise_multiplier: float,
    sampling: Sampling = "poisson",
    accountant: Accountant = "rdp",
) -> int:
    """Find the most rounds, at most 10^7, that meet epsilon.

    >>> rounds_for(
    ...     population=34_753, cohort=1024, delta=1e-9, epsilon=8.0, noise_multiplier=1.335
    ... )
    2003

    Raises: SettingsError when a value is out of range, or one round is already too much.
    Guarantee: epsilon_spent after the returned number of rounds is at most epsilon.
    Not covered: what epsilon_spent does not cover.
    """
    target = Target(delta, epsilon, sampling, accountant)
    check(target, population=population, cohort=cohort, noise_multiplier=noise_multiplier)

    def meets(rounds: int) -> bool:
        return target.spent(population, cohort, noise_multiplier, rounds) <= epsilon

    start = _by_rdp(
        lambda: rounds_for(
            population=population,
            cohort=cohort,
            delta=delta,
            epsilon=epsilon,
            noise_multiplier=noise_multiplier,
            sampling=sampling,
        ),
        target,
    )
    if not meets(start or 1):
        least = target.spent(population, cohort, noise_multiplier, 1)
        raise impossible(target, least, "one round", _remedy(target, population, cohort, 1))
    return largest_whole(meets, start or 1, MOST_ROUNDS, target.tolerance)


def cohort_for(
    *,
    population: int,
    rounds: int,
    delta: float,
    epsilon: float,
    noise_multiplier: float,
    cohort: int | None = None,
    sampling: Sampling = "poisson",
    accountant: Accountant = "rdp",
    hold: Hold = "population",
) -> int:
    """Find the cohort that meets epsilon.

    hold "population": the largest cohort of this population at this noise multiplier.
    hold "sample-rate": the smallest cohort, see `cohort_at_sample_rate`; `cohort` is needed there.

    >>> cohort_for(
    ...     population=34_753, rounds=2000, delta=1e-9, epsilon=8.0, noise_multiplier=1.335
    ... )
    1024

    Raises: SettingsError when a value is out of range or no cohort meets epsilon.
    Guarantee: epsilon_spent with the returned cohort is at most epsilon.
    Not covered: what epsilon_spent does not cover.
    """
    target = Target(delta, epsilon, sampling, accountant)
    check(
        target,
        population=population,
        cohort=1 if cohort is None else cohort,
        rounds=rounds,
        noise_multiplier=noise_multiplier,
        more=cohort_search_problems(sampling, hold, cohort),
    )
    if hold == "sample-rate" and cohort is not None:
        return _scaled(target, population, cohort, rounds, noise_multiplier).cohort

    def meets(size: int) -> bool:
        return target.spent(population, size, noise_multiplier, rounds) <= epsilon

    start = _by_rdp(
        lambda: cohort_for(
            population=population,
            rounds=rounds,
            delta=delta,
            epsilon=epsilon,
            noise_multiplier=noise_multiplier,
            sampling=sampling,
        ),
        target,
    )
    if not meets(start or 1):
        least = target.spent(population, 1, noise_multiplier, rounds)
        raise impossible(target, least, "a cohort of 1", _remedy(target, population, 1, rounds))
    return largest_whole(meets, start or 1, population, target.tolerance)


def cohort_at_sample_rate(
    *,
    population: int,
    cohort: int,
    rounds: int,
    delta: float,
    epsilon: float,
    noise_multiplier: float,
    sampling: Sampling = "poisson",
    accountant: Accountant = "rdp",
) -> ScaledCohort:
    """Find the smallest cohort that meets epsilon at the sample rate and noise on the mean given.

    population, cohort and noise multiplier describe a run; all three grow by the same factor, so
    the mean of the updates carries the same noise: the extrapolation of arXiv 2310.00098, table 1.

    >>> scaled = cohort_at_sample_rate(
    ...     population=34_753, cohort=1024, rounds=2000, delta=1e-9, epsilon=10.0,
    ...     noise_multiplier=0.01024,
    ... )
    >>> round(scaled.cohort, -3)
    116000

    Raises: SettingsError when a value is out of range or no cohort meets epsilon.
    Guarantee: epsilon_spent with the returned three numbers is at most epsilon.
    Not covered: whether the model stays as good with a larger cohort.
    """
    target = Target(delta, epsilon, sampling, accountant)
    check(
        target,
        population=population,
        cohort=cohort,
        rounds=rounds,
        noise_multiplier=noise_multiplier,
        more=cohort_search_problems(sampling, "sample-rate", cohort),
    )
    return _scaled(target, population, cohort, rounds, noise_multiplier)


def population_for(
    *,
    cohort: int,
    rounds: int,
    delta: float,
    epsilon: float,
    noise_multiplier: float,
    sampling: Sampling = "poisson",
    accountant: Accountant = "rdp",
) -> int:
    """Find the smallest population, at most 10^12, from which this cohort meets epsilon.

    >>> population_for(
    ...     cohort=1024, rounds=2000, delta=1e-9, epsilon=8.0, noise_multiplier=1.335
    ... )
    34723

    Raises: SettingsError when a value is out of range or no population meets epsilon.
    Guarantee: epsilon_spent with the returned population is at most epsilon.
    Not covered: what epsilon_spent does not cover.
    """
    target = Target(delta, epsilon, sampling, accountant)
    check(
        target,
        population=MOST_POPULATION,
        cohort=cohort,
        rounds=rounds,
        noise_multiplier=noise_multiplier,
        more=everyone_problems(sampling, "population"),
    )

    def meets(population: int) -> bool:
        return target.spent(population, cohort, noise_multiplier, rounds) <= epsilon

    start = _by_rdp(
        lambda: population_for(
            cohort=cohort,
            rounds=rounds,
            delta=delta,
            epsilon=epsilon,
            noise_multiplier=noise_multiplier,
            sampling=sampling,
        ),
        target,
    )
    found = smallest_whole(meets, cohort, MOST_POPULATION, target.tolerance, start)
    if found is None:
        most = MOST_POPULATION
        least = target.spent(most, cohort, noise_multiplier, rounds)
        remedy = _remedy(target, most, cohort, rounds)
        raise impossible(target, least, "a population of 1e12", remedy)
    return found


def _scaled(
    target: Target, population: int, cohort: int, rounds: int, noise_multiplier: float
) -> ScaledCohort:
    def at(size: int) -> ScaledCohort:
        # The population is rounded up, so the sample rate never grows.
        people = -(-size * population // cohort)
        return ScaledCohort(people, size, noise_multiplier * size / cohort)

    def spent(size: int) -> float:
        plan = at(size)
        return target.spent(plan.population, size, plan.noise_multiplier, rounds)

    most = max(MOST_POPULATION * cohort // population, 1)
    found = smallest_whole(lambda size: spent(size) <= target.epsilon, 1, most, target.tolerance)
    if found is None:
        advice = "start from more noise, fewer rounds or a lower sample rate"
        raise impossible(target, spent(most), "a population of 1e12", advice)
    return at(found)


def _by_rdp(search: Callable[[], int], target: Target) -> int | None:
    """Let the quick accountant find where a search by a slow one starts; None if it cannot."""
    if target.accountant != "pld":
        return None
    try:
        return search()
    except SettingsError:
        return None


def _remedy(target: Target, population: int, cohort: int, rounds: int) -> str:
    """Say what would make a refused target possible, with the number where there is one."""
    try:
        noise = noise_multiplier_for(
            population=population,
            cohort=cohort,
            rounds=rounds,
            delta=target.delta,
            epsilon=target.epsilon,
            sampling=target.sampling,
            accountant=target.accountant,
        )
    except SettingsError as problem:
        return problem.problems[0]
    return f"a noise multiplier of at least {noise:.4g} would do, or a larger epsilon"
