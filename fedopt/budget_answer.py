"""Answer a budget question: solve what is missing, then account it every way there is."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, cast

from fedopt.budget_request import BudgetRequest
from privacy.accounting import (
    Accountant,
    PrivacySpent,
    available_accountants,
    epsilon_spent,
    epsilon_without_amplification,
    gdp_mu,
)
from privacy.calibration import (
    cohort_at_sample_rate,
    cohort_for,
    noise_multiplier_for,
    population_for,
    rounds_for,
)
from privacy.errors import PrivacyWarning, SettingsError
from privacy.event import AccountingEvent, Sampling
from privacy.statement import tier

SCHEMA_VERSION = 1
_LOOSE = 1.25

PRV_ONE_SIDE = PrivacyWarning(
    "prv-one-side",
    "PRV bounds what a user who leaves gives away; that one who joins gives away less was seen "
    "wherever it was tried and is not proved. PLD covers both.",
)


@dataclass(frozen=True)
class BudgetAnswer:
    """Hold the solved numbers and every accountant's epsilon for them.

    spent: by accountant asked for; its own `accountant` differs where another one answered.
    fixed_size: the same numbers with cohorts of a fixed size, replace-one; None where sampled so.
    """

    request: BudgetRequest
    event: AccountingEvent
    rounds: int
    quoted: Accountant
    spent: dict[str, PrivacySpent]
    fixed_size: PrivacySpent | None

    @property
    def epsilon(self) -> float:
        """Give the quoted epsilon."""
        return self.spent[self.quoted].epsilon

    @property
    def releases(self) -> list[tuple[AccountingEvent, int]]:
        """Give what is accounted."""
        return [(self.event, self.rounds)]

    @property
    def warnings(self) -> tuple[PrivacyWarning, ...]:
        """Collect every accountant's warnings, each once."""
        found = dict.fromkeys(each for spent in self.spent.values() for each in spent.warnings)
        rdp, pld = self.spent.get("rdp"), self.spent.get("pld")
        if rdp and pld and pld.accountant == "pld" and rdp.epsilon > _LOOSE * pld.epsilon > 0:
            text = f"RDP is {rdp.epsilon / pld.epsilon:.3g} times PLD here; --accountant pld helps."
            found[PrivacyWarning("rdp-loose", text)] = None
        if "prv" in self.spent and self.spent["prv"].accountant == "prv":
            found[PRV_ONE_SIDE] = None
        return tuple(found)


def answer(request: BudgetRequest) -> BudgetAnswer:
    """Solve the missing number and account the result by every accountant.

    Raises: SettingsError when the target is impossible or the accountant cannot do the sampling.
    """
    quoted = cast(Accountant, "rdp" if request.accountant == "all" else request.accountant)
    event, rounds = _solved(request, quoted)
    releases = [(event, rounds)]
    spent: dict[str, PrivacySpent] = {quoted: epsilon_spent(releases, request.delta, quoted)}
    for name in available_accountants(event):
        if name not in spent:
            spent[name] = epsilon_spent(releases, request.delta, name)
    if request.accountant == "all":
        spent["prv"] = _third_opinion(releases, request.delta, spent[quoted])
    fixed_size = None
    if event.sampling != "fixed":
        drawn = replace(event, sampling="fixed")
        fixed_size = epsilon_spent([(drawn, rounds)], request.delta)
    return BudgetAnswer(request, event, rounds, quoted, spent, fixed_size)


def _third_opinion(
    releases: list[tuple[AccountingEvent, int]], delta: float, instead: PrivacySpent
) -> PrivacySpent:
    """Ask PRV; where it refuses, keep the sentence as a warning."""
    try:
        return epsilon_spent(releases, delta, "prv")
    except SettingsError as refusal:
        return replace(instead, warnings=(PrivacyWarning("prv-refused", str(refusal)),))


def as_json(found: BudgetAnswer) -> dict[str, Any]:
    """Give the answer as plain data, numbers unrounded, None for an infinite epsilon."""
    request, event = found.request, found.event
    answers = {name: _plain_spent(name, spent) for name, spent in found.spent.items()}
    for name in ("rdp", "pld"):
        answers.setdefault(name, {"epsilon": None, "why": f"cannot describe {event.sampling}"})
    return {
        "schema_version": SCHEMA_VERSION,
        "population": event.population,
        "cohort": event.cohort,
        "sample_rate": event.sample_rate,
        "rounds": found.rounds,
        "delta": request.delta,
        "noise_multiplier": event.noise_multiplier,
        "sampling": event.sampling,
        "adjacency": event.adjacency,
        "accountant": found.quoted,
        "epsilon": finite(found.epsilon),
        "accountants": answers,
        "epsilon_without_amplification": finite(
            epsilon_without_amplification(found.releases, request.delta)
        ),
        "epsilon_fixed_size": _plain_fixed_size(found),
        "gdp_mu": finite(gdp_mu(found.releases)),
        "gdp_mu_method": mu_method(event),
        "noise_std_on_mean": event.noise_multiplier / event.cohort,
        "delta_times_population": request.delta * event.population,
        "tier": tier(found.epsilon),
        "solved": request.solve,
        "target_epsilon": request.epsilon,
        "warnings": [{"code": each.code, "text": each.text} for each in found.warnings],
    }


def mu_method(event: AccountingEvent) -> str:
    """Say what mu of Gaussian DP means for this event."""
    if event.sample_rate == 1.0:
        return "exact"
    return "central limit theorem; a description, not a guarantee"


def finite(value: float | None) -> float | None:
    """Replace what JSON cannot hold by None."""
    return value if value is not None and math.isfinite(value) else None


def _solved(request: BudgetRequest, accountant: Accountant) -> tuple[AccountingEvent, int]:
    """Fill in the missing number, on the safe side."""
    values: dict[str, Any] = {
        "population": request.population,
        "cohort": request.cohort,
        "rounds": request.rounds,
        "noise_multiplier": request.noise_multiplier,
    }
    target = {
        "delta": request.delta,
        "epsilon": request.epsilon,
        "sampling": request.sampling,
        "accountant": accountant,
    }
    known = {key: value for key, value in values.items() if value is not None} | target
    if request.solve == "noise":
        values["noise_multiplier"] = noise_multiplier_for(**known)
    elif request.solve == "rounds":
        values["rounds"] = rounds_for(**known)
    elif request.solve == "population":
        values["population"] = population_for(**known)
    elif request.solve == "cohort" and request.hold == "sample-rate":
        scaled = cohort_at_sample_rate(**known)
        values.update(vars(scaled))
    elif request.solve == "cohort":
        values["cohort"] = cohort_for(**known)
    rounds = values.pop("rounds")
    return AccountingEvent(cast(Sampling, request.sampling), **values), rounds


def _plain_spent(asked: str, spent: PrivacySpent) -> dict[str, Any]:
    if spent.accountant != asked:
        why = next(each.text for each in reversed(spent.warnings) if each.code.startswith(asked))
        return {"epsilon": None, "why": why}
    plain: dict[str, Any] = {"epsilon": finite(spent.epsilon), "library": spent.library}
    if asked == "rdp":
        plain["order"] = spent.order
    return plain


def _plain_fixed_size(found: BudgetAnswer) -> dict[str, Any] | None:
    spent = found.fixed_size
    if spent is None:
        return None
    return {
        "epsilon": finite(spent.epsilon),
        "adjacency": spent.adjacency,
        "accountant": spent.accountant,
        "order": spent.order,
        "library": spent.library,
    }
