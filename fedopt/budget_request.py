"""Read what `fedopt budget` was asked for, and report every mistake at once."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from privacy.accounting_values import (
    choice_problems,
    cohort_problems,
    delta_problems,
    epsilon_problems,
    noise_problems,
    whole_number_problems,
)
from privacy.errors import SettingsError
from privacy.event import SAMPLINGS

SOLVABLE = ("noise", "rounds", "cohort", "population")
HOLDS = ("population", "sample-rate")
ACCOUNTANT_CHOICES = ("rdp", "pld", "exact", "prv", "all")
PLOT_ENDINGS = (".svg", ".png", ".pdf")
_NUMBERS = ("population", "cohort", "rounds", "delta", "epsilon", "noise_multiplier")
_SOLVED_FLAG = {
    "epsilon": "epsilon",
    "noise": "noise_multiplier",
    "rounds": "rounds",
    "cohort": "cohort",
    "population": "population",
}


@dataclass(frozen=True)
class BudgetRequest:
    """Hold one checked question; the number that is solved is None.

    solve: "epsilon", "noise", "rounds", "cohort" or "population".
    """

    solve: str
    population: int | None
    cohort: int | None
    rounds: int | None
    delta: float
    epsilon: float | None
    noise_multiplier: float | None
    sampling: str
    accountant: str
    hold: str


def read_request(arguments: argparse.Namespace) -> BudgetRequest:
    """Turn flags, all of them strings, into a question.

    Raises: SettingsError with one sentence per mistake.
    """
    problems: list[str] = list(getattr(arguments, "problems", ()))
    given = {name: getattr(arguments, name) for name in _NUMBERS}
    sampling = arguments.sampling or "poisson"
    if sampling == "everyone" and given["cohort"] is None:
        given["cohort"] = given["population"]
    solve = arguments.solve or ("noise" if given["noise_multiplier"] is None else "epsilon")
    hold = arguments.hold or "population"
    accountant = arguments.accountant or "rdp"
    problems += choice_problems("--sampling", sampling, SAMPLINGS)
    problems += choice_problems("--accountant", accountant, ACCOUNTANT_CHOICES)
    problems += choice_problems("--hold", hold, HOLDS)
    problems += choice_problems("--solve", arguments.solve or "noise", SOLVABLE)
    problems += plot_problems(arguments.plot)
    if solve in _SOLVED_FLAG:
        problems += _presence_problems(given, solve, arguments.hold)
    values, malformed = _read_numbers(given)
    problems += malformed
    problems += _value_problems(values, sampling)
    if problems:
        raise SettingsError(dict.fromkeys(problems))
    return BudgetRequest(solve=solve, sampling=sampling, accountant=accountant, hold=hold, **values)


def plot_problems(path: str | None) -> Iterator[str]:
    """Say what is wrong with the name of the plot, if anything."""
    if path is None:
        return
    if Path(path).suffix.lower() not in PLOT_ENDINGS:
        yield f"--plot must end in .svg, .png or .pdf, got {path!r}; name it budget.svg"
    if not Path(path).parent.is_dir():
        yield f"--plot must lie in a folder that exists, got {path!r}; create the folder"


def read_whole(text: str) -> int | None:
    """Read a whole number written as 1000000, 1_000_000 or 1e6; None where it is none.

    >>> read_whole("1e6"), read_whole("69_506_000"), read_whole("1.5")
    (1000000, 69506000, None)
    """
    try:
        value = Decimal(text)
    except InvalidOperation:
        return None
    # The exponent is looked at first: int("1e999999999") would fill the memory.
    small = value.is_finite() and -30 < value.adjusted() < 18
    return int(value) if small and value == value.to_integral_value() else None


def read_real(text: str) -> float | None:
    """Read a number; None where it is none."""
    try:
        return float(text)
    except ValueError:
        return None


def _presence_problems(given: dict[str, str | None], solve: str, hold: str | None) -> Iterator[str]:
    """Say which flags are missing and which are too many for what is solved."""
    solved, asked = _SOLVED_FLAG[solve], f"--solve {solve}"
    scaled = solve == "cohort" and hold == "sample-rate"
    if hold is not None and solve != "cohort":
        yield f"--hold goes with --solve cohort only, got --hold {hold}; leave it out"
    if solve == "epsilon":
        if given["epsilon"] is not None:
            yield (
                "--epsilon and --noise-multiplier were both given; leave one out, or say what to "
                "solve with --solve rounds, cohort or population"
            )
    elif solve == "noise" and given["epsilon"] is None and given["noise_multiplier"] is None:
        yield "one of --epsilon and --noise-multiplier is needed, got neither; give one of them"
        given = given | {"epsilon": ""}
    elif given[solved] is not None and not scaled:
        yield f"{_flag(solved)} must be left out with {asked}, got {given[solved]!r}; it is solved"
    for name in _NUMBERS:
        needed = name != solved or scaled
        if needed and given[name] is None and not (solve == "epsilon" and name == "epsilon"):
            yield f"{_flag(name)} is needed here, got none; see fedopt budget --help"


def _read_numbers(
    given: dict[str, str | None],
) -> tuple[dict[str, Any], list[str]]:
    values: dict[str, Any] = {}
    problems = []
    for name, text in given.items():
        whole = name in ("population", "cohort", "rounds")
        values[name] = None if text is None else read_whole(text) if whole else read_real(text)
        if text is not None and values[name] is None:
            kind = "a whole number such as 1000000 or 1e6" if whole else "a number such as 1e-9"
            problems.append(f"{_flag(name)} must be {kind}, got {text!r}; correct it")
    return values, problems


def _value_problems(values: dict[str, Any], sampling: str) -> Iterator[str]:
    population, cohort = values["population"], values["cohort"]
    if population is not None and cohort is not None:
        yield from cohort_problems(sampling, population, cohort)
    for name in ("population", "cohort", "rounds"):
        if values[name] is not None:
            yield from whole_number_problems(name, values[name], 1)
    checks = (("delta", delta_problems), ("epsilon", epsilon_problems))
    for name, check in (*checks, ("noise_multiplier", noise_problems)):
        if values[name] is not None:
            yield from check(values[name])


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
