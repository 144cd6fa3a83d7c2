"""Start small runs here or in children that can be killed, and compare what they left."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedopt.config import Settings, build_settings

if TYPE_CHECKING:
    from fedopt.run import Result

TIMES = {"seconds", "seconds_by_phase", "peak_memory_megabytes"}


def engine_settings(changes: Mapping[str, Any] | None = None, **options: Any) -> Settings:
    """Build the settings of a run of a few cheap rounds; `changes` maps section.key to value."""
    tables: dict[str, dict[str, Any]] = {
        "privacy": {
            "population": 1000,
            "cohort": 10,
            "simulated_cohort": 6,
            "rounds": 4,
            "noise_multiplier": 1.0,
            "delta": 1e-5,
            "clip_norm": 0.5,
        },
        "server": {"strategy": "fedadam", "server_lr": 0.1},
        "client": {"client_lr": 0.2, "local_steps": 3},
        "task": {"task": "engine_tasks:task", "options": dict(options)},
        "engine": {"engine": "local", "device": "cpu", "worker_megabytes": 0},
        "run": {"eval_every": 2, "seed": 3},
    }
    for name, value in (changes or {}).items():
        section, key = name.split(".")
        tables[section][key] = value
    return build_settings(tables)


def run(settings: Settings, folder: Path, *, report: bool = False, **more: Any) -> Result:
    """Run in this process.

    report: write the report too; it takes twenty times as long as such a small run.
    """
    from fedopt.simulation import simulate

    return simulate(settings, output=folder, report=report, **more)


def order(folder: Path, behaviours: Mapping[int, str]) -> str:
    """Tell the users of a task's folder how to behave; returns the folder as an option."""
    folder.mkdir(exist_ok=True)
    written = {str(user): behaviour for user, behaviour in behaviours.items()}
    (folder / "behaviours.json").write_text(json.dumps(written))
    return str(folder)


def rows(folder: Path) -> list[dict[str, Any]]:
    """Read rounds.jsonl without what no two runs share."""
    lines = (folder / "rounds.jsonl").read_text().splitlines()
    return [
        {key: value for key, value in json.loads(line).items() if key not in TIMES}
        for line in lines
    ]


def left_behind(folder: Path) -> tuple[bytes, str, list[dict[str, Any]]]:
    """Give model bytes, ledger digest and rows of a finished run."""
    from privacy.ledger import Ledger

    model = (folder / "model.safetensors").read_bytes()
    return model, Ledger.read(folder / "ledger.sqlite").digest(), rows(folder)


def children() -> Any:
    """Give a way to start processes quickly: they are forked from one that has imported all."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["fedopt.simulation", "fedopt.server_app", "fedopt.client_app", "fedopt.local_grid",
         "fedopt.report", "fedopt.report_page", "torch", "opacus", "dp_accounting", "scipy.stats"]
    )  # fmt: skip
    return context


def child_main(settings: dict[str, Any], folder: str, crash: tuple[str, int] | None) -> None:
    """Run or go on with a run in a child process, which dies at the place that `crash` names."""
    if crash is not None:
        die_at(*crash)
    run(build_settings(settings), Path(folder), resume=True)


def run_in_child(settings: Settings, folder: Path) -> list[dict[str, Any]]:
    """Run with Ray, whose open files and processes would be warnings here; returns the rows."""
    child = start_child(settings, folder)
    child.join(300)
    assert child.exitcode == 0
    return rows(folder)


def start_child(settings: Settings, folder: Path, crash: tuple[str, int] | None = None) -> Any:
    """Start `child_main`."""
    process = children().Process(
        target=child_main, args=(settings.model_dump(), str(folder), crash)
    )
    process.start()
    return process


def session_of(leader: int) -> set[int]:
    """List the living processes of the session that a process leads, by their ids."""
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


def still_alive(processes: set[int], seconds: float) -> set[int]:
    """Wait for processes to end; returns those that live on."""
    deadline = time.monotonic() + seconds
    while left := {pid for pid in processes if Path(f"/proc/{pid}").exists()}:
        if time.monotonic() > deadline:
            break
        time.sleep(0.1)
    return left


def die_at(place: str, number: int) -> None:
    """Let this process end itself with -9 the `number`th time that it comes to a place."""
    from fedopt.run_log import RunLog
    from privacy.ledger import Ledger
    from strategies import checkpoint
    from strategies.checkpoint import CheckpointFolder

    owner, name, after = {
        "before reserve": (Ledger, "reserve", False),
        "after reserve": (Ledger, "reserve", True),
        "before checkpoint": (CheckpointFolder, "write_aside", False),
        "inside checkpoint": (checkpoint, "sync", False),
        "after checkpoint": (CheckpointFolder, "write_aside", True),
        "after commit": (Ledger, "commit", True),
        "after publish": (CheckpointFolder, "publish", True),
        "before line": (RunLog, "append", False),
        "after line": (RunLog, "append", True),
    }[place]
    setattr(owner, name, dying(getattr(owner, name), number, after))


def dying(function: Callable[..., Any], number: int, after: bool) -> Callable[..., Any]:
    """Wrap a function so that the process ends before or after one of its calls."""
    return ending(function, number, after, lambda: os.kill(os.getpid(), signal.SIGKILL))


def ending(
    function: Callable[..., Any], number: int, after: bool, end: Callable[[], None]
) -> Callable[..., Any]:
    """Wrap a function so that its `number`th call comes to an end, before or after its work."""
    calls = 0

    def wrapped(*given: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number and not after:
            end()
        result = function(*given, **named)
        if calls == number:
            end()
        return result

    return wrapped
