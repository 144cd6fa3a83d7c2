"""Calibration at its edges: an answer of one, and the remedy that a refusal names."""

import re

import pytest

from privacy.accounting import epsilon_spent
from privacy.calibration import cohort_for, population_for, rounds_for
from privacy.errors import SettingsError
from privacy.event import AccountingEvent


def spent(population, cohort, noise, rounds, sampling="poisson"):
    event = AccountingEvent(sampling, population, cohort, noise)
    return epsilon_spent([(event, rounds)], 1e-6).epsilon


def named_noise(problem: str) -> float:
    """Read the noise multiplier that a refusal says would do, given with four digits."""
    return float(re.search(r"noise multiplier of at least ([\d.e+-]+) would do", problem)[1])


def test_one_round_is_found_where_two_are_too_many():
    epsilon = spent(1000, 10, 1.0, 1) * 1.0001
    common = {"population": 1000, "cohort": 10, "delta": 1e-6, "noise_multiplier": 1.0}
    assert rounds_for(**common, epsilon=epsilon) == 1
    assert rounds_for(**common, epsilon=spent(1000, 10, 1.0, 2) * 1.0001) == 2


def test_a_cohort_of_one_is_found_where_two_are_too_many():
    common = {"population": 1000, "rounds": 50, "delta": 1e-6, "noise_multiplier": 1.0}
    assert cohort_for(**common, epsilon=spent(1000, 1, 1.0, 50) * 1.0001) == 1
    assert cohort_for(**common, epsilon=spent(1000, 2, 1.0, 50) * 1.0001) == 2


def test_a_population_as_small_as_the_cohort_is_found():
    common = {"cohort": 10, "rounds": 5, "delta": 1e-6, "noise_multiplier": 5.0}
    assert population_for(**common, epsilon=spent(10, 10, 5.0, 5) * 1.0001) == 10
    assert population_for(**common, epsilon=spent(11, 10, 5.0, 5) * 1.0001) == 11


@pytest.mark.parametrize(
    ("solve", "case"),
    [
        (lambda **more: rounds_for(**more, population=1000, cohort=10), (1000, 10, 1)),
        (lambda **more: cohort_for(**more, population=10, rounds=1000), (10, 1, 1000)),
        (lambda **more: population_for(**more, cohort=10, rounds=10), (10**12, 10, 10)),
    ],
)
def test_the_noise_that_a_refusal_names_would_do_and_little_less_would_not(solve, case):
    population, cohort, rounds = case
    with pytest.raises(SettingsError) as refusal:
        solve(delta=1e-6, epsilon=0.1, noise_multiplier=0.2)
    noise = named_noise(refusal.value.problems[0])
    assert spent(population, cohort, noise * 1.001, rounds) <= 0.1
    assert spent(population, cohort, noise * 0.995, rounds) > 0.1
    assert f"{spent(population, cohort, 0.2, rounds):.4g} by rdp" in refusal.value.problems[0]
