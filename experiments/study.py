"""Join what several grids found into one result: a JSON without machine paths, and its figure.

    python -m experiments.study SWEEP.json [SWEEP.json ...] --output experiments/results/NAME

SWEEP.json is what experiments.sweep wrote. NAME.json and NAME.svg hold the grids in that order.
Figure: one panel for each grid with several seeds, bars are the sample deviation over the seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.sweep import NOTE, failures
from experiments.sweep import SCHEMA_VERSION as SWEEP_VERSION
from experiments.sweep_figure import draw
from fedopt import run_directory
from privacy.errors import SettingsError

SCHEMA_VERSION = 1


def read_sweeps(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Read what sweeps found; raises SettingsError with every file that cannot be used."""
    found, problems = [], []
    for path in paths:
        try:
            sweep = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as problem:
            problems.append(f"{path.name} must be the JSON of a sweep, got {problem}; correct it")
            continue
        version = sweep.get("schema_version") if isinstance(sweep, dict) else None
        if version != SWEEP_VERSION or "cells" not in sweep:
            problems.append(
                f"{path.name} must be a sweep of schema version {SWEEP_VERSION}, got "
                f"{version!r}; make it again with experiments.sweep"
            )
            continue
        unfinished = [cell["label"] for cell in sweep["cells"] if failures(cell)]
        if unfinished:
            problems.append(
                f"{path.name} must have no failed run, got some in {'; '.join(unfinished[:5])}; "
                "run the sweep again"
            )
        found.append(sweep)
    if problems:
        raise SettingsError(problems)
    return found


def join(sweeps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Put sweeps together, each without what only one machine can use."""
    return {
        "schema_version": SCHEMA_VERSION,
        "note": NOTE,
        "cores": os.cpu_count(),
        "made_by": "experiments/studies/README.md has the commands",
        "grids": [
            {**sweep, "cells": [_without_paths(cell) for cell in sweep["cells"]]}
            for sweep in sweeps
        ],
    }


def _without_paths(cell: Mapping[str, Any]) -> dict[str, Any]:
    kept = ("seed", "metric", "split", "value", "development", "history")
    return {**cell, "runs": [{name: run[name] for name in kept} for run in cell["runs"]]}


def main(arguments: Sequence[str] | None = None) -> int:
    """Join sweeps from the command line; give the exit code: 0 done, 2 unusable files."""
    parser = argparse.ArgumentParser(prog="python -m experiments.study", description=__doc__)
    parser.add_argument("sweeps", type=Path, nargs="+", help="JSON files of experiments.sweep")
    parser.add_argument("--output", type=Path, required=True, help="result, without its ending")
    given = parser.parse_args(arguments)
    try:
        sweeps = read_sweeps(given.sweeps)
    except SettingsError as problem:
        print("\n".join(f"study: {line}" for line in str(problem).splitlines()), file=sys.stderr)
        return problem.exit_code
    joined = join(sweeps)
    text = json.dumps(joined, indent=1) + "\n"
    run_directory.write_text(given.output.with_suffix(".json"), text)
    draw([one for one in sweeps if len(one["seeds"]) > 1], given.output.with_suffix(".svg"))
    print(table(joined))
    return 0


def table(joined: Mapping[str, Any]) -> str:
    """Lay out every cell as a line of a Markdown table."""
    lines = ["| grid | cell | epsilon | mean | deviation | seeds |", "|---|---|---|---|---|---|"]
    for grid in joined["grids"]:
        for cell in grid["cells"]:
            spread = "-" if cell["deviation"] is None else f"{cell['deviation']:.3f}"
            lines.append(
                f"| {grid['grid']} | {cell['label']} | {cell['epsilon']} | {cell['mean']:.3f} | "
                f"{spread} | {cell['count']} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
