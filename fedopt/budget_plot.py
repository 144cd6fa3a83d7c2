"""Draw epsilon against rounds, and against the population at constant noise on the mean."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from privacy.accounting import Accountant, available_accountants, epsilon_spent
from privacy.errors import SettingsError
from privacy.event import AccountingEvent

if TYPE_CHECKING:
    from fedopt.budget_answer import BudgetAnswer

_POINTS: dict[Accountant, int] = {"rdp": 41, "pld": 13, "exact": 41}
_STYLE: dict[Accountant, str] = {"rdp": "-", "pld": "--", "exact": ":"}
Curve = Callable[[float], tuple[AccountingEvent, int]]


def write_plot(found: BudgetAnswer, path: str) -> None:
    """Write the two curves to a file; its ending chooses the format.

    Raises: SettingsError when matplotlib is missing or the plan has no noise to draw.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise SettingsError(
            "--plot needs the package matplotlib, which is not installed; "
            'run pip install "fedopt[report]" or leave --plot out'
        )
    if not math.isfinite(found.epsilon):
        raise SettingsError("--plot needs a finite epsilon, got none; raise --noise-multiplier")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_rounds(left, found)
    _draw_population(right, found)
    target = Path(path)
    beside = target.with_name(f".{os.getpid()}-{target.name}")
    figure.savefig(beside)
    os.replace(beside, target)


def _draw_rounds(axes: Any, found: BudgetAnswer) -> None:
    for name in available_accountants(found.event):
        counts = sorted({max(round(found.rounds * share), 1) for share in _shares(_POINTS[name])})
        epsilons = _epsilons(found, name, lambda count: (found.event, int(count)), counts)
        axes.plot(counts, epsilons, _STYLE[name], label=name)
    if found.request.epsilon is not None:
        axes.axhline(found.request.epsilon, color="grey", linewidth=0.8, label="target")
    axes.set(xlabel="rounds", ylabel=f"epsilon at delta {found.request.delta:g}")
    axes.set_title("epsilon by rounds")
    axes.legend()


def _draw_population(axes: Any, found: BudgetAnswer) -> None:
    event = found.event
    for name in available_accountants(event):
        factors = [10 ** (2 * share - 1) for share in _shares(_POINTS[name])]
        curves = {"cohort grows along": _scaled(event), "same cohort": _widened(event)}
        if event.sampling == "everyone":
            curves.popitem()
        for number, (label, moved) in enumerate(curves.items()):
            drawn = [each for each in factors if number == 0 or each >= event.sample_rate]
            epsilons = _epsilons(found, name, _fixed_rounds(moved, found.rounds), drawn)
            people = [each * event.population for each in drawn]
            color = f"C{number}"
            axes.plot(people, epsilons, _STYLE[name], color=color, label=f"{name}, {label}")
    axes.set(xlabel="population", xscale="log", yscale="log")
    axes.set_title("epsilon by population, same noise on the mean")
    axes.legend()


def _fixed_rounds(moved: Callable[[float], AccountingEvent], rounds: int) -> Curve:
    return lambda position: (moved(position), rounds)


def _scaled(event: AccountingEvent) -> Callable[[float], AccountingEvent]:
    """Scale population, cohort and noise together: the sample rate stays."""

    def at(factor: float) -> AccountingEvent:
        cohort = max(round(event.cohort * factor), 1)
        grown = cohort / event.cohort
        people = max(math.ceil(event.population * grown), cohort)
        return AccountingEvent(event.sampling, people, cohort, event.noise_multiplier * grown)

    return at


def _widened(event: AccountingEvent) -> Callable[[float], AccountingEvent]:
    """Scale the population only: cohort and noise stay."""

    def at(factor: float) -> AccountingEvent:
        people = max(round(event.population * factor), event.cohort)
        return AccountingEvent(event.sampling, people, event.cohort, event.noise_multiplier)

    return at


def _epsilons(
    found: BudgetAnswer, name: Accountant, curve: Curve, positions: Sequence[float]
) -> list[float]:
    """Compute epsilon along a curve; where another accountant answered, leave a gap."""
    values = []
    for position in positions:
        spent = epsilon_spent([curve(position)], found.request.delta, name)
        values.append(spent.epsilon if spent.accountant == name else math.nan)
    return values


def _shares(points: int) -> list[float]:
    return [step / (points - 1) for step in range(points)]
