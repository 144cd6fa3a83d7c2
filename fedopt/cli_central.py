"""Show how a central training goes on the command line, and sum it up."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedopt import central, run_directory

if TYPE_CHECKING:
    from fedopt.config import Settings


def train_centrally(settings: Settings, folder: Path, *, quiet: bool, json_events: bool) -> int:
    """Train as the settings say, rows on stderr and the result on stdout; returns the exit code."""

    def shown(row: central.Row) -> None:
        if json_events:
            print(json.dumps({"event": "step", **row}), flush=True)
        if not quiet:
            print(line_of(row), file=sys.stderr, flush=True)

    try:
        report = central.train(settings, folder, shown=shown)
    except KeyboardInterrupt:
        print(
            f"fedopt: interrupted; {_kept(folder)}a central training starts anew, in another "
            "--output",
            file=sys.stderr,
        )
        return 130
    finished = {"event": "finished", "path": str(folder), "statement": report["statement"]}
    finished |= {key: report[key] for key in ("metric", "development", "test")}
    print(json.dumps(finished) if json_events else summary(report, folder))
    return 0


def _kept(folder: Path) -> str:
    """Say where the weights of the last report are, if there was one."""
    model = folder / run_directory.MODEL
    return f"the last report's weights are kept for --init-from {model}; " if model.exists() else ""


def line_of(row: central.Row) -> str:
    """Put step, training loss and metrics on one line."""
    numbers = [
        f"{name.replace('_', ' ')} {value:.3f}"
        for name, value in row.items()
        if name != "step" and isinstance(value, float)
    ]
    return "  ".join([f"step {row['step']}", *numbers])


def summary(report: dict[str, Any], folder: Path) -> str:
    """Sum up a finished training in a few lines."""
    parts = [
        f"{report[split]:.3f} on {split}"
        for split in ("development", "test")
        if report[split] is not None
    ]
    return "\n".join(
        [
            f"{report['metric']}: {', '.join(parts) or 'not measured'}, after {report['steps']:,} "
            "steps in one place",
            report["statement"],
            f"first weights of a private run: --init-from {folder / run_directory.MODEL}",
            f"report: {folder / central.REPORT}",
        ]
    )


def unused_words(*, resume: bool, dry_run: bool) -> list[str]:
    """Refuse flags of `fedopt run` that are no settings and mean nothing here."""
    problems = []
    if resume:
        problems.append(
            "resume is for private runs, got it with strategy central; start it anew "
            "in another --output, with --init-from the model.safetensors of its last report"
        )
    if dry_run:
        problems.append(
            "dry-run shows a privacy plan, got it with strategy central, which has none; leave it"
        )
    return problems
