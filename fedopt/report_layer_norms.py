"""Choose and draw the norms of the updates by layer and round, before and after clipping."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fedopt.report_figure import RED, Chart, draw, label, plain_ticks, whole_ticks
from fedopt.report_numbers import Report, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_ROUNDS = 6
"""Rounds that are kept; a page with every round of 296 layers would be read by nobody."""

MOST_SIDE_BY_SIDE = 60
"""Layers that are shown in the model's order."""

FIXED_BOUNDS = ("per-layer-uniform", "per-layer-dim", "normalise-uniform", "normalise-dim")
"""Clippings with a bound of its own for each layer, the same in every round."""

_SHADES = ("#9ecae1", "#6baed6", "#4292c6", "#2171b5", "#08519c", "#052a57")
_LEAST_SHOWN = 1e-12


def layer_norms(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Choose rounds that say how unlike the layers are; empty where the rows do not tell.

    rows: of rounds.jsonl; layer_norms and layer_norms_clipped are mean L2 norms over the users of
    the round, one for each layer in the model's order.
    Guarantee: none; the norms come straight from people's updates.
    Not covered: everything here, so it is marked as not private wherever it is shown.
    """
    told = [row for row in rows if row.get("layer_norms") and row.get("layer_norms_clipped")]
    if not told:
        return {}
    kept = [told[place] for place in evenly(len(told), MOST_ROUNDS)]
    return {
        "layer_norms_not_private": {
            "rounds": [row["round"] for row in kept],
            "before_clipping": [list(row["layer_norms"]) for row in kept],
            "after_clipping": [list(row["layer_norms_clipped"]) for row in kept],
        }
    }


def evenly(count: int, most: int) -> list[int]:
    """Choose at most `most` places among `count`, evenly spread; the first and last are in."""
    if count <= most:
        return list(range(count))
    return [round(step * (count - 1) / (most - 1)) for step in range(most)]


def layer_norms_by_round(report: Report) -> Chart | None:
    """Draw a line for each chosen round over the layers, before and after clipping.

    Many layers are sorted by their norm in the last round, because side by side they are a blur.
    """
    curve = report["curves"].get("layer_norms_not_private")
    if not curve or not curve["rounds"] or not curve["before_clipping"][0]:
        return None
    before, after = _columns(curve["before_clipping"]), _columns(curve["after_clipping"])
    order = list(range(len(before[0])))
    across = "layer"
    if len(order) > MOST_SIDE_BY_SIDE:
        order.sort(key=lambda layer: -number(curve["before_clipping"][-1][layer]))
        across = "layers, largest norm of the last round first"
    bounds = _bounds(report, len(order))

    def panel(lines: list[list[float]], name: str, limits: list[float]) -> Any:
        def plot(axes: Axes) -> None:
            places = list(range(1, len(order) + 1))
            marker = "o" if len(order) <= MOST_SIDE_BY_SIDE else None
            shades = _shades(len(lines))
            for told, line, shade in zip(curve["rounds"], lines, shades, strict=True):
                values = [line[layer] for layer in order]
                axes.plot(places, values, color=shade, marker=marker, linewidth=1, label=f"{told}")
            if limits:
                shown = [limits[layer] for layer in order]
                axes.plot(places, shown, color=RED, marker="_", linestyle="", label="bound")
            axes.set(xlabel=across, ylabel=name)
            axes.set_yscale("log")
            plain_ticks(axes, y=True)
            whole_ticks(axes)
            axes.legend(title="round", loc="center left", bbox_to_anchor=(1.0, 0.5))

        return plot

    plots = (panel(before, "norm before clipping", []), panel(after, "norm after", bounds))
    return Chart(
        "layer-norms",
        "Update norm by layer and round",
        draw("layer-norms", *plots, height=2.4),
        f"Mean norm of the users' updates by layer in {len(before)} rounds from "
        f"{curve['rounds'][0]:,} to {curve['rounds'][-1]:,}; {_extremes(report, before[-1])}",
        "How unlike the layers are, which is what per-layer clipping is argued from. Norms before "
        "and after clipping come from people's updates, are averaged over the users of a round, "
        "and no guarantee covers them. A norm of zero has no place on this scale. "
        f"In the last round shown, {_extremes(report, before[-1])}",
        private=False,
    )


def _extremes(report: Report, norms: Sequence[float]) -> str:
    """Name the layers with the largest and the smallest norm."""
    found = [(value, place) for place, value in enumerate(norms) if math.isfinite(value)]
    if not found:
        return "all norms are zero."
    rows = report["mechanism"]["layers"]
    (least, small), (most, large) = min(found), max(found)
    told = [label(rows[place]["name"]) for place in (large, small)] if rows else ["one", "another"]
    return f"the norm before clipping goes from {most:.3g} ({told[0]}) to {least:.3g} ({told[1]})."


def _columns(lines: Sequence[Sequence[Any]]) -> list[list[float]]:
    """Read norms for a logarithmic axis: what it cannot show becomes a gap."""
    return [
        [value if value > _LEAST_SHOWN else math.nan for value in map(number, line)]
        for line in lines
    ]


def _bounds(report: Report, layers: int) -> list[float]:
    """Give the bound of each layer where it has one that stays; else nothing."""
    mechanism = report["mechanism"]
    rows = mechanism["layers"]
    if mechanism["clipping"] not in FIXED_BOUNDS or len(rows) != layers:
        return []
    return [number(row["bound"]) for row in rows]


def _shades(count: int) -> list[str]:
    """Give colours from light to dark, the darkest for the last round."""
    return [_SHADES[place] for place in evenly(len(_SHADES), count)] if count > 1 else [_SHADES[-1]]
