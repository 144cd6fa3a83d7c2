"""Write what a central training leaves: state, weights and row at each report, and the last one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedopt import run_directory
from fedopt.central_settings import training_hash, used_tables
from fedopt.central_state import TrainingState, keep_state, newest_state, remove_states, states_in
from fedopt.run_log import RunLog
from privacy.errors import SettingsError

if TYPE_CHECKING:
    import torch

    from fedopt.config import Settings

SCHEMA_VERSION = 1
NO_GUARANTEE = (
    "No privacy guarantee: the model was trained on all data in one place, nothing was clipped, "
    "and no noise was added."
)

Row = dict[str, Any]


class CentralReports:
    """Hold what a training reported so far, and write it to the run directory.

    shown: is given each row of steps.jsonl when it is on the disk, and with it the state to go on
    from, where the task keeps one. The report counts as times_resumed those that came to a report.
    """

    def __init__(
        self,
        settings: Settings,
        folder: Path,
        task: Any,
        model: torch.nn.Module,
        shown: Callable[[Row], None],
    ) -> None:
        self._settings, self._folder, self._task = settings, folder, task
        self._model, self._shown = model, shown
        self._log = RunLog(folder / run_directory.STEPS, "step")
        self._rows: list[Row] = []
        self._state: TrainingState | None = None
        self._written = False
        self._facts: dict[str, Any] = {
            "settings_hash": training_hash(settings, task.user_ids()),
            "started": _now(),
            "times_resumed": 0,
        }

    def begin(self, *, keeps_state: bool) -> None:
        """Make the folder a run; keeps_state: that can be resumed, also before its first report."""
        self._write_settings()
        if keeps_state:
            states_in(self._folder).folder.mkdir()

    def interrupted(self) -> TrainingState | None:
        """Find the state to go on from, without a change to any file; None before a first report.

        Raises: CheckpointError, SettingsError where it is missing, damaged or another training's.
        """
        found, rows = newest_state(self._folder, self._facts["settings_hash"]), self._log.rows()
        if found is None:
            self._refuse_rows_without_state(rows)
            return None
        state, facts = found
        # The state of a report is there before its row.
        self._rows = [*(row for row in rows if row["step"] < state.step), facts["row"]]
        if len(self._rows) != facts["reports"]:
            raise SettingsError(
                f"{run_directory.STEPS} must hold the {facts['reports'] - 1} reports before step "
                f"{state.step}, got {len(self._rows) - 1}; the file was changed or damaged"
            )
        self._facts["started"] = facts["started"]
        self._facts["times_resumed"] = facts["times_resumed"] + 1
        return state

    def _refuse_rows_without_state(self, rows: list[Row]) -> None:
        if rows:
            raise SettingsError(
                f"resume needs the state of a report in {run_directory.CHECKPOINTS}, got none in "
                f"{str(self._folder)!r}, whose training is at step {rows[-1]['step']}; start anew "
                f"in another --output, with --init-from its {run_directory.MODEL}"
            )

    def keep(self, state: TrainingState) -> None:
        """Take the state that belongs to the next report."""
        self._state = state

    def progress(self, step: int, loss: float, metrics: Mapping[str, float]) -> None:
        """Write a report: first the state to go on from, then the weights, then the row."""
        self._write_settings()
        self._rows.append(_row(step, loss, metrics))
        if self._state is not None:
            facts = {**self._facts, "row": self._rows[-1], "reports": len(self._rows)}
            keep_state(self._folder, self._state, facts)
            self._state = None
        self._write_model()
        self._log.append(self._rows[-1])
        self._shown(self._rows[-1])

    def _write_settings(self) -> None:
        """Write the settings once, and drop rows after the state that a training goes on from.

        A training that is resumed waits with it for its first report: what is refused before has
        changed no file.
        """
        if not self._written:
            config = self._folder / run_directory.CONFIG
            run_directory.write_tables(config, used_tables(self._settings))
            self._log.replace(self._rows)
        self._written = True

    def _write_model(self) -> None:
        from fedopt.weights import signature_of, weights_of_model

        weights = {name: each.cpu() for name, each in weights_of_model(self._model).items()}
        run_directory.write_model(self._folder, weights, signature_of(self._task))

    def close(self, tested: Mapping[str, float]) -> Row:
        """Write model and report, and remove the states; returns the report."""
        self._write_settings()
        self._write_model()
        report = self._report(tested)
        text = json.dumps(report, indent=2) + "\n"
        run_directory.write_text(self._folder / run_directory.CENTRAL_REPORT, text)
        remove_states(self._folder)  # last: until there is a report, the training can go on
        return report

    def _report(self, tested: Mapping[str, float]) -> Row:
        from fedopt.doctor import commit, versions

        metric = getattr(self._task, "metric", "loss")
        last = self._rows[-1] if self._rows else {}
        return {
            "schema_version": SCHEMA_VERSION,
            "statement": NO_GUARANTEE,
            "strategy": "central",
            "steps": last.get("step", 0),
            "metric": metric,
            "development": last.get("dev_loss" if metric == "loss" else metric),
            "test": tested.get(metric),
            "test_metrics": dict(tested),
            "history": list(self._rows),
            "data": dict(getattr(self._task, "describe", dict)()),
            "started": self._facts["started"],
            "ended": _now(),
            "times_resumed": self._facts["times_resumed"],
            "seed": self._settings.run.seed,
            "commit": commit(),
            "versions": versions(),
            "model_sha256": run_directory.file_digest(self._folder / run_directory.MODEL),
        }


def _row(step: int, loss: float, metrics: Mapping[str, float]) -> Row:
    measured = {f"dev_{name}" if name == "loss" else name: metrics[name] for name in metrics}
    return {"step": step, "train_loss": loss if math.isfinite(loss) else None, **measured}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
