"""Write the run directory of a strategy that trains in somebody's Flower app, report included.

`strategies` may not import this floor, so it finds this class through the package's entry point
"fedopt.run_directory".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedopt import run_directory
from fedopt.config import Settings, build_settings, choices
from fedopt.doctor import commit, versions
from fedopt.run_log import RunLog
from privacy.plan import PrivacyPlan

PLAN_FIELDS = (
    "population",
    "cohort",
    "rounds",
    "noise_multiplier",
    "delta",
    "clip_norm",
    "clipping",
    "sampling",
    "cohort_cap",
)


class PlugInDirectory:
    """Keep settings, provenance, rounds, model and report of a plug-in training.

    layers: name and number of elements of each trained array. identity: hash of strategy, plan
    and model. clipping and noise of nodes are told round by round.
    """

    def __init__(
        self,
        folder: Path,
        plan: PrivacyPlan,
        strategy: str,
        hyperparameters: Mapping[str, Any],
        seed: int | None,
        layers: list[tuple[str, int]],
        identity: str,
    ) -> None:
        self.folder = folder
        self.log = RunLog(folder / run_directory.ROUNDS)
        self.metric = "loss"
        folder.mkdir(parents=True, exist_ok=True)
        if run_directory.is_run(folder):
            facts = run_directory.read_provenance(folder)
            self._note(times_resumed=facts["times_resumed"] + 1)
            return
        run_directory.write_config(folder, plug_in_settings(plan, strategy, hyperparameters, seed))
        run_directory.write_provenance(folder, self._provenance(plan, identity, layers))

    def _provenance(
        self, plan: PrivacyPlan, identity: str, layers: list[tuple[str, int]]
    ) -> dict[str, Any]:
        return {
            "schema_version": 1,
            "run_id": identity[:16],
            "settings_hash": identity,
            "mode": "plug-in",
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "ended": None,
            "times_resumed": 0,
            "commit": commit(),
            "versions": versions(),
            "data_users": plan.population,
            "metric": "loss",
            "layers": [list(layer) for layer in layers],
            "data": {},
        }

    def _note(self, **facts: Any) -> None:
        known = run_directory.read_provenance(self.folder)
        run_directory.write_provenance(self.folder, known | facts)

    def resume(self, finished: int) -> None:
        """Drop rows of rounds after the checkpoint."""
        self.log.keep_until(finished)

    def round(self, number: int, record: Any, metrics: Mapping[str, Any]) -> None:
        """Append a round that is visible; metrics come from the app's own evaluation."""
        if any(row["round"] == number for row in self.log.rows()):
            return
        row: dict[str, Any] = {"round": number, "cohort": 0, "replies": 0, "epsilon": 0.0}
        if record is not None:
            row |= dataclasses.asdict(record)
        scalars = {key: value for key, value in metrics.items() if isinstance(value, int | float)}
        if scalars and self.metric not in scalars:
            self.metric = next(iter(scalars))
            self._note(metric=self.metric)
        self.log.append(row | scalars)

    def nodes(self, facts: Mapping[str, int]) -> None:
        """Note who clipped and who added noise, for the report."""
        self._note(nodes=dict(facts))

    def close(self, weights: Mapping[str, Any]) -> None:
        """Keep the model as released and write the report."""
        from fedopt.report import write_report

        run_directory.write_model(self.folder, weights)
        digest = run_directory.file_digest(self.folder / run_directory.MODEL)
        self._note(ended=datetime.now(UTC).isoformat(timespec="seconds"), model_sha256=digest)
        write_report(self.folder)


def plug_in_settings(
    plan: PrivacyPlan, strategy: str, hyperparameters: Mapping[str, Any], seed: int | None
) -> Settings:
    """Write a plan and an optimizer down as the settings of a run."""
    plain = {
        key: value
        for key, value in hyperparameters.items()
        if isinstance(value, int | float | str) and key != "lr"
    }
    return build_settings(
        {
            "privacy": {name: getattr(plan, name) for name in PLAN_FIELDS}
            | {
                "noise_placement": plan.noise_placement,
                "simulated_cohort": plan.cohort,
                "randomness": "secure" if seed is None else "reproducible",
            },
            "server": {
                "strategy": strategy if strategy in choices("strategy") else "own",
                "server_lr": hyperparameters.get("lr"),
                "hyperparameters": plain,
            },
            "task": {"task": "plug-in"},
            "engine": {"engine": "flower", "device": "cpu"},
            "run": {"seed": seed or 0},
        }
    )
