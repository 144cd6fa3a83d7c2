"""Check the audit's mathematics: fits and margins, the one-run bound, and who canaries are."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from privacy.audit import (
    Sample,
    count_right_guesses,
    gaussian_bound,
    one_run_bound,
    one_run_probability,
    sample,
)
from privacy.audit_canaries import EXCESS, Canaries, canary_problems
from privacy.clipping import clip_update, layer_bounds
from privacy.errors import SettingsError
from privacy.gaussian import gaussian_epsilon
from privacy.seeds import Streams

STREAMS = Streams(seed=5, settings_hash="ab")


def canaries(clipping: str = "per-layer-dim", count: int = 40, seed: int = 5) -> Canaries:
    sizes = (1200, 50, 2000)
    bounds = tuple(layer_bounds(clipping, 2.0, sizes))
    return Canaries(count, Streams(seed, "ab"), sizes, clipping, bounds)


def test_the_fit_of_hand_computed_scores_is_their_distance_in_pooled_deviations() -> None:
    bound = gaussian_bound(sample([3.0, 5.0, 7.0]), sample([0.0, 1.0, 2.0]), 1e-5, 0.05)
    assert bound.fitted_mu == pytest.approx(4.0 / math.sqrt(2.5))  # variances 4 and 1
    assert bound.fitted_epsilon == gaussian_epsilon(4.0 / math.sqrt(2.5), 1e-5)


def test_the_margin_is_that_of_the_noncentral_t_distribution() -> None:
    from scipy.stats import nct

    for count, mu in ((25, 1.0), (25, 6.0), (100, 0.5), (100, 3.0)):
        bound = gaussian_bound(Sample(count, mu, 1.0), Sample(count, 0.0, 1.0), 1e-5, 0.02)
        assert bound.mu is not None
        unit = math.sqrt(2 / count)
        # Had the strength been the bound, so large a t had a chance of 1 %: half of the miss.
        chance = nct.sf(mu / unit, 2 * count - 2, bound.mu / unit)
        assert 0.007 < chance < 0.0111


@pytest.mark.parametrize(("count", "mu"), [(10, 2.0), (50, 1.0), (50, 8.0)])
def test_the_bound_misses_as_seldom_as_it_says_and_shows_half_the_noise(
    count: int, mu: float
) -> None:
    generator = np.random.default_rng(count)
    above = above_double = 0
    for _ in range(2000):
        included, left_out = generator.normal(size=(2, count))
        for factor in (1, 2):
            found = gaussian_bound(sample(included + factor * mu), sample(left_out), 1e-5, 0.1).mu
            assert found is not None
            above += factor == 1 and found > mu
            above_double += factor == 2 and found > mu
    assert above / 2000 < 0.065  # half of the miss is kept for the length of the noise
    assert above_double / 2000 > 0.5


def test_noise_of_few_dimensions_costs_a_margin_that_covers_its_length() -> None:
    generator = np.random.default_rng(3)
    wide, narrow, mu, above = 0.0, 0.0, 1.0, 0
    for _ in range(400):
        length = math.sqrt(generator.chisquare(12) / 12)  # one draw, shared by all scores
        included, left_out = length * generator.normal(size=(2, 400))
        groups = sample(included + mu), sample(left_out)
        bound = gaussian_bound(*groups, 1e-5, 0.1, dimensions=12)
        free = gaussian_bound(*groups, 1e-5, 0.1)
        above += (bound.mu or 0.0) > mu
        wide, narrow = wide + (free.mu or 0.0), narrow + (bound.mu or 0.0)
    assert above / 400 < 0.1
    assert narrow < 0.75 * wide


def test_scores_without_spread_show_everything_and_too_few_show_nothing() -> None:
    bound = gaussian_bound(Sample(5, 1.0, 0.0), Sample(5, 0.0, 0.0), 1e-5, 0.05)
    assert (bound.epsilon, bound.mu) == (math.inf, math.inf)
    for included, left_out in (((1.0,), (0.0, 0.1)), ((1.0, 1.1), ()), ((-1.0, -2.0), (0.0, 1.0))):
        none = gaussian_bound(sample(included), sample(left_out), 1e-5, 0.05)
        assert (none.epsilon, none.mu, none.fitted_epsilon, none.fitted_mu) == (0.0,) * 4


def test_bad_numbers_are_refused_all_at_once() -> None:
    with pytest.raises(SettingsError) as refused:
        gaussian_bound(Sample(5, 1.0, 1.0), Sample(5, 0.0, 1.0), 0.0, 2.0)
    assert len(refused.value.problems) == 2
    for numbers in ((10, 11, 3), (10, 5, 6), (10, 5, -1)):
        with pytest.raises(SettingsError, match="one-run audit needs"):
            one_run_bound(*numbers, delta=1e-5, miss=0.05)


def test_the_one_run_bound_without_delta_is_a_binomial_quantile() -> None:
    # All of r guesses right: p^r = miss, so epsilon = logit(miss^(1/r)).
    for guesses in (10, 200):
        chance = 0.05 ** (1 / guesses)
        wanted = math.log(chance / (1 - chance))
        assert one_run_bound(500, guesses, guesses, 0.0, 0.05).epsilon == pytest.approx(wanted)


def exact_probability(
    canaries: int, guesses: int, right: int, chance: Fraction, delta: Fraction
) -> Fraction:
    """Compute Theorem 5.2 in whole fractions, term by term."""

    def exactly(count: int) -> Fraction:
        ways = math.comb(guesses, count)
        return ways * chance**count * (1 - chance) ** (guesses - count)

    enough = sum((exactly(count) for count in range(right, guesses + 1)), Fraction(0))
    steps = [
        sum((exactly(count) for count in range(right - step, right)), Fraction(0)) / step
        for step in range(1, right + 1)
    ]
    return enough + 2 * canaries * delta * max(steps)


@pytest.mark.parametrize("right", [1, 9, 15, 20])
def test_the_one_run_probability_is_that_of_the_theorem(right: int) -> None:
    chance, delta = Fraction(3, 4), Fraction(1, 1000)  # e^epsilon = 3
    wanted = exact_probability(50, 20, right, chance, delta)
    found = one_run_probability(50, 20, right, math.log(3.0), 1e-3)
    assert found == pytest.approx(min(float(wanted), 1.0), rel=1e-12)


def test_a_published_example_of_the_one_run_bound_is_met() -> None:
    # The table of expected bounds in the project's privacy notes, made by another program: true
    # mu 1, 1000 canaries, best number of guesses, delta 1e-5: mean 1.87.
    generator = np.random.default_rng(0)
    found = []
    for _ in range(20):
        inside = generator.random(1000) < 0.5
        scores = generator.normal(size=1000) + inside
        order = np.argsort(scores)
        bounds = []
        for each in (5, 12, 25, 50, 100, 200, 400):
            right = inside[order[-each:]].sum() + (~inside[order[:each]]).sum()
            bounds.append(one_run_bound(1000, 2 * each, int(right), 1e-5, 0.05).epsilon)
        found.append(max(bounds))
    assert np.mean(found) == pytest.approx(1.87, abs=0.15)


@given(st.integers(1, 60), st.data())
@settings(max_examples=60, deadline=None)
def test_more_right_guesses_never_show_less(guesses: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, guesses - 1))
    fewer = one_run_bound(100, guesses, right, 1e-6, 0.05)
    more = one_run_bound(100, guesses, right + 1, 1e-6, 0.05)
    assert fewer.epsilon <= more.epsilon


def test_the_one_run_bound_of_randomised_response_misses_as_seldom_as_it_says() -> None:
    generator = np.random.default_rng(8)
    chance = 1 / (1 + math.exp(-1.0))  # each coin is shown truly with this probability: epsilon 1
    right = generator.binomial(60, chance, size=4000)
    above = {
        count: one_run_bound(60, 60, count, 0.0, 0.05).epsilon > 1.0
        for count in set(right.tolist())
    }
    assert 0.01 < np.mean([above[count] for count in right.tolist()]) <= 0.05 + 0.01


def test_guesses_are_the_extreme_scores_and_all_others_abstain() -> None:
    scores = [5.0, -9.0, 0.0, 0.1, 0.2, 8.0, 0.3, -7.0, 0.4, 0.5, 0.6, 0.7]
    inside = [True, False, *[True] * 3, False, True, True, *[False] * 4]
    assert count_right_guesses(scores, inside) == (4, 2)


@pytest.mark.parametrize(
    "clipping",
    ["global", "per-layer-uniform", "per-layer-dim", "normalise-uniform", "normalise-dim"],
)
def test_the_clip_brings_every_canary_exactly_to_its_bounds(clipping: str) -> None:
    import torch

    known = canaries(clipping)
    part = [index for index in range(known.count) if known.takes_part(index)]
    assert {known.layer(index) for index in part} == {None, 0, 2}
    for index in part:
        update = {
            str(layer): torch.zeros(size) if values is None else torch.from_numpy(values)
            for layer, (size, values) in enumerate(
                zip(known.sizes, known.update(index), strict=True)
            )
        }
        layer = known.layer(index)
        norms = [float(values.norm()) for values in update.values()]
        assert math.hypot(*norms) > 0.9 * EXCESS * min(known.bounds)
        clipped = clip_update(update, 2.0, clipping).update
        whole = np.concatenate([values.numpy() for values in clipped.values()]).astype(np.float64)
        length = 2.0 if layer is None else known.bounds[layer]
        assert float(np.linalg.norm(whole)) == pytest.approx(length, rel=1e-5)
        # Its own score is its whole length: the direction is that of the clipped update.
        assert known.scores(whole)[index] == pytest.approx(length, rel=1e-5)


def test_a_canary_that_is_left_out_contributes_nothing() -> None:
    known = canaries()
    left_out = [index for index in range(known.count) if not known.included[index]]
    assert len(left_out) > 5
    assert all(part is None for index in left_out for part in known.update(index))


def test_scores_of_noise_are_its_deviation_and_different_canaries_are_independent() -> None:
    known = canaries(count=400)
    noise = np.random.default_rng(1).normal(scale=0.3, size=sum(known.sizes))
    scores = known.scores(noise)
    assert scores.std() == pytest.approx(0.3, rel=0.1)
    assert abs(scores.mean()) < 0.3 * 4 / math.sqrt(400)
    assert abs(np.corrcoef(scores[:-1], scores[1:])[0, 1]) < 0.2


def test_coins_are_fair_and_follow_the_seed() -> None:
    many = canaries(count=2000)
    assert abs(many.included.mean() - 0.5) < 4 * 0.5 / math.sqrt(2000)
    again, other = canaries(count=2000), canaries(count=2000, seed=6)
    assert (many.included == again.included).all()
    assert (many.included != other.included).any()
    assert (many.signs(0) == again.signs(0)).all()
    assert (many.signs(0) != other.signs(0)).any()


def test_signs_do_not_depend_on_the_coin_and_small_layers_have_no_canaries_of_their_own() -> None:
    known = canaries()
    agreement = np.mean([known.signs(index)[0] > 0 for index in range(0, 40, 2)])
    assert 0.1 < agreement < 0.9
    assert known.layers == [0, 2]
    # Every second canary lies in one layer, the layers in turn; the others lie in all.
    assert [known.layer(index) for index in range(6)] == [None, 0, None, 2, None, 0]
    assert known.whole().tolist() == [True, False] * 20
    tiny = Canaries(20, STREAMS, (3, 30), "per-layer-dim", (1.0, 1.0))
    assert tiny.layers == [1]


def test_dimensions_count_a_small_layer_by_its_share_of_the_bound() -> None:
    assert canaries("per-layer-dim").dimensions(one_layer=False) == pytest.approx(3250)
    # Three equal shares: 1 / (1/9 (1/1200 + 1/50 + 1/2000)).
    assert canaries("per-layer-uniform").dimensions(one_layer=False) == pytest.approx(
        421.9, abs=0.1
    )
    assert canaries().dimensions(one_layer=True) == 1200


def test_more_canaries_than_the_model_has_room_for_are_refused() -> None:
    assert canary_problems(100, [900, 100]) == []
    (problem,) = canary_problems(101, [900, 100])
    assert "at most 100" in problem


@pytest.mark.parametrize("dimensions", [10, 1000])
def test_few_dimensions_shrink_the_bound_by_the_shortest_noise_at_half_the_miss(
    dimensions: int,
) -> None:
    included, left_out = Sample(300, 2.0, 1.0), Sample(300, 0.0, 1.0)
    wide = gaussian_bound(included, left_out, 1e-5, 0.05)
    narrow = gaussian_bound(included, left_out, 1e-5, 0.05, dimensions)
    assert wide.mu is not None
    # Shorter than this with probability 0.025: the 2.5 % point of chi-square, over its mean.
    shortest = math.sqrt(stats.chi2.ppf(0.025, dimensions) / dimensions)
    assert narrow.mu == pytest.approx(wide.mu * shortest, rel=1e-9)
    assert (narrow.fitted_mu, narrow.miss) == (wide.fitted_mu, 0.05)


@pytest.mark.parametrize("right", [60, 65, 80, 99])
def test_the_one_run_bound_is_the_last_epsilon_that_is_unlikely(right: int) -> None:
    epsilon = one_run_bound(100, 100, right, 1e-6, 0.05).epsilon
    assert (epsilon < 1.0) == (right < 99)
    assert one_run_probability(100, 100, right, epsilon, 1e-6) <= 0.05
    assert one_run_probability(100, 100, right, epsilon + 1e-6, 1e-6) > 0.05
