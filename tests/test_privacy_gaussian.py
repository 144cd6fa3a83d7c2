"""The exact Gaussian curve: against dp-accounting, against closed forms, and its own inverses."""

import math

import dp_accounting
import mpmath
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from privacy.gaussian import gaussian_delta, gaussian_epsilon, gaussian_mu


@pytest.mark.parametrize("mu", [0.001, 0.1, 1.0, 7.0, 60.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-9, 1e-14])
def test_epsilon_equals_the_one_of_dp_accounting_from_above(mu, delta):
    theirs = dp_accounting.get_epsilon_gaussian(1 / mu, delta)
    ours = gaussian_epsilon(mu, delta)
    assert theirs * (1 - 1e-9) - 1e-9 <= ours <= theirs * (1 + 1e-9) + 1e-9


def test_delta_at_epsilon_0_is_the_total_variation_distance():
    assert gaussian_delta(1.0, 0.0) == pytest.approx(math.erf(0.5 / math.sqrt(2)), rel=1e-14)


def test_a_release_without_strength_spends_nothing():
    assert gaussian_epsilon(0.0, 1e-9) == 0.0
    assert gaussian_delta(0.0, 1.0) == 0.0


def test_a_release_without_noise_spends_everything():
    assert math.isinf(gaussian_epsilon(math.inf, 1e-9))
    assert gaussian_delta(math.inf, 5.0) == 1.0


def test_a_large_delta_needs_no_epsilon():
    assert gaussian_epsilon(0.1, 0.5) == 0.0


def test_a_strength_below_the_digits_of_a_float_counts_as_none():
    assert gaussian_delta(1e-18, 0.0) == 0.0


def test_delta_far_beyond_the_curve_underflows_to_zero():
    assert gaussian_delta(0.01, 50.0) == 0.0


@settings(max_examples=50, deadline=None)
@given(st.floats(0.01, 50), st.floats(1e-14, 1e-2))
def test_epsilon_and_mu_invert_each_other_on_the_safe_side(mu, delta):
    epsilon = gaussian_epsilon(mu, delta)
    if epsilon > 0:
        assert gaussian_delta(mu, epsilon) <= delta
        assert mu * (1 - 1e-9) <= gaussian_mu(epsilon, delta) <= mu * (1 + 1e-9)
        assert gaussian_delta(gaussian_mu(epsilon, delta), epsilon) <= delta


def exact_delta(mu, epsilon):
    """Compute the curve of Balle and Wang 2018, Theorem 8, with 60 digits."""
    with mpmath.workdps(60):
        strength, at = mpmath.mpf(mu), mpmath.mpf(epsilon)
        later = mpmath.exp(at) * mpmath.ncdf(-strength / 2 - at / strength)
        return mpmath.ncdf(strength / 2 - at / strength) - later


@settings(max_examples=100, deadline=None)
@given(st.floats(-9, 3).map(lambda power: 10**power), st.floats(-14, -1))
@example(mu=1e-4, power=-9.0)  # here 1e-12 relative was not enough to be on the safe side
def test_epsilon_is_never_below_the_curve_and_hardly_above(mu, power):
    delta = 10**power
    epsilon = gaussian_epsilon(mu, delta)
    assert exact_delta(mu, epsilon) <= delta
    ceiling = mu * mu / 2 + mu * math.sqrt(-2 * math.log(delta))
    lower = epsilon * (1 - 3e-12) - (4e-13 + 1e-14 / mu) * ceiling
    if lower > 0:
        assert exact_delta(mu, lower) > delta


@settings(max_examples=50, deadline=None)
@given(st.floats(-8, 2), st.floats(-14, -1))
def test_mu_is_never_above_the_curve_and_hardly_below(power, small):
    epsilon, delta = 10**power, 10**small
    mu = gaussian_mu(epsilon, delta)
    assert exact_delta(mu, epsilon) <= delta
    assert exact_delta(mu * (1 + 3e-12) + 1e-14, epsilon) > delta
