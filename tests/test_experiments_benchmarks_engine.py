"""Show that the engine benchmark compares the same work, and that its table tells the truth."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from clients.protocol import LocalWork, MechanismSettings, Piece, StreamSettings, TrainRequest
from clients.worker import Worker
from experiments.benchmarks import engine
from experiments.benchmarks.engine_costs import TrivialTask, measured
from experiments.benchmarks.engine_rounds import beside_plain, outside_training
from experiments.benchmarks.engine_work import (
    BATCH,
    CLIP_NORM,
    STEPS,
    PlainLoop,
    examples,
    parameter_count,
)
from privacy.noise import grid_spacing

FOUND: dict[str, Any] = {
    "plain_loop": {"10k": {"ratio": 0.2}, "1M": {"ratio": 0.95}},
    "workers": {"ratio": 1.9},
    "start": {"local": {"seconds_to_first_round": 0.4}, "ray_beyond_init": 2.0},
}


def test_sizes_have_the_parameters_that_their_names_say() -> None:
    assert parameter_count("10k") == 9_610
    assert parameter_count("1M") == 987_210
    assert 9e6 < parameter_count("10M") < 11e6


def test_the_plain_loop_is_federated_averaging_with_clipped_updates_and_noise() -> None:
    loop = PlainLoop("10k")
    before = [weight.clone() for weight in loop.weights]
    loop.round([3, 3, 7])
    generator = torch.Generator().manual_seed(1)
    noise = [torch.randn(weight.shape, generator=generator) for weight in before]
    wanted = PlainLoop("10k")
    total = [torch.zeros_like(weight) for weight in before]
    for user in (3, 3, 7):
        points, labels = examples("10k")
        wanted._train(user)
        update = [p.detach() - w for p, w in zip(wanted.parameters, before, strict=True)]
        norm = float(torch.sqrt(sum((u.square().sum() for u in update), torch.zeros(()))))
        assert len(points[user]) == len(labels[user]) == STEPS * BATCH
        for part, one in zip(total, update, strict=True):
            part += one * min(1.0, CLIP_NORM / norm)
    for weight, start, part, drawn in zip(loop.weights, before, total, noise, strict=True):
        step = (part + drawn * CLIP_NORM * 0.8) / 3
        torch.testing.assert_close(weight, start + step, rtol=1e-4, atol=1e-6)


def test_rounds_are_timed_beside_the_plain_loop() -> None:
    found = beside_plain("10k", 6, 2, 1)
    assert (found["users_at_once"], found["rounds"], len(found["ratios"])) == (1, 2, 2)
    assert found["fedopt_ms_per_user"]["cpu"] > 0.0
    assert found["plain_ms_per_user"]["cpu"] > 0.0
    assert set(found["share_outside_training"]) >= {"clipping", "noise", "data", "rest"}


def test_shares_outside_training_add_up_with_training_to_the_whole() -> None:
    phases = {"training": 6.0, "noise": 1.0, "data": 2.0, "exchange": 9.0}
    shares = outside_training([{"seconds": 10.0, "seconds_by_phase": phases}])
    assert shares == {"noise": 0.1, "data": 0.2, "rest": pytest.approx(0.1)}


def test_a_run_in_a_process_of_its_own_is_measured() -> None:
    found = measured({"parameters": 100, "cohort": 5, "rounds": 2, "users_at_once": 1})
    assert found["seconds_to_first_round"] > 0.0
    assert found["users_per_second"] > 0.0


def test_the_trivial_task_moves_every_weight_alike() -> None:
    worker = Worker(TrivialTask(100, 3))
    weights = {
        name: parameter.detach().numpy().copy()
        for name, parameter in worker.trainer.model.named_parameters()
    }
    mechanism = MechanismSettings("global", (1.0,) * 10, grid_spacing(1.0), 0.0, 2)
    streams = StreamSettings(1, "ab", False, 1, 0)
    pieces = (Piece(0, (0, 2), 0),)
    partial = worker.train(TrainRequest(weights, pieces, mechanism, streams, LocalWork()))
    np.testing.assert_allclose(partial.total * grid_spacing(1.0), 2 * 0.01, rtol=1e-6)


def test_the_table_names_what_was_reached_and_what_was_not() -> None:
    lines = engine.table(FOUND).splitlines()
    assert "| fedopt / plain loop, 10 k parameters | 0.2 | <= 0.25 | reached |" in lines
    assert "| fedopt / plain loop, 1 M | 0.95 | <= 0.9 | not reached |" in lines
    assert "| two workers / one, 1 M | 1.9 | >= 1.8 | reached |" in lines
    assert not any("pfl" in line for line in lines)


def test_the_guard_names_ratios_that_moved_by_more_than_a_tenth() -> None:
    after = copy.deepcopy(FOUND)
    assert engine.moved(FOUND, after) == []
    after["workers"]["ratio"] = 1.5
    after["plain_loop"]["10k"]["ratio"] = 0.15
    after["plain_loop"]["1M"]["ratio"] = 1.0
    lines = engine.moved(FOUND, after)
    assert [line.partition(":")[0] for line in lines] == [
        "fedopt / plain loop, 10 k parameters",
        "two workers / one, 1 M",
    ]
    assert "better" in lines[0]
    assert "worse" in lines[1]


def test_a_measurement_that_fails_is_told_with_its_reason() -> None:
    with pytest.raises(SystemExit, match="no such thing"):
        engine.run_json(["python3", "-c", "raise SystemExit('no such thing')"])
