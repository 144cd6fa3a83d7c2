"""Show that what was found in the data is counted once, over workers and restarts."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from clients.findings import Finding
from fedopt.data_findings import DataFindings

BROKEN = Finding("unreadable", "a.flac", "it ends too soon")
STEREO = Finding("mixed down", "b.flac")


def test_a_file_found_by_two_workers_or_again_after_a_restart_counts_once(tmp_path: Path) -> None:
    path = tmp_path / "found.jsonl"
    found = DataFindings(path)
    found.add([BROKEN, STEREO])
    found.add([BROKEN])
    assert found.counts == {"unreadable": 1, "mixed down": 1}
    again = DataFindings(path)
    assert again.counts == found.counts
    again.add([BROKEN, Finding("unreadable", "c.flac", "it is empty")])
    assert again.counts["unreadable"] == 2
    assert [json.loads(line)["name"] for line in path.read_text().splitlines()] == [
        "a.flac",
        "b.flac",
        "c.flac",
    ]


def test_a_line_cut_off_by_a_crash_is_found_again_and_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "found.jsonl"
    DataFindings(path).add([BROKEN, STEREO])
    path.write_text(path.read_text()[:-9])
    found = DataFindings(path)
    assert found.counts == {"unreadable": 1}
    found.add([STEREO])
    assert DataFindings(path).counts == {"unreadable": 1, "mixed down": 1}


def test_nothing_found_leaves_no_file(tmp_path: Path) -> None:
    DataFindings(tmp_path / "found.jsonl").add([])
    assert list(tmp_path.iterdir()) == []


def test_faults_are_named_in_warnings_unless_the_task_named_them_here(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        DataFindings(tmp_path / "one").add([BROKEN, STEREO, BROKEN])
        assert caplog.messages == ["A worker found a.flac: it ends too soon"]
        quiet = DataFindings(tmp_path / "two")
        quiet.logs = False
        quiet.add([BROKEN])
        DataFindings(tmp_path / "three").add([BROKEN], logged=False)
    assert len(caplog.messages) == 1
