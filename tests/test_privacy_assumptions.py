"""Check what is called enforced, trusted and not enforced."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from privacy.assumptions import assumptions, extrapolates
from privacy.plan import PrivacyPlan

SECRET = "Noise and cohorts stay secret"
REAL = "The claimed population and cohort are the real ones"
BOUND = "One user changes a sum by at most the clip norm"
NOISE = "Noise is added before anything is visible"


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


def not_enforced(claimed: PrivacyPlan, randomness: str) -> list[str]:
    """Name the assumptions that a run did not meet."""
    found = assumptions(claimed, randomness)
    return [item.name for item in found if item.state == "not enforced"]


@pytest.mark.parametrize(
    ("claimed", "randomness", "expected"),
    [
        (plan(), "secure", []),
        (plan(), "reproducible", [SECRET]),
        (plan().simulate(users=1000, cohort=10), "secure", []),
        (plan().simulate(users=50, cohort=5), "secure", [REAL]),
        (plan().simulate(users=1000, cohort=10, virtual=True), "secure", [REAL]),
        (plan(noise_multiplier=0.0), "reproducible", [SECRET, NOISE]),
    ],
)
def test_what_a_run_did_not_meet_is_not_enforced(
    claimed: PrivacyPlan, randomness: str, expected: list[str]
) -> None:
    assert not_enforced(claimed, randomness) == expected


def test_what_no_code_can_check_is_trusted() -> None:
    trusted = [item.name for item in assumptions(plan(), "secure") if item.state == "trusted"]
    assert trusted == [
        "One user is one person",
        "The server is honest",
        "Nothing was chosen by looking at these people's data before",
    ]


def test_nodes_that_send_noise_inside_are_trusted_to_have_clipped() -> None:
    found = {item.name: item for item in assumptions(plan(), "secure", True, noised_replies=12)}
    assert found[BOUND].state == "trusted"
    assert "12 replies" in found[BOUND].detail
    assert "operator" in found["One user is one person"].detail


def test_who_adds_the_noise_is_said() -> None:
    def detail(**changes: Any) -> str:
        return {item.name: item for item in assumptions(plan(**changes), "secure")}[NOISE].detail

    assert detail(noise_placement="server") == "by the server"
    assert detail(noise_placement="clients") == "by the clients, completed by the server"
    assert "no noise is added" in detail(noise_multiplier=0.0)


def test_a_cohort_larger_than_the_claimed_one_is_another_one() -> None:
    assert extrapolates(plan().simulate(users=1000, cohort=20))
    assert extrapolates(plan().simulate(users=999, cohort=20))
    assert not extrapolates(plan().simulate(users=1000, cohort=10))


def test_the_list_of_users_comes_with_the_data_unless_nodes_are_users() -> None:
    found = {item.name: item for item in assumptions(plan(), "secure")}
    assert "comes with the data" in found["One user is one person"].detail
    with pytest.raises(dataclasses.FrozenInstanceError):
        found[NOISE].state = "trusted"  # type: ignore[misc]
