"""Say what one release costs: the charge that is asked for, checked, and laid out as a row."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from numbers import Integral, Real
from typing import Literal

from privacy import ledger_file
from privacy.errors import SettingsError
from privacy.event import SAMPLINGS, AccountingEvent
from privacy.ledger_file import PlanFacts, Record
from privacy.ledger_tally import AS_RUN, CLAIMED

Releases = list[tuple[AccountingEvent, int]]
State = Literal["reserved", "committed"]
_LARGEST_INTEGER = 2**63 - 1


@dataclass(frozen=True)
class Charge:
    """Ask for one release, before anything of it is computed.

    round: from 1. attempt: from 0, one more for each repeat that draws other randomness.
    key_hash: lower-case hexadecimal hash of the key of the round's cohort and noise.
    event, event_as_run: the release as claimed and as the simulation makes it.
    clip_norm: bound C_t of this round.
    """

    round: int
    attempt: int
    key_hash: str
    event: AccountingEvent
    event_as_run: AccountingEvent
    clip_norm: float


@dataclass(frozen=True)
class Reservation:
    """Hold the proof that a release is charged; state "committed" if it was completed before."""

    run: str
    round: int
    attempt: int
    key_hash: str
    state: State


@dataclass(frozen=True)
class Ceiling:
    """Bound what all runs on the ledger may spend together.

    epsilon: the largest total that may be reached.
    spent: gives the epsilon of a list of (claimed event, number of rounds).
    """

    epsilon: float
    spent: Callable[[Releases], float]


@dataclass(frozen=True)
class LedgerRow:
    """Show one charge as it stands in the file; times are UTC in ISO 8601."""

    run: str
    round: int
    attempt: int
    key_hash: str
    state: State
    event: AccountingEvent
    event_as_run: AccountingEvent
    clip_norm: float
    cohort_realised: int | None
    replies: int | None
    noise_std_realised: float | None
    reserved_at: str
    committed_at: str | None


def charge_record(run: str, charge: Charge) -> Record:
    """Lay a charge out in columns, as plain numbers that SQLite can hold."""
    event, as_run = charge.event, charge.event_as_run
    return {
        "run": run,
        "round": int(charge.round),
        "attempt": int(charge.attempt),
        "key_hash": charge.key_hash,
        "adjacency": event.adjacency,
        "sampling": event.sampling,
        "population": int(event.population),
        "cohort": int(event.cohort),
        "noise_multiplier": float(event.noise_multiplier),
        "cohort_cap": None if event.cohort_cap is None else int(event.cohort_cap),
        "users": int(as_run.population),
        "cohort_as_run": int(as_run.cohort),
        "noise_multiplier_as_run": float(as_run.noise_multiplier),
        "cohort_cap_as_run": None if as_run.cohort_cap is None else int(as_run.cohort_cap),
        "clip_norm": float(charge.clip_norm),
        "state": "reserved",
        "cohort_realised": None,
        "replies": None,
        "noise_std_realised": None,
        "reserved_at": now(),
        "committed_at": None,
    }


def realised_record(cohort: int, replies: int, noise_std: float) -> Record:
    """Lay out what a completed release turned out to be, or refuse it with every mistake."""
    problems = [
        *_whole("cohort_realised", cohort, 0),
        *_whole("replies", replies, 0),
        *_finite("noise_std_realised", noise_std, zero=True),
    ]
    if problems:
        raise SettingsError(problems)
    values = (int(cohort), int(replies), float(noise_std))
    return dict(zip(ledger_file.REALISED, values, strict=True))


def ledger_row(record: Record) -> LedgerRow:
    """Read a row of the file back into its events and values."""
    plain = ("clip_norm", *ledger_file.REALISED, "reserved_at", "committed_at")
    return LedgerRow(
        **{name: record[name] for name in (*ledger_file.KEY, "key_hash", "state", *plain)},
        event=AccountingEvent(*(record[name] for name in CLAIMED)),
        event_as_run=AccountingEvent(*(record[name] for name in AS_RUN)),
    )


def open_problems(run: str, facts: PlanFacts) -> list[str]:
    """List what is wrong with a run's name and facts, one sentence each."""
    return [*_name_problems(run), *_facts_problems(facts)]


def _name_problems(run: str) -> Iterator[str]:
    if not run or not run.isprintable():
        yield f"run must be a printable name, got {run!r}; give the name of the run directory"


def _facts_problems(facts: PlanFacts) -> Iterator[str]:
    yield from _whole("population", facts.population, 1)
    if not 0.0 < _as_float(facts.delta) < 1.0:
        yield f"delta must be between 0 and 1, got {facts.delta!r}; try 1 / (10 x population)"


def charge_problems(charge: Charge) -> list[str]:
    """List what is wrong with a charge, one sentence each."""
    return [
        *_key_problems(charge),
        *_event_problems("event", charge.event),
        *_event_problems("event_as_run", charge.event_as_run),
        *_pair_problems(charge.event, charge.event_as_run),
    ]


def _key_problems(charge: Charge) -> Iterator[str]:
    yield from _whole("round", charge.round, 1)
    yield from _whole("attempt", charge.attempt, 0)
    if not re.fullmatch("[0-9a-f]+", charge.key_hash):
        yield f"key_hash must be lower-case hexadecimal, got {charge.key_hash!r}; use hexdigest()"
    yield from _finite("clip_norm", charge.clip_norm, zero=False)


def _pair_problems(claimed: AccountingEvent, as_run: AccountingEvent) -> Iterator[str]:
    if claimed.sampling != as_run.sampling:
        yield (
            f"event_as_run must sample as event does ({claimed.sampling!r}), got "
            f"{as_run.sampling!r}; take both from one plan"
        )


def _event_problems(name: str, event: AccountingEvent) -> Iterator[str]:
    if event.sampling not in SAMPLINGS:
        yield f"{name}.sampling must be one of {SAMPLINGS}, got {event.sampling!r}; choose one"
    yield from _whole(f"{name}.population", event.population, 1)
    yield from _whole(f"{name}.cohort", event.cohort, 1)
    yield from _finite(f"{name}.noise_multiplier", event.noise_multiplier, zero=True)
    if event.cohort_cap is not None:
        yield from _whole(f"{name}.cohort_cap", event.cohort_cap, 1)


def _whole(name: str, value: object, least: int) -> Iterator[str]:
    if not isinstance(value, Integral) or not least <= int(value) <= _LARGEST_INTEGER:
        yield f"{name} must be a whole number from {least}, got {value!r}; correct it"


def _finite(name: str, value: object, *, zero: bool) -> Iterator[str]:
    number = _as_float(value)
    if not (math.isfinite(number) and number >= 0.0) or (number == 0.0 and not zero):
        bound = "0 or more" if zero else "above 0"
        yield f"{name} must be a finite number {bound}, got {value!r}; correct it"


def _as_float(value: object) -> float:
    try:
        return float(value) if isinstance(value, Real) else math.nan
    except OverflowError:  # an integer of more than 308 digits
        return math.inf


def now() -> str:
    """Give the time for a row: UTC in ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
