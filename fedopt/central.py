"""Train in one place, without users, federation or privacy: `fedopt run --strategy central`."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from fedopt import run_directory
from fedopt.config import Settings
from fedopt.machine import one_thread
from fedopt.run_log import RunLog
from privacy.errors import SettingsError

if TYPE_CHECKING:
    import torch

REPORT = "central-report.json"
STEPS = "steps.jsonl"
SCHEMA_VERSION = 1
NO_GUARANTEE = (
    "No privacy guarantee: the model was trained on all data in one place, nothing was clipped, "
    "and no noise was added."
)
USED = {
    "privacy": {"rounds"},
    "server": {"strategy", "server_lr", "hyperparameters"},
    "client": set[str](),
    "engine": {"device"},
}
"""Settings that mean something here; those of the tables task and run all do."""

Row = dict[str, Any]
Progress = Callable[[int, float, Mapping[str, float]], None]
"""Is told: steps done, mean training loss since it was last told, metrics on development."""


@dataclass(frozen=True)
class CentralTraining:
    """Say how long and how a task shall train its model in one place.

    steps, report_every (steps between reports), learning_rate: None where the task chooses.
    options: of the task's own optimizer.
    """

    seed: int
    steps: int | None = None
    report_every: int | None = None
    learning_rate: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class TrainsCentrally(Protocol):
    """Offer central training; a method that a task may have beside those of clients.task.Task."""

    def train_centrally(
        self, model: torch.nn.Module, wanted: CentralTraining, progress: Progress
    ) -> None:
        """Train the model in place on all users' data together.

        Raises: SettingsError where an option is unknown or out of range.
        """
        ...


def unused_settings(given: Mapping[str, Any]) -> list[str]:
    """Refuse settings that mean nothing in central training, all in one sentence.

    given: tables of what somebody wrote on the command line.
    """
    named = [
        f"{section}.{key}" if key == "hyperparameters" else key.replace("_", "-")
        for section, table in given.items()
        if section in USED and isinstance(table, dict)
        for key in table
        if key not in USED[section]
    ]
    if not named:
        return []
    return [
        f"strategy central trains without users and without privacy, got {', '.join(named)}; "
        "leave them out (rounds means optimizer steps there)"
    ]


def train(
    settings: Settings,
    folder: Path,
    *,
    shown: Callable[[Row], None] = lambda row: None,
) -> Row:
    """Train a task's model in one place, and write its directory; returns the report.

    The directory holds config.toml, steps.jsonl, central-report.json and model.safetensors, which
    --init-from of a private run takes and which is written at every report. Where rounds is set,
    it is the number of optimizer steps, and eval_every the steps between reports. shown: is given
    each row of steps.jsonl.
    Raises: SettingsError where the task has no central training, or its settings are wrong.
    Guarantee: none.
    """
    from clients.task import load_task
    from fedopt.planning import device_of, task_options
    from fedopt.weights import initial_model, signature_of

    options = {**_central_options(settings), **task_options(settings)}
    task = load_task(settings.task.task, options)
    if not isinstance(task, TrainsCentrally):
        raise SettingsError(
            f"strategy central needs a task with a method train_centrally, got "
            f"{settings.task.task}; write one (see fedopt/central.py) or choose another strategy"
        )
    seed, first = settings.run.seed, settings.task.init_from
    model = initial_model(task.model, seed, first, signature_of(task))
    rows: list[Row] = []
    log = RunLog(folder / STEPS)
    with run_directory.opened(folder), one_thread():

        def progress(step: int, loss: float, metrics: Mapping[str, float]) -> None:
            # First: no row without its weights.
            run_directory.write_model(folder, _weights(model), signature_of(task))
            rows.append(_row(step, loss, metrics))
            log.append(rows[-1])
            shown(rows[-1])

        started = datetime.now(UTC).isoformat(timespec="seconds")
        task.train_centrally(model.to(device_of(settings)), _wanted(settings), progress)
        tested = _tested(task, model)
        return _close(settings, folder, task, model.to("cpu"), rows, tested, started)


def _central_options(settings: Settings) -> dict[str, Any]:
    """Ask the task's module for options that its recipe brings; nothing where it has none."""
    try:
        module = importlib.import_module(settings.task.task.partition(":")[0])
    except (ImportError, ValueError):
        return {}  # said in full where the task is built
    offered = getattr(module, "central_options", None)
    return {} if offered is None else dict(offered(settings.server.hyperparameters))


def _weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    from fedopt.weights import weights_of_model

    return {name: weights.cpu() for name, weights in weights_of_model(model).items()}


def _wanted(settings: Settings) -> CentralTraining:
    """Pass on what was set; the defaults of a federated run say nothing of central steps."""
    privacy, run = settings.privacy, settings.run
    return CentralTraining(
        seed=run.seed,
        steps=privacy.rounds if "rounds" in privacy.model_fields_set else None,
        report_every=run.eval_every if "eval_every" in run.model_fields_set else None,
        learning_rate=settings.server.server_lr,
        options=settings.server.hyperparameters,
    )


def _row(step: int, loss: float, metrics: Mapping[str, float]) -> Row:
    measured = {f"dev_{name}" if name == "loss" else name: metrics[name] for name in metrics}
    return {"step": step, "train_loss": loss if math.isfinite(loss) else None, **measured}


def _tested(task: Any, model: torch.nn.Module) -> dict[str, float]:
    """Measure the test split once, in the end; nothing where the task has none."""
    import torch

    if "test" not in getattr(task, "splits", ()):
        return {}
    with torch.inference_mode():
        return dict(task.evaluate(model.eval(), "test"))


def _close(
    settings: Settings,
    folder: Path,
    task: Any,
    model: torch.nn.Module,
    rows: Sequence[Row],
    tested: Mapping[str, float],
    started: str,
) -> Row:
    """Write the model, the settings that were used and the report."""
    from fedopt.doctor import commit, versions
    from fedopt.weights import signature_of

    run_directory.write_model(folder, _weights(model), signature_of(task))
    metric = getattr(task, "metric", "loss")
    last = rows[-1] if rows else {}
    development = last.get("dev_loss" if metric == "loss" else metric)
    report = {
        "schema_version": SCHEMA_VERSION,
        "statement": NO_GUARANTEE,
        "strategy": "central",
        "steps": last.get("step", 0),
        "metric": metric,
        "development": development,
        "test": tested.get(metric),
        "test_metrics": dict(tested),
        "history": list(rows),
        "data": dict(getattr(task, "describe", dict)()),
        "started": started,
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": settings.run.seed,
        "commit": commit(),
        "versions": versions(),
        "model_sha256": run_directory.file_digest(folder / run_directory.MODEL),
    }
    run_directory.write_text(folder / REPORT, json.dumps(report, indent=2) + "\n")
    _write_config(settings, folder)  # last: from now on the folder is a run
    return report


def _write_config(settings: Settings, folder: Path) -> None:
    """Write the settings that meant something, so that nobody reads a plan into the others."""
    tables = settings.model_dump(mode="json", exclude_none=True)
    kept = {
        section: {
            key: value for key, value in table.items() if key in USED.get(section, set(table))
        }
        for section, table in tables.items()
    }
    run_directory.write_tables(
        folder / run_directory.CONFIG, {section: table for section, table in kept.items() if table}
    )
