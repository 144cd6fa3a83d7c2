"""The exact Gaussian curve: against dp-accounting, against closed forms, and its own inverses."""

import math

import dp_accounting
import pytest
from hypothesis import given, settings
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
