"""Show how a central training goes on the command line, and sum it up."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedopt import central, run_directory
from fedopt.central_reports import Row
from fedopt.central_state import can_be_resumed

if TYPE_CHECKING:
    from fedopt.config import Settings


def train_centrally(
    settings: Settings, folder: Path, *, resume: bool, quiet: bool, json_events: bool
) -> int:
    """Train as the settings say, rows on stderr and the result on stdout; returns the exit code."""

    def shown(row: Row) -> None:
        if json_events:
            print(json.dumps({"event": "step", **row}), flush=True)
        if not quiet:
            print(line_of(row), file=sys.stderr, flush=True)

    try:
        report = central.train(settings, folder, resume=resume, shown=shown)
    except KeyboardInterrupt:
        print(f"fedopt: interrupted; {_what_now(folder)}", file=sys.stderr)
        return 130
    finished = {"event": "finished", "path": str(folder), "statement": report["statement"]}
    finished |= {key: report[key] for key in ("metric", "development", "test")}
    print(json.dumps(finished) if json_events else summary(report, folder))
    return 0


def _what_now(folder: Path) -> str:
    """Say how to go on, or where the weights of the last report are, if there was one."""
    if can_be_resumed(folder):
        return f"go on with: fedopt run --resume --output {folder}"
    model = folder / run_directory.MODEL
    kept = f"the last report's weights are kept for --init-from {model}; " if model.exists() else ""
    return f"{kept}a central training of this task starts anew, in another --output"


def line_of(row: Row) -> str:
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
            f"report: {folder / run_directory.CENTRAL_REPORT}",
        ]
    )


def unused_words(*, dry_run: bool) -> list[str]:
    """Refuse flags of `fedopt run` that are no settings and mean nothing here."""
    if not dry_run:
        return []
    return ["dry-run shows a privacy plan, got it with strategy central, which has none; leave it"]
