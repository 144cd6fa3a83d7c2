"""Schedules: published factors, borders, composition, bad input, advice."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.errors import SettingsError
from strategies.optimizers import OWN
from strategies.schedules import SCHEDULES, Constant, Warmup, advice, build_schedule

OPTIONS = {
    "constant": {},
    "exponential": {"start": 5, "transition": 10, "factor": 0.6},
    "step": {"every": 7, "factor": 0.5},
    "cosine": {"floor": 0.1},
    "linear": {},
}


@pytest.mark.parametrize(
    ("rate", "start", "transition", "final"),
    [(0.006, 1000, 500, 0.00216), (0.002, 750, 750, 0.000854), (0.003, 1000, 250, 0.000389)],
)
def test_exponential_decay_ends_at_the_papers_rates(rate, start, transition, final):
    # Origin: arXiv 2310.00098, rates of the published runs at round 2000.
    schedule = build_schedule("exponential", rounds=2000, start=start, transition=transition)
    assert rate * schedule(2000) == pytest.approx(final, rel=1e-3)
    assert schedule(1) == schedule(start) == 1.0


def test_exponential_decay_is_continuous():
    schedule = build_schedule("exponential", rounds=100, start=10, transition=20, factor=0.25)
    assert schedule(20) == pytest.approx(0.5)
    assert schedule(30) == pytest.approx(0.25)


def test_step_falls_after_every_so_many_rounds():
    schedule = build_schedule("step", rounds=10, every=3, factor=0.1)
    assert [schedule(r) for r in (1, 3, 4, 6, 7)] == pytest.approx([1, 1, 0.1, 0.1, 0.01])


def test_cosine_and_line_run_from_one_to_the_floor():
    cosine = build_schedule("cosine", rounds=11, floor=0.2)
    line = build_schedule("linear", rounds=11, floor=0.2)
    assert [cosine(r) for r in (1, 6, 11, 50)] == pytest.approx([1.0, 0.6, 0.2, 0.2])
    assert [line(r) for r in (1, 6, 11, 50)] == pytest.approx([1.0, 0.6, 0.2, 0.2])
    assert cosine(3) == pytest.approx(0.2 + 0.8 * (1 + math.cos(0.2 * math.pi)) / 2)


@pytest.mark.parametrize("name", SCHEDULES)
def test_warmup_multiplies_any_schedule(name):
    plain = build_schedule(name, rounds=50, **OPTIONS[name])
    ramped = build_schedule(name, rounds=50, warmup=4, **OPTIONS[name])
    assert ramped == Warmup(4, plain)
    assert [ramped(r) for r in (1, 2, 4, 20)] == pytest.approx(
        [plain(1) / 4, plain(2) / 2, plain(4), plain(20)]
    )


@given(
    name=st.sampled_from(sorted(SCHEDULES)),
    rounds=st.integers(1, 5000),
    warmup=st.integers(0, 100),
    number=st.integers(1, 10_000),
)
def test_factor_is_between_zero_and_one_and_depends_on_the_round_only(name, rounds, warmup, number):
    first = build_schedule(name, rounds=rounds, warmup=warmup, **OPTIONS[name])
    second = build_schedule(name, rounds=rounds, warmup=warmup, **OPTIONS[name])
    first(number + 1)
    assert 0.0 <= first(number) <= 1.0
    assert first(number) == second(number)
    assert first == second
    assert repr(first) == repr(second)


def test_whole_numbers_may_come_as_floats_from_a_settings_file():
    assert build_schedule("step", rounds=9, every=3.0) == build_schedule("step", rounds=9, every=3)


def test_all_mistakes_are_reported_at_once():
    with pytest.raises(SettingsError) as caught:
        build_schedule("step", rounds=0, factor=2.0, transition=5, warmup=1.5)
    text = str(caught.value)
    assert len(caught.value.problems) == 5
    for part in ("'transition'", "rounds", "factor", "warmup", "needs every"):
        assert part in text
    with pytest.raises(SettingsError, match="one of constant, exponential"):
        build_schedule("cosin", rounds=5)


def test_advice_is_given_to_layer_normalised_optimizers_at_a_constant_rate_only():
    normalised = {"fednovograd", "fedlamb", "fedlars", "scale"}
    decaying = build_schedule("exponential", rounds=10, warmup=2)
    for name in OWN:
        for schedule in (None, Constant(), Warmup(3, Constant())):
            assert (advice(name, schedule) is not None) == (name in normalised)
        assert advice(name, decaying) is None
    assert "let the rate decay" in str(advice("FedLAMB", None))
