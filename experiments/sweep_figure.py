"""Draw what grids found: a metric against what was varied, with its spread over the seeds."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Found = Mapping[str, Any]
MARKERS = "osD^vPX*<>"
_DODGE = 0.07
"""Distance between the lines at one place, as a share of the distance between two places."""


def draw(parts: Sequence[Found], path: Path) -> None:
    """Draw one panel for each grid that has a result; nothing without matplotlib.

    parts: what experiments.sweep wrote. Bars are the sample deviation over the seeds.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        print("no figure: pip install matplotlib", file=sys.stderr)
        return
    shown = [part for part in parts if _with_result(part)]
    if not shown:
        return
    heights = [_height(part) for part in shown]
    # Salt and no date: the same numbers give the same file.
    with rc_context({"svg.hashsalt": path.stem, "svg.fonttype": "none"}):
        figure = Figure(figsize=(7.5, sum(heights)), layout="constrained")
        panels = figure.subplots(len(shown), 1, squeeze=False, height_ratios=heights)
        for part, axes in zip(shown, panels[:, 0], strict=True):
            _draw_part(part, axes)
        figure.savefig(path, metadata={"Date": None})


def _with_result(part: Found) -> list[Found]:
    return [cell for cell in part["cells"] if cell["mean"] is not None]


def across(part: Found) -> str | None:
    """Name the axis to draw across: the first one of numbers, where there is another beside it."""
    for name in part["axes"]:
        values = [cell["values"][name] for cell in part["cells"]]
        if len(part["axes"]) > 1 and all(type(value) in (int, float) for value in values):
            return str(name)
    return None


def lines_of(part: Found, name: str) -> dict[str, list[Found]]:
    """Group the cells with a result by all that is not drawn across, in the grid's order."""
    lines: dict[str, list[Found]] = {}
    for cell in _with_result(part):
        others = [str(value) for axis, value in cell["values"].items() if axis != name]
        lines.setdefault(", ".join(others), []).append(cell)
    return lines


def _height(part: Found) -> float:
    return 3.6 if across(part) else 1.2 + 0.35 * len(_with_result(part))


def _draw_part(part: Found, axes: Axes) -> None:
    name = across(part)
    if name is None:
        _draw_list(part, axes)
    else:
        _draw_lines(part, name, axes)
    axes.set_title(f"{part['grid']}: mean and deviation over the seeds", fontsize=10, loc="left")


def _metric(part: Found) -> str:
    runs = [run for cell in part["cells"] for run in cell["runs"] if not run["failure"]]
    return f"{runs[0]['metric']}, {runs[0]['split']} split"


def _draw_list(part: Found, axes: Axes) -> None:
    cells = _with_result(part)
    places = range(len(cells))
    spread = [cell["deviation"] or 0.0 for cell in cells]
    axes.errorbar([cell["mean"] for cell in cells], places, xerr=spread, fmt="o", capsize=3)
    axes.set_yticks(list(places), [cell["label"] for cell in cells])
    axes.invert_yaxis()
    axes.set_xlabel(_metric(part))
    axes.grid(axis="x", alpha=0.3)


def _draw_lines(part: Found, name: str, axes: Axes) -> None:
    """Draw a line for each group; the values across stand at equal distances, so 0 has a place."""
    lines = lines_of(part, name)
    values = sorted({cell["values"][name] for cells in lines.values() for cell in cells})
    for number, (label, cells) in enumerate(lines.items()):
        aside = _DODGE * (number - (len(lines) - 1) / 2)
        cells = sorted(cells, key=lambda cell: float(cell["values"][name]))
        axes.errorbar(
            [values.index(cell["values"][name]) + aside for cell in cells],
            [cell["mean"] for cell in cells],
            yerr=[cell["deviation"] or 0.0 for cell in cells],
            marker=MARKERS[number % len(MARKERS)],
            capsize=3,
            linewidth=1,
            label=label,
        )
    axes.set_xticks(range(len(values)), [_tick(part, name, value) for value in values])
    axes.set_xlabel(name.partition(".")[2].replace("_", " "))
    axes.set_ylabel(_metric(part))
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _tick(part: Found, name: str, value: float) -> str:
    """Write a value across, with the epsilon that all its cells share, if they do."""
    epsilons = {
        float(cell["epsilon"]) for cell in _with_result(part) if cell["values"][name] == value
    }
    if len(epsilons) != 1 or name != "privacy.noise_multiplier":
        return f"{value:g}"
    epsilon = epsilons.pop()
    if math.isinf(epsilon):
        return f"{value:g}\nnot private"
    return f"{value:g}\nepsilon {math.ceil(epsilon * 100) / 100:g}"
