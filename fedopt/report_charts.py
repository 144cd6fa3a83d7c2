"""Draw what was accounted: epsilon by round and population, the privacy profile, the trade-off."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedopt.report_figure import (
    BLUE,
    GREEN,
    GREY,
    PURPLE,
    RED,
    Chart,
    draw,
    plain_ticks,
    spreads,
    whole_ticks,
)
from fedopt.report_numbers import Report, finite, number
from privacy.statement import round_up

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOOKS = {"rdp": (BLUE, "o"), "pld": (GREEN, "s"), "exact": (PURPLE, "^")}


def all_charts(report: Report) -> list[Chart]:
    """Draw every chart for which the report holds numbers.

    report: as read from JSON. Raises ImportError where matplotlib is missing.
    """
    from fedopt import report_charts_run as run
    from fedopt.report_layer_norms import layer_norms_by_round

    builders = (
        epsilon_by_round,
        privacy_profile,
        trade_off,
        epsilon_by_population,
        run.metric_by_round,
        run.cohort_sizes,
        run.layers,
        layer_norms_by_round,
        run.audit_bound,
    )
    drawn = [build(report) for build in builders]
    return [chart for chart in drawn if chart is not None]


def epsilon_by_round(report: Report) -> Chart | None:
    """Draw the claimed epsilon against the round by every accountant, and the ceiling."""
    curve = report["curves"]["epsilon_by_round"]
    series = [
        (one["accountant"], *finite(one["points"], "round", "epsilon")) for one in curve["series"]
    ]
    series = [one for one in series if one[1]]
    if not series:
        return None
    last, planned = curve["charged_until"], curve["planned"]
    ceiling, delta = report["accounting"]["ceiling"], report["accounting"]["epsilon"]["delta"]

    def plot(axes: Axes) -> None:
        for name, rounds, epsilons in series:
            colour, marker = LOOKS[name]
            done = sum(r <= last for r in rounds)
            axes.plot(
                rounds[:done], epsilons[:done], color=colour, marker=marker, label=name.upper()
            )
            start = max(done - 1, 0)
            axes.plot(rounds[start:], epsilons[start:], color=colour, linestyle="--", linewidth=1)
        if ceiling is not None:
            axes.axhline(number(ceiling), color=RED, linestyle=":", label="ceiling")
        axes.set(xlabel="round", ylabel="epsilon, claimed")
        whole_ticks(axes)
        axes.set_ylim(bottom=0.0)
        axes.legend(loc="lower right")

    words = ", ".join(f"{name.upper()} {round_up(values[-1])}" for name, _, values in series)
    rest = "" if last >= planned else f" Rounds {last + 1:,} to {planned:,} are projected (dashed)."
    limit = "" if ceiling is None else f" The ceiling is {round_up(number(ceiling))}."
    return Chart(
        "epsilon-by-round",
        "Epsilon by round",
        draw("epsilon-by-round", plot),
        f"Epsilon rises with the rounds; at round {planned:,}: {words}.{limit}{rest}",
        f"All releases up to a round together, at delta {delta:g}. "
        f"Each line is an upper bound; the lowest valid one is nearest to the truth.{rest}",
    )


def privacy_profile(report: Report) -> Chart | None:
    """Draw delta against epsilon on a logarithmic scale, with the quoted point."""
    curve = report["curves"]["privacy_profile"]
    if curve is None:
        return None
    pairs = zip(curve["epsilons"], curve["deltas"], strict=True)
    shown = [(number(e), number(d)) for e, d in pairs if number(d) > 1e-30]
    quoted = report["accounting"]["epsilon"]

    def plot(axes: Axes) -> None:
        axes.plot(*zip(*shown, strict=True), color=GREEN, label="all releases (PLD)")
        point = (number(quoted["value"]), number(quoted["delta"]))
        axes.plot([point[0]], [point[1]], color=BLUE, marker="o", linestyle="", label="quoted")
        axes.set_yscale("log")
        plain_ticks(axes, y=True)
        axes.set(xlabel="epsilon", ylabel="delta")
        axes.legend(loc="upper right")

    return Chart(
        "privacy-profile",
        "Privacy profile",
        draw("privacy-profile", plot),
        f"Delta falls from {shown[0][1]:.3g} at epsilon 0 to {shown[-1][1]:.3g} at epsilon "
        f"{round_up(shown[-1][0])}. Quoted: epsilon {round_up(number(quoted['value']))} at delta "
        f"{quoted['delta']:g}.",
        "Every point of the line is a valid pair of epsilon and delta; the quoted pair is one that "
        f"the accountant {quoted['accountant'].upper()} can show.",
    )


def trade_off(report: Report) -> Chart | None:
    """Draw the errors of the best possible test for one user, with the Gaussian fit."""
    curve = report["curves"]["trade_off"]
    if curve is None:
        return None
    rates, missed = curve["false_positive"], curve["false_negative"]

    def plot(axes: Axes) -> None:
        axes.plot([0, 1], [1, 0], color=GREY, linestyle=":", label="guessing")
        axes.plot(rates, missed, color=GREEN, label="least possible")
        axes.plot(
            rates,
            curve["gaussian"],
            color=PURPLE,
            linestyle="--",
            label=f"Gaussian, mu = {curve['mu']:.3g}",
        )
        axes.set(xlabel="false positive rate", ylabel="false negative rate")
        axes.set(xlim=(0, 1), ylim=(0, 1))
        axes.legend(loc="upper right")

    at = min(range(len(rates)), key=lambda index: abs(rates[index] - 0.05))
    return Chart(
        "trade-off",
        "What a test for one user can reach",
        draw("trade-off", plot),
        f"Whoever accuses {rates[at]:.0%} of the absent users wrongly misses at least "
        f"{missed[at]:.1%} of the present ones. The Gaussian curve below it has mu "
        f"{curve['mu']:.3g}; the curves differ by at most {curve['gap']:.3g}.",
        "Someone who sees every released model and tests whether one user took part. The "
        "Gaussian curve describes the rates drawn here in one number; it is no guarantee, and "
        f"where the gap ({curve['gap']:.2g}) is large it fits badly.",
    )


def epsilon_by_population(report: Report) -> Chart | None:
    """Draw epsilon against the population at constant noise on the mean, with the run's points."""
    curve = report["curves"]["epsilon_by_population"]
    if curve is None:
        return None
    held = finite(curve["sample_rate_held"], "population", "epsilon")
    kept = finite(curve["cohort_held"], "population", "epsilon")
    claimed, as_run = report["claimed"], report["as_run"]
    points = [("claimed", BLUE, "o", claimed)]
    if not as_run["virtual_users"]:
        points.append(("as run", RED, "X", as_run))

    def plot(axes: Axes) -> None:
        axes.plot(*held, color=GREEN, label=f"q = {claimed['sample_rate']:.3g} held")
        if kept[0]:
            name = f"cohort {claimed['cohort']:,} held"
            axes.plot(*kept, color=PURPLE, linestyle="--", label=name)
        for name, colour, marker, side in points:
            axes.plot(
                [side["population"]],
                [number(side["epsilon"]["value"])],
                color=colour,
                marker=marker,
                markersize=7,
                linestyle="",
                label=name,
            )
        axes.set_xscale("log")
        if spreads([*held[1], *kept[1], *(number(one[3]["epsilon"]["value"]) for one in points)]):
            axes.set_yscale("log")
            plain_ticks(axes, y=True)
        plain_ticks(axes, x=True)
        axes.set(xlabel="population", ylabel="epsilon")
        axes.legend()

    said = "; ".join(
        f"{name}: epsilon {round_up(number(side['epsilon']['value']))} with "
        f"{side['population']:,} users"
        for name, _, _, side in points
    )
    return Chart(
        "epsilon-by-population",
        "Epsilon by population, noise on the mean held",
        draw("epsilon-by-population", plot),
        f"Epsilon falls as the population grows. {said}.",
        f"After {curve['rounds']:,} rounds, by {curve['accountant'].upper()}, with noise of "
        f"standard deviation {curve['noise_std_on_mean']:.3g} per coordinate of every released "
        "mean. A simulation and the deployment it claims share that noise, not the epsilon.",
    )
