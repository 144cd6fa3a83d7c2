"""Write run directories for tests of the report: real settings, ledger and log, no training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from fedopt import run_directory
from fedopt.config import Settings, build_settings, settings_hash, users_hash
from fedopt.planning import build_plan
from fedopt.run_log import RunLog
from privacy.ledger import Charge, Ledger, PlanFacts
from privacy.plan import PrivacyPlan
from privacy.seeds import Streams

USERS = [f"user-{number}" for number in range(100)]
LAYERS = [["weight", 2048], ["bias", 64]]
PRIVACY: dict[str, Any] = {
    "population": 100_000,
    "cohort": 2_000,
    "simulated_cohort": 8,
    "rounds": 5,
    "epsilon": 8.0,
    "noise_multiplier": 0.8,
    "delta": 1e-7,
    "clip_norm": 1.0,
}


def run_settings(seed: int = 1, **privacy: Any) -> Settings:
    """Give the effective settings of a run; privacy: changes of its privacy table."""
    return build_settings(
        {
            "privacy": PRIVACY | privacy,
            "task": {"task": "experiments.classification.task:task"},
            "engine": {"engine": "local", "device": "cpu"},
            "run": {"seed": seed},
        }
    )


def write_run(
    folder: Path,
    *,
    finished: int | None = None,
    metric: str = "accuracy",
    layers: list[list[Any]] | None = None,
    seed: int = 1,
    model: bool = True,
    **privacy: Any,
) -> Path:
    """Write a run directory after `finished` rounds (default: all); the report is not written."""
    settings = run_settings(seed, **privacy)
    plan = build_plan(settings, len(USERS))
    digest = settings_hash(settings, users_hash(USERS))
    folder.mkdir(parents=True)
    run_directory.write_config(folder, settings)
    rounds = plan.rounds if finished is None else finished
    _charge(folder, settings, plan, digest, rounds)
    _log(folder, metric, rounds, plan, settings.privacy.accountant)
    facts: dict[str, Any] = {
        "schema_version": 1,
        "run_id": digest[:16],
        "settings_hash": digest,
        "users_hash": users_hash(USERS),
        "started": "2026-01-01T00:00:00+00:00",
        "ended": None,
        "times_resumed": 0,
        "commit": None,
        "versions": {"python": "3.11"},
        "data_users": len(USERS),
        "metric": metric,
        "layers": LAYERS if layers is None else layers,
        "data": {},
    }
    if model:
        run_directory.write_model(folder, {"weight": torch.ones(4, 4)})
        facts["model_sha256"] = run_directory.file_digest(folder / run_directory.MODEL)
    run_directory.write_provenance(folder, facts)
    return folder


def _charge(folder: Path, settings: Settings, plan: PrivacyPlan, digest: str, rounds: int) -> None:
    streams = Streams(settings.run.seed, digest, secure=settings.privacy.randomness == "secure")
    facts = PlanFacts(plan.population, plan.delta, plan.event.adjacency)
    path = settings.privacy.ledger or folder / run_directory.LEDGER
    ledger = Ledger.open(path, run=digest[:16], plan_facts=facts)
    for number in range(1, rounds + 1):
        key = streams.key_hash(number, 0)
        charge = Charge(number, 0, key, plan.event, plan.event_as_run, plan.clip_norm)
        proof = ledger.reserve(charge)
        ledger.commit(
            proof,
            cohort_realised=7 + number % 3,
            replies=7,
            noise_std_realised=plan.noise_std_on_sum,
        )


def _log(folder: Path, metric: str, rounds: int, plan: PrivacyPlan, accountant: str) -> None:
    log = RunLog(folder / run_directory.ROUNDS)
    private = plan.noise_multiplier > 0.0
    for number in range(rounds + 1):
        row: dict[str, Any] = {"round": number, "cohort": 8, "replies": 7, metric: 0.1 * number}
        row["epsilon"] = plan.epsilon(accountant, number) if private else None
        row["layer_clipped"] = [0.5, 0.25]
        log.append(row)
