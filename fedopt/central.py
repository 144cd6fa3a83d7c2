"""Train in one place, without users, federation or privacy: `fedopt run --strategy central`."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from fedopt import run_directory
from fedopt.central_reports import CentralReports, Row
from fedopt.central_settings import refuse_to_go_on
from fedopt.central_state import TrainingState
from fedopt.config import Settings
from fedopt.machine import one_thread
from privacy.errors import SettingsError

if TYPE_CHECKING:
    import torch

Progress = Callable[[int, float, Mapping[str, float]], None]
"""Is told: steps done, mean training loss since it was last told, metrics on development."""


@dataclass(frozen=True)
class CentralTraining:
    """Say how long and how a task shall train its model in one place.

    steps, report_every (steps between reports), learning_rate: None where the task chooses.
    options: of the task's own optimizer. go_on_from: where an interrupted training stood at a
    report; None: from the start. keep: see TrainsCentrally; forgets where nobody wants states.
    """

    seed: int
    steps: int | None = None
    report_every: int | None = None
    learning_rate: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    go_on_from: TrainingState | None = None
    keep: Callable[[TrainingState], None] = lambda state: None


@runtime_checkable
class TrainsCentrally(Protocol):
    """Offer central training; a method that a task may have beside those of clients.task.Task.

    A task whose attribute `resumes_centrally` is true can be interrupted. It gives `wanted.keep`
    the state of the training (central_state.state_of) before each call of `progress`. It starts
    from `wanted.go_on_from` where that is given (central_state.put_back), and then takes the steps
    that are left, if any, as the uninterrupted training would.
    """

    def train_centrally(
        self, model: torch.nn.Module, wanted: CentralTraining, progress: Progress
    ) -> None:
        """Train the model in place on all users' data together.

        Raises: SettingsError where an option is unknown or out of range.
        """
        ...


def train(
    settings: Settings,
    folder: Path,
    *,
    resume: bool = False,
    shown: Callable[[Row], None] = lambda row: None,
) -> Row:
    """Train a task's model in one place, and write its directory; returns the report.

    The directory holds config.toml, steps.jsonl, central-report.json and model.safetensors, which
    --init-from of a private run takes and which is written at every report; until the training has
    ended, also checkpoints/ where the task can be resumed. Where rounds is set, it is the number of
    optimizer steps, and eval_every the steps between reports. resume: go on with an interrupted
    training from its last report, bit for bit. shown: is given each row of steps.jsonl.
    Raises: SettingsError where the task has no central training, its settings are wrong, or there
    is nothing to go on from; CheckpointError where a state is damaged or another training's.
    Guarantee: none.
    """
    from fedopt.simulation import output_problems
    from fedopt.weights import initial_model, signature_of

    if problems := output_problems(folder, resume):
        raise SettingsError(problems)
    settings = _on_one_device(settings)
    resumed = resume and run_directory.is_run(folder)
    if resumed:
        refuse_to_go_on(folder, settings)
    task = _task(settings, resumed)
    seed, first = settings.run.seed, settings.task.init_from
    model = initial_model(task.model, seed, first, signature_of(task))
    with run_directory.opened(folder), one_thread():
        reports = CentralReports(settings, folder, task, model, shown)
        state = reports.interrupted() if resumed else None
        if not resumed:
            reports.begin(keeps_state=_keeps_state(task))
        wanted = _wanted(settings, state, reports.keep)
        task.train_centrally(model.to(settings.engine.device), wanted, reports.progress)
        return reports.close(_tested(task, model))


def _on_one_device(settings: Settings) -> Settings:
    """Choose the device once, so that a training that is resumed keeps it."""
    from fedopt.planning import device_of

    engine = settings.engine.model_copy(update={"device": device_of(settings)})
    return settings.model_copy(update={"engine": engine})


def _task(settings: Settings, resumed: bool) -> Any:
    """Build the task; raises SettingsError where it cannot train centrally, or not go on."""
    from clients.task import load_task
    from fedopt.planning import task_options

    options = {**_central_options(settings), **task_options(settings)}
    task = load_task(settings.task.task, options)
    if not isinstance(task, TrainsCentrally):
        raise SettingsError(
            f"strategy central needs a task with a method train_centrally, got "
            f"{settings.task.task}; write one (see fedopt/central.py) or choose another strategy"
        )
    if resumed and not _keeps_state(task):
        raise SettingsError(
            f"resume needs a task that keeps the state of its training, got {settings.task.task}; "
            f"start anew in another --output, with --init-from the {run_directory.MODEL} of its "
            "last report"
        )
    return task


def _keeps_state(task: Any) -> bool:
    return bool(getattr(task, "resumes_centrally", False))


def _central_options(settings: Settings) -> dict[str, Any]:
    """Ask the task's module for options that its recipe brings; nothing where it has none."""
    try:
        module = importlib.import_module(settings.task.task.partition(":")[0])
    except (ImportError, ValueError):
        return {}  # said in full where the task is built
    offered = getattr(module, "central_options", None)
    return {} if offered is None else dict(offered(settings.server.hyperparameters))


def _wanted(
    settings: Settings, state: TrainingState | None, keep: Callable[[TrainingState], None]
) -> CentralTraining:
    """Pass on what was set; the defaults of a federated run say nothing of central steps."""
    privacy, run = settings.privacy, settings.run
    return CentralTraining(
        seed=run.seed,
        steps=privacy.rounds if "rounds" in privacy.model_fields_set else None,
        report_every=run.eval_every if "eval_every" in run.model_fields_set else None,
        learning_rate=settings.server.server_lr,
        options=settings.server.hyperparameters,
        go_on_from=state,
        keep=keep,
    )


def _tested(task: Any, model: torch.nn.Module) -> dict[str, float]:
    """Measure the test split once, in the end; nothing where the task has none."""
    import torch

    if "test" not in getattr(task, "splits", ()):
        return {}
    with torch.inference_mode():
        return dict(task.evaluate(model.eval(), "test"))
