"""Show that a worker adds up exactly, and that a user's fault stays that user's alone."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_tasks import EngineTask

from clients.protocol import (
    LocalWork,
    MechanismSettings,
    PartialSum,
    Piece,
    StreamSettings,
    TrainRequest,
)
from clients.worker import Worker
from privacy.noise import grid_spacing

SIZES = (16, 3)
CLIP = 0.05
SPACING = grid_spacing(CLIP)


def task(folder: Path, behaviours: dict[int, str] | None = None) -> EngineTask:
    orders = {str(user): order for user, order in (behaviours or {}).items()}
    (folder / "behaviours.json").write_text(json.dumps(orders))
    return EngineTask(users=8, size=SIZES[0], zero=False, folder=str(folder), pause=0.0)


def train(
    worker: Worker, pieces: tuple[Piece, ...], *, noise: float = 0.0, seconds: float = 0.0
) -> PartialSum:
    bounds = tuple(CLIP * (size / sum(SIZES)) ** 0.5 for size in SIZES)
    return worker.train(
        TrainRequest(
            weights={"first": np.zeros(16, np.float32), "second": np.ones(3, np.float32)},
            pieces=pieces,
            mechanism=MechanismSettings("per-layer-dim", bounds, SPACING, noise, 8),
            streams=StreamSettings(1, "ab", False, 4, 0),
            work=LocalWork(client_lr=0.5, local_steps=6, user_seconds=seconds),
        )
    )


def test_the_sum_of_users_is_the_sum_of_each_alone_in_any_order(tmp_path: Path) -> None:
    worker = Worker(task(tmp_path))
    alone = [train(worker, (Piece(0, (user,), 0),)).total for user in (5, 2, 7)]
    together = train(worker, (Piece(0, (2, 5), 0), Piece(1, (7,), 0)))
    assert together.total.tobytes() == np.sum(alone, axis=0).tobytes()
    assert [outcome.user for outcome in together.outcomes] == [2, 5, 7]


def test_a_clipped_user_reaches_the_bound_and_never_passes_it(tmp_path: Path) -> None:
    partial = train(Worker(task(tmp_path)), (Piece(0, (3,), 0),))
    (outcome,) = partial.outcomes
    norm = float(np.linalg.norm(partial.total * SPACING))
    assert outcome.clipped
    assert outcome.norm > CLIP
    assert CLIP * 0.999 < norm <= CLIP
    assert partial.layer_clipped == (1, 1)


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("raise", "this user is broken"),
        ("nan", "loss is nan"),
        ("empty", "size of tensor"),
        ("exit", "SystemExit"),
        ("slow", "deadline"),
    ],
)
def test_a_broken_user_adds_zeros_and_changes_no_other_user(
    tmp_path: Path, behaviour: str, reason: str
) -> None:
    seconds = 0.5 if behaviour == "slow" else 0.0
    healthy = Worker(task(tmp_path))
    wanted = train(healthy, (Piece(0, (1, 6), 0),)).total
    broken = Worker(task(tmp_path, {4: behaviour}))
    found = train(broken, (Piece(0, (1, 4, 6), 0),), seconds=seconds)
    assert found.total.tobytes() == wanted.tobytes()
    faults = {outcome.user: outcome.fault for outcome in found.outcomes}
    assert faults[1] == faults[6] == ""
    assert reason in faults[4]


def test_a_broken_users_noise_share_is_added_all_the_same(tmp_path: Path) -> None:
    worker = Worker(task(tmp_path, {4: "raise"}))
    partial = train(worker, (Piece(2, (4,), 1),), noise=1.0)
    assert partial.noise_shares == 1
    assert np.abs(partial.total).min() > 0


def test_noise_depends_on_group_and_shares_and_not_on_who_trains(tmp_path: Path) -> None:
    worker = Worker(task(tmp_path))
    whole = train(worker, (Piece(2, (1, 4), 2),), noise=1.0).total
    cut = [
        train(worker, (piece,), noise=1.0).total
        for piece in (Piece(2, (4,), 0), Piece(2, (1,), 0), Piece(2, (), 2))
    ]
    assert whole.tobytes() == np.sum(cut, axis=0).tobytes()
    other = train(worker, (Piece(3, (1, 4), 2),), noise=1.0).total
    assert whole.tobytes() != other.tobytes()


def test_virtual_ids_train_on_the_data_of_the_user_they_stand_on(tmp_path: Path) -> None:
    worker = Worker(task(tmp_path))
    ids = (3, 3 + 8, 3 + 8 * 10**8)
    losses = [train(worker, (Piece(0, (user,), 0),)).outcomes[0].loss for user in ids]
    assert losses == pytest.approx([losses[0]] * 3, rel=0.2)
    assert len(set(losses)) == 3, "each id draws batches of its own"


def test_training_leaves_the_callers_random_numbers_alone(tmp_path: Path) -> None:
    worker = Worker(task(tmp_path))
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    train(worker, (Piece(0, (1,), 1),), noise=1.0)
    assert torch.equal(before, torch.random.get_rng_state())
