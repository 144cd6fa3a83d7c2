"""Run a grid of settings with several seeds, each run in a process of its own, and sum it up.

    python -m experiments.sweep GRID.toml --output DIR

GRID.toml holds `seeds = [1, 2]`, fixed settings under [settings.<section>] as in a run's
config.toml, and the grid: [grid] with "section.key" = [values]. What is finished is not run again;
what was interrupted goes on. DIR/sweep.json and DIR/sweep.svg sum up all runs.

Choosing settings by looking at private data is not covered by any run's guarantee.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import itertools
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedopt import run_directory
from fedopt.config import build_settings
from fedopt.doctor import versions
from privacy.errors import FedOptError, SettingsError

SCHEMA_VERSION = 1
FINISHED = (0, 3)
"""Exit codes of a run that is over: trained to the end, or stopped by its privacy ceiling."""

NOTE = "the choice among these runs is not covered by the guarantee of any of them"
Tables = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Cell:
    """Hold one point of the grid: its values by "section.key", and the settings they give."""

    values: dict[str, Any]
    tables: Tables

    @property
    def label(self) -> str:
        """Name the cell by what makes it differ."""
        short = [f"{name.partition('.')[2]}={value}" for name, value in self.values.items()]
        return ", ".join(short) or "all"

    def folder(self, output: Path, seed: int) -> Path:
        """Name the directory of a run by all its settings, so that another grid finds it again."""
        text = json.dumps(self.tables, sort_keys=True)
        return output / f"{hashlib.sha256(text.encode()).hexdigest()[:12]}-seed-{seed}"


@dataclass(frozen=True)
class Sweep:
    """Hold a grid as it was read."""

    cells: tuple[Cell, ...]
    seeds: tuple[int, ...]
    axes: tuple[str, ...]


def read_sweep(path: Path) -> Sweep:
    """Read a grid and check every cell of it; raises SettingsError with every mistake."""
    given = run_directory.read_config(path)
    seeds: Any = given.get("seeds", [1])
    grid, fixed = given.get("grid", {}), given.get("settings", {})
    problems = [
        f"{name} is not part of a grid; give seeds, settings and grid"
        for name in sorted(given.keys() - {"seeds", "grid", "settings"})
    ]
    if not (isinstance(seeds, list) and seeds and all(type(seed) is int for seed in seeds)):
        problems.append(f"seeds must be a list of whole numbers, got {seeds!r}; give [1, 2, 3]")
    if not all(isinstance(table, dict) for table in (grid, fixed, *_values(fixed))):
        problems.append("grid and settings must be tables; see the head of experiments/sweep.py")
    if problems:
        raise SettingsError(problems)
    problems = [
        f"grid {name!r} must be section.key with a list of values, got {values!r}"
        for name, values in grid.items()
        if name.count(".") != 1 or not isinstance(values, list) or not values
    ]
    if problems:
        raise SettingsError(problems)
    cells = tuple(_cells(fixed, grid))
    _check(cells)
    return Sweep(cells, tuple(seeds), tuple(grid))


def _values(tables: Any) -> list[Any]:
    return list(tables.values()) if isinstance(tables, dict) else []


def _cells(fixed: Tables, grid: Mapping[str, Sequence[Any]]) -> Iterator[Cell]:
    for chosen in itertools.product(*grid.values()):
        tables = copy.deepcopy(fixed)
        for name, value in zip(grid, chosen, strict=True):
            section, _, key = name.partition(".")
            tables.setdefault(section, {})[key] = value
        yield Cell(dict(zip(grid, chosen, strict=True)), tables)


def _check(cells: Sequence[Cell]) -> None:
    problems = []
    for cell in cells:
        try:
            build_settings(cell.tables)
        except SettingsError as problem:
            problems += [f"{cell.label}: {sentence}" for sentence in problem.problems]
    if problems:
        raise SettingsError(problems)


def run_cell(cell: Cell, seed: int, output: Path) -> dict[str, Any]:
    """Run one cell under one seed in a fresh process, unless it is finished; returns its result."""
    folder = cell.folder(output, seed)
    if not (folder / run_directory.REPORT_JSON).exists():
        settings = output / f"{folder.name}.toml"
        run_directory.write_tables(settings, cell.tables)
        command = [
            *(sys.executable, "-c", "from fedopt.cli import console; console()"),
            *("run", "--config", str(settings), "--seed", str(seed), "--output", str(folder)),
            *(["--resume"] if run_directory.is_run(folder) else []),
            "--quiet",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode not in FINISHED:
            told = done.stderr.strip().splitlines() or ["no reason given"]
            return {"seed": seed, "path": folder.name, "value": None, "failure": told[-1]}
    return result_of(folder, seed)


def result_of(folder: Path, seed: int) -> dict[str, Any]:
    """Read what a finished run reports of itself."""
    report = json.loads((folder / run_directory.REPORT_JSON).read_text(encoding="utf-8"))
    utility = report["utility"]
    return {
        "seed": seed,
        "path": folder.name,
        "metric": utility["metric"],
        "split": utility["final_split"],
        "value": utility["final"],
        "epsilon": report["accounting"]["epsilon"]["value"],
        "history": utility["history"],
        "failure": "",
    }


def summary_of(cell: Cell, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Sum up a cell over its seeds: mean, sample deviation, and how many runs they are from."""
    values = [run["value"] for run in runs if run["value"] is not None]
    return {
        "label": cell.label,
        "values": cell.values,
        "mean": statistics.fmean(values) if values else None,
        "deviation": statistics.stdev(values) if len(values) > 1 else None,
        "count": len(values),
        "runs": list(runs),
    }


def run_sweep(sweep: Sweep, output: Path) -> dict[str, Any]:
    """Run the whole grid and write sweep.json after each cell, sweep.svg in the end."""
    output.mkdir(parents=True, exist_ok=True)
    cells: list[dict[str, Any]] = []
    found: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "note": NOTE,
        "axes": list(sweep.axes),
        "versions": versions(),
        "cells": cells,
    }
    for cell in sweep.cells:
        runs = [run_cell(cell, seed, output) for seed in sweep.seeds]
        cells.append(summary_of(cell, runs))
        print(line_of(cells[-1]), file=sys.stderr, flush=True)
        run_directory.write_text(output / "sweep.json", json.dumps(found, indent=2) + "\n")
    draw(found, output / "sweep.svg")
    return found


def line_of(cell: Mapping[str, Any]) -> str:
    """Sum up a cell for reading along."""
    failures = [run["failure"] for run in cell["runs"] if run["failure"]]
    if cell["mean"] is None:
        return f"{cell['label']}: failed ({failures[0]})"
    spread = "" if cell["deviation"] is None else f" +- {cell['deviation']:.4f}"
    told = f", {len(failures)} failed ({failures[0]})" if failures else ""
    return f"{cell['label']}: {cell['mean']:.4f}{spread} from {cell['count']}{told}"


def draw(found: Mapping[str, Any], path: Path) -> None:
    """Draw the mean and deviation of every cell that has one; nothing without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no figure: pip install matplotlib", file=sys.stderr)
        return
    cells = [cell for cell in found["cells"] if cell["mean"] is not None]
    if not cells:
        return
    figure = Figure(figsize=(7.0, 1.2 + 0.35 * len(cells)), layout="constrained")
    axes = figure.subplots()
    places = range(len(cells))
    spread = [cell["deviation"] or 0.0 for cell in cells]
    axes.errorbar([cell["mean"] for cell in cells], places, xerr=spread, fmt="o", capsize=3)
    axes.set_yticks(list(places), [cell["label"] for cell in cells])
    axes.invert_yaxis()
    axes.set_xlabel(next(run["metric"] for run in cells[0]["runs"] if not run["failure"]))
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a grid from the command line: 0 all finished, 1 some failed, 2 bad grid, 130 stopped."""
    parser = argparse.ArgumentParser(prog="python -m experiments.sweep", description=__doc__)
    parser.add_argument("grid", type=Path, help="TOML file with seeds, settings and grid")
    parser.add_argument("--output", type=Path, required=True, help="directory of all runs")
    given = parser.parse_args(arguments)
    try:
        found = run_sweep(read_sweep(given.grid), given.output)
    except FedOptError as problem:
        print("\n".join(f"sweep: {line}" for line in str(problem).splitlines()), file=sys.stderr)
        return problem.exit_code
    except KeyboardInterrupt:
        print("sweep: interrupted; the same command goes on", file=sys.stderr)
        return 130
    print(given.output / "sweep.json")
    return int(any(run["failure"] for cell in found["cells"] for run in cell["runs"]))


if __name__ == "__main__":
    sys.exit(main())
