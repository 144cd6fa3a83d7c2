"""The integer grid of sums at the edge of 64 bits: one user more costs a bit of precision."""

import math

import pytest

from privacy.errors import SettingsError
from privacy.noise import fraction_bits, grid_spacing

# Two clip norms for each user, 64 more and ten deviations of noise are at most 2^(61 - bits).


def edge(bits: int) -> int:
    """Give the largest cohort without noise whose sums leave so many bits below the clip norm."""
    return (2 ** (61 - bits) - 64) // 2


@pytest.mark.parametrize("bits", [17, 20, 30, 40])
def test_one_user_above_the_edge_costs_one_bit(bits):
    assert fraction_bits(edge(bits), 0.0) == bits
    assert fraction_bits(edge(bits) + 1, 0.0) == bits - 1


def test_a_trace_of_noise_above_the_edge_costs_one_bit():
    assert fraction_bits(edge(30), 0.0) == 30
    assert fraction_bits(edge(30), 0.05) == 29


def test_noise_counts_with_ten_deviations():
    noise = (2.0**30 - 64 - 2) / 10
    assert fraction_bits(1, noise) == 31
    assert fraction_bits(1, noise + 1) == 30


def test_sixteen_bits_are_enough_and_fifteen_are_refused():
    assert fraction_bits(edge(16), 0.0) == 16
    with pytest.raises(SettingsError, match="lower the cohort or the noise multiplier"):
        fraction_bits(edge(16) + 1, 0.0)


@pytest.mark.parametrize("bits", [16, 25, 40])
def test_twice_the_cohort_in_full_agreement_fits_beside_its_noise(bits):
    cohort = edge(bits)
    steps = 2 * cohort * 2.0 ** (bits + 1)  # a clip norm is up to 2^(bits + 1) steps
    assert steps < 2**63
    assert grid_spacing(1.0, cohort) == 2.0**-bits
    assert grid_spacing(math.nextafter(2.0, 0.0), cohort) == 2.0**-bits
