"""One round of privacy loss on a grid: mass, both distributions and the curve it stands for."""

import math

import numpy as np
import pytest

from privacy.event import AccountingEvent
from privacy.gaussian import gaussian_delta
from privacy.loss_composition import Composition, compose
from privacy.loss_grid import LossGrid, one_round

EVENTS = [
    AccountingEvent("poisson", 1000, 10, 1.0),
    AccountingEvent("poisson", 10**8, 10, 0.5),
    AccountingEvent("poisson", 1000, 900, 20.0),
    AccountingEvent("everyone", 10, 10, 3.0),
]


def exact_delta(event: AccountingEvent, epsilon: float) -> float:
    """Delta of one round when a user is removed: q times the Gaussian's at a larger epsilon.

    Origin: Balle, Barthe and Gaboardi 2018 (arXiv 1807.01647), Theorem 2 (amplification).
    """
    rate = event.sample_rate
    inner = math.log1p(math.expm1(epsilon) / rate)
    return rate * gaussian_delta(1 / event.noise_multiplier, inner)


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("direction", ["remove", "add"])
def test_the_weights_add_up_to_one(event, direction):
    grid = one_round(event, direction, 1e-3, 1e-20, 1e-12)
    assert (grid.weights >= 0).all()
    assert grid.weights.sum() + grid.infinite == pytest.approx(1.0, abs=1e-12)
    assert grid.infinite <= 1e-20


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("direction", ["remove", "add"])
def test_the_other_distribution_keeps_its_mass(event, direction):
    grid = one_round(event, direction, 1e-3, 1e-20, 1e-12)
    other = float(grid.weights @ np.exp(-grid.losses))
    assert other == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("event", EVENTS)
def test_delta_is_exact_on_grid_points_even_where_it_is_tiny(event):
    grid = one_round(event, "remove", 1e-3, 1e-25, 1e-12)
    one = Composition(grid.losses, grid.weights, grid.infinite)
    for epsilon in grid.losses[(grid.losses > 0)][:: max(len(grid.losses) // 7, 1)][:6]:
        exact = exact_delta(event, float(epsilon))
        if exact > 1e-18:
            assert one.delta(float(epsilon)) == pytest.approx(exact, rel=1e-4, abs=0)
            assert one.delta(float(epsilon)) >= exact * (1 - 1e-6)


def test_between_grid_points_delta_is_never_too_small():
    event = EVENTS[0]
    one = compose([(one_round(event, "remove", 0.05, 1e-25, 1e-12), 1)], 1.0)
    for epsilon in np.linspace(0.01, 3.0, 37):
        assert one.delta(epsilon) >= exact_delta(event, epsilon) * (1 - 1e-6)


def test_the_losses_of_a_grid_begin_at_its_first_point():
    assert LossGrid(0.5, 5, np.ones(3) / 3, 0.0).losses.tolist() == [2.5, 3.0, 3.5]
    assert LossGrid(0.5, -7, np.ones(2) / 2, 0.0).losses.tolist() == [-3.5, -3.0]


def test_without_sampling_a_user_who_joins_and_one_who_leaves_are_seen_alike_in_the_far_tail():
    # For the one who joins the tail lies on the left, where 1 - (1 - 1e-20) would be nothing.
    event = AccountingEvent("everyone", 10, 10, 3.0)
    grids = [one_round(event, way, 1e-3, 1e-32, 1e-32) for way in ("add", "remove")]
    joins, leaves = (Composition(grid.losses, grid.weights, grid.infinite) for grid in grids)
    for epsilon in (0.5, 1.5, 2.5, 3.0):
        exact = gaussian_delta(1 / 3, epsilon)
        assert joins.delta(epsilon) == pytest.approx(exact, rel=1e-4, abs=0)
        assert leaves.delta(epsilon) == pytest.approx(exact, rel=1e-4, abs=0)
    assert exact < 1e-19
