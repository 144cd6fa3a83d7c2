"""Report on a ledger: what each run on it has spent, and all runs together."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedopt.report_accounting import by_every_accountant, stated
from privacy.accounting import Accountant, epsilon_spent
from privacy.errors import SettingsError
from privacy.ledger import Ledger
from privacy.statement import (
    ACCOUNTANT_WORDS,
    ADJACENCY_WORDS,
    Epsilon,
    not_covered,
    round_up,
    strength,
    tier,
)

QUOTED: Accountant = "rdp"


def ledger_report(path: Path) -> dict[str, Any]:
    """Add up all releases on a ledger, by every accountant that can.

    Raises: SettingsError where the file is missing; LedgerError where it is damaged or no ledger.
    """
    if not path.is_file():
        raise SettingsError(f"ledger must be a ledger file, got {str(path)!r}; correct the path")
    ledger = Ledger.read(path)
    releases, delta = ledger.releases(), ledger.facts.delta
    capped = any(event.cohort_cap is not None for event, _ in releases)
    spent = epsilon_spent(releases, delta, "pld" if capped else QUOTED)
    rows = ledger.rows()
    names = list(dict.fromkeys(row.run for row in rows))
    return {
        "schema_version": 1,
        "statement": _sentence(stated(spent), sum(count for _, count in releases), len(names)),
        "population": ledger.facts.population,
        "delta": delta,
        "unit": ledger.facts.unit,
        "adjacency": ledger.facts.adjacency,
        "epsilon": asdict(stated(spent)),
        "accountants": by_every_accountant(releases, spent),
        "tier": tier(spent.epsilon),
        "runs": [_one_run(ledger, name, spent.accountant) for name in names],
        "not_covered": not_covered(),
        "warnings": [asdict(warning) for warning in spent.warnings],
        "ledger_digest": ledger.digest(),
    }


def _one_run(ledger: Ledger, name: str, accountant: Any) -> dict[str, Any]:
    rows = ledger.rows(name)
    releases = ledger.releases(name)
    return {
        "run_id": name,
        "charged": len(rows),
        "released": sum(row.state == "committed" for row in rows),
        "first": min(row.reserved_at for row in rows),
        "last": max(row.reserved_at for row in rows),
        "noise_multipliers": sorted({event.noise_multiplier for event, _ in releases}),
        "sample_rates": sorted({event.sample_rate for event, _ in releases}),
        "epsilon": asdict(stated(epsilon_spent(releases, ledger.facts.delta, accountant))),
    }


def _sentence(spent: Epsilon, releases: int, runs: int) -> str:
    if releases == 0:
        return "Nothing is charged on this ledger, so there is nothing to guarantee."
    if spent.value == float("inf"):
        return "No privacy guarantee: at least one release on this ledger had no noise."
    weak = strength(spent.value)
    runs_named = f"{runs:,} run{'s' if runs > 1 else ''}"
    return (
        f"All {releases:,} releases of {runs_named} on this ledger together are (epsilon <= "
        f"{round_up(spent.value)}, delta = {spent.delta:g})-differentially private at the level of "
        f"one user ({ADJACENCY_WORDS[spent.adjacency]}), as far as each run's own report says; "
        f"computed with {ACCOUNTANT_WORDS[spent.accountant]} by {spent.version}"
        + (f"; {weak}." if weak else ".")
    )
