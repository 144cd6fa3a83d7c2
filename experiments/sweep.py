"""Run a grid of settings with several seeds, each run in a process of its own, and sum it up.

    python -m experiments.sweep GRID.toml --output DIR [--jobs 2] [--set task.data_root=FOLDER]

GRID.toml holds `seeds = [1, 2]`, fixed settings under [settings.<section>] as in a run's
config.toml, and what is tried: [grid] with "section.key" = [values], and settings that go
together under [cases.<name>.<section>]; every case is run at every point of the grid. What is
finished is not run again; what was interrupted goes on. DIR/<name of the grid>.json sums up all
runs without the machine's paths, .svg draws them; several grids may share one DIR and its runs.

Choosing settings by looking at private data is not covered by any run's guarantee.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from experiments.grid import Cell, Grid, read_grid
from experiments.sweep_figure import draw
from fedopt import run_directory
from fedopt.cli_run import read_assignments
from fedopt.config import Tables
from fedopt.doctor import commit, versions
from privacy.errors import FedOptError, SettingsError

SCHEMA_VERSION = 2
FINISHED = (0, 3)
"""Exit codes of a run that is over: trained to the end, or stopped by its privacy ceiling."""

NOTE = "the choice among these runs is not covered by the guarantee of any of them"


PRELOADED = (
    "experiments.asr.model",
    "fedopt.cli_run",
    "fedopt.local_grid",
    "fedopt.report_page",
    "fedopt.run_strategy",
    "fedopt.simulation",
    "jiwer",
    "matplotlib.figure",
    "opacus.accountants.analysis.rdp",
    "torch._dynamo",
    "torch.optim",
)
"""Imported once for all runs, which saves each of them some seconds; what is missing is skipped."""


def run_cell(cell: Cell, seed: int, output: Path) -> dict[str, Any]:
    """Run one cell under one seed in this process; returns its result.

    The process must be a fresh one, and do nothing after: what the run prints goes to a file.
    """
    from fedopt.cli import main as fedopt_main

    folder = cell.folder(output, seed)
    settings, printed = output / f"{folder.name}.toml", output / f"{folder.name}.log"
    run_directory.write_tables(settings, cell.tables)
    _print_into(printed)
    command = ["run", "--config", str(settings), "--seed", str(seed), "--output", str(folder)]
    command += ["--resume"] if run_directory.is_run(folder) else []
    if fedopt_main([*command, "--quiet"]) not in FINISHED:
        sys.stderr.flush()
        told = printed.read_text(encoding="utf-8").strip().splitlines()
        return _failed(seed, folder.name, told[-1] if told else "no reason given")
    return result_of(folder, seed)


def _print_into(path: Path) -> None:
    """Send what this process prints to a file, from now on to its end."""
    with path.open("w", encoding="utf-8") as opened:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os.dup2(opened.fileno(), 1)
        os.dup2(opened.fileno(), 2)


def _failed(seed: int, path: str, reason: str) -> dict[str, Any]:
    return {"seed": seed, "path": path, "value": None, "failure": reason}


def result_of(folder: Path, seed: int) -> dict[str, Any]:
    """Read what a finished run reports of itself; "development" is what settings are chosen by."""
    report = json.loads((folder / run_directory.REPORT_JSON).read_text(encoding="utf-8"))
    utility = report["utility"]
    history = utility["history"]
    return {
        "seed": seed,
        "path": folder.name,
        "metric": utility["metric"],
        "split": utility["final_split"],
        "value": utility["final"],
        "development": history[-1]["value"] if history else None,
        "epsilon": report["accounting"]["epsilon"]["value"],
        "history": history,
        "failure": "",
    }


def summary_of(cell: Cell, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Sum up a cell over its seeds: mean, sample deviation, and how many runs they are from."""
    values = [run["value"] for run in runs if run["value"] is not None]
    chosen_by = [run["development"] for run in runs if run.get("development") is not None]
    return {
        "label": cell.label,
        "values": cell.values,
        "mean": statistics.fmean(values) if values else None,
        "deviation": statistics.stdev(values) if len(values) > 1 else None,
        "count": len(values),
        "development_mean": statistics.fmean(chosen_by) if chosen_by else None,
        "epsilon": next((run["epsilon"] for run in runs if not run["failure"]), None),
        "runs": list(runs),
    }


def run_sweep(grid: Grid, output: Path, jobs: int = 1) -> dict[str, Any]:
    """Run the whole grid, `jobs` runs at a time; write JSON after each cell, the figure last."""
    output.mkdir(parents=True, exist_ok=True)
    cells: list[dict[str, Any]] = []
    found: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "grid": grid.name,
        "note": NOTE,
        "axes": list(grid.axes),
        "seeds": list(grid.seeds),
        "settings": portable(grid.fixed),
        "first_weights_sha256": first_weights(grid.fixed),
        "commit": commit(),
        "versions": versions(),
        "cells": cells,
    }
    pool = _pool(jobs)
    try:
        waiting = [
            (cell, [_started(pool, cell, seed, output) for seed in grid.seeds])
            for cell in grid.cells
        ]
        for cell, futures in waiting:
            runs = [_result(future, seed) for future, seed in zip(futures, grid.seeds, strict=True)]
            cells.append(summary_of(cell, runs))
            print(line_of(cells[-1]), file=sys.stderr, flush=True)
            run_directory.write_text(
                output / f"{grid.name}.json", json.dumps(found, indent=2) + "\n"
            )
    finally:
        pool.shutdown(cancel_futures=True)
    draw([found], output / f"{grid.name}.svg")
    return found


def _pool(jobs: int) -> ProcessPoolExecutor:
    """Open a pool whose processes do one run each; all start from one that has the imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    return ProcessPoolExecutor(jobs, mp_context=context, max_tasks_per_child=1)


def _started(
    pool: ProcessPoolExecutor, cell: Cell, seed: int, output: Path
) -> Future[dict[str, Any]]:
    """Hand a run to the pool, unless it is finished."""
    folder = cell.folder(output, seed)
    if not (folder / run_directory.REPORT_JSON).exists():
        return pool.submit(run_cell, cell, seed, output)
    finished: Future[dict[str, Any]] = Future()
    finished.set_result(result_of(folder, seed))
    return finished


def _result(future: Future[dict[str, Any]], seed: int) -> dict[str, Any]:
    try:
        return future.result()
    except BrokenProcessPool:
        return _failed(seed, "", "a run's process was killed; the same command goes on")


def portable(tables: Tables) -> Tables:
    """Leave out of settings where the files of this machine lie."""
    kept = {section: dict(table) for section, table in tables.items()}
    task = kept.get("task", {})
    task.pop("data_root", None)
    if "init_from" in task:
        task["init_from"] = Path(task["init_from"]).name
    return kept


def first_weights(tables: Tables) -> str | None:
    """Hash the tensors that the runs start from; the file's own bytes change with its head."""
    path = tables.get("task", {}).get("init_from")
    if not path or not Path(path).is_file():
        return None
    from safetensors.numpy import load_file

    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(path).items()):
        digest.update(name.encode() + tensor.tobytes())
    return digest.hexdigest()


def failures(cell: Mapping[str, Any]) -> list[str]:
    """List why runs of a cell failed."""
    return [run["failure"] for run in cell["runs"] if run["failure"]]


def line_of(cell: Mapping[str, Any]) -> str:
    """Sum up a cell for reading along."""
    why = failures(cell)
    if cell["mean"] is None:
        return f"{cell['label']}: failed ({why[0]})"
    spread = "" if cell["deviation"] is None else f" +- {cell['deviation']:.4f}"
    told = f", {len(why)} failed ({why[0]})" if why else ""
    return f"{cell['label']}: {cell['mean']:.4f}{spread} from {cell['count']}{told}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a grid from the command line: 0 all finished, 1 some failed, 2 bad grid, 130 stopped."""
    given = _parser().parse_args(arguments)
    try:
        found = run_sweep(_grid(given), given.output, given.jobs)
    except FedOptError as problem:
        print("\n".join(f"sweep: {line}" for line in str(problem).splitlines()), file=sys.stderr)
        return problem.exit_code
    except KeyboardInterrupt:
        print("sweep: interrupted; the same command goes on", file=sys.stderr)
        return 130
    print(given.output / f"{found['grid']}.json")
    return int(any(failures(cell) for cell in found["cells"]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.sweep", description=__doc__)
    parser.add_argument("grid", type=Path, help="TOML file with seeds, settings, cases and grid")
    parser.add_argument("--output", type=Path, required=True, help="directory of all runs")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (default 1)")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", action="append", default=[], dest="assign",
        help="section.key=value over the grid's fixed settings: where this machine has the data",
    )  # fmt: skip
    return parser


def _grid(given: argparse.Namespace) -> Grid:
    """Read the grid with what the command line adds; raises SettingsError with every mistake."""
    assigned, problems = read_assignments(given.assign)
    if given.jobs < 1:
        problems.append(
            f"jobs must be at least 1, got {given.jobs}; leave it out for one at a time"
        )
    try:
        grid = read_grid(given.grid, assigned)
    except SettingsError as problem:
        raise SettingsError([*problems, *problem.problems]) from problem
    if problems:
        raise SettingsError(problems)
    return grid


if __name__ == "__main__":
    sys.exit(main())
