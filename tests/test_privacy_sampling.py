"""Show that cohorts are drawn as the event says, and that other samplers are told apart."""

from __future__ import annotations

import itertools
import math
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from privacy.event import AccountingEvent
from privacy.plan import PrivacyPlan
from privacy.sampling import cut_to_cap, draw_cohort, fixed_cohort, poisson_cohort
from privacy.seeds import KeyedSource, Source, Streams, SystemSource

SURPRISE = 1e-6  # a right sampler is rejected once in a million runs
ROUNDS = 6000
EVENT = AccountingEvent("poisson", population=150, cohort=12, noise_multiplier=1.0)

Sampler = Callable[[int], NDArray[np.int64]]
"""Draws the cohort of a round number."""


class GivenSource:
    """Hand out uniform numbers that the test chose."""

    def __init__(self, *numbers: float) -> None:
        self.numbers = list(numbers)

    def uniform(self, count: int) -> NDArray[np.float64]:
        given_now = (self.numbers + [0.5] * count)[:count]
        self.numbers = self.numbers[count:]
        return np.array(given_now)

    def integers(self, bound: int, count: int) -> NDArray[np.int64]:
        raise AssertionError("Poisson sampling needs no integers")

    def normal(self, count: int) -> NDArray[np.float64]:
        raise AssertionError("sampling needs no noise")


def keyed(round_number: int, seed: int = 5) -> Source:
    return Streams(seed=seed, settings_hash="sampling").source("cohort", round_number)


def poisson_faults(draw: Sampler, event: AccountingEvent) -> set[str]:
    """Compare cohorts with what a Poisson event promises; names what does not agree."""
    users, rate = event.population, event.sample_rate
    drawn = np.zeros((ROUNDS, users))
    for number in range(ROUNDS):
        drawn[number, draw(number)] = 1.0
    spread = rate * (1.0 - rate)
    centred = (drawn - rate) / math.sqrt(spread)

    def surprising(statistic: float, freedom: int) -> bool:
        below = float(stats.chi2.cdf(statistic, freedom))
        return not SURPRISE < below < 1.0 - SURPRISE

    faults = set()
    per_user = centred.sum(axis=0) / math.sqrt(ROUNDS)
    if surprising(float(per_user @ per_user), users) or abs(per_user.sum()) > 5 * math.sqrt(users):
        faults.add("inclusion rate")
    neighbours = (centred[:, :-1] * centred[:, 1:]).sum(axis=0) / math.sqrt(ROUNDS)
    if surprising(float(neighbours @ neighbours), users - 1):
        faults.add("independence of users")
    for lag in (1, 2):
        rounds = (centred[:-lag] * centred[lag:]).sum(axis=0) / math.sqrt(ROUNDS - lag)
        if surprising(float(rounds @ rounds), users):
            faults.add("independence of rounds")
    if sizes_surprise(drawn.sum(axis=1), users, rate):
        faults.add("cohort size")
    return faults


def sizes_surprise(sizes: NDArray[np.float64], users: int, rate: float) -> bool:
    """Compare cohort sizes with the binomial distribution by chi-square over bins."""
    middle = users * rate
    edges = np.arange(math.floor(middle - 8), math.ceil(middle + 8))
    inside = np.diff(stats.binom.cdf(edges, users, rate), prepend=0.0)
    expected = ROUNDS * np.append(inside, stats.binom.sf(edges[-1], users, rate))
    bins = np.searchsorted(edges, sizes)
    found = np.bincount(bins, minlength=len(expected))
    return bool(stats.chisquare(found, expected).pvalue < SURPRISE)


def poisson_at(rate: float) -> Sampler:
    return lambda number: poisson_cohort(keyed(number), EVENT.population, rate)


def test_keyed_poisson_cohorts_agree_with_the_charged_event() -> None:
    assert poisson_faults(poisson_at(EVENT.sample_rate), EVENT) == set()


def test_secret_poisson_cohorts_agree_with_the_charged_event() -> None:
    source = SystemSource()
    draw: Sampler = lambda number: draw_cohort(source, "poisson", 150, 12)  # noqa: E731
    assert poisson_faults(draw, EVENT) == set()


def test_the_plan_draws_what_its_event_says() -> None:
    plan = PrivacyPlan(
        population=10**6, cohort=1000, rounds=1, delta=1e-9, noise_multiplier=1.0, clip_norm=1.0
    ).simulate(users=150, cohort=12)
    streams = Streams(seed=9, settings_hash="plan")
    assert (plan.event_as_run.population, plan.event_as_run.cohort) == (150, 12)
    assert poisson_faults(lambda number: plan.draw(streams, number), plan.event_as_run) == set()


def test_a_fixed_size_sampler_is_rejected_by_its_cohort_sizes() -> None:
    faults = poisson_faults(lambda number: fixed_cohort(keyed(number), 150, 12), EVENT)
    assert faults == {"cohort size"}


@pytest.mark.parametrize("factor", [1.05, 0.95])
def test_a_rate_5_percent_off_is_rejected(factor: float) -> None:
    faults = poisson_faults(poisson_at(EVENT.sample_rate * factor), EVENT)
    assert "inclusion rate" in faults


def test_users_drawn_in_pairs_are_rejected() -> None:
    def draw(number: int) -> NDArray[np.int64]:
        pairs = poisson_cohort(keyed(number), 75, EVENT.sample_rate)
        return np.concatenate([2 * pairs, 2 * pairs + 1])

    assert {"independence of users", "cohort size"} <= poisson_faults(draw, EVENT)


def test_a_cohort_used_for_two_rounds_is_rejected() -> None:
    faults = poisson_faults(
        lambda number: poisson_cohort(keyed(number // 2), 150, EVENT.sample_rate), EVENT
    )
    assert "independence of rounds" in faults


def test_a_shuffled_pass_over_all_users_is_rejected() -> None:
    def draw(number: int) -> NDArray[np.int64]:
        order = np.random.default_rng(number // 13).permutation(150)
        return np.sort(order[number % 13 :: 13])

    assert "cohort size" in poisson_faults(draw, EVENT)


def test_gaps_between_drawn_users_are_geometric_by_inversion() -> None:
    # With rate 1/2, u in (1/2, 1] skips nobody, u in (1/4, 1/2) skips one, (1/8, 1/4) two.
    source = GivenSource(1.0, 0.6, 0.3, 0.2, 0.9, 0.7, 0.3, 0.3, 0.3)
    assert poisson_cohort(source, 10, 0.5).tolist() == [0, 1, 3, 6, 7, 8]


def test_the_smallest_uniform_numbers_draw_nobody_and_the_largest_everybody() -> None:
    assert poisson_cohort(GivenSource(*[2.0**-53] * 40), 100, 0.001).tolist() == []
    assert poisson_cohort(GivenSource(*[1.0] * 300), 100, 0.001).tolist() == list(range(100))
    assert poisson_cohort(GivenSource(*[2.0**-53] * 40), 10**10, 1e-15).tolist() == []


@given(users=st.integers(1, 10**9), expected=st.floats(0.001, 2000.0), seed=st.integers(0, 1000))
@settings(deadline=None)
def test_poisson_ids_ascend_are_distinct_and_in_range(
    users: int, expected: float, seed: int
) -> None:
    drawn = poisson_cohort(keyed(1, seed), users, min(1.0, expected / users))
    assert drawn.dtype == np.int64
    assert bool((np.diff(drawn) > 0).all())
    assert len(drawn) == 0 or (drawn[0] >= 0 and drawn[-1] < users)
    assert len(drawn) <= expected + 10 * math.sqrt(expected) + 30


@given(users=st.integers(1, 400), data=st.data())
@settings(deadline=None)
def test_a_fixed_cohort_has_exactly_its_size(users: int, data: st.DataObject) -> None:
    size = data.draw(st.integers(1, users))
    drawn = fixed_cohort(keyed(data.draw(st.integers(1, 99))), users, size)
    assert drawn.dtype == np.int64
    assert len(drawn) == size
    assert bool((np.diff(drawn) > 0).all())
    assert 0 <= drawn[0] <= drawn[-1] < users


@pytest.mark.parametrize("size", [2, 4])
def test_every_fixed_cohort_is_equally_likely(size: int) -> None:
    source = KeyedSource(b"f" * 16)
    found = Counter(tuple(fixed_cohort(source, 6, size).tolist()) for _ in range(9000))
    subsets = list(itertools.combinations(range(6), size))
    assert stats.chisquare([found[subset] for subset in subsets]).pvalue > SURPRISE
    assert set(found) == set(subsets)


def test_an_empty_cohort_occurs_as_often_as_it_should() -> None:
    source = KeyedSource(b"e" * 16)
    empty = sum(len(poisson_cohort(source, 1000, 0.001)) == 0 for _ in range(20_000))
    expected = 20_000 * 0.999**1000
    assert abs(empty - expected) < 5 * math.sqrt(expected)


def test_everyone_takes_part_where_sampling_is_everyone() -> None:
    assert draw_cohort(keyed(1), "everyone", 7, 7).tolist() == list(range(7))
    assert draw_cohort(keyed(1), "poisson", 7, 7).tolist() == list(range(7))
    assert draw_cohort(keyed(1), "fixed", 7, 7).tolist() == list(range(7))


def test_a_cap_cuts_larger_cohorts_to_a_random_subset_and_leaves_others() -> None:
    cut_users = Counter[int]()
    for number in range(3000):
        free = draw_cohort(keyed(number), "poisson", 40, 10)
        capped = draw_cohort(keyed(number), "poisson", 40, 10, cap=12)
        assert set(capped.tolist()) <= set(free.tolist())
        assert len(capped) == min(len(free), 12)
        cut_users.update(set(free.tolist()) - set(capped.tolist()))
    assert stats.chisquare([cut_users[user] for user in range(40)]).pvalue > SURPRISE


def test_a_million_of_a_thousand_million_users_are_drawn_fast_and_in_little_memory() -> None:
    started = time.process_time()
    drawn = poisson_cohort(keyed(1), 10**9, 1e-3)
    seconds = time.process_time() - started
    assert abs(len(drawn) - 10**6) < 5 * 1000
    assert seconds < 1.0
    tracemalloc.start()
    try:
        again = poisson_cohort(keyed(1), 10**9, 1e-3)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 200e6
    assert bool((again == drawn).all())


def test_the_size_of_a_huge_cohort_is_binomial() -> None:
    sizes = [len(poisson_cohort(keyed(number), 10**10, 1e-6)) for number in range(300)]
    scaled = (np.array(sizes) - 10_000) / 100.0
    below = stats.chi2.cdf(float(scaled @ scaled), len(sizes))
    assert SURPRISE < below < 1 - SURPRISE


def test_a_cohort_up_to_its_cap_is_left_as_it_is() -> None:
    drawn = np.array([3, 5, 8], dtype=np.int64)
    source = Streams(1, "ab").source("cohort", 1)
    for cap in (None, 3, 4, 100):
        assert cut_to_cap(source, drawn, cap).tolist() == [3, 5, 8]
    cut = cut_to_cap(source, drawn, 2)
    assert len(cut) == 2
    assert set(cut.tolist()) < {3, 5, 8}


class Counted(KeyedSource):
    """Count how many integers are drawn."""

    drawn = 0

    def integers(self, bound: int, count: int) -> NDArray[np.int64]:
        self.drawn += count
        return super().integers(bound, count)


@pytest.mark.parametrize(
    ("users", "size", "most"), [(10**12, 50, 60), (10_000, 9_990, 30), (10_000, 5_001, 8_000)]
)
def test_a_fixed_cohort_costs_its_size_or_what_is_left_out(
    users: int, size: int, most: int
) -> None:
    source = Counted(b"0" * 16)
    assert len(fixed_cohort(source, users, size)) == size
    assert 0 < source.drawn <= most


def test_everyone_takes_part_whatever_cohort_is_named() -> None:
    assert draw_cohort(keyed(1), "everyone", 7, 3).tolist() == list(range(7))
