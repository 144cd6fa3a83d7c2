"""Summarise finished run directories as one JSON file: settings, time, metric by round, epsilons.

    python -m experiments.benchmarks.runs --output experiments/results/default.json runs/NAME

The seconds are those between the start and the report, as provenance.json has them.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any


def summary(folder: Path) -> dict[str, Any]:
    """Read what a run did and what came out of it."""
    report = json.loads((folder / "privacy-report.json").read_text(encoding="utf-8"))
    facts = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    started, ended = (datetime.fromisoformat(facts[key]) for key in ("started", "ended"))
    utility = report["utility"]
    lines = (folder / "config.toml").read_text(encoding="utf-8").splitlines()
    return {
        # Where a corpus lies is nobody's business but its owner's.
        "settings": [line for line in lines if not line.startswith("data_root")],
        "seconds": (ended - started).total_seconds(),
        "seconds_of_rounds": seconds_of_rounds(folder),
        "metric": utility["metric"],
        "final": utility["final"],
        "final_split": utility["final_split"],
        "history": utility["history"],
        "epsilon_claimed": report["claimed"]["epsilon"],
        "epsilon_as_run": report["as_run"]["epsilon"],
        "accountants": report["accounting"]["accountants"],
        "data": utility["data"],
        "commit": facts["commit"],
        "versions": facts["versions"],
    }


def seconds_of_rounds(folder: Path) -> dict[str, float]:
    """Sum up the rounds' wall seconds, and by phase the workers' seconds, all workers together."""
    lines = (folder / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
    totals: dict[str, float] = {"all": 0.0}
    for row in map(json.loads, lines):
        totals["all"] += row.get("seconds", 0.0)
        for phase, seconds in row.get("seconds_by_phase", {}).items():
            totals[phase] = totals.get(phase, 0.0) + seconds
    return {phase: round(seconds, 2) for phase, seconds in totals.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the summaries of the given run directories."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args(arguments)
    found = {"cores": os.cpu_count(), "runs": {run.name: summary(run) for run in given.runs}}
    given.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
