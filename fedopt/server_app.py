"""Build the Flower strategy of a run from its settings; offer the run as a Flower ServerApp."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from flwr.serverapp import Grid, ServerApp

from clients.protocol import LocalWork
from fedopt import config, run_directory
from fedopt.audit import open_audit
from fedopt.population import DealtPopulation
from privacy.errors import SettingsError
from privacy.ledger import Ledger, PlanFacts
from strategies.cohort_training import Cohorts
from strategies.fed_optimizer import FedOptimizer
from strategies.optimizers import build_optimizer
from strategies.schedules import build_schedule

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from flwr.app import ArrayRecord, Context

    from fedopt.simulation import Run
    from strategies.round_record import RoundRecord


def build_strategy(run: Run) -> FedOptimizer:
    """Build the strategy: optimizer and schedule, plan, cohorts, ledger, checkpoints."""
    server = run.settings.server
    hyperparameters: dict[str, Any] = {"lr": server.server_lr, **server.hyperparameters}

    audit = open_audit(run)

    def remember(record: RoundRecord, arrays: ArrayRecord) -> None:
        run.latest = audit.take(record) if audit else record

    def build(named: list[tuple[str, torch.nn.Parameter]]) -> torch.optim.Optimizer:
        optimizer = build_optimizer(server.strategy, named, **hyperparameters)
        return audit.watch(optimizer) if audit else optimizer

    return FedOptimizer(
        build,
        privacy=run.plan,
        schedule=server_schedule(run),
        checkpoint_dir=run.folder / run_directory.CHECKPOINTS,
        cohorts=build_cohorts(run, audit.population if audit else None),
        on_round=remember,
    )


def server_schedule(run: Run) -> Any:
    """Build the schedule of the server's rate."""
    server = run.settings.server
    options: dict[str, Any] = dict(server.schedule_options)
    if server.warmup_rounds:
        options["warmup"] = server.warmup_rounds
    return build_schedule(server.schedule, rounds=run.plan.rounds, **options)


def build_cohorts(run: Run, population: DealtPopulation | None = None) -> Cohorts:
    """Build the population mode: whose data, which work, which ledger, which ceiling."""
    settings = run.settings
    client = settings.client
    path = settings.privacy.ledger or run.folder / run_directory.LEDGER
    facts = PlanFacts(
        population=run.plan.population, delta=run.plan.delta, adjacency=run.plan.event.adjacency
    )
    return Cohorts(
        population=population or DealtPopulation(len(run.task.user_ids())),
        work=LocalWork(**client.model_dump()),
        streams=run.streams,
        # Without its ledger a run would forget what it has spent, so only a new run makes one.
        ledger=Ledger.open(path, run=run.run_id, plan_facts=facts, create=not released(run)),
        ceiling=_ceiling(settings.privacy.epsilon, run.plan.noise_multiplier),
        accountant=settings.privacy.accountant,
        repeatable=settings.engine.device == "cpu",
    )


def released(run: Run) -> bool:
    """Tell whether the run directory holds a released round."""
    return any((run.folder / run_directory.CHECKPOINTS).glob("round-*"))


def _ceiling(epsilon: float | None, noise_multiplier: float) -> float | None:
    if epsilon is not None and noise_multiplier == 0.0:
        raise SettingsError(
            f"epsilon must be left out where noise-multiplier is 0, got {epsilon}; "
            "a run without noise has no budget"
        )
    return epsilon


app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run a training whose workers are Flower's nodes; settings come from the run config."""
    from fedopt.simulation import simulate

    values = dict(context.run_config)
    output = values.pop("output", None)
    settings = flower_settings(values)
    wait_for_nodes(grid, settings.engine.workers, settings.engine.timeout)
    simulate(settings, output=str(output) if output else None, grid=grid)


def flower_settings(values: Mapping[str, Any]) -> config.Settings:
    """Read settings from a Flower run config: flat keys with the words of the flags.

    Raises: SettingsError with every unknown key and bad value; Flower itself checks no types.
    """
    tables: dict[str, dict[str, Any]] = {}
    problems = []
    for key, value in values.items():
        name = key.replace("-", "_")
        section = config.section_of(name)
        if section is None:
            problems.append(f"{key} is not a setting; {config.suggestion(name)}")
        elif value != "":
            tables.setdefault(section, {})[name] = value
    if problems:
        raise SettingsError(problems)
    return config.build_settings(tables)


def wait_for_nodes(grid: Grid, workers: int, seconds: float) -> None:
    """Wait until as many nodes are connected as the settings name workers."""
    deadline = time.monotonic() + seconds
    while len(list(grid.get_node_ids())) < workers:
        if time.monotonic() > deadline:
            raise SettingsError(
                f"{workers} nodes must be connected, got {len(list(grid.get_node_ids()))} within "
                f"{seconds:.0f} s; start more or lower workers"
            )
        time.sleep(0.1)
