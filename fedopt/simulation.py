"""Build strategy, grid and workers from settings and run them, up to the report."""

from __future__ import annotations

import contextlib
import functools
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedopt import run_directory
from fedopt.audit_canaries import build_with_canaries, with_canaries
from fedopt.config import (
    Settings,
    build_settings,
    changed_settings,
    refuse_changes,
    settings_hash,
    users_hash,
)
from fedopt.machine import limited_memory, one_thread
from fedopt.planning import (
    audit_problems,
    build_plan,
    memory_problems,
    resolve,
    settings_problems,
    task_options,
)
from fedopt.round_rows import after_round, announcement
from fedopt.run import Callback, Result, Run
from fedopt.run_log import RunLog
from fedopt.users_at_once import with_users_at_once
from fedopt.weights import initial_model, signature_of, weights_of_model
from privacy.errors import BudgetExhausted, SettingsError
from privacy.seeds import Streams

if TYPE_CHECKING:
    from flwr.app import ArrayRecord
    from flwr.serverapp import Grid

    from clients.task import Task
    from fedopt.local_grid import WorkerGrid


def simulate(
    settings: Settings | Mapping[str, Any],
    *,
    task: Task | None = None,
    callbacks: Sequence[Callback] = (),
    output: str | Path | None = None,
    resume: bool = False,
    verbose: bool = False,
    on_start: Callback | None = None,
    grid: Grid | None = None,
    report: bool = True,
) -> Result:
    """Run a whole training and write its directory.

    settings: Settings or tables like {"privacy": {"epsilon": 4}, "run": {"seed": 2}}.
    task: a task object in place of the one that the settings name.
    callbacks: called with each row of rounds.jsonl as it is written.
    on_start: called once with what is about to run, before the engine starts.
    grid: Flower's own grid, where Flower runs the workers (see experiments/flower_app).
    output: run directory; default runs/<time>-<strategy>. resume: go on with an interrupted run.
    report: False leaves out the privacy report, which takes longer than a very small run; the
    result's is empty then, and `fedopt report` writes it later.

    Raises: SettingsError, BudgetExhausted, WorkersLost; the directory then holds what was
    released so far, and is not there where nothing was.
    Guarantee: what is sampled, clipped and noised is what the ledger accounts.
    Not covered: rows carry losses and evaluation metrics, which are not private.
    """
    checked = settings if isinstance(settings, Settings) else build_settings(dict(settings))
    folder = Path(output) if output is not None else default_output(checked)
    problems = settings_problems(checked) + output_problems(folder, resume)
    if checked.server.strategy == "central":
        problems.append("strategy central has no users to simulate; call fedopt.central.train")
    if checked.privacy.audit and grid is not None:
        problems.append("audit needs fedopt's own workers, got Flower's; use engine local or ray")
    if problems:
        raise SettingsError(problems)
    build_task = _task_builder(checked, task)
    built = build_task()
    users = list(built.user_ids())
    effective = resolve(checked, len(users))
    plan = build_plan(effective, len(users))
    with one_thread():
        effective, note = with_users_at_once(effective, plan, built, folder if resume else None)
    digest = settings_hash(effective, users_hash(users))
    seed = Streams(effective.run.seed, digest).torch_seed("model", 0)
    model = initial_model(built.model, seed, effective.task.init_from, signature_of(built))
    if problems := memory_problems(effective, model) + audit_problems(effective, model):
        raise SettingsError(problems)
    log = RunLog(folder / run_directory.ROUNDS)
    with run_directory.opened(folder), one_thread():
        resumed = resume and run_directory.is_run(folder)
        run_id = (_same_run if resumed else _begin)(folder, effective, digest)
        return _run(
            Run(
                effective,
                plan,
                built,
                build_task,
                folder,
                run_id,
                digest,
                callbacks,
                verbose,
                model,
                log,
                note=note,
            ),
            on_start,
            grid,
            report=report,
            resumed=resumed,
        )


def default_output(settings: Settings) -> Path:
    """Name a new run directory by time and strategy."""
    stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{stamp}-{settings.server.strategy}"


def output_problems(folder: Path, resume: bool) -> list[str]:
    """Refuse to write over what is there."""
    if folder.exists() and not folder.is_dir():
        return [f"output must be a directory, got the file {str(folder)!r}; choose another"]
    found = run_directory.foreign_files(folder)
    if not found or (resume and run_directory.is_run(folder)):
        return []
    if resume:
        return [
            f"resume needs the directory of a run, got {str(folder)!r} with other files "
            f"({', '.join(found[:3])}); correct --output"
        ]
    advice = "give --resume to go on with it, or choose another --output"
    if not run_directory.is_run(folder):
        advice = "choose another --output"
    return [f"output must be a new or empty directory, got {str(folder)!r}; {advice}"]


def _task_builder(settings: Settings, task: Task | None) -> Callable[[], Task]:
    from clients.task import load_task

    if task is not None:
        return lambda: task
    return functools.partial(load_task, settings.task.task, task_options(settings))


def _begin(folder: Path, settings: Settings, digest: str) -> str:
    """Write settings and provenance of a new run; returns its id."""
    repeatable = settings.privacy.randomness == "reproducible" and settings.engine.device == "cpu"
    run_id = digest[:16] if repeatable else uuid.uuid4().hex[:16]
    run_directory.write_provenance(folder, _provenance(run_id, digest))
    run_directory.write_config(folder, settings)  # last: from now on the folder is a run
    return run_id


def _same_run(folder: Path, settings: Settings, digest: str) -> str:
    """Check that settings and data users are those of the interrupted run; returns its id."""
    changes = changed_settings(run_directory.load_settings(folder), settings)
    facts = run_directory.read_provenance(folder)
    if not changes and facts["settings_hash"] != digest:
        changes = ["the data users"]
    refuse_changes(changes)
    return str(facts["run_id"])


def _note_resumed(run: Run) -> None:
    """Write that a run goes on, and with which engine; not before engine and checkpoint are up.

    A resume that is refused, say for an address where nobody answers, thus changes no file.
    """
    times = run_directory.read_provenance(run.folder)["times_resumed"]
    _note(run, {"times_resumed": times + 1})
    run_directory.write_config(run.folder, run.settings)


def _provenance(run_id: str, digest: str) -> dict[str, Any]:
    from fedopt.doctor import commit, versions

    return {
        "schema_version": 1,
        "run_id": run_id,
        "settings_hash": digest,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "ended": None,
        "times_resumed": 0,
        "commit": commit(),
        "versions": versions(),
    }


def _run(
    run: Run, on_start: Callback | None, given: Grid | None, *, report: bool, resumed: bool
) -> Result:
    _note(run, describe(run))
    # In one process the task that reads names what it finds itself.
    run.findings.logs = given is not None or run.settings.engine.engine != "local"
    if on_start is not None:
        on_start(announcement(run))
    engine = run.settings.engine
    own_memory = engine.worker_megabytes or 0.0 if engine.engine == "local" else 0.0
    with ThreadPoolExecutor(1) as beside:
        if report and engine.engine == "ray":
            beside.submit(load_report_libraries)
        try:
            with (
                contextlib.nullcontext(given) if given else open_grid(run, beside) as grid,
                limited_memory(own_memory),
            ):
                _train(run, grid, resumed)
        except BudgetExhausted:
            _close(run, report)
            raise
        return Result(run.model, run.history, _close(run, report), run.folder)


def load_report_libraries() -> None:
    """Import what the report needs; in a thread of its own, so that no start waits for it."""
    from fedopt.report import load_libraries

    load_libraries()


def _close(run: Run, report: bool) -> dict[str, Any]:
    """Keep the model as far as it was released, and report on it where a report is wanted."""
    from fedopt.audit_result import keep_result
    from fedopt.report import write_report

    run_directory.write_model(run.folder, weights_of_model(run.model), signature_of(run.task))
    digest = run_directory.file_digest(run.folder / run_directory.MODEL)
    ended = datetime.now(UTC).isoformat(timespec="seconds")
    _note(run, {"ended": ended, "model_sha256": digest, "data": data_at_the_end(run)})
    keep_result(run.folder)
    return write_report(run.folder) if report else {}


def _note(run: Run, facts: Mapping[str, Any]) -> None:
    known = run_directory.read_provenance(run.folder)
    run_directory.write_provenance(run.folder, known | dict(facts))


def describe(run: Run) -> dict[str, Any]:
    """Describe model and data for the report."""
    from clients.local_training import trainable

    return {
        "data_users": len(run.task.user_ids()),
        "users_hash": users_hash(run.task.user_ids()),
        "metric": getattr(run.task, "metric", "loss"),
        "layers": [[name, p.numel()] for name, p in trainable(run.model).items()],
        "data": data_so_far(run),
    }


def data_so_far(run: Run) -> dict[str, Any]:
    """Describe the data; what an interrupted run found and nobody has read again stays."""
    known: dict[str, Any] = run_directory.read_provenance(run.folder).get("data", {})
    return known | dict(getattr(run.task, "describe", dict)())


def data_at_the_end(run: Run) -> dict[str, Any]:
    """Describe the data once more, with what was found and trained on meanwhile, by anyone."""
    from strategies.round_record import added_up

    if hasattr(run.task, "findings"):
        run.findings.add(run.task.findings(), logged=False)
    found = data_so_far(run)
    if hasattr(run.task, "describe_training"):
        phases = added_up(row.get("seconds_by_phase", {}) for row in run.history)
        seconds = phases.get("data", 0.0) + phases.get("training", 0.0)
        amounts = added_up(row.get("amounts", {}) for row in run.history)
        found |= run.task.describe_training(amounts, seconds)
    return found | run.findings.counts


@contextlib.contextmanager
def open_grid(run: Run, beside: Executor) -> Iterator[WorkerGrid]:
    """Start the engine that the settings name; its workers end beside what comes afterwards.

    beside: where they end, because Ray takes a second for it.
    """
    grid = build_grid(run)
    try:
        yield grid
    finally:
        # An exception there is logged: the run itself is over and keeps its report.
        beside.submit(grid.close).add_done_callback(Future.result)


def build_grid(run: Run) -> WorkerGrid:
    """Start the engine that the settings name."""
    from fedopt.client_app import cohort_client_app

    engine, canaries = run.settings.engine, run.settings.privacy.audit
    if engine.engine == "local":
        from fedopt.local_grid import LocalGrid

        task = with_canaries(run.task, canaries)
        return LocalGrid(cohort_client_app(lambda: task, engine.device))
    import torch

    from fedopt.ray_grid import RayGrid, RaySettings

    gpus = torch.cuda.device_count() / engine.workers if engine.device == "cuda" else 0.0
    settings = RaySettings(
        engine.workers, engine.ray_address, gpus, engine.worker_megabytes or 0.0, run.verbose
    )
    build_task = functools.partial(build_with_canaries, run.build_task, canaries)
    build_app = functools.partial(cohort_client_app, build_task, engine.device)
    return RayGrid(build_app, settings)


def _train(run: Run, grid: Grid, resumed: bool) -> None:
    from clients.arrays import weights_record
    from clients.local_training import trainable
    from fedopt.run_strategy import build_strategy

    strategy = build_strategy(run)
    arrays = {name: p.detach().numpy() for name, p in trainable(run.model).items()}

    def visible(number: int, released: ArrayRecord) -> None:
        if resumed and not run.history:
            _note_resumed(run)
        after_round(run, number, released)

    strategy.start(
        grid,
        weights_record(arrays),
        num_rounds=run.plan.rounds,
        timeout=run.settings.engine.timeout,
        evaluate_fn=visible,
    )
