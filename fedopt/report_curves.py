"""Compute the curves of the report, so that whoever draws them needs the JSON alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

from privacy.accounting import (
    Accountant,
    available_accountants,
    epsilon_spent,
    library_version,
)
from privacy.accounting_profile import privacy_profile, quick_epsilon, trade_off
from privacy.event import AccountingEvent
from privacy.ledger import LedgerRow
from privacy.plan import PrivacyPlan

Releases = list[tuple[AccountingEvent, int]]
POPULATION_FACTORS = tuple(10.0 ** (step / 2) for step in range(-4, 5))
_POINTS = {"rdp": 40, "pld": 6, "exact": 40}
_MANY_ROUNDS, _FEW_POINTS = 20_000, 3


def build_curves(
    plan: PrivacyPlan, charges: Sequence[LedgerRow], accountant: Accountant
) -> dict[str, Any]:
    """Compute every curve of the claimed guarantee; one that cannot be computed is None."""
    profile = privacy_profile(charged_until(charges, plan.rounds), plan.delta)
    described = {"accountant": "pld", "version": library_version("dp-accounting")}
    return {
        "epsilon_by_round": epsilon_by_round(plan, charges),
        "privacy_profile": None if profile is None else described | asdict(profile),
        "trade_off": None if profile is None else described | asdict(trade_off(profile)),
        "epsilon_by_population": epsilon_by_population(plan, len(charges), accountant),
    }


def charged_until(charges: Sequence[LedgerRow], last_round: int) -> Releases:
    """Count the claimed events of all charges up to a round, repeated attempts included."""
    counts: dict[AccountingEvent, int] = {}
    for row in charges:
        if row.round <= last_round:
            counts[row.event] = counts.get(row.event, 0) + 1
    return list(counts.items())


def epsilon_by_round(plan: PrivacyPlan, charges: Sequence[LedgerRow]) -> dict[str, Any]:
    """Compute epsilon against the round by every accountant, up to the planned end.

    Rounds after "charged_until" are projected: what is charged, and the plan's event for the rest.
    """
    last = max((row.round for row in charges), default=0)
    return {
        "charged_until": last,
        "planned": max(plan.rounds, last),
        "series": [
            _series(plan, charges, name, last) for name in available_accountants(plan.event)
        ],
    }


def chosen_rounds(last: int, planned: int, most: int) -> list[int]:
    """Choose about `most` rounds from 1 to the planned end; 1, the last and the planned are in.

    They lie closer at the beginning, where epsilon rises fastest.
    """
    end = max(planned, last)
    chosen = {round(1 + (end - 1) * (step / (most - 1)) ** 2) for step in range(most)}
    return sorted(chosen | ({last} if last else set()))


def _series(
    plan: PrivacyPlan, charges: Sequence[LedgerRow], accountant: Accountant, last: int
) -> dict[str, Any]:
    points, version = [], library_version("dp-accounting")
    epsilon: float | None = None
    slow = accountant == "pld" and plan.rounds > _MANY_ROUNDS
    most = _FEW_POINTS if slow else _POINTS[accountant]
    # From the last round down, so that each epsilon tells the size of the next grid.
    for number in reversed(chosen_rounds(last, plan.rounds, most)):
        releases = charged_until(charges, number)
        if number > last:
            releases.append((plan.event, number - last))
        if accountant == "pld":
            epsilon = quick_epsilon(releases, plan.delta, epsilon)
        else:
            spent = epsilon_spent(releases, plan.delta, accountant)
            epsilon, version = spent.epsilon, spent.library
        if epsilon is not None:
            points.append({"round": number, "epsilon": epsilon})
    return _described(plan, accountant, version) | {"points": points[::-1]}


def _described(plan: PrivacyPlan, accountant: str, version: str) -> dict[str, Any]:
    return {
        "delta": plan.delta,
        "adjacency": plan.event.adjacency,
        "sampling": plan.sampling,
        "accountant": accountant,
        "version": version,
        "upper_bound": True,
    }


def epsilon_by_population(
    plan: PrivacyPlan, charged: int, accountant: Accountant
) -> dict[str, Any] | None:
    """Compute epsilon against the population with the noise on the mean held at z C / m.

    Two ways to grow: the sampling probability held (cohort and noise multiplier grow alike), or
    the cohort held. None where there is no noise, or where only slow accountants answer.

    Reference: arXiv 2310.00098, table 1 and section 5, for the first way.
    """
    if plan.noise_multiplier == 0.0 or plan.cohort_cap is not None:
        return None
    rounds = charged or plan.rounds
    # PLD takes seconds for each point, so RDP draws this curve also where PLD is quoted.
    name: Accountant = "exact" if accountant == "exact" else "rdp"
    version = epsilon_spent([(plan.event, rounds)], plan.delta, name).library

    def curve(events: Iterator[AccountingEvent]) -> list[dict[str, Any]]:
        return [
            {
                "population": event.population,
                "cohort": event.cohort,
                "noise_multiplier": event.noise_multiplier,
                "epsilon": epsilon_spent([(event, rounds)], plan.delta, name).epsilon,
            }
            for event in events
        ]

    return _described(plan, name, version) | {
        "rounds": rounds,
        "noise_std_on_mean": plan.noise_std_on_mean,
        "sample_rate_held": curve(_rate_held(plan)),
        "cohort_held": [] if plan.sampling == "everyone" else curve(_cohort_held(plan)),
    }


def _rate_held(plan: PrivacyPlan) -> Iterator[AccountingEvent]:
    for factor in POPULATION_FACTORS:
        cohort = round(plan.cohort * factor)
        population = round(cohort * plan.population / plan.cohort)
        if cohort >= 1 and population <= 10**12:
            multiplier = plan.noise_multiplier * cohort / plan.cohort
            yield replace(
                plan.event, population=population, cohort=cohort, noise_multiplier=multiplier
            )


def _cohort_held(plan: PrivacyPlan) -> Iterator[AccountingEvent]:
    for factor in POPULATION_FACTORS:
        population = round(plan.population * factor)
        if plan.cohort <= population <= 10**12:
            yield replace(plan.event, population=population)
