"""Show what a run would do, without training."""

from __future__ import annotations

import json
from typing import Any

from fedopt.config import Settings
from fedopt.planning import build_plan, resolve, task_options
from privacy.statement import Epsilon, guarantee_sentence, round_up


def show_plan(settings: Settings, *, as_json: bool) -> int:
    """Print plan, engine and memory of a run; returns the exit code."""
    facts = plan_facts(settings)
    print(json.dumps(facts) if as_json else as_text(facts))
    return 0


def plan_facts(settings: Settings) -> dict[str, Any]:
    """Work out everything a run would fix before its first round."""
    from clients.local_training import trainable
    from clients.task import load_task
    from privacy.accounting import epsilon_spent

    task = load_task(settings.task.task, task_options(settings))
    users = len(task.user_ids())
    effective = resolve(settings, users)
    plan = build_plan(effective, users)
    parameters = sum(p.numel() for p in trainable(task.model()).values())
    accountant = effective.privacy.accountant
    spent = epsilon_spent([(plan.event, plan.rounds)], plan.delta, accountant)
    stated = Epsilon(
        spent.epsilon, plan.delta, spent.adjacency, spent.sampling, spent.accountant, spent.library
    )
    return {
        "population": plan.population,
        "cohort": plan.cohort,
        "sample_rate": plan.sample_rate,
        "rounds": plan.rounds,
        "noise_multiplier": plan.noise_multiplier,
        "noise_std_on_mean": plan.noise_std_on_mean,
        "clip_norm": plan.clip_norm,
        "delta": plan.delta,
        "epsilon": None if spent.epsilon == float("inf") else spent.epsilon,
        "users": users,
        "simulated_cohort": plan.simulation.cohort,
        "parameters": parameters,
        "engine": effective.engine.engine,
        "device": effective.engine.device,
        "worker_megabytes": worker_megabytes(parameters),
        "statement": guarantee_sentence(plan, stated, plan.rounds, effective.privacy.randomness),
    }


def worker_megabytes(parameters: int) -> float:
    """Estimate what a worker's buffers hold: weights, received weights, update, gradient, sum."""
    return parameters * (4 * 4 + 8) / 1e6


def as_text(facts: dict[str, Any]) -> str:
    """Lay the facts out for reading."""
    epsilon = "infinity" if facts["epsilon"] is None else round_up(facts["epsilon"])
    return "\n".join(
        [
            f"claimed       {facts['cohort']:,} of {facts['population']:,} users a round, "
            f"{facts['rounds']} rounds",
            f"noise         multiplier {facts['noise_multiplier']:.5g}, "
            f"{facts['noise_std_on_mean']:.3g} per coordinate of the mean",
            f"epsilon       {epsilon} at delta {facts['delta']:g}",
            f"trained       {facts['simulated_cohort']} of {facts['users']:,} data users a round",
            f"model         {facts['parameters']:,} parameters, buffers of a worker "
            f"{facts['worker_megabytes']:,.1f} MB",
            f"engine        {facts['engine']} on {facts['device']}",
            facts["statement"],
        ]
    )
