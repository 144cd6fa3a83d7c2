"""Show that the ledger's file survives crashes and crowds, and that a damaged one is refused."""

from __future__ import annotations

import contextlib
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ledger_child import EVENT, FACTS, charge

from privacy.errors import LedgerError
from privacy.ledger import Ledger
from privacy.ledger_file import connection

CHILD = Path(__file__).with_name("ledger_child.py")


def start(path: Path, run: str, first: int, rounds: int, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(CHILD), str(path), run, str(first), str(rounds), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def finish(child: subprocess.Popen[str]) -> list[str]:
    output, _ = child.communicate(timeout=60)
    whole, _, _ = output.rpartition("\n")  # a line cut short by a kill was not reported
    return whole.splitlines()


def reported(lines: list[str], word: str) -> set[tuple[str, int]]:
    found = [line.split() for line in lines]
    return {(parts[1], int(parts[2])) for parts in found if parts[0] == word}


def held(path: Path, state: str | None = None) -> set[tuple[str, int]]:
    rows = Ledger.read(path).rows()
    return {(row.run, row.round) for row in rows if state in (None, row.state)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def whole(path: Path) -> bytes:
    """A ledger with a committed and a reserved charge, as bytes."""
    ledger = Ledger.open(path, run="first", plan_facts=FACTS)
    proof = ledger.reserve(charge(1))
    ledger.commit(proof, cohort_realised=9, replies=8, noise_std_realised=0.005)
    ledger.reserve(charge(2))
    return path.read_bytes()


def assert_refused_unchanged(path: Path) -> None:
    before, names = path.read_bytes(), set(path.parent.iterdir())
    with pytest.raises(LedgerError):
        Ledger.read(path)
    with pytest.raises(LedgerError):
        Ledger.open(path, run="first", plan_facts=FACTS)
    assert path.read_bytes() == before
    assert set(path.parent.iterdir()) == names


def change(path: Path, *commands: str) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as opened:
        for command in commands:
            opened.execute(command)


@pytest.mark.parametrize("content", [b"", b"\0" * 8192, b"epsilon = 8\n" * 1000])
def test_a_file_that_is_no_database_is_refused_and_left_unchanged(
    path: Path, content: bytes
) -> None:
    path.write_bytes(content)
    assert_refused_unchanged(path)


@pytest.mark.parametrize("journal", ["DELETE", "WAL"])
def test_a_database_of_another_program_is_refused_and_left_unchanged(
    path: Path, journal: str
) -> None:
    change(path, f"PRAGMA journal_mode = {journal}", "CREATE TABLE notes (text)")
    assert_refused_unchanged(path)


def test_a_folder_in_the_place_of_a_ledger_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LedgerError):
        Ledger.open(tmp_path, run="first", plan_facts=FACTS)


@pytest.mark.parametrize(
    "command",
    [
        "PRAGMA user_version = 2",
        "PRAGMA application_id = 1",
        "DROP TABLE charge",
        "DROP TABLE ledger",
        "DELETE FROM ledger",
        "INSERT INTO ledger SELECT * FROM ledger",
        "UPDATE ledger SET delta = 1e-6",
        "ALTER TABLE charge DROP COLUMN clip_norm",
        "ALTER TABLE charge ADD COLUMN forgiven",
        "UPDATE charge SET noise_multiplier = 2.0 WHERE round = 1",
        "UPDATE charge SET state = 'committed'",
        "UPDATE charge SET round = 7 WHERE round = 2",
        "UPDATE charge SET seal = ''",
        "UPDATE charge SET clip_norm = x'00'",
    ],
)
@pytest.mark.usefixtures("whole")
def test_a_ledger_changed_by_another_program_is_refused_and_left_unchanged(
    path: Path, command: str
) -> None:
    change(path, command)
    assert_refused_unchanged(path)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger with a few charges, made once: only copies of it are damaged."""
    path = tmp_path_factory.mktemp("sample") / "sample.sqlite"
    ledger = Ledger.open(path, run="first", plan_facts=FACTS)
    for number in (1, 2, 3):
        ledger.commit(
            ledger.reserve(charge(number)), cohort_realised=9, replies=8, noise_std_realised=0.5
        )
    return path


def test_an_index_that_lost_a_row_is_refused(sample: Path, path: Path) -> None:
    with connection(sample, 1.0) as opened:
        size = opened.execute("PRAGMA page_size").fetchone()[0]
        query = "SELECT rootpage FROM sqlite_master WHERE type = 'index'"
        start_of_index = (opened.execute(query).fetchone()[0] - 1) * size
    content = bytearray(sample.read_bytes())
    cells = slice(start_of_index + 3, start_of_index + 5)  # in the page header of SQLite's format
    assert int.from_bytes(content[cells]) == 3
    content[cells] = (2).to_bytes(2)  # the last charge is no longer found by its key
    path.write_bytes(content)
    assert_refused_unchanged(path)


@pytest.mark.parametrize(
    ("text", "broken"), [(b"first", b"\xe5irst"), (b"PRIMARY KEY (run", b"PRIMARY KEY (\xe5un")]
)
def test_text_that_is_no_text_is_refused(
    sample: Path, path: Path, text: bytes, broken: bytes
) -> None:
    assert text in sample.read_bytes()
    path.write_bytes(sample.read_bytes().replace(text, broken))
    assert_refused_unchanged(path)


def test_every_connection_waits_for_the_disk(path: Path) -> None:
    Ledger.open(path, run="first", plan_facts=FACTS)
    with connection(path, 1.0) as opened:
        extra, delete = 3, "delete"  # as SQLite numbers and names them
        assert opened.execute("PRAGMA synchronous").fetchone()[0] == extra
        assert opened.execute("PRAGMA journal_mode").fetchone()[0] == delete


@settings(max_examples=250, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@example(share=18 / 16384, bit=1)  # the journal mode in the header
@example(share=0.24609375, bit=0)  # the name of a column
@example(share=0.21875, bit=7)  # text that is no UTF-8
def test_a_flipped_bit_is_refused_or_changes_no_charge(
    sample: Path, share: float, bit: int
) -> None:
    content = bytearray(sample.read_bytes())
    content[int(share * len(content))] ^= 1 << bit
    with tempfile.TemporaryDirectory(dir=sample.parent) as folder:
        path = Path(folder) / "ledger.sqlite"
        path.write_bytes(content)
        with contextlib.suppress(LedgerError):
            assert Ledger.read(path).rows() == Ledger.read(sample).rows()
        assert path.read_bytes() == content


@settings(max_examples=60, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_ledger_cut_short_is_refused_and_left_unchanged(sample: Path, share: float) -> None:
    content = sample.read_bytes()
    with tempfile.TemporaryDirectory(dir=sample.parent) as folder:
        path = Path(folder) / "ledger.sqlite"
        path.write_bytes(content[: int(share * len(content))])
        assert_refused_unchanged(path)


TORN = """
import os, signal, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA cache_size = 1")
connection.execute("BEGIN IMMEDIATE")
connection.execute("UPDATE charge SET noise_multiplier = 9.0")
connection.execute("CREATE TABLE bulk (text)")
for number in range(50):
    connection.execute("INSERT INTO bulk VALUES (?)", ("x" * 4000,))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_write_torn_by_a_kill_is_undone_at_the_next_opening(path: Path, whole: bytes) -> None:
    child = subprocess.run([sys.executable, "-c", TORN, str(path)], check=False)
    assert child.returncode == -signal.SIGKILL
    assert path.with_name(path.name + "-journal").exists()
    assert path.read_bytes() != whole
    assert Ledger.read(path).releases() == [(EVENT, 2)]
    assert path.read_bytes() == whole


def test_two_processes_charge_one_ledger_at_once_and_nothing_is_lost(path: Path) -> None:
    children = [start(path, run, 1, 40) for run in ("left", "right")]
    lines = [line for child in children for line in finish(child)]
    wanted = {(run, number) for run in ("left", "right") for number in range(1, 41)}
    assert [child.returncode for child in children] == [0, 0]
    assert reported(lines, "committed") == wanted == held(path, "committed")
    assert Ledger.read(path).releases() == [(EVENT, 80)]


def test_two_processes_that_repeat_one_run_charge_each_round_once(path: Path) -> None:
    children = [start(path, "same", 1, 40) for _ in range(2)]
    assert [len(reported(finish(child), "committed")) for child in children] == [40, 40]
    assert Ledger.read(path).releases() == [(EVENT, 40)]


def test_two_processes_never_pass_a_ceiling_together(path: Path) -> None:
    children = [start(path, run, 1, 40, "30") for run in ("left", "right")]
    lines = [finish(child) for child in children]
    assert [each[-1] for each in lines] == ["exhausted", "exhausted"]
    granted = reported(lines[0], "reserved") | reported(lines[1], "reserved")
    assert len(granted) == 30
    assert held(path) == granted


def test_processes_that_make_one_ledger_at_once_share_it(tmp_path: Path) -> None:
    for attempt in range(5):
        path = tmp_path / f"{attempt}.sqlite"
        children = [start(path, f"run-{number}", 1, 2) for number in range(4)]
        for child in children:
            finish(child)
        assert [child.returncode for child in children] == [0, 0, 0, 0]
        assert Ledger.read(path).releases() == [(EVENT, 8)]
    assert len(list(tmp_path.iterdir())) == 5


def kill_after(child: subprocess.Popen[str], lines: int, seconds: float) -> list[str]:
    """Kill a child a while after it reported some lines; returns all that it reported."""
    assert child.stdout is not None
    first = [child.stdout.readline().strip() for _ in range(lines)]
    time.sleep(seconds)
    child.kill()
    rest = finish(child)
    assert child.returncode == -signal.SIGKILL
    return first + rest


def test_no_charge_is_lost_when_a_working_process_is_killed_at_any_moment(path: Path) -> None:
    generator = random.Random(20240607)
    granted: set[tuple[str, int]] = set()
    committed: set[tuple[str, int]] = set()
    for number in range(50):
        child = start(path, f"run-{number}", 1, 100_000)
        lines = kill_after(child, generator.randint(1, 9), generator.uniform(0.0, 0.02))
        granted |= reported(lines, "reserved")
        committed |= reported(lines, "committed")
        assert granted <= held(path)
        assert committed <= held(path, "committed")
    assert len(held(path)) >= len(granted) > 100


def test_no_charge_is_lost_when_a_process_is_killed_while_it_makes_a_ledger(
    tmp_path: Path,
) -> None:
    generator = random.Random(7)
    for number in range(15):
        path = tmp_path / f"{number}.sqlite"
        child = start(path, "run", 1, 100_000)
        lines = kill_after(child, 0, generator.uniform(0.03, 0.12))
        assert reported(lines, "reserved") <= (held(path) if path.exists() else set())
        ledger = Ledger.open(path, run="next", plan_facts=FACTS)
        assert ledger.reserve(charge(1)).state == "reserved"


def test_the_ledger_needs_neither_torch_nor_flower() -> None:
    program = (
        "import sys, privacy.ledger\n"
        "heavy = {'torch', 'flwr', 'ray', 'opacus', 'dp_accounting', 'numpy', 'scipy'}\n"
        "sys.exit(len(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False)
    assert done.returncode == 0
