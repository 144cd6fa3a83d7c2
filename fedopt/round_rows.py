"""Evaluate a round that is visible and turn it into a row of rounds.jsonl."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from fedopt.weights import load_arrays

if TYPE_CHECKING:
    import torch
    from flwr.app import ArrayRecord

    from clients.task import Task
    from fedopt.run import Run

Row = dict[str, Any]


def after_round(run: Run, number: int, arrays: ArrayRecord) -> None:
    """Evaluate and log a round that is visible; on resume, log a round whose line was lost."""
    from clients.arrays import weights_of

    if not run.history:
        run.history = run.log.keep_until(number)
    load_arrays(run.model, weights_of(arrays))
    if run.history and run.history[-1]["round"] >= number:
        return
    row = round_row(run, number)
    run.log.append(row)
    run.history.append(row)
    for callback in run.callbacks:
        callback(row)


def round_row(run: Run, number: int) -> Row:
    """Build a round's row: what was released, and what an evaluation measured."""
    record = run.latest
    row: Row = {"round": number}
    if record is not None and number:
        row |= asdict(record)
    else:
        row |= {"cohort": 0, "replies": 0, "epsilon": 0.0 if run.plan.noise_multiplier else None}
    if number % run.settings.run.eval_every == 0 or number == run.plan.rounds:
        started = time.perf_counter()
        row |= evaluate(run.task, run.model, "dev", run.settings.engine.device)
        if number == run.plan.rounds and "test" in getattr(run.task, "splits", ()):
            tested = evaluate(run.task, run.model, "test", run.settings.engine.device)
            row |= {f"test_{name.removeprefix('test_')}": value for name, value in tested.items()}
        phases = dict(row.get("seconds_by_phase", {}))
        row["seconds_by_phase"] = phases | {"evaluation": time.perf_counter() - started}
    return row


def evaluate(task: Task, model: torch.nn.Module, split: str, device: str = "cpu") -> Row:
    """Measure the model on a split; "loss" becomes "dev_loss" beside the training loss."""
    import torch

    model.to(device).eval()
    with torch.inference_mode():
        measured = dict(task.evaluate(model, split))
    model.to("cpu")
    loss = measured.pop("loss", None)
    return measured | ({} if loss is None else {f"{split}_loss": loss})


def announcement(run: Run) -> Row:
    """Say what is about to run, for progress displays."""
    from clients.local_training import count_trainable

    engine, privacy = run.settings.engine, run.settings.privacy
    return {
        "strategy": run.settings.server.strategy,
        "engine": engine.engine,
        "workers": engine.workers if engine.engine == "ray" else 1,
        "device": engine.device,
        "population": run.plan.population,
        "cohort": run.plan.cohort,
        "noise_multiplier": run.plan.noise_multiplier,
        "epsilon": privacy.epsilon,
        "users": run.plan.simulation.users,
        "simulated_cohort": run.plan.simulation.cohort,
        "users_at_once": run.settings.client.users_at_once,
        "note": run.note,
        "parameters": count_trainable(run.model),
        "metric": getattr(run.task, "metric", "loss"),
    }
