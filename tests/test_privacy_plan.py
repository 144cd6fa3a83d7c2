"""Show that one plan gives sampler, bounds, noise, denominator and event, and that they agree."""

from __future__ import annotations

import ast
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.clipping import CLIPPINGS
from privacy.errors import SettingsError
from privacy.event import AccountingEvent
from privacy.noise import grid_spacing
from privacy.plan import PrivacyPlan, SimulatedCohort
from privacy.seeds import Streams

ROOT = Path(__file__).parent.parent
PAPER: dict[str, Any] = {
    "population": 69_506_000,
    "cohort": 204_800,
    "rounds": 2034,
    "delta": 1e-9,
    "noise_multiplier": 0.6144,
    "clip_norm": 0.01,
}
SMALL: dict[str, Any] = PAPER | {"population": 1000, "cohort": 10, "rounds": 5, "delta": 1e-5}


def test_the_papers_high_population_row_is_reproduced() -> None:
    # Golden: arXiv 2310.00098, abstract and Table 1 print 7.2; Opacus 1.6.0 gives 7.223.
    assert PrivacyPlan(**PAPER).epsilon() == pytest.approx(7.22275, abs=1e-3)


def test_the_papers_low_population_row_is_reproduced() -> None:
    # Golden: the abstract prints 4.5; Opacus 1.6.0 with its own orders gives 4.439.
    row = PAPER | {"population": 6_950_600, "rounds": 2006, "noise_multiplier": 2.048}
    assert 4.215 < PrivacyPlan(**row).epsilon() <= 4.4395


def test_epsilon_grows_with_rounds_from_zero() -> None:
    plan = PrivacyPlan(**SMALL)
    spent = [plan.epsilon(rounds=rounds) for rounds in (0, 1, 5, 50)]
    assert spent[0] == 0.0
    assert spent == sorted(spent)
    assert plan.epsilon() == spent[2]


def test_a_plan_without_noise_has_infinite_epsilon() -> None:
    assert PrivacyPlan(**(SMALL | {"noise_multiplier": 0.0})).epsilon() == math.inf


def test_a_plan_for_an_epsilon_meets_it_closely() -> None:
    plan = PrivacyPlan.for_epsilon(
        epsilon=8.0, population=34_753, cohort=1024, rounds=2000, delta=1e-9, clip_norm=0.01
    )
    assert 7.99 < plan.epsilon() <= 8.0
    assert plan.noise_multiplier == pytest.approx(1.334, abs=2e-3)  # golden: Opacus RDP, tight


def test_everything_follows_from_the_fields() -> None:
    plan = PrivacyPlan(**SMALL)
    assert plan.sample_rate == 0.01
    assert plan.denominator == 10
    assert plan.noise_std_on_sum == pytest.approx(0.6144 * 0.01)
    assert plan.noise_std_on_mean == pytest.approx(0.6144 * 0.01 / 10)
    assert plan.event == AccountingEvent("poisson", 1000, 10, 0.6144)
    assert plan.event_as_run == plan.event
    assert plan.simulation == SimulatedCohort(1000, 10)
    assert math.hypot(*plan.bounds([3, 5, 8])) == pytest.approx(0.01)
    assert plan.share_deviation(5, 20) == pytest.approx(plan.noise_std_on_sum / 2)


@given(
    users=st.integers(1, 1000),
    data=st.data(),
    noise_multiplier=st.floats(0.01, 50.0),
    clip_norm=st.floats(1e-6, 1e3),
)
@settings(deadline=None)
def test_a_simulation_keeps_the_noise_on_the_mean_and_the_claimed_event(
    users: int, data: st.DataObject, noise_multiplier: float, clip_norm: float
) -> None:
    cohort = data.draw(st.integers(1, users))
    claimed = PrivacyPlan(
        **(SMALL | {"noise_multiplier": noise_multiplier, "clip_norm": clip_norm})
    )
    plan = claimed.simulate(users=users, cohort=cohort)
    released = plan.noise_std_on_sum / plan.denominator
    assert released == pytest.approx(claimed.noise_std_on_mean, rel=1e-12)
    assert plan.noise_std_on_mean == claimed.noise_std_on_mean
    assert plan.event == claimed.event
    assert plan.event_as_run == AccountingEvent(
        "poisson", users, cohort, plan.simulated_noise_multiplier
    )
    assert plan.denominator == cohort


def test_claimed_and_as_run_differ_in_a_simulation_and_agree_without() -> None:
    plan = PrivacyPlan(**PAPER)
    assert plan.epsilon_as_run(rounds=1) == plan.epsilon(rounds=1)
    simulated = plan.simulate(users=34_753, cohort=1024)
    assert simulated.epsilon(rounds=1) == plan.epsilon(rounds=1)
    assert simulated.epsilon_as_run(rounds=1) > 50.0


def test_virtual_users_are_drawn_from_the_whole_population() -> None:
    plan = PrivacyPlan(**SMALL).simulate(users=7, cohort=10, virtual=True)
    streams = Streams(seed=1, settings_hash="ab")
    drawn = np.concatenate([plan.draw(streams, number) for number in range(1, 60)])
    assert drawn.max() > 500
    assert plan.event_as_run.population == 1000
    assert plan.denominator == 10


def test_data_users_are_drawn_from_the_data_set_alone() -> None:
    plan = PrivacyPlan(**SMALL).simulate(users=7, cohort=3)
    streams = Streams(seed=1, settings_hash="ab")
    drawn = {int(user) for number in range(1, 60) for user in plan.draw(streams, number)}
    assert drawn == set(range(7))


def test_rounds_and_attempts_draw_other_cohorts_and_a_repeat_the_same() -> None:
    plan, streams = PrivacyPlan(**(SMALL | {"cohort": 300})), Streams(seed=1, settings_hash="ab")
    first = plan.draw(streams, 1).tolist()
    assert plan.draw(streams, 1).tolist() == first
    assert plan.draw(streams, 2).tolist() != first
    assert plan.draw(streams, 1, attempt=1).tolist() != first
    secret = Streams(seed=1, settings_hash="ab", secure=True)
    assert plan.draw(secret, 1).tolist() != plan.draw(secret, 1).tolist()


@pytest.mark.parametrize("connected", [0, 1, 400, 1000])
def test_connected_users_are_drawn_with_the_claimed_rate_however_many_there_are(
    connected: int,
) -> None:
    plan, streams = PrivacyPlan(**(SMALL | {"cohort": 100})), Streams(seed=1, settings_hash="ab")
    sizes = [len(plan.draw_connected(streams, number, 0, connected)) for number in range(1, 401)]
    expected = 400 * connected * 0.1
    assert abs(sum(sizes) - expected) <= 5 * math.sqrt(expected)
    assert connected == 0 or len(set(sizes)) > 1
    assert plan.denominator == 100


def test_connected_users_are_cut_to_the_cap_and_drawn_anew_for_each_attempt() -> None:
    plan = PrivacyPlan(**(SMALL | {"cohort": 300, "cohort_cap": 300}))
    streams = Streams(seed=1, settings_hash="ab")
    drawn = [plan.draw_connected(streams, number, 0, 1000) for number in range(1, 30)]
    assert max(map(len, drawn)) == 300
    again, other = (plan.draw_connected(streams, 1, attempt, 1000) for attempt in (0, 1))
    assert again.tolist() == drawn[0].tolist() != other.tolist()


def test_connected_users_that_the_account_does_not_describe_are_refused() -> None:
    streams = Streams(seed=1, settings_hash="ab")
    with pytest.raises(SettingsError, match="1001 connected"):
        PrivacyPlan(**SMALL).draw_connected(streams, 1, 0, 1001)
    with pytest.raises(SettingsError, match="poisson"):
        PrivacyPlan(**(SMALL | {"sampling": "fixed"})).draw_connected(streams, 1, 0, 500)


def test_every_sampling_draws_as_its_event_says() -> None:
    streams = Streams(seed=1, settings_hash="ab")
    fixed = PrivacyPlan(**(SMALL | {"sampling": "fixed"}))
    assert {len(fixed.draw(streams, number)) for number in range(1, 20)} == {10}
    assert fixed.event.adjacency == "replace-one"
    everyone = PrivacyPlan(**(SMALL | {"sampling": "everyone", "cohort": 1000}))
    assert everyone.draw(streams, 1).tolist() == list(range(1000))
    assert everyone.sample_rate == 1.0
    capped = PrivacyPlan(**(SMALL | {"cohort_cap": 11}))
    sizes = {len(capped.draw(streams, number)) for number in range(1, 60)}
    assert max(sizes) == 11
    assert capped.event.cohort_cap == 11


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"population": 0}, "population"),
        ({"population": 10.0}, "population"),
        ({"cohort": -1}, "cohort"),
        ({"cohort": True}, "cohort"),
        ({"cohort": 1001}, "cohort must be at most the population"),
        ({"rounds": 0}, "rounds"),
        ({"rounds": 2.5}, "rounds"),
        ({"delta": 0.0}, "delta"),
        ({"delta": 1.0}, "delta"),
        ({"delta": math.nan}, "delta"),
        ({"noise_multiplier": -0.1}, "noise-multiplier"),
        ({"noise_multiplier": math.inf}, "noise-multiplier"),
        ({"noise_multiplier": 10**400}, "noise-multiplier"),
        ({"noise_multiplier": "1"}, "noise-multiplier"),
        ({"clip_norm": 0.0}, "clip-norm"),
        ({"clip_norm": math.nan}, "clip-norm"),
        ({"clip_norm": 1e21}, "clip-norm"),
        ({"clipping": "none"}, "clipping"),
        ({"sampling": "lottery"}, "sampling"),
        ({"noise_placement": "nowhere"}, "noise-placement"),
        ({"cohort_cap": 9}, "cohort-cap"),
        ({"cohort_cap": 12.5}, "cohort-cap"),
        ({"cohort_cap": 12, "sampling": "fixed"}, "cohort-cap"),
        ({"sampling": "everyone"}, "everyone"),
    ],
)
def test_a_field_out_of_range_is_refused_by_name(changed: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingsError, match=told) as refusal:
        PrivacyPlan(**(SMALL | changed))
    assert len(refusal.value.problems) == 1


def test_all_mistakes_are_told_at_once() -> None:
    wrong: dict[str, Any] = {
        "population": -1,
        "cohort": 0,
        "rounds": 0.5,
        "delta": 2,
        "noise_multiplier": math.nan,
        "clip_norm": -1,
        "clipping": "soft",
        "sampling": "lottery",
        "noise_placement": "nowhere",
    }
    with pytest.raises(SettingsError) as refusal:
        PrivacyPlan(**wrong)
    assert len(refusal.value.problems) == len(wrong)


@pytest.mark.parametrize(
    ("drawn", "told"),
    [
        ({"users": 0, "cohort": 1}, "simulated users"),
        ({"users": 5, "cohort": 0}, "simulated-cohort"),
        ({"users": 5, "cohort": 6}, "simulated-cohort must be at most the 5"),
        ({"users": 1001, "cohort": 6}, "population must be at least the 1001"),
        ({"users": 5, "cohort": 1001, "virtual": True}, "simulated-cohort must be at most"),
        ({"users": 0, "cohort": 0.5}, "simulated users"),
    ],
)
def test_a_simulation_that_does_not_fit_is_refused(drawn: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        PrivacyPlan(**SMALL).simulate(**drawn)


def test_everyone_of_a_data_set_takes_part_where_sampling_is_everyone() -> None:
    plan = PrivacyPlan(**(SMALL | {"sampling": "everyone", "cohort": 1000}))
    with pytest.raises(SettingsError, match="everyone"):
        plan.simulate(users=7, cohort=6)
    drawn = plan.simulate(users=7, cohort=7).draw(Streams(1, "ab"), 1)
    assert drawn.tolist() == list(range(7))


def test_a_simulated_cohort_is_a_value_and_of_real_users_unless_said_otherwise() -> None:
    assert not SimulatedCohort(5, 2).virtual
    assert not PrivacyPlan(**SMALL).simulate(users=5, cohort=2).simulation.virtual
    with pytest.raises(dataclasses.FrozenInstanceError):
        SimulatedCohort(5, 2).virtual = True  # type: ignore[misc]


def test_a_plan_cannot_be_changed() -> None:
    plan = PrivacyPlan(**SMALL)
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.noise_multiplier = 0.0  # type: ignore[misc]


def test_a_plan_whose_sums_would_overflow_is_refused() -> None:
    with pytest.raises(SettingsError, match="64-bit"):
        PrivacyPlan(**(PAPER | {"population": 10**15, "cohort": 10**14}))


@pytest.mark.parametrize("clipping", CLIPPINGS)
def test_every_clipping_has_bounds(clipping: str) -> None:
    bounds = PrivacyPlan(**(SMALL | {"clipping": clipping})).bounds([4, 12])
    expected = [0.005, 0.01 * math.sqrt(0.75)] if clipping.endswith("dim") else [bounds[0]] * 2
    assert bounds == pytest.approx(expected)


FLOORS_ABOVE = ("clients", "strategies", "fedopt")
# These answer what a deployment would cost that nobody runs: they draw, clip and release nothing.
ASK_ABOUT_OTHER_PLANS = {"budget_answer", "budget_plot", "paper_table"}


def called_names(path: Path) -> set[str]:
    """List the functions and classes that a file calls, by their last name."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    plain = {call.func.id for call in calls if isinstance(call.func, ast.Name)}
    return plain | {call.func.attr for call in calls if isinstance(call.func, ast.Attribute)}


@pytest.mark.parametrize(
    "name",
    [
        "AccountingEvent",
        "draw_cohort",
        "poisson_cohort",
        "fixed_cohort",
        "layer_bounds",
        "grid_spacing",
    ],
)
def test_nothing_above_the_privacy_floor_builds_what_the_plan_gives(name: str) -> None:
    files = [path for floor in FLOORS_ABOVE for path in (ROOT / floor).rglob("*.py")]
    assert len(files) > 10
    callers = {path.stem for path in files if name in called_names(path)}
    assert callers <= (ASK_ABOUT_OTHER_PLANS if name == "AccountingEvent" else set())
    assert any(name in called_names(path) for path in (ROOT / "privacy").glob("*.py"))


def test_a_plan_is_described_by_plain_numbers() -> None:
    plan = PrivacyPlan(**PAPER).simulate(users=34_753, cohort=1024)
    again = json.loads(json.dumps(dataclasses.asdict(plan)))
    again["simulated"] = SimulatedCohort(**again["simulated"])
    assert PrivacyPlan(**again) == plan


def test_a_draw_without_an_attempt_is_the_first_attempt() -> None:
    streams, plan = Streams(1, "ab"), PrivacyPlan(**SMALL | {"cohort": 100})
    assert plan.draw(streams, 3).tolist() == plan.draw(streams, 3, 0).tolist()


def test_the_grid_of_sums_follows_what_is_really_drawn() -> None:
    plan = PrivacyPlan(**PAPER)
    assert plan.grid_spacing == grid_spacing(0.01, 204_800, 0.6144)
    huge = PrivacyPlan(**PAPER | {"population": 10**9, "cohort": 10**8})
    small = huge.simulate(users=100, cohort=10)
    assert huge.grid_spacing == grid_spacing(0.01, 10**8, 0.6144) > plan.grid_spacing
    assert small.grid_spacing == grid_spacing(0.01, 10, 0.6144e-7) == plan.grid_spacing


@pytest.mark.parametrize("cohort", [1, 10, 100, 999])
def test_the_cap_that_a_refusal_names_is_six_deviations_above_and_is_accepted(cohort: int) -> None:
    with pytest.raises(SettingsError) as refusal:
        PrivacyPlan(**SMALL | {"cohort": cohort, "cohort_cap": 0})
    named = int(refusal.value.problems[0].rpartition(" ")[2])
    assert named == cohort + math.ceil(6 * math.sqrt(cohort))
    assert PrivacyPlan(**SMALL | {"cohort": cohort, "cohort_cap": named}).cohort_cap == named
