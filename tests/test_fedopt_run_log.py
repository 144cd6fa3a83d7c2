"""Show that rounds.jsonl survives a crash in the middle of a line, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedopt.run_log import RunLog
from privacy.errors import SettingsError

ROWS = [{"round": 0}, {"round": 1, "loss": 0.1}, {"round": 2, "loss": 1e-17}]


def written(tmp_path: Path) -> RunLog:
    log = RunLog(tmp_path / "rounds.jsonl")
    for row in ROWS:
        log.append(row)
    return log


def test_rows_come_back_as_they_went_in(tmp_path: Path) -> None:
    assert written(tmp_path).rows() == ROWS
    assert RunLog(tmp_path / "none.jsonl").rows() == []


@pytest.mark.parametrize("cut", [1, 2, 9, 20])
def test_a_last_line_cut_off_by_a_crash_is_left_out(cut: int, tmp_path: Path) -> None:
    log = written(tmp_path)
    whole = log.path.read_bytes()
    log.path.write_bytes(whole[:-cut])
    assert log.rows() == (ROWS if cut == 1 else ROWS[:2])
    assert log.keep_until(5) == log.rows()
    log.append({"round": 7})
    assert log.rows()[-1] == {"round": 7}


def test_a_damaged_line_in_the_middle_is_refused_with_its_number(tmp_path: Path) -> None:
    log = written(tmp_path)
    lines = log.path.read_text().splitlines(keepends=True)
    log.path.write_text(lines[0] + "{broken\n" + lines[2])
    with pytest.raises(SettingsError, match="line 2"):
        log.rows()


def test_rounds_after_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    log = written(tmp_path)
    assert log.keep_until(1) == ROWS[:2]
    assert log.rows() == ROWS[:2]
    assert [path.name for path in tmp_path.iterdir()] == ["rounds.jsonl"]


def test_rows_may_count_something_else_and_be_replaced(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "steps.jsonl", "step")
    for step in (2, 4, 6):
        log.append({"step": step})
    assert log.keep_until(4) == [{"step": 2}, {"step": 4}]
    log.replace([{"step": 2}, {"step": 3}])
    assert log.rows() == [{"step": 2}, {"step": 3}]
