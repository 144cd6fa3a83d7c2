"""Show that what a ledger counts on its way is what stands in its file, and that it counts once."""

from __future__ import annotations

import contextlib
import dataclasses
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledger_child import EVENT, EVENT_AS_RUN, FACTS, charge, count

from privacy import ledger_file
from privacy.errors import BudgetExhausted, LedgerError
from privacy.ledger import Ceiling, Ledger

REALISED: dict[str, Any] = {"cohort_realised": 9, "replies": 8, "noise_std_realised": 0.005}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def ledger(path: Path) -> Ledger:
    return Ledger.open(path, run="first", plan_facts=FACTS)


def sql_count(path: Path, columns: str) -> list[tuple[Any, ...]]:
    query = f"SELECT {columns}, COUNT(*) FROM charge GROUP BY {columns} ORDER BY {columns}"
    with contextlib.closing(sqlite3.connect(path)) as opened:
        return [tuple(row) for row in opened.execute(query)]


CAPS = st.one_of(st.none(), st.integers(1, 2))
NOISES = st.sampled_from([0.5, 1.0, 2.5])


@settings(max_examples=8, deadline=None)
@given(charges=st.lists(st.tuples(st.sampled_from("ab"), NOISES, CAPS), max_size=10))
def test_what_is_counted_on_the_way_is_what_sql_counts_in_the_end(
    tmp_path_factory: pytest.TempPathFactory, charges: list[tuple[str, float, int | None]]
) -> None:
    path = tmp_path_factory.mktemp("counts") / "ledger.sqlite"
    ledgers = {run: Ledger.open(path, run=run, plan_facts=FACTS) for run in "ab"}
    for number, (run, noise, cap) in enumerate(charges, start=1):
        event = dataclasses.replace(EVENT, noise_multiplier=noise, cohort_cap=cap)
        as_run = dataclasses.replace(EVENT_AS_RUN, noise_multiplier=noise / 2, cohort_cap=cap)
        wanted = dataclasses.replace(charge(number), event=event, event_as_run=as_run)
        proof = ledgers[run].reserve(wanted, ceiling=Ceiling(1e9, count))
        if number % 3:
            ledgers[run].commit(proof, **REALISED)
        assert sum(counted for _, counted in ledgers[run].releases()) == number
    for ledger in (*ledgers.values(), Ledger.read(path)):
        claimed = [(*dataclasses.astuple(event), n) for event, n in ledger.releases()]
        assert claimed == sql_count(
            path, "sampling, population, cohort, noise_multiplier, cohort_cap"
        )
        as_run_found = [(*dataclasses.astuple(event), n) for event, n in ledger.releases_as_run()]
        assert as_run_found == sql_count(
            path, "sampling, users, cohort_as_run, noise_multiplier_as_run, cohort_cap_as_run"
        )
        assert ledger.releases("a") == Ledger.read(path).releases("a")


def test_a_round_that_passed_the_ceiling_is_not_counted_afterwards(
    path: Path, ledger: Ledger
) -> None:
    ledger.reserve(charge(1))
    for _ in range(2):
        with pytest.raises(BudgetExhausted):
            ledger.reserve(charge(2), ceiling=Ceiling(1.0, count))
    other = Ledger.open(path, run="second", plan_facts=FACTS)
    other.reserve(charge(1))  # takes the place in the file that the refused one would have had
    assert ledger.releases() == other.releases() == [(EVENT, 2)]
    assert other.releases("second") == [(EVENT, 1)]


def test_charges_of_another_process_count_from_the_moment_they_are_made(
    path: Path, ledger: Ledger
) -> None:
    other = Ledger.open(path, run="second", plan_facts=FACTS)
    for number in range(1, 4):
        ledger.commit(ledger.reserve(charge(number)), **REALISED)
        other.reserve(charge(number))
        assert ledger.releases() == other.releases() == [(EVENT, 2 * number)]
    with pytest.raises(BudgetExhausted):
        ledger.reserve(charge(4), ceiling=Ceiling(6.0, count))


def test_a_ledger_restored_from_an_older_copy_is_counted_anew(path: Path, ledger: Ledger) -> None:
    """The copy may even have grown to the same length, by the same round of another run."""
    ledger.reserve(charge(1))
    older = path.read_bytes()
    ledger.reserve(charge(2))
    assert ledger.releases() == [(EVENT, 2)]
    path.write_bytes(older)
    assert ledger.releases() == [(EVENT, 1)]
    ledger.reserve(charge(2))
    assert ledger.releases() == [(EVENT, 2)]
    path.write_bytes(older)
    Ledger.open(path, run="second", plan_facts=FACTS).reserve(charge(2))
    assert ledger.releases("first") == [(EVENT, 1)]
    assert ledger.releases("second") == [(EVENT, 1)]


def test_a_row_that_another_program_added_or_changed_is_refused_when_it_is_counted(
    path: Path, ledger: Ledger
) -> None:
    other = Ledger.open(path, run="second", plan_facts=FACTS)
    other.reserve(charge(1))
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as opened:
        opened.execute("UPDATE charge SET noise_multiplier = 9.0 WHERE run = 'second'")
    with pytest.raises(LedgerError, match="was changed"):
        ledger.releases()
    with pytest.raises(LedgerError, match="was changed"):
        ledger.reserve(charge(1), ceiling=Ceiling(5.0, count))


def test_a_round_reads_the_new_rows_alone(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seals are checked row by row, so their number is that of the rows that were read."""
    for number in range(1, 31):
        ledger.reserve(charge(number))
    ledger.releases()
    read = []
    sealed = ledger_file._sealed

    def noting(path: Path, record: Any) -> Any:
        read.append(record["round"])
        return sealed(path, record)

    monkeypatch.setattr(ledger_file, "_sealed", noting)
    proof = ledger.reserve(charge(31), ceiling=Ceiling(100.0, count))
    assert ledger.releases() == [(EVENT, 31)]
    ledger.commit(proof, **REALISED)
    assert ledger.releases() == [(EVENT, 31)]
    assert read == [31]
