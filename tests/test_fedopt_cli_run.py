"""Show `fedopt run` from the command line to its exit code, interrupted and gone on with."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from engine_runs import engine_settings, left_behind, run, session_of, still_alive

from fedopt import run_directory
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
    assert main(small(tmp_path / "run", "--noise-multiplier", "0.9", "--epsilon", "1.26")) == 3
    told = capsys.readouterr().err.splitlines()[-1]
    assert "ceiling" in told
    assert "the model so far is kept" in told
    assert (tmp_path / "run" / "model.safetensors").exists()
    report = json.loads((tmp_path / "run" / "privacy-report.json").read_text())
    assert report["accounting"]["epsilon"]["value"] <= 1.26


def test_flags_set_and_files_are_merged_in_their_order(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(
        "[client]\nclient_lr = 0.9\nmomentum = 0.5\n[privacy]\nnoise_multiplier = 2.0\n"
    )
    more = ["--config", str(file), "--set", "client.momentum=0.25", "--set", "task.options.users=9"]
    assert main(small(tmp_path / "run", *more)) == 0
    found = load_settings(tmp_path / "run")
    assert (found.client.client_lr, found.client.momentum) == (0.2, 0.25)
    assert found.privacy.noise_multiplier == 2.0
    assert found.task.options == {"users": 9}


def test_resume_takes_the_settings_of_the_run(tmp_path: Path) -> None:
    run(engine_settings(), tmp_path / "run")
    before = left_behind(tmp_path / "run")
    assert main(["run", "--resume", "--output", str(tmp_path / "run")]) == 0
    assert left_behind(tmp_path / "run") == before


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != run_directory.LOCK
    }


def newest_checkpoint(folder: Path) -> Path:
    return max((folder / "checkpoints").glob("round-*"))


def damage(folder: Path) -> None:
    newest_checkpoint(folder).write_bytes(newest_checkpoint(folder).read_bytes()[:-7])


def exchange(folder: Path) -> None:
    run(engine_settings({"run.seed": 4}), folder.parent / "other")
    foreign = newest_checkpoint(folder.parent / "other")
    newest_checkpoint(folder).write_bytes(foreign.read_bytes())


@pytest.mark.parametrize(
    ("harm", "more", "text"),
    [
        (None, ["--clip-norm", "3"], "clip-norm 0.5 -> 3.0"),
        (None, ["--engine", "ray", "--ray-address", "127.0.0.1:9"], "check --ray-address"),
        (None, ["--engine", "ray", "--workers", "1000"], "choose --workers"),
        (None, ["--device", "cuda:31"], "choose --device cpu"),
        (damage, [], "remove it to fall back"),
        (exchange, [], "other settings"),
    ],
    ids=["settings", "address", "memory", "gpu", "damaged checkpoint", "foreign checkpoint"],
)
def test_what_a_run_cannot_go_on_with_ends_with_2_a_sentence_and_everything_as_it_was(
    harm: Callable[[Path], None] | None,
    more: list[str],
    text: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "run"
    run(engine_settings(), folder)
    if harm is not None:
        harm(folder)
    before = contents(folder)
    assert main(["run", "--resume", "--output", str(folder), "--quiet", *more]) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert text in told
    assert contents(folder) == before


def test_a_directory_that_a_run_holds_ends_a_second_one_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(engine_settings(), tmp_path / "run")
    before = contents(tmp_path / "run")
    with run_directory.locked(tmp_path / "run"):
        assert main(["run", "--resume", "--output", str(tmp_path / "run")]) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert "in use by a running training" in told
    assert contents(tmp_path / "run") == before


def test_a_dry_run_shows_the_plan_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(small(tmp_path / "run", "--noise-multiplier", "1", "--dry-run", "--json")) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["noise_multiplier"], facts["simulated_cohort"], facts["users"]) == (1.0, 6, 24)
    assert list(tmp_path.iterdir()) == []


CONSOLE = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run behind "&"
from fedopt.cli import console
console()
"""


def start(folder: Path, *more: str) -> subprocess.Popen[str]:
    """Start the command in a process group of its own that hears Ctrl-C, as a terminal does."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", CONSOLE, *small(folder, *more)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )


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
    settings = load_settings(tmp_path / "run")
    run(settings, tmp_path / "run", resume=True)
    run(settings, tmp_path / "whole")
    assert left_behind(tmp_path / "run") == left_behind(tmp_path / "whole")


@pytest.mark.slow
def test_ctrl_c_leaves_no_ray_process_and_no_chatter(tmp_path: Path) -> None:
    more = ["--noise-multiplier", "1", "--engine", "ray", "--set", "task.options.pause=0.2"]
    code, out, err, seen = interrupt(tmp_path / "run", 1, *more)
    assert code == 130
    assert len(seen) > 3, "Ray's processes were there"
    assert not still_alive(seen, 60)
    assert out == ""
    ours = ("fedadam on the ray engine", "note: users are trained", "round ", "fedopt: interrupted")
    assert [line for line in err.splitlines() if not line.startswith(ours)] == []


@dataclass(frozen=True)
class Start:
    """Hold what it took from the start of the process to the end of its first round.

    seconds: on the clock. cpu_seconds, megabytes: of all processes of the run together; the
    memory is the sum of the most that each has held.
    """

    seconds: float
    cpu_seconds: float
    megabytes: float


def first_round(folder: Path, population: int) -> Start:
    """Start a run of 2,000 virtual users a round on Ray, and end it after its first round."""
    more = [
        "--population", str(population), "--cohort", "2000", "--simulated-cohort", "2000",
        "--virtual-users", "--rounds", "9", "--noise-multiplier", "1", "--eval-every", "9",
        "--set", "task.options.size=10000", "--local-steps", "1", "--quiet",
        "--engine", "ray", "--workers", "2",
    ]  # fmt: skip
    started = time.monotonic()
    with start(folder, *more) as process:
        log = folder / "rounds.jsonl"
        while not log.exists() or len(log.read_text().splitlines()) < 2:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        seconds = time.monotonic() - started
        used = [usage(pid) for pid in session_of(process.pid)]
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=120)
    return Start(seconds, sum(cpu for cpu, _ in used), sum(most for _, most in used))


def usage(pid: int) -> tuple[float, float]:
    """Read the CPU seconds of a process, with its ended children, and the most it has held."""
    with contextlib.suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        held = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
        ticks = sum(int(field) for field in fields[11:15])
        return ticks / os.sysconf("SC_CLK_TCK"), int(held[1]) / 1e3 if held else 0.0
    return 0.0, 0.0


@pytest.mark.slow
def test_a_population_of_10_to_the_9_costs_what_10_to_the_4_costs(tmp_path: Path) -> None:
    """Cohort 2,000, 10,003 parameters, 2 workers; starts take turns.

    CPU and memory are compared by their medians, the clock by the start that was least disturbed.
    """
    few: list[Start] = []
    many: list[Start] = []
    for turn in range(5):
        few.append(first_round(tmp_path / f"few-{turn}", 10**4))
        many.append(first_round(tmp_path / f"many-{turn}", 10**9))
    for name, of in (
        ("megabytes", statistics.median),
        ("cpu_seconds", statistics.median),
        ("seconds", min),
    ):
        wanted, found = (of([getattr(one, name) for one in group]) for group in (few, many))
        assert found <= 1.1 * wanted, (name, few, many)
