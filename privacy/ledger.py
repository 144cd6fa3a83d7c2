"""Keep account of every release: reserved before training, committed after the checkpoint.

A row is one attempt at one round of one run. It counts as spent from the moment `reserve`
returns, whatever happens later, so a crash can only make the account too large, never too small.
Several runs may share a file: what they spend on one population adds up.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from privacy import ledger_file
from privacy.errors import BudgetExhausted, LedgerError, SettingsError
from privacy.event import AccountingEvent
from privacy.ledger_charge import (
    Ceiling,
    Charge,
    LedgerRow,
    Releases,
    Reservation,
    charge_problems,
    charge_record,
    ledger_row,
    now,
    open_problems,
    realised_record,
)
from privacy.ledger_file import PlanFacts, Record
from privacy.ledger_tally import AS_RUN, CLAIMED, LatestTally, Tally

__all__ = ["Ceiling", "Charge", "Ledger", "LedgerRow", "PlanFacts", "Releases", "Reservation"]


@dataclass(frozen=True)
class Ledger:
    """Charge releases to one file, durably, also for several processes at once.

    Each call opens the file anew, so a ledger may be used from any thread or process, and one
    that was removed or replaced is noticed at the next call. What was counted once is not read
    again: a call reads, and checks, the rows that were added since.

    run: name under which this ledger reserves; None where it only reads.
    busy_seconds: how long a call waits for another process before it gives up.

    >>> import tempfile
    >>> event = AccountingEvent("poisson", population=1000, cohort=10, noise_multiplier=1.0)
    >>> facts = PlanFacts(population=1000, delta=1e-5, adjacency="add-or-remove-one")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     ledger = Ledger.open(f"{folder}/ledger.sqlite", run="first", plan_facts=facts)
    ...     proof = ledger.reserve(Charge(1, 0, "c0ffee", event, event, clip_norm=0.01))
    ...     ledger.commit(proof, cohort_realised=9, replies=9, noise_std_realised=0.01)
    ...     ledger.releases() == [(event, 1)], ledger.last_committed_round("first")
    (True, 1)

    Guarantee: a charge whose `reserve` returned is in the file and counted by `releases`, under
    the file's adjacency, after a crash of the process or the machine; a ceiling holds for the
    sum of all runs, because check and insertion are one transaction.
    Not covered: a file that somebody restores from a copy or edits on purpose, disks that
    acknowledge a write they lose, and network file systems whose locks do not work.
    """

    path: Path
    run: str | None
    facts: PlanFacts
    busy_seconds: float = 60.0
    latest: LatestTally = field(default_factory=LatestTally, repr=False, compare=False)

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        run: str,
        plan_facts: PlanFacts,
        create: bool = True,
        busy_seconds: float = 60.0,
    ) -> Ledger:
        """Open a ledger for one run, or make it where the file does not exist.

        create: False where the ledger must already be there, as on resume.
        Raises: SettingsError for a bad name or bad facts; LedgerError when the file is damaged,
        of another kind, missing, or of other facts. A refused file is left as it was.
        """
        if problems := open_problems(run, plan_facts):
            raise SettingsError(problems)
        place = Path(path)
        if create and not place.exists():
            ledger_file.create(place, plan_facts, busy_seconds)
        found, tally = ledger_file.verified(place, busy_seconds)
        _refuse_other_facts(place, found, plan_facts)
        return cls(place, run, plan_facts, busy_seconds, LatestTally(tally))

    @classmethod
    def read(cls, path: str | Path, *, busy_seconds: float = 60.0) -> Ledger:
        """Open an existing ledger to look at it, taking the facts from the file.

        Raises: LedgerError as `open` does.
        """
        place = Path(path)
        facts, tally = ledger_file.verified(place, busy_seconds)
        return cls(place, None, facts, busy_seconds, LatestTally(tally))

    def reserve(self, charge: Charge, *, ceiling: Ceiling | None = None) -> Reservation:
        """Charge one release before it is computed; it is on disk when this returns.

        The same round, attempt and key reserved again is the same release: it is charged once.
        Raises: SettingsError for values out of range; LedgerError when the attempt was made with
        another key or other values; BudgetExhausted, with nothing charged, when all runs
        together would pass the ceiling.
        """
        record = self._record(charge)
        with self._writing() as connection:
            known = ledger_file.find(connection, record)
            if known is None:
                if ceiling is not None:
                    asked = self._tallied(connection).including(record)
                    _refuse_beyond(ceiling, _releases(asked, None, CLAIMED))
                ledger_file.insert(connection, record)
            else:
                _refuse_difference(self.path, known, record, ledger_file.CHARGED)
        stands = record if known is None else known
        return Reservation(
            **{name: stands[name] for name in (*ledger_file.KEY, "key_hash", "state")}
        )

    def commit(
        self,
        reservation: Reservation,
        *,
        cohort_realised: int,
        replies: int,
        noise_std_realised: float,
    ) -> None:
        """Complete a reserved release; a second time with equal values does nothing.

        cohort_realised, replies: users drawn, and users whose update was added.
        noise_std_realised: standard deviation of the noise on the sum of updates.
        Raises: SettingsError for values out of range; LedgerError when the reservation is not
        in the file or was committed with other values.
        """
        realised = realised_record(cohort_realised, replies, noise_std_realised)
        wanted = asdict(reservation) | realised
        with self._writing() as connection:
            known = ledger_file.find(connection, wanted)
            if known is None:
                raise LedgerError(
                    f"ledger {self.path} holds no reservation of run {reservation.run!r}, round "
                    f"{reservation.round}, attempt {reservation.attempt}; reserve before commit"
                )
            _refuse_difference(self.path, known, wanted, ("key_hash",))
            if known["state"] == "committed":
                _refuse_difference(self.path, known, wanted, ledger_file.REALISED)
            else:
                done = {"state": "committed", "committed_at": now()}
                ledger_file.replace(connection, known | realised | done)

    def releases(self, run: str | None = None) -> Releases:
        """List the claimed events with their number, reserved and committed alike.

        run: None for all runs of the file.
        """
        with self._reading() as connection:
            return _releases(self._tallied(connection), run, CLAIMED)

    def releases_as_run(self, run: str | None = None) -> Releases:
        """List the events as run with their number, reserved and committed alike."""
        with self._reading() as connection:
            return _releases(self._tallied(connection), run, AS_RUN)

    def rows(self, run: str | None = None) -> list[LedgerRow]:
        """List the charges in the order of run, round and attempt."""
        with self._reading() as connection:
            return [ledger_row(record) for record in ledger_file.records(connection, run)]

    def last_committed_round(self, run: str) -> int:
        """Give the highest committed round of a run, 0 where there is none."""
        with self._reading() as connection:
            return ledger_file.last_committed_round(connection, run) or 0

    def last_attempt(self, run: str, round_number: int) -> int | None:
        """Give the highest attempt charged for a round, None where there is none."""
        with self._reading() as connection:
            return ledger_file.last_attempt(connection, run, round_number)

    def digest(self, run: str | None = None) -> str:
        """Hash facts and charges without times, so that a resumed run equals an unbroken one.

        With a run given, its name is left out: the same run under another name hashes the same.
        """
        columns = ledger_file.CONTENT if run is None else ledger_file.CONTENT[1:]
        with self._reading() as connection:
            records = ledger_file.records(connection, run)
        lines = [json.dumps(list(asdict(self.facts).values()))]
        lines += [json.dumps([record[column] for column in columns]) for record in records]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def _record(self, charge: Charge) -> Record:
        """Turn a charge into a row of this run, or refuse it with every mistake at once."""
        problems = charge_problems(charge)
        if self.run is None:
            problems.append("a ledger opened to read cannot reserve; open it with Ledger.open")
        if problems:
            raise SettingsError(problems)
        ours = (self.facts.population, self.facts.adjacency)
        if (charge.event.population, charge.event.adjacency) != ours:
            raise LedgerError(
                f"ledger {self.path} charges population and adjacency {ours}, got "
                f"{(charge.event.population, charge.event.adjacency)}; use another ledger for them"
            )
        return charge_record(str(self.run), charge)

    def _tallied(self, connection: sqlite3.Connection) -> Tally:
        """Count what was added since the last call, and keep the counts for the next."""
        self.latest.tally = ledger_file.tallied(self.path, connection, self.latest.tally)
        return self.latest.tally

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """Give a connection to a file that still is this ledger."""
        with ledger_file.connection(self.path, self.busy_seconds) as connection:
            found = ledger_file.read_facts(self.path, connection)
            _refuse_other_facts(self.path, found, self.facts)
            yield connection

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """Give a connection inside a transaction: all of the block is written, or nothing."""
        with self._reading() as connection:
            connection.execute("BEGIN IMMEDIATE")  # taken now, so two writers cannot deadlock
            yield connection
            connection.execute("COMMIT")


def _releases(tally: Tally, run: str | None, columns: Sequence[str]) -> Releases:
    return [(AccountingEvent(*values), number) for values, number in tally.by(run, columns)]


def _refuse_beyond(ceiling: Ceiling, releases: Releases) -> None:
    spent = ceiling.spent(releases)
    if not spent <= ceiling.epsilon:  # also when spent is NaN
        raise BudgetExhausted(
            f"the next round would bring all runs on this ledger to epsilon {spent:.6g}, the "
            f"ceiling is {ceiling.epsilon:.6g}; raise the ceiling, or keep the model as it is"
        )


def _refuse_difference(path: Path, known: Record, wanted: Record, names: Sequence[str]) -> None:
    differing = [name for name in names if known[name] != wanted[name]]
    if differing:
        found = ", ".join(f"{name} {known[name]!r}, got {wanted[name]!r}" for name in differing)
        key = ", ".join(f"{name} {known[name]!r}" for name in ledger_file.KEY)
        raise LedgerError(
            f"ledger {path} already holds {key} with {found}; "
            "a release that differs needs the next attempt number, and another run another name"
        )


def _refuse_other_facts(path: Path, found: PlanFacts, wanted: PlanFacts) -> None:
    pairs = zip(asdict(found).items(), asdict(wanted).values(), strict=True)
    differing = [f"{name} {old!r}, got {new!r}" for (name, old), new in pairs if old != new]
    if differing:
        raise LedgerError(
            f"ledger {path} belongs to other settings: it has {'; '.join(differing)}; charges of "
            "both cannot be added up, so name another file with --ledger"
        )
