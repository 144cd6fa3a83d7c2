"""Account what the ledger holds, by the quoted accountant and by every other one."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from fedopt.report_facts import RunFacts
from privacy.accounting import (
    ACCOUNTANTS,
    PrivacySpent,
    available_accountants,
    epsilon_spent,
    epsilon_without_amplification,
    gdp_mu,
    library_version,
)
from privacy.errors import PrivacyWarning, SettingsError
from privacy.event import AccountingEvent
from privacy.statement import Epsilon, tier

NOT_BOUNDED = "as-run-not-bounded"
Releases = list[tuple[AccountingEvent, int]]


def quoted(facts: RunFacts, releases: Releases) -> PrivacySpent:
    """Account releases by the accountant that the run quotes."""
    accountant: Any = facts.settings.privacy.accountant
    return epsilon_spent(releases, facts.plan.delta, accountant)


def quoted_as_run(facts: RunFacts, releases: Releases) -> PrivacySpent:
    """Account releases as run; infinite where the accountant gives up on so little noise."""
    try:
        return quoted(facts, releases)
    except SettingsError as problem:
        why = PrivacyWarning(NOT_BOUNDED, f"As run, no accountant bounds epsilon: {problem}.")
        return PrivacySpent(
            epsilon=math.inf,
            delta=facts.plan.delta,
            accountant=facts.settings.privacy.accountant,
            order=None,
            library="none",
            adjacency=facts.plan.event.adjacency,
            sampling=facts.plan.sampling,
            warnings=(why,),
        )


def stated(spent: PrivacySpent) -> Epsilon:
    """Give an epsilon its full description."""
    return Epsilon(
        value=spent.epsilon,
        delta=spent.delta,
        adjacency=spent.adjacency,
        sampling=spent.sampling,
        accountant=spent.accountant,
        version=spent.library,
        upper_bound=spent.upper_bound,
    )


def accounting_group(facts: RunFacts, claimed: Releases, spent: PrivacySpent) -> dict[str, Any]:
    """Collect the claimed epsilon in every form in which it is quoted."""
    return {
        "epsilon": asdict(stated(spent)),
        "accountants": by_every_accountant(claimed, spent),
        "rounds_charged": sum(count for _, count in claimed),
        "ceiling": facts.settings.privacy.epsilon,
        "epsilon_at_planned_end": asdict(stated(_at_planned_end(facts, claimed))),
        "epsilon_without_amplification": asdict(_without_amplification(facts, claimed)),
        "gdp_mu": gdp_mu(claimed),
        "tier": tier(spent.epsilon),
        "delta_times_population": facts.plan.delta * facts.plan.population,
        "by_round": [{"round": row["round"], "epsilon": row.get("epsilon")} for row in facts.rows],
    }


def _at_planned_end(facts: RunFacts, claimed: Releases) -> PrivacySpent:
    """Account what is charged and, by the plan, the rounds that are still to come."""
    last = max((row.round for row in facts.charges), default=0)
    rest = max(facts.plan.rounds - last, 0)
    return quoted(facts, [*claimed, *([(facts.plan.event, rest)] if rest else [])])


def _without_amplification(facts: RunFacts, claimed: Releases) -> Epsilon:
    return Epsilon(
        value=epsilon_without_amplification(claimed, facts.plan.delta),
        delta=facts.plan.delta,
        adjacency=facts.plan.event.adjacency,
        sampling="known cohorts",
        accountant="exact",
        version=library_version("scipy"),
    )


def by_every_accountant(releases: Releases, spent: PrivacySpent) -> dict[str, Any]:
    """Account the same releases by every accountant that can; where one fails, say why."""
    found: dict[str, Any] = {spent.accountant: _answer(spent)}
    able = [set(available_accountants(event)) for event, _ in releases]
    for name in ACCOUNTANTS:
        if name in found or not able or not all(name in names for names in able):
            continue
        answer = epsilon_spent(releases, spent.delta, name)
        why = " ".join(warning.text for warning in answer.warnings)
        nothing = {"epsilon": None, "order": None, "library": None, "why": why}
        # Another one answers in the place of an accountant that cannot, and says so.
        found[name] = _answer(answer) if answer.accountant == name else nothing
    return found


def _answer(spent: PrivacySpent) -> dict[str, Any]:
    known = asdict(stated(spent))
    return known | {"epsilon": spent.epsilon, "order": spent.order, "library": spent.library}
