"""Read a grid of settings and check every cell of it before anything runs."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedopt import run_directory
from fedopt.cli_run import merge
from fedopt.config import Tables, build_settings
from privacy.errors import SettingsError

CASE = "case"
"""Name of the axis that the cases make."""


@dataclass(frozen=True)
class Cell:
    """Hold one point of the grid: its values by "section.key", and the settings they give."""

    values: dict[str, Any]
    tables: Tables

    @property
    def label(self) -> str:
        """Name the cell by what makes it differ."""
        short = [_short(name, value) for name, value in self.values.items()]
        return ", ".join(short) or "all"

    def folder(self, output: Path, seed: int) -> Path:
        """Name the directory of a run by all its settings, so that another grid finds it again."""
        text = json.dumps(self.tables, sort_keys=True)
        return output / f"{hashlib.sha256(text.encode()).hexdigest()[:12]}-seed-{seed}"


def _short(name: str, value: Any) -> str:
    return str(value) if name == CASE else f"{name.partition('.')[2]}={value}"


@dataclass(frozen=True)
class Grid:
    """Hold a grid as it was read.

    fixed: settings of every cell. axes: names of what differs, CASE first where there are cases.
    """

    name: str
    fixed: Tables
    cells: tuple[Cell, ...]
    seeds: tuple[int, ...]
    axes: tuple[str, ...]


def read_grid(path: Path, assigned: Mapping[str, Any] | None = None) -> Grid:
    """Read a grid and check every cell of it; raises SettingsError with every mistake.

    assigned: settings of this machine that go over the file's fixed ones, as tables.
    """
    given = run_directory.read_config(path)
    seeds: Any = given.get("seeds", [1])
    grid, cases = given.get("grid", {}), given.get("cases", {})
    fixed: Any = given.get("settings", {})
    problems = [
        f"{name} is not part of a grid; give seeds, settings, cases and grid"
        for name in sorted(given.keys() - {"seeds", "grid", "settings", "cases"})
    ]
    if not (isinstance(seeds, list) and seeds and all(type(seed) is int for seed in seeds)):
        problems.append(f"seeds must be a list of whole numbers, got {seeds!r}; give [1, 2, 3]")
    if not _all_tables(grid, fixed, cases, *_values(fixed), *_values(cases)):
        problems.append("grid, settings and cases must be tables; see experiments/sweep.py")
    if problems:
        raise SettingsError(problems)
    problems = [
        f"grid {name!r} must be section.key with a list of values, got {values!r}"
        for name, values in grid.items()
        if name.count(".") != 1 or not isinstance(values, list) or not values
    ]
    if problems:
        raise SettingsError(problems)
    merge(fixed, assigned or {})
    cells = tuple(_cells(fixed, cases, grid))
    _check(cells)
    return Grid(path.stem, fixed, cells, tuple(seeds), (*([CASE] if cases else []), *grid))


def _all_tables(*found: Any) -> bool:
    return all(isinstance(table, dict) for table in found)


def _values(tables: Any) -> list[Any]:
    return list(tables.values()) if isinstance(tables, dict) else []


def _cells(
    fixed: Tables, cases: Mapping[str, Tables], grid: Mapping[str, Sequence[Any]]
) -> Iterator[Cell]:
    for case, changes in (cases or {"": {}}).items():
        for chosen in itertools.product(*grid.values()):
            tables = copy.deepcopy(fixed)
            merge(tables, copy.deepcopy(changes))
            for name, value in zip(grid, chosen, strict=True):
                section, _, key = name.partition(".")
                tables.setdefault(section, {})[key] = value
            named = {CASE: case} if case else {}
            yield Cell(named | dict(zip(grid, chosen, strict=True)), tables)


def _check(cells: Sequence[Cell]) -> None:
    problems = []
    for cell in cells:
        try:
            build_settings(cell.tables)
        except SettingsError as problem:
            problems += [f"{cell.label}: {sentence}" for sentence in problem.problems]
    if problems:
        raise SettingsError(problems)
