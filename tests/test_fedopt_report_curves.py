"""Check the curves of the report against the accountants and against numbers done by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from fedopt.report_curves import (
    build_curves,
    charged_until,
    chosen_rounds,
    epsilon_by_population,
    epsilon_by_round,
)
from privacy.accounting import epsilon_spent
from privacy.ledger import LedgerRow
from privacy.plan import PrivacyPlan


def plan(**changes: Any) -> PrivacyPlan:
    """Give a plan that claims 500 of 100,000 users a round."""
    values: dict[str, Any] = {
        "population": 100_000,
        "cohort": 500,
        "rounds": 12,
        "delta": 1e-7,
        "noise_multiplier": 0.8,
        "clip_norm": 1.0,
    }
    return PrivacyPlan(**(values | changes))


def charges(claimed: PrivacyPlan, rounds: int, repeated: int = 0) -> list[LedgerRow]:
    """Give the charges of some rounds; the first `repeated` of them were charged twice."""
    event = claimed.event
    once = LedgerRow(
        run="r",
        round=1,
        attempt=0,
        key_hash="0",
        state="committed",
        event=event,
        event_as_run=claimed.event_as_run,
        clip_norm=claimed.clip_norm,
        cohort_realised=5,
        replies=5,
        noise_std_realised=1.0,
        reserved_at="",
        committed_at="",
    )
    numbers = [(number, 0) for number in range(1, rounds + 1)]
    numbers += [(number, 1) for number in range(1, repeated + 1)]
    return [replace(once, round=number, attempt=attempt) for number, attempt in sorted(numbers)]


def series(curve: dict[str, Any], accountant: str) -> dict[int, float]:
    """Give one accountant's epsilon by round."""
    (found,) = [one for one in curve["series"] if one["accountant"] == accountant]
    return {point["round"]: point["epsilon"] for point in found["points"]}


def test_repeated_attempts_are_counted() -> None:
    claimed = plan()
    assert charged_until(charges(claimed, 5, repeated=2), 3) == [(claimed.event, 5)]


def test_the_curve_holds_what_was_charged_and_projects_the_rest() -> None:
    claimed = plan()
    curve = epsilon_by_round(claimed, charges(claimed, 4, repeated=1))
    assert (curve["charged_until"], curve["planned"]) == (4, 12)
    found = series(curve, "rdp")
    for number, count in ((1, 2), (4, 5), (12, 13)):
        expected = epsilon_spent([(claimed.event, count)], claimed.delta, "rdp").epsilon
        assert found[number] == pytest.approx(expected, rel=1e-12)


def test_the_curve_of_pld_lies_below_that_of_rdp() -> None:
    curve = epsilon_by_round(plan(), [])
    renyi, losses = series(curve, "rdp"), series(curve, "pld")
    assert {1, 12} <= losses.keys() <= renyi.keys()
    assert all(losses[number] < renyi[number] for number in losses)


def test_every_series_says_what_its_epsilons_mean() -> None:
    claimed = plan(sampling="everyone", cohort=100_000, noise_multiplier=9.0)
    found = epsilon_by_round(claimed, [])["series"]
    assert [one["accountant"] for one in found] == ["rdp", "pld", "exact"]
    for one in found:
        assert one["delta"] == claimed.delta
        assert one["adjacency"] == "add-or-remove-one"
        assert one["upper_bound"] is True
        assert one["version"]


@given(some.integers(0, 500), some.integers(1, 500), some.integers(2, 40))
def test_chosen_rounds_hold_the_first_the_last_and_the_planned(
    last: int, planned: int, most: int
) -> None:
    found = chosen_rounds(last, planned, most)
    assert found == sorted(set(found))
    assert {1, max(planned, last)} <= set(found)
    assert last == 0 or last in found
    assert len(found) <= most + 1
    assert found[0] >= 1


def test_the_noise_on_the_mean_is_held_while_the_population_grows() -> None:
    claimed = plan()
    curve = epsilon_by_population(claimed, 3, "rdp")
    assert curve is not None
    assert curve["rounds"] == 3
    for name in ("sample_rate_held", "cohort_held"):
        for point in curve[name]:
            noise = point["noise_multiplier"] / point["cohort"]
            assert noise == pytest.approx(claimed.noise_std_on_mean, rel=1e-12)
    for point in curve["sample_rate_held"]:
        assert point["cohort"] / point["population"] == pytest.approx(0.005, rel=0.002)
    assert {point["cohort"] for point in curve["cohort_held"]} == {500}


def test_the_runs_own_point_lies_on_both_curves_of_the_population() -> None:
    claimed = plan()
    curve = epsilon_by_population(claimed, 3, "rdp")
    assert curve is not None
    expected = claimed.epsilon(rounds=3)
    for name in ("sample_rate_held", "cohort_held"):
        (own,) = [point for point in curve[name] if point["population"] == claimed.population]
        assert own["epsilon"] == pytest.approx(expected, rel=1e-12)


def test_epsilon_falls_as_the_population_grows() -> None:
    curve = epsilon_by_population(plan(), 3, "rdp")
    assert curve is not None
    for name in ("sample_rate_held", "cohort_held"):
        epsilons = [point["epsilon"] for point in curve[name]]
        assert epsilons == sorted(epsilons, reverse=True)
        assert epsilons[0] > 2 * epsilons[-1]


@pytest.mark.parametrize(
    "claimed",
    [plan(noise_multiplier=0.0), plan(sampling="fixed"), plan(cohort_cap=800)],
    ids=["no noise", "fixed cohorts", "capped"],
)
def test_curves_that_cannot_be_computed_are_none(claimed: PrivacyPlan) -> None:
    accountant: Any = "pld" if claimed.cohort_cap else "rdp"
    curves = build_curves(claimed, charges(claimed, 2), accountant)
    if claimed.sampling == "fixed":
        assert curves["privacy_profile"] is None
        assert curves["epsilon_by_population"] is not None
    elif claimed.cohort_cap:
        assert curves["privacy_profile"] is not None
        assert curves["epsilon_by_population"] is None
    else:
        assert curves["privacy_profile"] is curves["trade_off"] is None
        assert curves["epsilon_by_population"] is None
        assert series(curves["epsilon_by_round"], "pld") == {}


def test_a_run_without_rounds_has_only_a_projection() -> None:
    curves = build_curves(plan(), [], "rdp")
    assert curves["epsilon_by_round"]["charged_until"] == 0
    assert curves["privacy_profile"] is None
    assert curves["epsilon_by_population"]["rounds"] == 12
