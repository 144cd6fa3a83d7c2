"""Check the words of a guarantee rule by rule, and the codes of its warnings."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from privacy.plan import PrivacyPlan
from privacy.statement import (
    Epsilon,
    as_run_sentence,
    guarantee_sentence,
    not_covered,
    plan_warnings,
    round_up,
    strength,
    tier,
    trust_sentences,
)


def plan(**changes: Any) -> PrivacyPlan:
    """Give a plan that claims 10 of 1000 users a round."""
    values: dict[str, Any] = {
        "population": 1000,
        "cohort": 10,
        "rounds": 5,
        "delta": 1e-5,
        "noise_multiplier": 1.0,
        "clip_norm": 2.0,
    }
    return PrivacyPlan(**(values | changes))


def spent(value: float = 2.345, adjacency: str = "add-or-remove-one", **changes: Any) -> Epsilon:
    """Give an epsilon as an accountant answers it."""
    known: dict[str, Any] = {"accountant": "rdp", "version": "opacus 1.6.0"}
    return Epsilon(value, 1e-5, adjacency, "poisson", **(known | changes))


SENTENCES = {
    "poisson, secret, not extrapolated": (
        plan(),
        spent(),
        5,
        "secure",
        "The sequence of all 5 released models is (epsilon <= 2.35, delta = 1e-05)-differentially "
        "private at the level of one user (adding or removing all data of one user), provided that "
        "each of N = 1,000 users is drawn independently with probability q = 0.01 in each round; "
        "computed with RDP by opacus 1.6.0.",
    ),
    "reproducible": (
        plan(),
        spent(),
        5,
        "reproducible",
        "Simulated guarantee: the sequence of all 5 released models is (epsilon <= 2.35, delta = "
        "1e-05)-differentially private at the level of one user (adding or removing all data of "
        "one user), provided that each of N = 1,000 users is drawn independently with probability "
        "q = 0.01 in each round; computed with RDP by opacus 1.6.0.",
    ),
    "extrapolated": (
        plan().simulate(users=50, cohort=5),
        spent(),
        1,
        "secure",
        "Simulated guarantee: the one released model is (epsilon <= 2.35, delta = 1e-05)-"
        "differentially private at the level of one user (adding or removing all data of one "
        "user), provided that each of N = 1,000 users is drawn independently with probability "
        "q = 0.01 in each round; computed with RDP by opacus 1.6.0.",
    ),
    "simulated with the claimed users is not extrapolated": (
        plan().simulate(users=1000, cohort=10),
        spent(accountant="pld", version="dp-accounting 0.6.0"),
        5,
        "secure",
        "The sequence of all 5 released models is (epsilon <= 2.35, delta = 1e-05)-differentially "
        "private at the level of one user (adding or removing all data of one user), provided that "
        "each of N = 1,000 users is drawn independently with probability q = 0.01 in each round; "
        "computed with PLD by dp-accounting 0.6.0.",
    ),
    "fixed cohorts are replace-one": (
        plan(sampling="fixed"),
        spent(adjacency="replace-one", version="dp-accounting 0.6.0"),
        5,
        "secure",
        "The sequence of all 5 released models is (epsilon <= 2.35, delta = 1e-05)-differentially "
        "private at the level of one user (replacing all data of one user by another's), provided "
        "that exactly 10 of N = 1,000 users are drawn uniformly without replacement in each round; "
        "computed with RDP by dp-accounting 0.6.0.",
    ),
    "everyone, no amplification": (
        plan(sampling="everyone", cohort=1000),
        spent(accountant="exact", version="scipy 1.17.1"),
        5,
        "secure",
        "The sequence of all 5 released models is (epsilon <= 2.35, delta = 1e-05)-differentially "
        "private at the level of one user (adding or removing all data of one user), provided that "
        "all N = 1,000 users take part in every round; computed with the exact Gaussian curve by "
        "scipy 1.17.1.",
    ),
    "capped": (
        plan(cohort_cap=40),
        spent(accountant="pld", version="dp-accounting 0.6.0"),
        5,
        "secure",
        "The sequence of all 5 released models is (epsilon <= 2.35, delta = 1e-05)-differentially "
        "private at the level of one user (adding or removing all data of one user), provided that "
        "each of N = 1,000 users is drawn independently with probability q = 0.01 in each round, "
        "cut to at most 40; computed with PLD by dp-accounting 0.6.0.",
    ),
    "no noise": (
        plan(noise_multiplier=0.0),
        spent(math.inf),
        5,
        "secure",
        "No privacy guarantee: no noise was added, so epsilon is infinite whatever the sampling "
        "and the clipping.",
    ),
    "no noise and no rounds": (
        plan(noise_multiplier=0.0),
        spent(0.0),
        0,
        "secure",
        "No privacy guarantee: no noise was added, so epsilon is infinite whatever the sampling "
        "and the clipping.",
    ),
    "too little noise": (
        plan(noise_multiplier=1e-200),
        spent(math.inf),
        5,
        "secure",
        "No privacy guarantee: the noise is so small that epsilon is infinite.",
    ),
    "nothing released": (
        plan(),
        spent(0.0),
        0,
        "secure",
        "No model was released yet, so there is nothing to guarantee.",
    ),
}


@pytest.mark.parametrize("case", SENTENCES)
def test_the_guarantee_is_worded_by_rule(case: str) -> None:
    claimed, epsilon, rounds, randomness, expected = SENTENCES[case]
    assert guarantee_sentence(claimed, epsilon, rounds, randomness) == expected


@pytest.mark.parametrize(
    ("value", "ending"),
    [
        (10.0, "opacus 1.6.0."),
        (10.1, "; the formal guarantee alone does not bound attacks meaningfully."),
        (50.0, "; the formal guarantee alone does not bound attacks meaningfully."),
        (50.1, "; no meaningful guarantee."),
    ],
)
def test_a_large_epsilon_is_said_to_mean_little(value: float, ending: str) -> None:
    sentence = guarantee_sentence(plan(), spent(value), 5, "secure")
    assert sentence.endswith(ending)
    assert f"epsilon <= {round_up(value)}" in sentence


AS_RUN = {
    "virtual users": (
        plan().simulate(users=50, cohort=5, virtual=True),
        spent(),
        5,
        "secure",
        "As run: virtual users share the data of fewer people, so nothing is guaranteed to the "
        "people in this data set.",
    ),
    "the claim itself, secret": (
        plan(),
        spent(),
        5,
        "secure",
        "As run: the claimed cohorts themselves were drawn, so both are the same.",
    ),
    "the claim itself, reproducible": (
        plan().simulate(users=1000, cohort=10),
        spent(),
        5,
        "reproducible",
        "As run (what secret randomness would give): the claimed cohorts themselves were drawn, "
        "so both are the same.",
    ),
    "extrapolated": (
        plan().simulate(users=50, cohort=5),
        spent(7.5),
        5,
        "secure",
        "As run: 5 of 50 people a round with noise multiplier 0.5 for 5 rounds give epsilon 7.50 "
        "at delta = 1e-05.",
    ),
    "extrapolated, reproducible and weak": (
        plan().simulate(users=50, cohort=5),
        spent(75.0),
        5,
        "reproducible",
        "As run (what secret randomness would give): 5 of 50 people a round with noise multiplier "
        "0.5 for 5 rounds give epsilon 75.00 at delta = 1e-05: no meaningful guarantee for the "
        "people in this data set.",
    ),
    "no noise": (
        plan(noise_multiplier=0.0),
        spent(math.inf),
        5,
        "secure",
        "As run: no noise, hence no guarantee for the people in this data set.",
    ),
    "not bounded": (
        plan().simulate(users=50, cohort=5),
        spent(math.inf),
        5,
        "secure",
        "As run: too little noise, hence no guarantee for the people in this data set.",
    ),
    "nothing released": (
        plan().simulate(users=50, cohort=5),
        spent(0.0),
        0,
        "secure",
        "As run: no model was released yet.",
    ),
}


@pytest.mark.parametrize("case", AS_RUN)
def test_what_the_simulation_gives_is_worded_by_rule(case: str) -> None:
    claimed, epsilon, rounds, randomness, expected = AS_RUN[case]
    assert as_run_sentence(claimed, epsilon, rounds, randomness) == expected


@pytest.mark.parametrize(
    ("epsilon", "name"),
    [
        (0.0, "tier 1: strong formal guarantee"),
        (1.0, "tier 1: strong formal guarantee"),
        (1.0001, "tier 2: reasonable guarantee"),
        (10.0, "tier 2: reasonable guarantee"),
        (10.0001, "tier 3: weak or no formal guarantee"),
        (math.inf, "tier 3: weak or no formal guarantee"),
    ],
)
def test_tiers_end_at_one_and_at_ten(epsilon: float, name: str) -> None:
    assert tier(epsilon) == name


def codes(claimed: PrivacyPlan, randomness: str = "secure") -> list[str]:
    """List the codes of a plan's warnings."""
    return [warning.code for warning in plan_warnings(claimed, randomness)]


@pytest.mark.parametrize(
    ("claimed", "randomness", "expected"),
    [
        (plan(), "secure", []),
        (plan(delta=1e-4), "secure", []),
        (plan(delta=5e-4), "secure", ["delta-near-one-over-population"]),
        (plan(delta=1e-3), "secure", ["delta-above-one-over-population"]),
        (plan(noise_multiplier=0.0), "secure", ["not-private"]),
        (plan(noise_multiplier=0.0), "reproducible", ["not-private"]),
        (plan(), "reproducible", ["reproducible-randomness"]),
        (plan().simulate(users=50, cohort=5), "secure", ["extrapolated"]),
        (plan().simulate(users=1000, cohort=10), "secure", []),
        (
            plan().simulate(users=50, cohort=5, virtual=True),
            "secure",
            ["extrapolated", "virtual-users"],
        ),
        (plan(clipping="normalise-dim"), "secure", ["normalising-clip"]),
    ],
)
def test_warnings_have_stable_codes(
    claimed: PrivacyPlan, randomness: str, expected: list[str]
) -> None:
    assert codes(claimed, randomness) == expected


def test_trust_names_the_server_and_what_one_share_of_noise_is_worth() -> None:
    lines = " ".join(trust_sentences(plan()))
    assert "The server is trusted: it sees partial sums" in lines
    # z / sqrt(m) = 1 / sqrt(10) = 0.316...
    assert "a noise multiplier of only 0.316" in lines


def test_trust_has_no_shares_where_the_server_adds_the_noise() -> None:
    assert "share" not in " ".join(trust_sentences(plan(noise_placement="server")))


def test_trust_in_an_app_names_single_updates_and_the_operators_duty() -> None:
    lines = " ".join(trust_sentences(plan(), plug_in=True))
    assert "it sees single users' updates" in lines
    assert "the operator's duty" in lines


def test_without_noise_nothing_is_said_to_hold() -> None:
    lines = trust_sentences(plan(noise_multiplier=0.0))
    assert lines[0] == "There is no guarantee against anybody."


def test_metrics_and_tuning_are_never_covered() -> None:
    lines = not_covered(["the data of the seed model"])
    assert any("evaluation metrics" in line for line in lines)
    assert any("choices made by looking at them" in line for line in lines)
    assert lines[-1] == "the data of the seed model"


@pytest.mark.parametrize(
    ("value", "printed"),
    [
        (math.inf, "infinity"),
        (0.0, "0"),
        (-0.1, "0"),
        (7.2201, "7.23"),
        (7.22, "7.22"),
        (0.00123, "0.0013"),
        (9030497.8107, "9,030,497.82"),
    ],
)
def test_numbers_are_rounded_up_and_never_more_than_needed(value: float, printed: str) -> None:
    assert round_up(value) == printed


@given(some.floats(1e-12, 1e9))
def test_a_printed_epsilon_is_never_below_the_number(value: float) -> None:
    printed = float(round_up(value).replace(",", ""))
    assert printed >= value * (1 - 1e-8)
    assert printed <= value * 1.11 + 1e-12


@given(some.floats(0.0, 50.0), some.floats(0.0, 1e6))
def test_strength_never_rises_with_epsilon(smaller: float, more: float) -> None:
    order = ["", strength(10.1), strength(50.1)]
    assert order.index(strength(smaller + more)) >= order.index(strength(smaller))


def test_a_warning_names_a_tenth_of_one_over_the_population_as_delta() -> None:
    for delta in (5e-4, 2e-3):
        (told,) = (w for w in plan_warnings(plan(delta=delta), "secure") if "delta" in w.code)
        assert told.text.endswith("choose delta below 0.0001")


def test_without_noise_there_is_no_share_of_noise() -> None:
    assert not any("share" in text for text in trust_sentences(plan(noise_multiplier=0.0)))
