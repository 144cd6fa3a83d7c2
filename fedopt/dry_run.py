"""Show what a run would do, without training."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

from fedopt.config import Settings
from fedopt.planning import build_plan, lacks_data, resolve, task_options
from privacy.statement import Epsilon, guarantee_sentence, round_up

if TYPE_CHECKING:
    from clients.task import Task

SPEECH_OUTLINE = "experiments.asr.task:outline"
"""Builds the speech task without its corpus."""


def show_plan(settings: Settings, *, as_json: bool) -> int:
    """Print plan, engine and memory of a run; returns the exit code."""
    facts = plan_facts(settings)
    print(json.dumps(facts) if as_json else as_text(facts))
    return 0


def plan_facts(settings: Settings) -> dict[str, Any]:
    """Work out everything a run would fix before its first round."""
    from clients.task import load_task
    from privacy.accounting import epsilon_spent

    without_data = lacks_data(settings)
    task = load_task(SPEECH_OUTLINE if without_data else settings.task.task, task_options(settings))
    # Without a corpus the plan is that of the claim; how many people it has is not said.
    users = settings.privacy.population if without_data else len(task.user_ids())
    effective = resolve(settings, users)
    plan = build_plan(effective, users)
    parameters = count_parameters(task, on_meta=without_data)
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
        "users": None if without_data else users,
        "simulated_cohort": plan.simulation.cohort,
        "parameters": parameters,
        "engine": effective.engine.engine,
        "device": effective.engine.device,
        "worker_megabytes": worker_megabytes(parameters),
        "batch_megabytes": batch_megabytes(task),
        "gpu_hours": gpu_hours(task, effective),
        "gpu_hours_assumption": cost_assumption(task, effective),
        "statement": guarantee_sentence(plan, stated, plan.rounds, effective.privacy.randomness),
    }


def count_parameters(task: Task, *, on_meta: bool) -> int:
    """Count the trainable parameters; on_meta: without memory for the weights."""
    import torch

    from clients.local_training import count_trainable

    with torch.device("meta") if on_meta else contextlib.nullcontext():
        return count_trainable(task.model())


def gpu_hours(task: Task, settings: Settings) -> float | None:
    """Ask the task for its estimate of GPU hours; None where it has none."""
    estimate = getattr(task, "gpu_hours", None)
    client, privacy = settings.client, settings.privacy
    if estimate is None:
        return None
    cohort = privacy.simulated_cohort
    hours = estimate(privacy.rounds, cohort, client.local_steps, client.local_epochs)
    return None if hours is None else float(hours)


def cost_assumption(task: Task, settings: Settings) -> str:
    """Ask the task what its estimate of GPU hours takes for granted; "" where it does not say."""
    said = getattr(task, "cost_assumption", None)
    return "" if said is None else str(said(settings.client.local_steps))


def batch_megabytes(task: Task) -> float | None:
    """Ask the task what its largest batch keeps for the gradient; None where it does not say."""
    estimate = getattr(task, "batch_megabytes", None)
    megabytes = None if estimate is None else estimate()
    return None if megabytes is None else float(megabytes)


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
            f"trained       {facts['simulated_cohort']:,} of {_data_users(facts)} a round",
            f"model         {facts['parameters']:,} parameters",
            f"memory        buffers of a worker {facts['worker_megabytes']:,.1f} MB, "
            f"{_activations(facts)}",
            f"engine        {facts['engine']} on {facts['device']}",
            *_cost_lines(facts),
            facts["statement"],
        ]
    )


def _data_users(facts: dict[str, Any]) -> str:
    if facts["users"] is None:
        return "an unknown number of data users (no --data-root)"
    return f"{facts['users']:,} data users"


def _activations(facts: dict[str, Any]) -> str:
    if facts["batch_megabytes"] is None:
        return "without the activations of a batch, which this task does not estimate"
    return f"activations of a user's largest batch about {_rounded(facts['batch_megabytes'])} MB"


def _cost_lines(facts: dict[str, Any]) -> list[str]:
    if facts["gpu_hours"] is None:
        return []
    assumed = f"; taken: {facts['gpu_hours_assumption']}" if facts["gpu_hours_assumption"] else ""
    return [
        f"cost          about {_rounded(facts['gpu_hours'])} A100 hours: an estimate from the "
        f"model's arithmetic at the speed of the paper's own runs{assumed}"
    ]


def _rounded(value: float) -> str:
    """Write three digits, without an exponent where the number is large."""
    return f"{float(f'{value:.3g}'):,.0f}" if value >= 100 else f"{value:.3g}"
