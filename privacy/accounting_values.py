"""Check the numbers of a privacy account: one sentence per mistake, all mistakes together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache

from privacy.errors import SettingsError
from privacy.event import SAMPLINGS, AccountingEvent

LARGEST_COUNT = 10**15


def whole_number_problems(name: str, value: object, smallest: int) -> Iterator[str]:
    """Say what is wrong with a count of users or rounds, if anything."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or not smallest <= int(str(value)) <= LARGEST_COUNT:
        yield (
            f"{name} must be a whole number from {smallest} to 1e15, got {value!r}; "
            "write it as 1000000, 1_000_000 or 1e6"
        )


def delta_problems(delta: object) -> Iterator[str]:
    """Say what is wrong with delta, if anything."""
    if not _is_finite(delta) or not 0 < float(str(delta)) < 1:
        yield (
            f"delta must be > 0 and < 1, got {delta!r}; "
            "choose less than 1 / population, for example 1e-9"
        )


def noise_problems(noise_multiplier: object) -> Iterator[str]:
    """Say what is wrong with the noise multiplier, if anything; 0 (no privacy) is allowed."""
    if not _is_finite(noise_multiplier) or not 0 <= float(str(noise_multiplier)) <= 1e9:
        yield (
            f"noise multiplier must be a number from 0 to 1e9, got {noise_multiplier!r}; "
            "0.3 to 10 is usual, 0 switches privacy off"
        )


def epsilon_problems(epsilon: object) -> Iterator[str]:
    """Say what is wrong with a target epsilon, if anything."""
    if not _is_finite(epsilon) or not 0 < float(str(epsilon)) <= 1e6:
        yield f"epsilon must be a number > 0 and <= 1e6, got {epsilon!r}; 1 to 10 is usual"


def choice_problems(name: str, value: object, choices: Sequence[str]) -> Iterator[str]:
    """Say that a name is none of the known ones."""
    if value not in choices:
        yield f"{name} must be one of {', '.join(choices)}, got {value!r}; choose one of these"


def cohort_problems(sampling: object, population: object, cohort: object) -> Iterator[str]:
    """Say what is wrong with the pair of population and cohort, if anything."""
    found = [
        *whole_number_problems("population", population, 1),
        *whole_number_problems("cohort", cohort, 1),
    ]
    yield from found
    if found or not isinstance(population, int) or not isinstance(cohort, int):
        return
    if cohort > population:
        yield (
            f"cohort must be at most population, got cohort {cohort} of population {population}; "
            "lower the cohort or raise the population"
        )
    elif sampling == "everyone" and cohort != population:
        yield (
            f"cohort must equal population where sampling is everyone, got cohort {cohort} of "
            f"population {population}; set both alike or sample poisson"
        )


@lru_cache(maxsize=65536)
def event_problems(event: AccountingEvent) -> tuple[str, ...]:
    """List what is wrong with one event, in the order of its fields."""
    found = [
        *choice_problems("sampling", event.sampling, SAMPLINGS),
        *cohort_problems(event.sampling, event.population, event.cohort),
        *noise_problems(event.noise_multiplier),
    ]
    if event.cohort_cap is not None:
        found += whole_number_problems("cohort cap", event.cohort_cap, 1)
        if event.sampling != "poisson":
            found.append(
                f"cohort cap goes with poisson sampling only, got {event.sampling!r}; leave it out"
            )
    return tuple(found)


def merge_releases(
    releases: Sequence[tuple[AccountingEvent, int]],
) -> tuple[tuple[AccountingEvent, int], ...]:
    """Add up the rounds of equal events, checked, in order of first appearance.

    Raises: SettingsError when an event or a count is out of range, or adjacencies are mixed.
    """
    counts: dict[AccountingEvent, int] = {}
    problems: dict[str, None] = {}
    for event, rounds in releases:
        if type(rounds) is not int or rounds < 0:
            problems.update(dict.fromkeys(whole_number_problems("rounds", rounds, 0)))
            continue
        counts[event] = counts.get(event, 0) + rounds
    for event, rounds in counts.items():
        problems.update(dict.fromkeys(event_problems(event)))
        problems.update(dict.fromkeys(whole_number_problems("rounds", rounds, 0)))
    merged = tuple((event, rounds) for event, rounds in counts.items() if rounds)
    if not problems and len({event.adjacency for event, _ in merged}) > 1:
        problems[
            "sampling must have one adjacency to be added up, got replace-one (fixed) and "
            "add-or-remove-one (poisson, everyone) together; keep them in separate ledgers"
        ] = None
    if problems:
        raise SettingsError(problems)
    return merged


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
