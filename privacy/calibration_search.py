"""Search for the edge of what meets an epsilon, and say why where nothing does."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from privacy.accounting import ACCOUNTANTS, Accountant, available_accountants, epsilon_spent
from privacy.accounting_values import (
    choice_problems,
    cohort_problems,
    delta_problems,
    epsilon_problems,
    noise_problems,
    whole_number_problems,
)
from privacy.errors import SettingsError
from privacy.event import SAMPLINGS, AccountingEvent, Sampling

Hold = Literal["sample-rate", "population"]
HOLDS: tuple[Hold, ...] = ("sample-rate", "population")

MOST_ROUNDS = 10**7
MOST_POPULATION = 10**12
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Target:
    """Hold what every search has in common."""

    delta: float
    epsilon: float
    sampling: Sampling
    accountant: Accountant

    @property
    def tolerance(self) -> float:
        """Give how closely whole numbers are searched: exactly where answers take milliseconds."""
        return TOLERANCE if self.accountant == "pld" else 0.0

    def spent(self, population: int, cohort: int, noise_multiplier: float, rounds: int) -> float:
        """Give the epsilon of so many equal rounds."""
        event = AccountingEvent(self.sampling, population, cohort, noise_multiplier)
        return epsilon_spent([(event, rounds)], self.delta, self.accountant).epsilon


def smallest_real(
    spent: Callable[[float], float], epsilon: float, start: float, least: float, most: float
) -> float | None:
    """Find the smallest number whose epsilon is at most the target, to 1e-4 relative.

    spent: epsilon as a function of the number, falling. None if even `most` is too much.

    Regula falsi on logarithms, kept half a tolerance away from both ends, so that the far end moves
    too: about eight looks, where a plain bisection needs sixteen.
    """

    def excess(number: float) -> float:
        value = spent(number)
        return math.log(value / epsilon) if value > 0 else -1.0

    upper = min(max(start, least), most)
    above = excess(upper)
    while above > 0:
        if upper >= most:
            return None
        upper = min(upper * 2, most)
        above = excess(upper)
    lower = max(upper / 2, least)
    below = excess(lower)
    while below <= 0 and lower > least:
        upper, above, lower = lower, below, max(lower / 2, least)
        below = excess(lower)
    if below <= 0:
        return lower
    while upper / lower > 1 + TOLERANCE:
        middle = _between(lower, below, upper, above)
        value = excess(middle)
        if value <= 0:
            upper, above = middle, value
        else:
            lower, below = middle, value
    return upper


def _between(lower: float, below: float, upper: float, above: float) -> float:
    """Guess where the excess crosses zero, on logarithms; the middle where an end is infinite."""
    width, share = math.log(upper / lower), 0.5
    if math.isfinite(below) and below > above:
        share = below / (below - above)
    edge = min(TOLERANCE / 2 / width, 0.5)
    return lower * math.exp(width * min(max(share, edge), 1 - edge))


def smallest_whole(
    meets: Callable[[int], bool], least: int, most: int, tolerance: float, start: int | None = None
) -> int | None:
    """Find the smallest whole number that meets a target; None if `most` fails.

    start: a number near the answer from a cheaper search, where there is one.
    """
    lower, upper = least - 1, start or least
    while not meets(upper):
        if upper >= most:
            return None
        lower, upper = upper, min(upper * 4, most)
    while lower < least < upper:
        half = max(upper // 2, least)
        if meets(half):
            upper = half
        else:
            lower = half
    while upper - lower > max(1, tolerance * upper):
        middle = (lower + upper) // 2
        lower, upper = (lower, middle) if meets(middle) else (middle, upper)
    return upper


def largest_whole(meets: Callable[[int], bool], start: int, most: int, tolerance: float) -> int:
    """Find the largest whole number that meets a target which `start` meets."""
    lower, upper = start, start
    while meets(upper):
        if upper >= most:
            return most
        lower, upper = upper, min(upper * 4, most)
    while upper - lower > max(1, tolerance * lower):
        middle = (lower + upper) // 2
        lower, upper = (middle, upper) if meets(middle) else (lower, middle)
    return lower


def check(
    target: Target,
    *,
    population: object,
    cohort: object,
    rounds: object = 1,
    noise_multiplier: object = 1.0,
    more: Sequence[str] = (),
) -> None:
    """Look at every value of a search before it starts.

    Raises: SettingsError with every mistake at once.
    """
    problems = [
        *choice_problems("sampling", target.sampling, SAMPLINGS),
        *cohort_problems(target.sampling, population, cohort),
        *whole_number_problems("rounds", rounds, 1),
        *delta_problems(target.delta),
        *epsilon_problems(target.epsilon),
        *noise_problems(noise_multiplier),
        *choice_problems("accountant", target.accountant, ACCOUNTANTS),
        *more,
    ]
    if not problems and target.accountant == "prv":
        problems.append(
            "accountant prv answers what an epsilon is, and solves for nothing: it stops where "
            "epsilon is large or delta small; solve with accountant pld"
        )
    elif not problems:
        able = available_accountants(AccountingEvent(target.sampling, 2, 1, 1.0))
        if target.accountant not in able:
            problems.append(
                f"accountant {target.accountant} cannot describe sampling {target.sampling}; "
                f"choose {' or '.join(able)}"
            )
    if problems:
        raise SettingsError(problems)


def everyone_problems(sampling: str, solved: str) -> tuple[str, ...]:
    """Say that a search makes no sense where everyone takes part in every round."""
    if sampling != "everyone":
        return ()
    return (
        f"{solved} cannot be solved for sampling everyone, where cohort and population are one; "
        "solve noise or rounds, or sample poisson",
    )


def cohort_search_problems(sampling: str, hold: str, cohort: object) -> tuple[str, ...]:
    """Say what is wrong with what a search for the cohort holds fixed."""
    found = [*everyone_problems(sampling, "cohort"), *choice_problems("hold", hold, HOLDS)]
    if hold == "sample-rate" and cohort is None:
        found.append(
            "cohort is needed to hold the sample rate, got none; give the cohort that goes with "
            "population and noise multiplier, all three are scaled together"
        )
    return tuple(found)


def impossible(target: Target, least: float, extreme: str, advice: str) -> SettingsError:
    """Build the error for a target that even the extreme choice does not meet."""
    return SettingsError(
        f"epsilon {target.epsilon:g} at delta {target.delta:g} cannot be met: even {extreme} "
        f"spends {least:.4g} by {target.accountant}; {advice}"
    )
