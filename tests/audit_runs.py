"""Start small runs with canary users, as they are and with noise of a wrong size."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from engine_runs import engine_settings, run

from clients import worker
from fedopt.audit_result import audit_of_run
from fedopt.config import Settings
from privacy.noise import add_noise
from strategies import release

USERS = 4
ROUNDS = 2
STRENGTH = 3.0
"""mu of all rounds together, where everyone takes part in each."""


def audit_settings(
    canaries: int = 200, seed: int = 1, size: int = 20_000, **changes: Any
) -> Settings:
    """Build a run in which everyone is sampled and the claim is what is run."""
    everyone = USERS + canaries
    privacy = {
        "population": everyone,
        "cohort": everyone,
        "simulated_cohort": everyone,
        "sampling": "everyone",
        "rounds": ROUNDS,
        "noise_multiplier": math.sqrt(ROUNDS) / STRENGTH,
        "audit": canaries,
        **changes,
    }
    flat = {f"privacy.{key}": value for key, value in privacy.items()}
    server = {"server.strategy": "fedavg", "server.server_lr": 1.0, "run.seed": seed}
    return engine_settings(flat | server, users=USERS, size=size)


def audited(folder: Path, settings: Settings, **more: Any) -> dict[str, Any]:
    """Run and audit."""
    run(settings, folder, **more)
    found = audit_of_run(folder)
    assert found is not None
    return found


def with_noise(factor: float) -> Any:
    """Let clients and server add noise of a wrong size, while the ledger charges the right one."""

    def wrong(total: torch.Tensor, source: Any, deviation: float, spacing: float) -> None:
        add_noise(total, source, deviation * factor, spacing)

    return mock.patch.multiple(worker, add_noise=wrong), mock.patch.object(
        release, "add_noise", wrong
    )
