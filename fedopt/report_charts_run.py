"""Draw what the run itself did: metric, cohort sizes, layers, and the audit's bound."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from fedopt.report_figure import (
    BLUE,
    GREEN,
    GREY,
    PURPLE,
    RED,
    Chart,
    draw,
    label,
    plain_ticks,
    spreads,
    whole_ticks,
)
from fedopt.report_numbers import Report, finite, number
from privacy.statement import round_up

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_BINS = 30


def metric_by_round(report: Report) -> Chart | None:
    """Draw the task's metric against the round."""
    utility = report["utility"]
    rounds, values = finite(utility["history"], "round", "value")
    if not rounds:
        return None
    metric = label(utility["metric"])

    def plot(axes: Axes) -> None:
        axes.plot(rounds, values, color=BLUE, marker="o" if len(rounds) <= 60 else None)
        axes.set(xlabel="round", ylabel=f"{metric}, development")
        whole_ticks(axes)

    return Chart(
        "metric-by-round",
        f"{metric} by round",
        draw("metric-by-round", plot),
        f"{metric} goes from {values[0]:.4g} at round {rounds[0]:.0f} to {values[-1]:.4g} at "
        f"round {rounds[-1]:.0f}.",
        "Measured on the development split. No guarantee covers these numbers.",
        private=False,
    )


def cohort_sizes(report: Report) -> Chart | None:
    """Draw how large the cohorts were, against what the sampling should give."""
    sizes = report["sampling"]["cohort_realised"]["by_round"]
    if not sizes:
        return None
    users, rate = report["as_run"]["population"], report["as_run"]["sample_rate"]
    # In plug-in mode each connected node is drawn at the rate, however few are connected.
    users = (report["setting"]["nodes"] or {}).get("connected", users)
    poisson = report["sampling"]["scheme"] == "poisson" and 0.0 < rate < 1.0
    edges = bins(sizes, users, rate if poisson else None)
    counts = [sum(low <= size < high for size in sizes) for low, high in edges]
    expected = [len(sizes) * binomial_between(users, rate, low, high) for low, high in edges]

    def plot(axes: Axes) -> None:
        middles = [(low + high - 1) / 2 for low, high in edges]
        axes.bar(
            middles, counts, width=edges[0][1] - edges[0][0], color=BLUE, alpha=0.75, label="drawn"
        )
        if poisson:
            name = f"Binomial({users:,}, {rate:.3g})"
            axes.plot(middles, expected, color=RED, marker="o", linestyle="-", label=name)
        axes.set(xlabel="users in the cohort", ylabel="rounds")
        whole_ticks(axes)
        axes.legend()

    law = f"Binomial({users:,}, {rate:.3g})" if poisson else "one exact size"
    return Chart(
        "cohort-sizes",
        "Cohort sizes",
        draw("cohort-sizes", plot),
        f"{len(sizes):,} cohorts of {min(sizes):,} to {max(sizes):,} users, mean "
        f"{sum(sizes) / len(sizes):.4g}; the sampling should give {law}, mean {users * rate:.4g}.",
        "Cohorts as they were drawn in this run. The sum is divided by the expected size, "
        "never by these.",
    )


def bins(sizes: list[int], users: int, rate: float | None) -> list[tuple[int, int]]:
    """Cut the sizes into at most 30 equal ranges [low, high) that also hold four deviations."""
    low, high = min(sizes), max(sizes)
    if rate is not None:
        spread = 4 * math.sqrt(users * rate * (1 - rate))
        low = max(min(low, math.floor(users * rate - spread)), 0)
        high = min(max(high, math.ceil(users * rate + spread)), users)
    width = max(math.ceil((high - low + 1) / MOST_BINS), 1)
    return [(start, start + width) for start in range(low, high + 1, width)]


def binomial_between(users: int, rate: float, low: int, high: int) -> float:
    """Give the probability that Binomial(users, rate) is in [low, high)."""
    from scipy.special import bdtr

    below = float(bdtr(low - 1, users, rate)) if low > 0 else 0.0
    return float(bdtr(min(high - 1, users), users, rate)) - below


def layers(report: Report) -> Chart | None:
    """Draw bound, share clipped and signal-to-noise of each layer."""
    rows = report["mechanism"]["layers"]
    if not rows:
        return None
    places = list(range(1, len(rows) + 1))
    bounds = [number(row["bound"]) for row in rows]
    signal = [number(row["signal_to_noise_at_most"]) for row in rows]
    clipped = [row["clipped_fraction_last_round_not_private"] for row in rows]
    known = all(share is not None for share in clipped)
    noisy = all(math.isfinite(value) for value in signal)

    def bars(values: list[Any], colour: str, name: str) -> Any:
        def plot(axes: Axes) -> None:
            axes.bar(places, values, color=colour, width=0.8)
            axes.set(ylabel=name, xlabel="layer")
            whole_ticks(axes)
            if spreads(values):
                axes.set_yscale("log")
                plain_ticks(axes, y=True)

        return plot

    plots = [bars(bounds, BLUE, "clip bound")]
    if known:
        plots.append(bars(clipped, GREEN, "share clipped"))
    if noisy:
        plots.append(bars(signal, PURPLE, "signal / noise"))
    share = ""
    if known:
        least, most = min(clipped), max(clipped)
        share = f" In the last round {least:.0%} to {most:.0%} of updates were clipped."
    ratio = f" Signal to noise is at most {min(signal):.3g} to {max(signal):.3g}."
    return Chart(
        "layers",
        "Layers: bound, share clipped, signal to noise",
        draw("layers", *plots, height=1.7),
        f"{len(rows)} layers with bounds from {min(bounds):.3g} to {max(bounds):.3g}."
        + share
        + (ratio if noisy else ""),
        "Signal to noise compares the largest possible mean update of a layer (all users alike) "
        "with the norm of its noise. Shares clipped come from people's data and are not private. "
        "The names are in the table of layers.",
        private=not known,
    )


def audit_bound(report: Report) -> Chart | None:
    """Draw the audit's lower bounds under the epsilon of the run as it ran."""
    audit = report["audit"]
    bounds = [] if audit is None else audit["bounds"]
    if not bounds:
        return None
    limit = number(report["as_run"]["epsilon"]["value"])
    names = [label(row["name"]) for row in bounds]
    values = [number(row["epsilon"]) for row in bounds]
    near = limit <= 50.0 * max(1.0, *values)

    def plot(axes: Axes) -> None:
        axes.barh(names, values, color=BLUE)
        if near:
            axes.axvline(limit, color=RED, linestyle="--", label="as run, by the accountant")
            axes.legend()
        axes.axvline(0.0, color=GREY)
        axes.invert_yaxis()
        axes.set(xlabel="epsilon, lower bound", xlim=(0.0, None if near else 1.2 * max(1, *values)))

    said = ", ".join(f"{n} {v:.3g}" for n, v in zip(names, values, strict=True))
    return Chart(
        "audit",
        "Audit: lower bounds of epsilon",
        draw("audit", plot),
        f"Lower bounds: {said}; the accountant says at most {round_up(limit)} as run.",
        f"{audit['canaries']:,} canary users; all bounds together hold with confidence "
        f"{audit['confidence']:.0%}. A bound above {round_up(limit)}, what the accountant says of "
        "the run as it ran, would show a fault. A low bound shows nothing.",
    )
