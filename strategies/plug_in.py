"""Set up what a plug-in strategy with a plan needs, and refuse what clashes with a plan."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

from privacy.errors import SettingsError
from privacy.ledger import Ledger, PlanFacts
from privacy.plan import PrivacyPlan
from privacy.seeds import Streams
from strategies.cohort_training import Cohorts
from strategies.private_training import Account
from strategies.server_model import STATISTICS, ServerModel

LEDGER = "ledger.sqlite"
FLOWER_FRACTION, FLOWER_LEAST_NODES = 1.0, 2


def refuse_with_plan(
    privacy: PrivacyPlan | None,
    cohorts: Cohorts | None,
    output_dir: str | Path | None,
    fraction_train: float,
    min_train_nodes: int,
) -> None:
    """Refuse settings that a plan excludes, or that need one; all at once.

    Raises: SettingsError with one sentence for each.
    """
    problems = []
    if privacy is None:
        if cohorts is not None:
            problems.append("cohorts need a plan, got None; pass privacy=PrivacyPlan(...)")
        if output_dir is not None:
            problems.append("output_dir needs a plan, got None; pass privacy=PrivacyPlan(...)")
    else:
        if fraction_train != FLOWER_FRACTION:
            problems.append(
                f"fraction_train must be left alone with a plan, got {fraction_train}; the plan's "
                "cohort / population is the sample rate"
            )
        if min_train_nodes != FLOWER_LEAST_NODES:
            problems.append(
                f"min_train_nodes must be left alone with a plan, got {min_train_nodes}; a cohort "
                "that is topped up is not the one that is accounted"
            )
        if cohorts is None and privacy.simulated is not None:
            problems.append("privacy must be a plan without simulate() where nodes are users")
    if problems:
        raise SettingsError(problems)


class RunDirectory(Protocol):
    """Keep a plug-in training's run directory; fedopt.plug_in offers it."""

    def resume(self, finished: int) -> None:
        """Drop what is later than the checkpoint."""
        ...

    def round(self, number: int, record: Any, metrics: Mapping[str, Any]) -> None:
        """Append a visible round."""
        ...

    def nodes(self, facts: Mapping[str, int]) -> None:
        """Note who clipped and who added noise."""
        ...

    def close(self, weights: Mapping[str, Any]) -> None:
        """Write model and report."""
        ...


def run_directory(
    folder: Path,
    plan: PrivacyPlan,
    strategy: str,
    hyperparameters: Mapping[str, Any],
    seed: int | None,
    model: ServerModel,
    identity: str,
) -> RunDirectory:
    """Open the run directory through an entry point: the class lies a floor above."""
    (found,) = entry_points(group="fedopt.run_directory", name="plug-in")
    layers = [(name, parameter.numel()) for name, parameter in model.parameters.items()]
    opened: RunDirectory = found.load()(
        folder, plan, strategy, hyperparameters, seed, layers, identity
    )
    return opened


def plug_in_account(
    plan: PrivacyPlan, model: ServerModel, identity: str, seed: int | None, folder: Path | None
) -> Account:
    """Open streams and ledger of a plug-in training, and set its budget to the planned rounds.

    seed: None draws noise and cohorts from the operating system. folder: where the ledger lies.
    A repeated round would train anew, so it takes fresh noise and a new charge.

    Raises: SettingsError for batch norm, whose statistics would leave nodes without noise.
    """
    statistics = [name for name in model.aside if name.endswith(STATISTICS)]
    if statistics:
        raise SettingsError(
            f"the model must have no batch norm under a plan, got {', '.join(statistics[:4])}; "
            "use group norm or layer norm"
        )
    facts = PlanFacts(population=plan.population, delta=plan.delta, adjacency=plan.event.adjacency)
    return Account(
        streams=Streams(seed or 0, identity, secure=seed is None),
        ledger=Ledger.open(ledger_path(folder), run=identity[:16], plan_facts=facts),
        ceiling=plan.epsilon() if plan.noise_multiplier > 0.0 else None,
        repeatable=False,
    )


def ledger_path(folder: Path | None) -> Path:
    """Find the place of the ledger: the run directory, the checkpoints, or a temporary folder."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        return folder / LEDGER
    logging.getLogger("flwr").warning(
        "No output_dir and no checkpoint_dir: the privacy account is lost when this process ends."
    )
    return Path(tempfile.mkdtemp(prefix="fedopt-")) / LEDGER
