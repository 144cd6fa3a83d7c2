"""Build the Flower strategy of a run from its settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clients.protocol import LocalWork
from fedopt import run_directory
from fedopt.audit import open_audit
from fedopt.population import DealtPopulation
from privacy.ledger import Ledger, PlanFacts
from strategies.cohort_training import Cohorts
from strategies.fed_optimizer import FedOptimizer
from strategies.optimizers import build_optimizer
from strategies.schedules import build_schedule

if TYPE_CHECKING:
    import torch
    from flwr.app import ArrayRecord

    from fedopt.run import Run
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
        population=population
        or DealtPopulation(len(run.task.user_ids()), users_at_once=client.users_at_once or 1),
        work=LocalWork(**client.model_dump()),
        streams=run.streams,
        # Without its ledger a run would forget what it has spent, so only a new run makes one.
        ledger=Ledger.open(path, run=run.run_id, plan_facts=facts, create=not released(run)),
        ceiling=settings.privacy.epsilon,
        accountant=settings.privacy.accountant,
        repeatable=settings.engine.device == "cpu",
        on_findings=run.findings.add,
    )


def released(run: Run) -> bool:
    """Tell whether the run directory holds a released round."""
    return any((run.folder / run_directory.CHECKPOINTS).glob("round-*"))
