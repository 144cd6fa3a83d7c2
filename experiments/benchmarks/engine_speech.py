"""Time a local step of the tiny speech model through the engine beside the same step alone."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
import torch

from clients.protocol import LocalWork, MechanismSettings, Piece, StreamSettings, TrainRequest
from clients.worker import Worker
from experiments.asr.task import task
from privacy.clipping import layer_bounds
from privacy.noise import grid_spacing

STEPS, CLIENT_LR, GRADIENT_CLIP = 10, 0.5, 1.0


def beside_bare_loop(users: int, turns: int) -> dict[str, Any]:
    """Time users of the default synthetic corpus, engine and bare loop in turn.

    The engine makes the batches, trains, clips, sums and draws the noise; the bare loop has its
    batches ready and only trains, as a plain torch loop does.
    """
    torch.set_num_threads(1)
    speech = task()
    worker = Worker(speech)
    named = list(worker.trainer.model.named_parameters())
    weights = {name: parameter.detach().numpy().copy() for name, parameter in named}
    alone = speech.model().train()
    engine, bare = [], []
    for turn in range(turns + 1):
        started = time.process_time()
        worker.train(_request(weights, range(users), worker.trainer.sizes, turn))
        engine.append((time.process_time() - started) / users / STEPS)
        batches = [_batches(speech, user) for user in range(users)]
        started = time.process_time()
        for ready in batches:
            _train(speech, alone, weights, ready)
        bare.append((time.process_time() - started) / users / STEPS)
    ratios = [mine / plain for mine, plain in zip(engine[1:], bare[1:], strict=True)]
    return {
        "model": "tiny",
        "users": users,
        "steps": STEPS,
        "engine_ms_per_step": round(statistics.median(engine[1:]) * 1e3, 3),
        "bare_ms_per_step": round(statistics.median(bare[1:]) * 1e3, 3),
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
    }


def _request(weights: Any, users: range, sizes: list[int], turn: int) -> TrainRequest:
    bounds = tuple(layer_bounds("per-layer-dim", 1.0, sizes))
    mechanism = MechanismSettings("per-layer-dim", bounds, grid_spacing(1.0), 1.0, len(users))
    work = LocalWork(client_lr=CLIENT_LR, local_steps=STEPS, gradient_clip=GRADIENT_CLIP)
    piece = Piece(0, tuple(users), len(users))
    return TrainRequest(
        weights, (piece,), mechanism, StreamSettings(1, "speech", False, turn, 0), work
    )


def _batches(speech: Any, user: int) -> list[Any]:
    data, generator = speech.user_data(speech.user_ids()[user]), np.random.default_rng(user)
    found: list[Any] = []
    while len(found) < STEPS:
        found += list(data.batches(generator))
    return found[:STEPS]


def _train(speech: Any, model: torch.nn.Module, weights: Any, batches: list[Any]) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(weights[name]))
    optimizer = torch.optim.SGD(model.parameters(), lr=CLIENT_LR)
    for batch in batches:
        optimizer.zero_grad()
        speech.loss(model, batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_CLIP)
        optimizer.step()
