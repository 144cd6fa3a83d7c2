"""Keep the ledger's SQLite file: make it, open it, and refuse it when it is not what it was.

Only `privacy.ledger` uses this room. A record is one row as a mapping of column to value.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import sqlite3
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from privacy.errors import LedgerError
from privacy.event import Adjacency
from privacy.ledger_tally import AS_RUN, CLAIMED, IDENTITY, PLACE, Tally

Record = dict[str, Any]  # SQLite alone knows the type of each value

KEY = ("run", "round", "attempt")
CHARGED = ("key_hash", "adjacency", *CLAIMED, *AS_RUN[1:], "clip_norm")
REALISED = ("cohort_realised", "replies", "noise_std_realised")
CONTENT = (*KEY, *CHARGED, "state", *REALISED)
_COLUMNS = (*CONTENT, "reserved_at", "committed_at")

_APPLICATION_ID = 0x66_65_64_6F
_SCHEMA_VERSION = 1
_TABLES = {
    "ledger": """CREATE TABLE ledger (
    population INTEGER NOT NULL, delta REAL NOT NULL, adjacency TEXT NOT NULL,
    unit TEXT NOT NULL, seal TEXT NOT NULL)""",
    "charge": """CREATE TABLE charge (
    run TEXT NOT NULL, round INTEGER NOT NULL, attempt INTEGER NOT NULL,
    key_hash TEXT NOT NULL, adjacency TEXT NOT NULL, sampling TEXT NOT NULL,
    population INTEGER NOT NULL, cohort INTEGER NOT NULL, noise_multiplier REAL NOT NULL,
    cohort_cap INTEGER, users INTEGER NOT NULL, cohort_as_run INTEGER NOT NULL,
    noise_multiplier_as_run REAL NOT NULL, cohort_cap_as_run INTEGER, clip_norm REAL NOT NULL,
    state TEXT NOT NULL, cohort_realised INTEGER, replies INTEGER, noise_std_realised REAL,
    reserved_at TEXT NOT NULL, committed_at TEXT, seal TEXT NOT NULL,
    PRIMARY KEY (run, round, attempt))""",
}


@dataclass(frozen=True)
class PlanFacts:
    """State what all runs on one ledger must share for their charges to add up.

    population: number N of users from whom every claimed cohort is drawn.
    unit: whom the guarantee protects; the ledger compares it and does nothing else with it.
    """

    population: int
    delta: float
    adjacency: Adjacency
    unit: str = "user"


@contextlib.contextmanager
def connection(path: Path, busy_seconds: float, mode: str = "rw") -> Iterator[sqlite3.Connection]:
    """Open the file for one block; what the block leaves uncommitted is undone.

    mode: as in SQLite's addresses: "ro" reads only, "rw" needs an existing file, "rwc" makes it.
    Raises: LedgerError for whatever SQLite refuses.
    """
    address = f"{path.absolute().as_uri()}?mode={mode}"
    try:
        with contextlib.closing(
            sqlite3.connect(address, uri=True, timeout=busy_seconds, isolation_level=None)
        ) as opened:
            opened.row_factory = sqlite3.Row
            # EXTRA also syncs the directory when a commit removes the journal: without it a power
            # loss right after a commit could bring the journal, and so the old state, back.
            opened.execute("PRAGMA synchronous = EXTRA")
            yield opened
    except (sqlite3.Error, UnicodeDecodeError) as problem:
        raise LedgerError(
            f"ledger {path} cannot be used ({problem}); wanted a ledger file that no other "
            "process holds; restore it from a backup, or name another with --ledger"
        ) from problem


def create(path: Path, facts: PlanFacts, busy_seconds: float) -> None:
    """Make a ledger, whole or not at all; of two processes at once, one makes it."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}.new")
    values = asdict(facts)
    try:
        with connection(beside, busy_seconds, "rwc") as opened:
            opened.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            opened.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
            for statement in _TABLES.values():
                opened.execute(statement)
            _write_record(opened, "ledger", values | {"seal": _seal(list(values.values()))})
        with contextlib.suppress(FileExistsError):  # another process was first
            os.link(beside, path)
        _sync_directory(path.parent)
    except OSError as problem:
        raise LedgerError(
            f"ledger {path} cannot be made ({problem}); name a file on a local disk with --ledger"
        ) from problem
    finally:
        beside.unlink(missing_ok=True)


def verified(path: Path, busy_seconds: float) -> tuple[PlanFacts, Tally]:
    """Check the whole file, give its facts and count it; a refused file is left as it was.

    Raises: LedgerError when the file is missing, of another kind or version, or damaged.
    """
    _refuse_other_kind(path, busy_seconds)
    try:
        return _verify(path, busy_seconds, "ro")
    except LedgerError as problem:
        code: str = getattr(problem.__cause__, "sqlite_errorname", "")
        if not code.startswith("SQLITE_READONLY"):
            raise
    # A process died inside a write. SQLite undoes that write when the file is opened for writing.
    return _verify(path, busy_seconds, "rw")


def read_facts(path: Path, opened: sqlite3.Connection) -> PlanFacts:
    """Read what the file says about its population, and check that it is sealed.

    Raises: LedgerError when the facts are not there exactly once and unchanged.
    """
    names = [field.name for field in fields(PlanFacts)]
    found = [tuple(row) for row in opened.execute(f"SELECT {', '.join(names)}, seal FROM ledger")]
    if len(found) != 1 or _seal(list(found[0][:-1])) != found[0][-1]:
        raise _damaged(path, "its facts do not match their seal")
    return PlanFacts(*found[0][:-1])


def records(opened: sqlite3.Connection, run: str | None) -> list[Record]:
    """List the rows of one run, or of all, in the order of their key."""
    query = "SELECT * FROM charge WHERE ? IS NULL OR run = ? ORDER BY run, round, attempt"
    return [dict(row) for row in opened.execute(query, (run, run))]


def find(opened: sqlite3.Connection, key: Record) -> Record | None:
    """Give the row of a run, round and attempt, None where there is none."""
    query = "SELECT * FROM charge WHERE run = :run AND round = :round AND attempt = :attempt"
    row = opened.execute(query, {name: key[name] for name in KEY}).fetchone()
    return None if row is None else dict(row)


def insert(opened: sqlite3.Connection, record: Record) -> None:
    """Add a row and seal it."""
    _write_record(opened, "charge", record | {"seal": _record_seal(record)})


def replace(opened: sqlite3.Connection, record: Record) -> None:
    """Change the row with the same key in its place in the file, and seal it."""
    sealed = record | {"seal": _record_seal(record)}
    changes = ", ".join(f"{name} = :{name}" for name in sealed if name not in KEY)
    where = " AND ".join(f"{name} = :{name}" for name in KEY)
    opened.execute(f"UPDATE charge SET {changes} WHERE {where}", sealed)


def tallied(path: Path, opened: sqlite3.Connection, known: Tally) -> Tally:
    """Count the rows that came after the known ones; all rows where the file is another one.

    Raises: LedgerError where a row that is counted does not fit its seal.
    """
    query = f"SELECT {', '.join(IDENTITY)} FROM charge WHERE rowid = ?"
    end = opened.execute(query, (known.end,)).fetchone()
    start = known if end is not None and tuple(end) == known.end_identity else Tally()
    rows = opened.execute(
        f"SELECT rowid AS {PLACE}, * FROM charge WHERE rowid > ? ORDER BY rowid", (start.end,)
    )
    return start.extended(_sealed(path, dict(row)) for row in rows)


def last_committed_round(opened: sqlite3.Connection, run: str) -> int | None:
    """Give the highest committed round of a run, None where there is none."""
    query = "SELECT MAX(round) FROM charge WHERE run = ? AND state = 'committed'"
    found: int | None = opened.execute(query, (run,)).fetchone()[0]
    return found


def last_attempt(opened: sqlite3.Connection, run: str, round_number: int) -> int | None:
    """Give the highest attempt at a round of a run, None where there is none."""
    query = "SELECT MAX(attempt) FROM charge WHERE run = ? AND round = ?"
    found: int | None = opened.execute(query, (run, round_number)).fetchone()[0]
    return found


def _refuse_other_kind(path: Path, busy_seconds: float) -> None:
    """Look at the header alone, without locks or recovery, so that nothing foreign is touched."""
    with connection(path, busy_seconds, "ro&immutable=1") as opened:
        names = ("application_id", "user_version")
        kind = [opened.execute(f"PRAGMA {name}").fetchone()[0] for name in names]
    if kind != [_APPLICATION_ID, _SCHEMA_VERSION]:
        raise LedgerError(
            f"ledger {path} is a file of another kind or version (application and schema {kind}), "
            f"wanted {[_APPLICATION_ID, _SCHEMA_VERSION]}; name another file with --ledger"
        )


def _verify(path: Path, busy_seconds: float, mode: str) -> tuple[PlanFacts, Tally]:
    with connection(path, busy_seconds, mode) as opened:
        faults = [row[0] for row in opened.execute("PRAGMA integrity_check")]
        if faults != ["ok"]:
            raise _damaged(path, str(faults[0]))
        query = "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"
        if dict(opened.execute(query).fetchall()) != _TABLES:
            raise _damaged(path, "its tables were changed")
        return read_facts(path, opened), tallied(path, opened, Tally())


def _write_record(opened: sqlite3.Connection, table: str, record: Record) -> None:
    names = ", ".join(record)
    marks = ", ".join(f":{name}" for name in record)
    opened.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", record)


def _sealed(path: Path, record: Record) -> Record:
    if _record_seal(record) != record["seal"]:
        raise _damaged(path, f"row {[record[name] for name in KEY]} was changed")
    return record


def _record_seal(record: Record) -> str:
    return _seal([record[name] for name in _COLUMNS])


def _seal(values: list[Any]) -> str:
    """Hash values, because SQLite notices a damaged page but not a changed number."""
    return hashlib.sha256(json.dumps(values, default=repr).encode()).hexdigest()


def _sync_directory(folder: Path) -> None:
    """Make a new name in a folder survive a power loss."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _damaged(path: Path, why: str) -> LedgerError:
    return LedgerError(
        f"ledger {path} is damaged ({why}); restore it from a backup: without it the privacy "
        "already spent is unknown"
    )
