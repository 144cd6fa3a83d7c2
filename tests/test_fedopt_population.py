"""Show that groups depend on the cohort alone, and that work is dealt by measured times."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from clients.protocol import UserOutcome
from fedopt.population import MOST_GROUPS, DealtPopulation

COHORTS = st.sets(st.integers(0, 10**9), max_size=200).map(
    lambda users: np.array(sorted(users), dtype=np.int64)
)


def outcome(user: int, seconds: float) -> UserOutcome:
    return UserOutcome(user, 0.0, 0.0, False, seconds)


@given(users=COHORTS)
def test_groups_cut_the_cohort_in_user_order_into_nearly_equal_parts(users: np.ndarray) -> None:
    groups = DealtPopulation(10).groups(users)
    assert len(groups) == min(MOST_GROUPS, len(users))
    assert np.array_equal(np.concatenate([*groups, np.empty(0, np.int64)]), users)
    if groups:
        sizes = [len(group) for group in groups]
        assert max(sizes) - min(sizes) <= 1


@given(users=COHORTS, workers=st.integers(1, 9))
def test_every_group_is_dealt_once(users: np.ndarray, workers: int) -> None:
    population = DealtPopulation(10)
    groups = population.groups(users)
    hands = population.deal(groups, workers)
    assert len(hands) == workers
    assert sorted(group for hand in hands for group in hand) == list(range(len(groups)))


def test_the_longest_groups_are_dealt_first_each_to_the_worker_with_least_to_do() -> None:
    population = DealtPopulation(5, most_groups=5)
    population.learn([outcome(user, cost) for user, cost in enumerate([7.0, 6.0, 5.0, 4.0, 3.0])])
    groups = population.groups(np.arange(5))
    # Graham's rule by hand: 7 | 6, then 5 to the 6, 4 to the 7, 3 to either at 11.
    assert population.deal(groups, 2) == [[0, 3, 4], [1, 2]]


@given(costs=st.lists(st.floats(0.01, 100.0), min_size=1, max_size=32), workers=st.integers(1, 6))
def test_the_slowest_worker_is_within_four_thirds_of_the_best_possible(
    costs: list[float], workers: int
) -> None:
    population = DealtPopulation(len(costs))
    population.learn([outcome(user, cost) for user, cost in enumerate(costs)])
    groups = population.groups(np.arange(len(costs)))
    hands = population.deal(groups, workers)
    longest = max(sum(costs[group] for group in hand) for hand in hands)
    ordered = sorted(costs, reverse=True)
    least = max(
        sum(costs) / workers,
        ordered[0],
        *([ordered[workers - 1] + ordered[workers]] if len(costs) > workers else [0.0]),
    )
    assert longest <= least * (4 / 3) * (1 + 1e-9)


def test_times_are_averaged_by_data_user_and_unknown_users_cost_the_mean() -> None:
    population = DealtPopulation(4)
    population.learn([outcome(1, 2.0), outcome(1 + 4 * 10**8, 4.0), outcome(2, 9.0)])
    assert population.expected_seconds(np.array([1])) == 3.0
    assert population.expected_seconds(np.array([0])) == 6.0
    assert population.expected_seconds(np.array([1, 2, 3])) == 18.0


def test_a_user_whose_time_is_not_known_teaches_nothing() -> None:
    population = DealtPopulation(4)
    population.learn([outcome(1, 2.0), outcome(1, 0.0)])
    assert population.expected_seconds(np.array([1])) == 2.0


def test_the_population_costs_what_its_data_users_cost() -> None:
    population = DealtPopulation(10)
    groups = population.groups(np.array([0, 10**9 - 1], dtype=np.int64))
    assert [group.tolist() for group in groups] == [[0], [10**9 - 1]]
    assert population.seconds.nbytes + population.seen.nbytes == 160
