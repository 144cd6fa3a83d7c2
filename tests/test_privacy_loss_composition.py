"""Many rounds of privacy loss: against the exact Gaussian, and against sums without a transform."""

import math

import numpy as np
import pytest

from privacy.event import AccountingEvent
from privacy.gaussian import gaussian_epsilon
from privacy.loss_composition import compose
from privacy.loss_grid import LossGrid, one_round


def epsilon_by_plain_sums(grid: LossGrid, rounds: int, delta: float) -> float:
    """Convolve without a transform: all numbers are positive, so every tail keeps its digits."""
    weights = grid.weights
    for _ in range(rounds - 1):
        weights = np.convolve(weights, grid.weights)
    losses = grid.interval * (rounds * grid.first + np.arange(len(weights)))
    low, high = 0.0, float(losses[-1])
    for _ in range(60):
        middle = (low + high) / 2
        above = losses > middle
        found = -(weights[above] * np.expm1(middle - losses[above])).sum()
        low, high = (middle, high) if found > delta else (low, middle)
    return high


@pytest.mark.parametrize("delta", [1e-3, 1e-9, 1e-14, 1e-18])
def test_it_equals_sums_without_a_transform_in_the_far_tail(delta):
    grid = one_round(AccountingEvent("poisson", 1000, 10, 1.0), "remove", 0.01, 1e-30, 1e-12)
    plain = epsilon_by_plain_sums(grid, 32, delta)
    assert compose([(grid, 32)], 5.0).epsilon(delta) == pytest.approx(plain, rel=1e-8)


@pytest.mark.parametrize(("rounds", "noise"), [(100, 30.0), (2000, 100.0), (10**6, 3000.0)])
@pytest.mark.parametrize("delta", [1e-3, 1e-9, 1e-14])
def test_full_participation_through_the_transform_stays_just_above_the_truth(rounds, noise, delta):
    # 1e13 users but one in the cohort: sampled in name, yet the truth is the exact Gaussian.
    event = AccountingEvent("poisson", 10**13, 10**13 - 1, noise)
    exact = gaussian_epsilon(math.sqrt(rounds) / noise, delta)
    tail = delta * 1e-6 / rounds
    theta = 2 * exact / (math.sqrt(rounds) / noise) ** 2 / 2
    for way in ("remove", "add"):
        grid = one_round(event, way, 1 / noise / 16, tail, 1e-7 / rounds)
        ours = compose([(grid, rounds)], theta).epsilon(delta)
        assert exact * (1 - 1e-9) <= ours <= exact * 1.001


def test_two_kinds_of_rounds_add_up_in_any_order():
    grids = [
        one_round(AccountingEvent("poisson", 1000, cohort, noise), "remove", 0.01, 1e-30, 1e-12)
        for cohort, noise in ((10, 1.0), (100, 3.0))
    ]
    both = [(grids[0], 5), (grids[1], 7)]
    one, other = compose(both, 4.0), compose(both[::-1], 4.0)
    assert one.epsilon(1e-9) == pytest.approx(other.epsilon(1e-9), rel=1e-10)
    assert one.epsilon(1e-9) > compose(both[:1], 4.0).epsilon(1e-9)


def test_epsilon_and_delta_are_inverse():
    grid = one_round(AccountingEvent("poisson", 1000, 10, 1.0), "remove", 0.01, 1e-30, 1e-12)
    sums = compose([(grid, 100)], 6.0)
    assert sums.delta(sums.epsilon(1e-8)) == pytest.approx(1e-8, rel=1e-9, abs=0)


def test_infinite_losses_leave_no_epsilon():
    grid = LossGrid(0.1, 0, np.array([0.5, 0.4]), 0.1)
    assert math.isinf(compose([(grid, 1)], 1.0).epsilon(1e-3))


def test_a_delta_above_the_whole_curve_needs_no_epsilon():
    grid = one_round(AccountingEvent("poisson", 1000, 10, 10.0), "remove", 1e-3, 1e-9, 1e-12)
    assert compose([(grid, 1)], 1.0).epsilon(0.5) == 0.0


def test_a_grid_too_large_for_memory_is_refused():
    grid = one_round(AccountingEvent("poisson", 10, 9, 1.0), "remove", 1e-5, 1e-20, 1e-12)
    with pytest.raises(MemoryError, match="grid points"):
        compose([(grid, 10**6)], 1.0)
