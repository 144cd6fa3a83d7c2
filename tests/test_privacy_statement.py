"""Show that the words of a guarantee say all that it means, and never more."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from privacy.plan import PrivacyPlan
from privacy.statement import (
    Epsilon,
    as_run_sentence,
    guarantee_sentence,
    not_covered,
    plan_warnings,
    round_up,
    sampling_words,
    strength,
    tier,
    trust_sentences,
)

SETTINGS: dict[str, Any] = {
    "population": 1_000_000,
    "cohort": 1000,
    "rounds": 5,
    "delta": 1e-9,
    "noise_multiplier": 1.0,
    "clip_norm": 0.01,
}
PLAN = PrivacyPlan(**SETTINGS)
SIMULATED = PLAN.simulate(users=40, cohort=10)
SPENT = Epsilon(7.2201, 1e-9, "add-or-remove-one", "poisson", "rdp", "opacus 1.6.0")


def at(value: float) -> Epsilon:
    return dataclasses.replace(SPENT, value=value)


@given(value=st.floats(1e-200, 1e200), digits=st.integers(1, 6))
@example(value=7.2200000001, digits=2)
@example(value=118463063143.2956, digits=2)
def test_a_printed_epsilon_is_never_below_the_true_one(value: float, digits: int) -> None:
    printed = Fraction(round_up(value, digits).replace(",", ""))
    assert printed >= Fraction(value) * (1 - Fraction(2, 10**15))  # binary rounding alone
    assert printed <= Fraction(value) * (1 + Fraction(1, 10 ** (digits - 1)))


@pytest.mark.parametrize(
    ("value", "printed"),
    [
        (7.22, "7.22"),
        (7.2201, "7.23"),
        (0.1 + 0.2, "0.30"),
        (0.00123, "0.0013"),
        (999.999, "1,000.00"),
        (118463063143.2956, "118,463,063,143.30"),
        (0.0, "0"),
        (-1.0, "0"),
        (math.inf, "infinity"),
    ],
)
def test_epsilon_is_rounded_up(value: float, printed: str) -> None:
    assert round_up(value) == printed


def test_the_guarantee_names_all_that_it_depends_on() -> None:
    sentence = guarantee_sentence(PLAN, SPENT, 5, "secure")
    for part in (
        "all 5 released models",
        "epsilon <= 7.23",
        "delta = 1e-09",
        "one user",
        "adding or removing all data of one user",
        "N = 1,000,000",
        "independently with probability q = 0.001",
        "RDP by opacus 1.6.0",
    ):
        assert part in sentence
    assert sentence.count(".") >= 1
    assert sentence.endswith(".")
    assert "anonymous" not in sentence.lower()


def test_repeatable_runs_say_simulated_guarantee_first() -> None:
    assert guarantee_sentence(PLAN, SPENT, 5, "reproducible").startswith("Simulated guarantee: ")
    assert guarantee_sentence(PLAN, SPENT, 5, "secure").startswith("The sequence")


def test_extrapolated_runs_say_simulated_guarantee_even_with_secret_randomness() -> None:
    assert guarantee_sentence(SIMULATED, SPENT, 5, "secure").startswith("Simulated guarantee: ")
    whole = PLAN.simulate(users=PLAN.population, cohort=PLAN.cohort)
    assert guarantee_sentence(whole, SPENT, 5, "secure").startswith("The sequence")


def test_a_run_without_noise_promises_nothing() -> None:
    silent = PrivacyPlan(**(SETTINGS | {"noise_multiplier": 0.0}))
    for plan, why in ((silent, "no noise was added"), (PLAN, "noise is so small")):
        sentence = guarantee_sentence(plan, at(math.inf), 5, "secure")
        assert sentence.startswith("No privacy guarantee")
        assert why in sentence
        assert "differentially private" not in sentence


def test_a_run_without_a_release_has_nothing_to_guarantee() -> None:
    assert "differentially private" not in guarantee_sentence(PLAN, at(0.0), 0, "secure")
    assert "epsilon" not in as_run_sentence(SIMULATED, at(0.0), 0, "secure")


def test_a_single_release_is_one_model() -> None:
    assert "one released model is" in guarantee_sentence(PLAN, SPENT, 1, "secure")


def test_a_fixed_cohort_is_quoted_under_replace_one() -> None:
    plan = PrivacyPlan(**(SETTINGS | {"sampling": "fixed"}))
    spent = dataclasses.replace(SPENT, adjacency=plan.event.adjacency, sampling="fixed")
    sentence = guarantee_sentence(plan, spent, 5, "secure")
    assert "replacing all data of one user" in sentence
    assert "exactly 1,000" in sentence
    assert "independently" not in sentence


def test_every_sampling_is_described() -> None:
    everyone = PrivacyPlan(**(SETTINGS | {"sampling": "everyone", "cohort": 1_000_000}))
    assert sampling_words(everyone) == "all N = 1,000,000 users take part in every round"
    capped = PrivacyPlan(**(SETTINGS | {"cohort_cap": 1190}))
    assert sampling_words(capped).endswith("cut to at most 1,190")
    assert "cut" not in sampling_words(PLAN)


@pytest.mark.parametrize(
    ("epsilon", "words"),
    [
        (10.0, ""),
        (10.1, "does not bound attacks meaningfully"),
        (50.0, "does not bound attacks meaningfully"),
        (50.1, "no meaningful guarantee"),
    ],
)
def test_a_large_epsilon_is_called_weak(epsilon: float, words: str) -> None:
    assert words in strength(epsilon)
    assert bool(strength(epsilon)) == bool(words)
    assert words in guarantee_sentence(PLAN, at(epsilon), 5, "secure")


@pytest.mark.parametrize(
    ("epsilon", "number"), [(0.1, 1), (1.0, 1), (1.01, 2), (10.0, 2), (10.01, 3), (math.inf, 3)]
)
def test_the_tiers_are_those_of_ponomareva_and_others(epsilon: float, number: int) -> None:
    assert tier(epsilon).startswith(f"tier {number}:")


def test_a_simulation_whose_own_epsilon_is_above_50_says_so() -> None:
    sentence = as_run_sentence(SIMULATED, at(50.01), 5, "secure")
    assert sentence.endswith("no meaningful guarantee for the people in this data set.")
    assert "10 of 40 people" in sentence
    assert "epsilon 50.01" in sentence
    assert "no meaningful" not in as_run_sentence(SIMULATED, at(49.9), 5, "secure")
    assert "meaningful" not in as_run_sentence(SIMULATED, at(9.9), 5, "secure")


def test_as_run_says_what_secret_randomness_would_give() -> None:
    words = "what secret randomness would give"
    assert words in as_run_sentence(SIMULATED, SPENT, 5, "reproducible")
    assert words not in as_run_sentence(SIMULATED, SPENT, 5, "secure")


def test_as_run_promises_nothing_where_it_cannot() -> None:
    virtual = PLAN.simulate(users=40, cohort=10, virtual=True)
    assert "nothing is guaranteed" in as_run_sentence(virtual, SPENT, 5, "secure")
    assert "no guarantee" in as_run_sentence(SIMULATED, at(math.inf), 5, "secure")
    assert "themselves" in as_run_sentence(PLAN, SPENT, 5, "secure")


def test_every_trust_statement_says_that_the_server_is_trusted() -> None:
    for plan in (PLAN, SIMULATED):
        for plug_in in (False, True):
            text = " ".join(trust_sentences(plan, plug_in))
            assert "The server is trusted" in text
            assert ("single users' updates" in text) == plug_in
            assert ("operator's duty" in text) == plug_in
            assert "noise multiplier of only 0.0316" in text  # 1 / sqrt(1000)
            assert "sqrt((m - c) / m)" in text


def test_shares_are_mentioned_only_where_clients_add_them() -> None:
    for changed in ({"noise_placement": "server"}, {"noise_multiplier": 0.0}):
        text = " ".join(trust_sentences(PrivacyPlan(**(SETTINGS | changed))))
        assert "share" not in text


def test_a_sound_secret_plan_has_no_warning() -> None:
    assert plan_warnings(PLAN, "secure") == []


@pytest.mark.parametrize(
    ("changed", "randomness", "code"),
    [
        ({"delta": 1e-6}, "secure", "delta-above-one-over-population"),
        ({"noise_multiplier": 0.0}, "secure", "not-private"),
        ({}, "reproducible", "reproducible-randomness"),
        ({"clipping": "normalise-dim"}, "secure", "normalising-clip"),
    ],
)
def test_what_a_reader_must_know_is_a_warning_with_a_code(
    changed: dict[str, Any], randomness: str, code: str
) -> None:
    found = plan_warnings(PrivacyPlan(**(SETTINGS | changed)), randomness)
    assert [warning.code for warning in found] == [code]
    assert found[0].text.endswith(".") or "choose" in found[0].text


def test_extrapolation_and_virtual_users_are_warnings() -> None:
    assert [warning.code for warning in plan_warnings(SIMULATED, "secure")] == ["extrapolated"]
    virtual = PLAN.simulate(users=40, cohort=10, virtual=True)
    codes = [warning.code for warning in plan_warnings(virtual, "secure")]
    assert codes == ["extrapolated", "virtual-users"]


def test_what_is_not_covered_is_always_listed_and_a_run_may_add() -> None:
    plain = not_covered()
    assert any("losses" in item and "metrics" in item for item in plain)
    assert any("timing" in item for item in plain)
    assert not_covered(["the seed model"]) == [*plain, "the seed model"]
