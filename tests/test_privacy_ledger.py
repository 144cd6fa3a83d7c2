"""Show that the ledger charges each release once, and refuses what it cannot add up."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger_child import EVENT, EVENT_AS_RUN, FACTS, charge, count

from privacy.errors import BudgetExhausted, LedgerError, SettingsError
from privacy.event import AccountingEvent
from privacy.ledger import Ceiling, Charge, Ledger, PlanFacts, Reservation

REALISED: dict[str, Any] = {"cohort_realised": 9, "replies": 8, "noise_std_realised": 0.005}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def ledger(path: Path) -> Ledger:
    return Ledger.open(path, run="first", plan_facts=FACTS)


def test_a_reserved_charge_counts_as_spent_before_it_is_committed(ledger: Ledger) -> None:
    reservation = ledger.reserve(charge(1))
    assert reservation == Reservation("first", 1, 0, "000000010000", "reserved")
    assert ledger.releases() == [(EVENT, 1)]
    assert ledger.last_committed_round("first") == 0
    ledger.commit(reservation, **REALISED)
    assert ledger.releases() == [(EVENT, 1)]
    assert ledger.last_committed_round("first") == 1


def test_the_same_key_reserved_again_is_one_charge(ledger: Ledger) -> None:
    assert ledger.reserve(charge(1)) == ledger.reserve(charge(1))
    assert ledger.releases() == [(EVENT, 1)]


def test_a_committed_round_reserved_again_says_that_it_is_committed(ledger: Ledger) -> None:
    ledger.commit(ledger.reserve(charge(1)), **REALISED)
    assert ledger.reserve(charge(1)).state == "committed"
    assert ledger.releases() == [(EVENT, 1)]


@pytest.mark.parametrize(
    "changed",
    [
        {"key_hash": "ff"},
        {"clip_norm": 0.02},
        {"event": dataclasses.replace(EVENT, noise_multiplier=2.0)},
        {"event": dataclasses.replace(EVENT, cohort_cap=30)},
        {"event_as_run": dataclasses.replace(EVENT_AS_RUN, population=41)},
    ],
)
def test_an_attempt_that_differs_is_refused(ledger: Ledger, changed: dict[str, Any]) -> None:
    ledger.reserve(charge(1))
    before = ledger.path.read_bytes()
    with pytest.raises(LedgerError, match="next attempt"):
        ledger.reserve(dataclasses.replace(charge(1), **changed))
    assert ledger.path.read_bytes() == before


def test_the_next_attempt_is_charged_and_the_old_one_stays(ledger: Ledger) -> None:
    assert ledger.last_attempt("first", 1) is None
    ledger.reserve(charge(1, attempt=0))
    ledger.reserve(charge(1, attempt=1))
    assert ledger.releases() == [(EVENT, 2)]
    assert ledger.last_attempt("first", 1) == 1
    assert ledger.last_attempt("first", 2) is None


def test_a_row_holds_both_triples_and_what_was_realised(ledger: Ledger) -> None:
    claimed = dataclasses.replace(EVENT, cohort_cap=29)
    as_run = dataclasses.replace(EVENT_AS_RUN, cohort_cap=19)
    wanted = dataclasses.replace(charge(3), event=claimed, event_as_run=as_run, clip_norm=0.1 + 0.2)
    reservation = ledger.reserve(wanted)
    (reserved,) = ledger.rows()
    assert (reserved.state, reserved.committed_at, reserved.replies) == ("reserved", None, None)
    ledger.commit(reservation, **REALISED)
    (row,) = ledger.rows("first")
    assert (row.run, row.round, row.attempt, row.key_hash) == ("first", 3, 0, "000000030000")
    assert (row.event, row.event_as_run, row.clip_norm) == (claimed, as_run, 0.1 + 0.2)
    assert (row.cohort_realised, row.replies, row.noise_std_realised) == (9, 8, 0.005)
    assert row.state == "committed"
    assert row.reserved_at == reserved.reserved_at <= str(row.committed_at)


def test_committing_twice_does_nothing_if_equal_and_is_refused_if_not(ledger: Ledger) -> None:
    reservation = ledger.reserve(charge(1))
    ledger.commit(reservation, **REALISED)
    before = ledger.path.read_bytes()
    ledger.commit(reservation, **REALISED)
    for name, other in (("cohort_realised", 7), ("replies", 7), ("noise_std_realised", 0.006)):
        with pytest.raises(LedgerError, match=name):
            ledger.commit(reservation, **(REALISED | {name: other}))
    assert ledger.path.read_bytes() == before


def test_only_what_was_reserved_can_be_committed(ledger: Ledger) -> None:
    reservation = ledger.reserve(charge(1))
    with pytest.raises(LedgerError, match="reserve before commit"):
        ledger.commit(dataclasses.replace(reservation, round=2), **REALISED)
    with pytest.raises(LedgerError, match="key_hash"):
        ledger.commit(dataclasses.replace(reservation, key_hash="ff"), **REALISED)
    assert [row.state for row in ledger.rows()] == ["reserved"]


def test_several_runs_add_up_and_can_be_told_apart(path: Path, ledger: Ledger) -> None:
    second = Ledger.open(path, run="second", plan_facts=FACTS)
    other = dataclasses.replace(EVENT, noise_multiplier=2.0)
    ledger.reserve(charge(1))
    ledger.reserve(charge(2))
    second.reserve(charge(1))
    second.reserve(dataclasses.replace(charge(2), event=other))
    assert sorted(second.releases(), key=str) == [(EVENT, 3), (other, 1)]
    assert ledger.releases("first") == [(EVENT, 2)]
    assert sorted(ledger.releases("second"), key=str) == [(EVENT, 1), (other, 1)]
    assert ledger.releases_as_run() == [(EVENT_AS_RUN, 4)]
    assert ledger.releases_as_run("first") == [(EVENT_AS_RUN, 2)]
    assert ledger.releases("third") == []
    assert [(row.run, row.round) for row in ledger.rows()] == [
        ("first", 1), ("first", 2), ("second", 1), ("second", 2),
    ]  # fmt: skip


def test_resumed_and_unbroken_runs_have_the_same_digest(tmp_path: Path) -> None:
    unbroken = Ledger.open(tmp_path / "one.sqlite", run="unbroken", plan_facts=FACTS)
    resumed = Ledger.open(tmp_path / "two.sqlite", run="resumed", plan_facts=FACTS)
    for number in (1, 2):
        unbroken.commit(unbroken.reserve(charge(number)), **REALISED)
    resumed.reserve(charge(2))
    resumed.commit(resumed.reserve(charge(1)), **REALISED)
    assert unbroken.digest("unbroken") != resumed.digest("resumed")
    resumed.commit(resumed.reserve(charge(2)), **REALISED)
    assert unbroken.digest("unbroken") == resumed.digest("resumed")
    assert unbroken.digest() != resumed.digest()


@pytest.mark.parametrize(
    "changed",
    [
        {"population": 1001},
        {"delta": 2e-5},
        {"adjacency": "replace-one"},
        {"unit": "device"},
        {"population": 999, "unit": "device"},
    ],
)
def test_a_ledger_of_other_facts_is_refused_and_left_unchanged(
    ledger: Ledger, changed: dict[str, Any]
) -> None:
    ledger.reserve(charge(1))
    before, names = ledger.path.read_bytes(), set(ledger.path.parent.iterdir())
    with pytest.raises(LedgerError) as refusal:
        Ledger.open(ledger.path, run="x", plan_facts=dataclasses.replace(FACTS, **changed))
    assert all(name in str(refusal.value) for name in changed)
    assert ledger.path.read_bytes() == before
    assert set(ledger.path.parent.iterdir()) == names


def test_a_charge_of_another_population_or_adjacency_is_refused(ledger: Ledger) -> None:
    other = dataclasses.replace(EVENT, population=2000)
    fixed = dataclasses.replace(EVENT, sampling="fixed")
    with pytest.raises(LedgerError, match="2000"):
        ledger.reserve(dataclasses.replace(charge(1), event=other))
    with pytest.raises(LedgerError, match="replace-one"):
        ledger.reserve(dataclasses.replace(charge(1), event=fixed, event_as_run=fixed))
    assert ledger.rows() == []


def test_the_ceiling_may_be_reached_and_not_passed(path: Path, ledger: Ledger) -> None:
    second = Ledger.open(path, run="second", plan_facts=FACTS)
    ceiling = Ceiling(3.0, count)
    ledger.reserve(charge(1), ceiling=ceiling)
    second.reserve(charge(1), ceiling=ceiling)
    second.reserve(charge(2), ceiling=ceiling)
    before = path.read_bytes()
    with pytest.raises(BudgetExhausted, match="epsilon 4, the ceiling is 3"):
        ledger.reserve(charge(2), ceiling=ceiling)
    assert path.read_bytes() == before
    assert ledger.reserve(charge(1), ceiling=ceiling).round == 1  # charged already


def test_a_spending_that_is_no_number_is_refused(ledger: Ledger) -> None:
    with pytest.raises(BudgetExhausted):
        ledger.reserve(charge(1), ceiling=Ceiling(1.0, lambda releases: math.nan))
    assert ledger.rows() == []


def test_a_failing_accountant_leaves_nothing_behind(ledger: Ledger) -> None:
    def fail(releases: object) -> float:
        raise ArithmeticError("no answer")

    with pytest.raises(ArithmeticError):
        ledger.reserve(charge(1), ceiling=Ceiling(1.0, fail))
    assert ledger.reserve(charge(1)).state == "reserved"
    assert ledger.releases() == [(EVENT, 1)]


def test_a_ledger_opened_to_read_shows_everything_and_reserves_nothing(ledger: Ledger) -> None:
    ledger.reserve(charge(1))
    reader = Ledger.read(ledger.path)
    assert reader.facts == FACTS
    assert reader.rows() == ledger.rows()
    assert reader.digest() == ledger.digest()
    with pytest.raises(SettingsError, match=r"Ledger\.open"):
        reader.reserve(charge(2))


def test_a_missing_ledger_is_not_made_where_one_must_exist(path: Path) -> None:
    with pytest.raises(LedgerError):
        Ledger.open(path, run="first", plan_facts=FACTS, create=False)
    with pytest.raises(LedgerError):
        Ledger.read(path)
    assert not path.exists()


def test_a_ledger_in_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="cannot be used"):
        Ledger.open(tmp_path / "no" / "ledger.sqlite", run="first", plan_facts=FACTS)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_hard_links_is_refused_and_nothing_is_left(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("privacy.ledger_file.os.link", refuse)
    with pytest.raises(LedgerError, match="cannot be made"):
        Ledger.open(path, run="first", plan_facts=FACTS)
    assert list(path.parent.iterdir()) == []


def test_a_ledger_removed_during_a_run_is_noticed(ledger: Ledger) -> None:
    ledger.reserve(charge(1))
    ledger.path.unlink()
    with pytest.raises(LedgerError):
        ledger.reserve(charge(2))
    assert not ledger.path.exists()


def test_a_ledger_replaced_during_a_run_is_noticed(tmp_path: Path, ledger: Ledger) -> None:
    facts = dataclasses.replace(FACTS, population=5)
    other = Ledger.open(tmp_path / "other.sqlite", run="other", plan_facts=facts)
    other.path.replace(ledger.path)
    with pytest.raises(LedgerError, match="other settings"):
        ledger.releases()


def test_a_ledger_held_by_another_process_is_refused_after_the_wait(path: Path) -> None:
    ledger = Ledger.open(path, run="first", plan_facts=FACTS, busy_seconds=0.05)
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerError, match="locked"):
            ledger.reserve(charge(1))
    assert ledger.rows() == []


def test_names_with_special_characters_are_files_of_that_name(tmp_path: Path) -> None:
    path = tmp_path / "a?mode=memory#b %41.sqlite"
    Ledger.open(path, run="first", plan_facts=FACTS).reserve(charge(1))
    assert [found.name for found in tmp_path.iterdir()] == [path.name]
    assert Ledger.read(path).releases() == [(EVENT, 1)]


def test_numbers_from_numpy_are_kept_as_plain_numbers(ledger: Ledger) -> None:
    numbers: dict[str, Any] = {"cohort": np.int64(10), "noise_multiplier": np.float32(0.5)}
    changed: dict[str, Any] = {"round": np.int64(1), "event": dataclasses.replace(EVENT, **numbers)}
    realised: dict[str, Any] = {
        "cohort_realised": np.int64(3),
        "replies": np.int32(3),
        "noise_std_realised": np.float64(1),
    }
    ledger.commit(ledger.reserve(dataclasses.replace(charge(1), **changed)), **realised)
    (row,) = Ledger.read(ledger.path).rows()
    assert type(row.event.cohort) is int
    assert type(row.event.noise_multiplier) is float
    assert (row.cohort_realised, row.noise_std_realised) == (3, 1.0)


def test_all_mistakes_of_a_charge_are_told_at_once(ledger: Ledger) -> None:
    event = AccountingEvent("lottery", 0, 1.5, math.nan, cohort_cap=0)  # type: ignore[arg-type]
    as_run = AccountingEvent("poisson", 2**63, -1, math.inf)
    with pytest.raises(SettingsError) as refusal:
        ledger.reserve(Charge(0, -1, "XYZ", event, as_run, clip_norm=0.0))
    text = "\n".join(refusal.value.problems)
    assert len(refusal.value.problems) == 13
    for name in ("round", "attempt", "key_hash", "clip_norm", "lottery", "cohort_cap"):
        assert name in text
    assert ledger.rows() == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, 10**400, "1", None])
def test_a_noise_that_is_no_finite_number_is_refused(ledger: Ledger, value: float) -> None:
    reservation = ledger.reserve(charge(1))
    with pytest.raises(SettingsError, match="noise_std_realised"):
        ledger.commit(reservation, cohort_realised=1, replies=1, noise_std_realised=value)
    event = dataclasses.replace(EVENT, noise_multiplier=value)
    with pytest.raises(SettingsError, match="noise_multiplier"):
        ledger.reserve(dataclasses.replace(charge(2), event=event))


@pytest.mark.parametrize(
    ("run", "facts", "number"),
    [
        ("", FACTS, 1),
        ("a\nb", FACTS, 1),
        ("\udcff", FACTS, 1),
        ("a", dataclasses.replace(FACTS, population=0), 1),
        ("a", dataclasses.replace(FACTS, delta=1.0), 1),
        ("", dataclasses.replace(FACTS, population=-1, delta=math.nan), 3),
    ],
)
def test_bad_names_and_facts_are_refused_before_a_file_is_made(
    path: Path, run: str, facts: PlanFacts, number: int
) -> None:
    with pytest.raises(SettingsError) as refusal:
        Ledger.open(path, run=run, plan_facts=facts)
    assert len(refusal.value.problems) == number
    assert not path.exists()


KEYS = st.tuples(st.sampled_from(["a", "b"]), st.integers(1, 3), st.integers(0, 1))


@settings(max_examples=15, deadline=None)
@given(steps=st.lists(st.tuples(st.booleans(), KEYS, st.sampled_from(["0f", "f0"])), max_size=12))
def test_any_order_of_calls_agrees_with_a_plain_dictionary(
    tmp_path_factory: pytest.TempPathFactory,
    steps: list[tuple[bool, tuple[str, int, int], str]],
) -> None:
    path = tmp_path_factory.mktemp("model") / "ledger.sqlite"
    ledgers = {run: Ledger.open(path, run=run, plan_facts=FACTS) for run in ("a", "b")}
    expected: dict[tuple[str, int, int], tuple[str, str]] = {}
    for commits, (run, number, attempt), key in steps:
        place = (run, number, attempt)
        known, state = expected.get(place, (None, "reserved"))
        try:
            if commits:
                proof = Reservation(run, number, attempt, key, "reserved")
                ledgers[run].commit(proof, **REALISED)
                state = "committed"
            else:
                wanted = dataclasses.replace(charge(number, attempt), key_hash=key)
                assert ledgers[run].reserve(wanted).state == state
            assert known == key or (known is None and not commits)
            expected[place] = (key, state)
        except LedgerError:
            assert known != key
    found = {
        (row.run, row.round, row.attempt): (row.key_hash, row.state) for row in ledgers["a"].rows()
    }
    assert found == expected
    assert sum(number for _, number in ledgers["b"].releases()) == len(expected)
