"""Show `fedopt run` from the command line to its exit code, interrupted and gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from engine_runs import left_behind

from fedopt.cli import main
from fedopt.run_directory import load_settings

SMALL = [
    "run", "--task", "engine_tasks:task", "--population", "1000", "--cohort", "10",
    "--simulated-cohort", "6", "--rounds", "4", "--delta", "1e-5", "--engine", "local",
    "--device", "cpu", "--strategy", "fedadam", "--server-lr", "0.1", "--client-lr", "0.2",
    "--local-steps", "3", "--eval-every", "2",
]  # fmt: skip


def small(folder: Path, *more: str) -> list[str]:
    return [*SMALL, "--output", str(folder), *more]


def trained(folder: Path, *more: str) -> int:
    """Run in this process, without the report."""
    with (
        mock.patch("fedopt.report.write_report", return_value={}),
        mock.patch("fedopt.cli_run.summary", return_value="done"),
    ):
        return main(small(folder, *more))


def test_a_run_ends_with_0_its_summary_on_stdout_and_progress_on_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(small(tmp_path / "run", "--epsilon", "6")) == 0
    shown = capsys.readouterr()
    assert "distance: " in shown.out
    assert "Simulated guarantee" in shown.out
    assert shown.out.splitlines()[-1].startswith("report: ")
    assert Path(shown.out.splitlines()[-1].partition(": ")[2]).exists()
    assert [line.split()[1] for line in shown.err.splitlines() if line.startswith("round")] == [
        "0/4",
        "2/4",
        "4/4",
    ]


def test_json_events_end_with_the_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(small(tmp_path / "run", "--noise-multiplier", "1", "--json")) == 0
    shown = capsys.readouterr()
    events = [json.loads(line) for line in shown.out.splitlines()]
    assert [event["event"] for event in events] == ["started", *["round"] * 5, "finished"]
    assert events[-1]["epsilon"]["value"] == pytest.approx(events[-2]["epsilon"], rel=1e-9)
    assert shown.err == ""


def test_a_ceiling_ends_the_run_with_3_and_keeps_the_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert trained(tmp_path / "run", "--noise-multiplier", "0.9", "--epsilon", "1.26") == 3
    told = capsys.readouterr().err.splitlines()[-1]
    assert "ceiling" in told
    assert "the model so far is kept" in told
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_flags_set_and_files_are_merged_in_their_order(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(
        "[client]\nclient_lr = 0.9\nmomentum = 0.5\n[privacy]\nnoise_multiplier = 2.0\n"
    )
    more = ["--config", str(file), "--set", "client.momentum=0.25", "--set", "task.options.users=9"]
    assert trained(tmp_path / "run", *more) == 0
    found = load_settings(tmp_path / "run")
    assert (found.client.client_lr, found.client.momentum) == (0.2, 0.25)
    assert found.privacy.noise_multiplier == 2.0
    assert found.task.options == {"users": 9}


def test_resume_takes_the_settings_of_the_run(tmp_path: Path) -> None:
    assert trained(tmp_path / "run", "--noise-multiplier", "1") == 0
    before = left_behind(tmp_path / "run")
    with (
        mock.patch("fedopt.report.write_report", return_value={}),
        mock.patch("fedopt.cli_run.summary", return_value="done"),
    ):
        assert main(["run", "--resume", "--output", str(tmp_path / "run")]) == 0
    assert left_behind(tmp_path / "run") == before


def test_resume_with_another_setting_ends_with_2_and_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert trained(tmp_path / "run", "--noise-multiplier", "1") == 0
    capsys.readouterr()
    arguments = ["run", "--resume", "--output", str(tmp_path / "run"), "--clip-norm", "3"]
    assert main(arguments) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert "clip-norm 1.0 -> 3.0" in told


def test_a_dry_run_shows_the_plan_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(small(tmp_path / "run", "--noise-multiplier", "1", "--dry-run", "--json")) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["noise_multiplier"], facts["simulated_cohort"], facts["users"]) == (1.0, 6, 24)
    assert list(tmp_path.iterdir()) == []


def start(folder: Path, *more: str) -> subprocess.Popen[str]:
    """Start the command in a process group of its own, as a shell does."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", "from fedopt.cli import console; console()", *small(folder, *more)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )


def session_of(leader: int) -> set[int]:
    """List the living processes that a session leader has started, by their ids."""
    found = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z" and int(fields[3]) == leader:
            found.add(int(entry.name))
    return found


def interrupt(folder: Path, rounds: int, *more: str) -> tuple[int, Any, Any, set[int]]:
    """Press Ctrl-C after some rounds; returns exit code, outputs, and the session's processes."""
    with start(folder, *more) as process:
        log = folder / "rounds.jsonl"
        deadline = time.monotonic() + 120
        while not log.exists() or len(log.read_text().splitlines()) <= rounds:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        seen = session_of(process.pid)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=120)
    return process.returncode, out, err, seen


def test_ctrl_c_ends_with_130_and_a_directory_that_goes_on(tmp_path: Path) -> None:
    slow = ["--noise-multiplier", "1", "--set", "task.options.pause=0.03"]
    code, out, err, _ = interrupt(tmp_path / "run", 1, *slow)
    assert code == 130
    assert err.splitlines()[-1].startswith("fedopt: interrupted; go on with: fedopt run --resume")
    assert "Traceback" not in out + err
    assert trained(tmp_path / "run", *slow, "--resume") == 0
    assert trained(tmp_path / "whole", *slow) == 0
    assert left_behind(tmp_path / "run") == left_behind(tmp_path / "whole")


@pytest.mark.slow
def test_ctrl_c_leaves_no_ray_process_and_no_chatter(tmp_path: Path) -> None:
    more = ["--noise-multiplier", "1", "--engine", "ray", "--set", "task.options.pause=0.2"]
    code, out, err, seen = interrupt(tmp_path / "run", 1, *more)
    assert code == 130
    assert len(seen) > 3, "Ray's processes were there"
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in seen) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert [pid for pid in seen if Path(f"/proc/{pid}").exists()] == []
    assert out == ""
    assert [line for line in err.splitlines() if not line.startswith(("round", "fed"))] == []


@pytest.mark.slow
def test_a_population_of_10_to_the_9_costs_what_10_to_the_4_costs(tmp_path: Path) -> None:
    """Cohort 2,000 of a 10,000-parameter task: CPU seconds and peak memory, two processes each."""
    measured = {}
    for population in (10**4, 10**9, 10**4, 10**9):
        folder = tmp_path / f"{population}-{len(measured)}-{time.monotonic_ns()}"
        more = [
            "--population", str(population), "--cohort", "2000", "--simulated-cohort", "2000",
            "--virtual-users", "--rounds", "2", "--noise-multiplier", "1", "--eval-every", "9",
            "--set", "task.options.size=10000", "--local-steps", "1", "--quiet",
        ]  # fmt: skip
        with start(folder, *more) as process:
            process.communicate(timeout=300)
            assert process.returncode == 0
        last = json.loads((folder / "rounds.jsonl").read_text().splitlines()[-1])
        started = last["seconds_by_phase"]["configure"]
        best = measured.get(population, (9e9, 9e9))
        measured[population] = (
            min(best[0], last["peak_memory_megabytes"]),
            min(best[1], started),
        )
    assert measured[10**9][0] <= 1.1 * measured[10**4][0]
    assert measured[10**9][1] <= 1.1 * measured[10**4][1] + 0.05
