"""Read a run directory for its report, and refuse one that is damaged or does not fit together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedopt import run_directory
from fedopt.config import Settings
from fedopt.planning import build_plan
from fedopt.run_log import RunLog
from privacy.errors import SettingsError
from privacy.ledger import Ledger, LedgerRow
from privacy.plan import PrivacyPlan

NEEDED = {
    "run_id": str,
    "settings_hash": str,
    "data_users": int,
    "metric": str,
    "layers": list,
    "data": dict,
}


@dataclass(frozen=True)
class RunFacts:
    """Hold what a run directory says of itself."""

    folder: Path
    settings: Settings
    plan: PrivacyPlan
    provenance: dict[str, Any]
    rows: list[dict[str, Any]]
    ledger: Ledger
    charges: list[LedgerRow]

    @property
    def plug_in(self) -> bool:
        """Tell whether the run was a strategy in somebody's Flower app: one node, one user."""
        return self.provenance.get("mode") == "plug-in"

    @property
    def other_runs(self) -> set[str]:
        """Name the other runs that spend on the same ledger."""
        return {row.run for row in self.ledger.rows()} - {self.provenance["run_id"]}

    @property
    def randomness(self) -> str:
        """Say where noise and cohorts came from."""
        return self.settings.privacy.randomness


def read_run(folder: Path) -> RunFacts:
    """Read a run directory, finished, interrupted or still running.

    Raises: SettingsError where it is none, damaged, without privacy, or on another run's ledger;
    LedgerError where the ledger is damaged.
    """
    if not run_directory.is_run(folder):
        raise SettingsError(
            f"run must be a run directory with {run_directory.CONFIG}, got {str(folder)!r}; "
            "give the folder that fedopt run wrote"
        )
    settings = run_directory.load_settings(folder)
    provenance = run_directory.read_provenance(folder)
    _refuse_incomplete(folder, settings, provenance)
    plan = build_plan(settings, provenance["data_users"])
    ledger = Ledger.read(ledger_path(folder, settings))
    facts = RunFacts(
        folder=folder,
        settings=settings,
        plan=plan,
        provenance=provenance,
        rows=RunLog(folder / run_directory.ROUNDS).rows(),
        ledger=ledger,
        charges=ledger.rows(provenance["run_id"]),
    )
    _refuse_mismatch(facts)
    return facts


def ledger_path(folder: Path, settings: Settings) -> Path:
    """Find the ledger of a run; raises SettingsError where the run has none."""
    path = Path(settings.privacy.ledger or folder / run_directory.LEDGER)
    if not path.is_file():
        raise SettingsError(
            f"run {folder.name!r} must have a ledger, got no file {path.name!r}; the run was "
            "without privacy, ended before its first round, or the ledger was moved"
        )
    return path


def _refuse_incomplete(folder: Path, settings: Settings, provenance: Any) -> None:
    found = provenance if isinstance(provenance, dict) else {}
    wrong = [name for name, kind in NEEDED.items() if not isinstance(found.get(name), kind)]
    if not wrong and not all(_is_layer(layer) for layer in found["layers"]):
        wrong = ["layers"]
    privacy = settings.privacy
    if not wrong and not found["data_users"] >= 1:
        wrong = ["data_users"]
    if wrong:
        raise SettingsError(
            f"{run_directory.PROVENANCE} of {folder.name!r} must hold {', '.join(NEEDED)}, got no "
            f"usable {', '.join(wrong)}; the run ended before training, or the file was changed"
        )
    if privacy.noise_multiplier is None or privacy.simulated_cohort is None:
        raise SettingsError(
            f"{run_directory.CONFIG} of {folder.name!r} must hold noise_multiplier and "
            "simulated_cohort, got a file that fedopt run did not write; take it from a backup"
        )


def _is_layer(layer: Any) -> bool:
    return (
        isinstance(layer, list)
        and len(layer) == 2
        and isinstance(layer[0], str)
        and isinstance(layer[1], int)
    )


def _refuse_mismatch(facts: RunFacts) -> None:
    """Refuse rows that are no rows, and a ledger that charged something else than this run."""
    name = facts.folder.name
    rounds = [row.get("round") if isinstance(row, dict) else None for row in facts.rows]
    if not all(isinstance(number, int) for number in rounds):
        raise SettingsError(
            f"{run_directory.ROUNDS} of {name!r} must hold a round in each line, got a line "
            "without; the file was changed or damaged"
        )
    plan, kept = facts.plan, facts.ledger.facts
    wanted = (plan.population, plan.delta, plan.event.adjacency)
    if (kept.population, kept.delta, kept.adjacency) != wanted:
        raise SettingsError(
            f"ledger of run {name!r} must be of population, delta and adjacency {wanted}, got "
            f"{(kept.population, kept.delta, kept.adjacency)}; it is the ledger of another run"
        )
    charged = {row.round for row in facts.charges}
    uncharged = [number for number in rounds if number and number not in charged]
    if uncharged:
        raise SettingsError(
            f"ledger of run {name!r} must charge every round of {run_directory.ROUNDS}, got no "
            f"charge for round {uncharged[0]} of run {facts.provenance['run_id']}; "
            "it is the ledger of another run"
        )
