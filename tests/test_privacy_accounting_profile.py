"""Check the report's curves against the exact Gaussian and against the quoted accountants."""

from __future__ import annotations

import math
from importlib.metadata import version

import pytest
from hypothesis import given
from hypothesis import strategies as some
from scipy.special import ndtr, ndtri

from privacy.accounting import epsilon_spent, library_version
from privacy.accounting_profile import (
    Profile,
    privacy_profile,
    quick_epsilon,
    trade_off,
)
from privacy.event import AccountingEvent
from privacy.gaussian import gaussian_delta, gaussian_epsilon

EVERYONE = [(AccountingEvent("everyone", 1000, 1000, 5.0), 25)]  # one Gaussian of mu = 1
POISSON = [(AccountingEvent("poisson", 100_000, 500, 0.7), 200)]


def test_the_profile_of_full_participation_is_the_exact_gaussian_one() -> None:
    profile = privacy_profile(EVERYONE, 1e-6)
    assert profile is not None
    assert profile.epsilons[0] == 0.0
    assert len(profile.epsilons) == 41
    for epsilon, delta in zip(profile.epsilons, profile.deltas, strict=True):
        exact = gaussian_delta(1.0, epsilon)
        assert exact * (1 - 1e-6) <= delta <= exact * 1.02 + 1e-12


def test_quick_epsilon_is_just_above_the_exact_one() -> None:
    quick = quick_epsilon(EVERYONE, 1e-6)
    exact = gaussian_epsilon(1.0, 1e-6)
    assert quick is not None
    assert exact * (1 - 1e-9) <= quick <= exact * 1.005


def test_quick_epsilon_agrees_with_the_quoted_pld() -> None:
    quick = quick_epsilon(POISSON, 1e-7)
    assert quick is not None
    assert quick == pytest.approx(epsilon_spent(POISSON, 1e-7, "pld").epsilon, rel=0.004)


def test_a_wrong_guess_changes_the_grid_and_not_the_answer() -> None:
    right = quick_epsilon(POISSON, 1e-7)
    assert right is not None
    assert quick_epsilon(POISSON, 1e-7, guess=30 * right) == pytest.approx(right, rel=0.01)
    assert quick_epsilon(POISSON, 1e-7, guess=right / 10) == pytest.approx(right, rel=0.01)


def test_a_guess_a_thousand_times_too_large_is_refined() -> None:
    releases = [(AccountingEvent("poisson", 1_000_000, 1, 0.5), 1)]
    exact = epsilon_spent(releases, 1e-9, "pld").epsilon
    quick = quick_epsilon(releases, 1e-9, guess=199.0)
    assert quick is not None
    assert 0.99 * exact <= quick < 199.0 / 1000


def test_a_release_that_nobody_notices_has_epsilon_zero_and_no_curve() -> None:
    releases = [(AccountingEvent("poisson", 10**9, 1, 5.0), 1)]
    quick = quick_epsilon(releases, 1e-7)
    assert quick == 0.0
    assert privacy_profile(releases, 1e-7) is None


def test_a_library_is_named_with_its_version() -> None:
    assert library_version("dp-accounting") == f"dp-accounting {version('dp-accounting')}"


@pytest.mark.parametrize(
    "releases",
    [
        [],
        [(AccountingEvent("poisson", 1000, 10, 0.0), 5)],
        [(AccountingEvent("fixed", 1000, 10, 1.0), 5)],
        [(AccountingEvent("poisson", 100, 50, 0.05), 50)],
    ],
    ids=["nothing released", "no noise", "fixed cohorts", "huge epsilon"],
)
def test_there_is_no_curve_where_pld_cannot_answer(
    releases: list[tuple[AccountingEvent, int]],
) -> None:
    assert quick_epsilon(releases, 1e-5) is None
    assert privacy_profile(releases, 1e-5) is None


def test_a_capped_cohort_has_a_curve() -> None:
    capped = [(AccountingEvent("poisson", 10_000, 100, 1.0, 200), 50)]
    quick = quick_epsilon(capped, 1e-6)
    assert quick == pytest.approx(epsilon_spent(capped, 1e-6, "pld").epsilon, rel=0.01)


def test_the_trade_off_of_a_gaussian_is_its_own_fit() -> None:
    epsilons = tuple(5.0 * (step / 400) ** 1.5 for step in range(401))
    profile = Profile(epsilons, tuple(gaussian_delta(1.0, epsilon) for epsilon in epsilons))
    curve = trade_off(profile)
    assert curve.mu == pytest.approx(1.0, rel=0.001)
    assert curve.gap < 0.001
    for rate, missed in zip(curve.false_positive, curve.false_negative, strict=True):
        assert missed == pytest.approx(float(ndtr(ndtri(1 - rate) - 1.0)), abs=0.001)


def test_the_trade_off_of_a_single_pair_is_two_lines() -> None:
    curve = trade_off(Profile((math.log(2.0),), (0.1,)))
    at = dict(zip(curve.false_positive, curve.false_negative, strict=True))
    # max(1 - 0.1 - 2 a, (1 - 0.1 - a) / 2), by hand.
    assert at[0.1] == pytest.approx(0.7)
    assert at[0.5] == pytest.approx(0.2)


def test_perfect_privacy_is_guessing() -> None:
    curve = trade_off(Profile((0.0,), (0.0,)))
    assert curve.mu == pytest.approx(0.0, abs=1e-12)
    for rate, missed in zip(curve.false_positive, curve.false_negative, strict=True):
        assert missed == pytest.approx(1 - rate)


def test_no_privacy_misses_nobody() -> None:
    curve = trade_off(Profile((0.0,), (1.0,)))
    assert set(curve.false_negative) == {0.0}
    assert curve.mu == math.inf
    assert set(curve.gaussian) == {0.0}


@given(some.floats(0.05, 4.0))
def test_the_gaussian_curve_never_lies_above_the_computed_one(mu: float) -> None:
    epsilons = tuple(0.2 * step for step in range(40))
    profile = Profile(epsilons, tuple(gaussian_delta(mu, epsilon) for epsilon in epsilons))
    curve = trade_off(profile)
    pairs = zip(curve.gaussian, curve.false_negative, strict=True)
    assert all(gaussian <= missed + 1e-9 for gaussian, missed in pairs)
    assert curve.mu >= mu * (1 - 1e-6)
