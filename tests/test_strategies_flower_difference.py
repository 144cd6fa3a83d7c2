"""Flower 1.41's own optimizers beside ours on the same updates: what agrees, what differs, why.

| Flower class | against the paper (Reddi et al. 2021, Algorithm 2)                     |
|--------------|------------------------------------------------------------------------|
| FedAvg       | the same                                                               |
| FedAvgM      | the same                                                               |
| FedAdagrad   | v starts at 0 instead of tau^2                                         |
| FedYogi      | v starts at 0 instead of tau^2                                         |
| FedAdam      | v starts at 0; a bias correction, which the paper does not have, with  |
|              | exponent round + 1, so it is not Kingma and Ba's Adam either; a        |
|              | float32 model comes back as float64                                    |
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from strategies.optimizers import build_optimizer

flower = pytest.importorskip("flwr.serverapp.strategy")
app = pytest.importorskip("flwr.app")

ROUNDS = 5
SETTINGS = {"eta": 0.1, "beta_1": 0.9, "beta_2": 0.99, "tau": 1e-3}
OURS = {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "tau": 1e-3}
START = {"weight": (3, 4), "bias": (3,)}


@pytest.fixture(autouse=True)
def _inside_a_run(monkeypatch):
    """Let messages be built outside a Flower run."""
    from flwr.supercore.task_identity import TaskIdentity

    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def record(arrays):
    return app.ArrayRecord({name: app.Array(value) for name, value in arrays.items()})


def reply(arrays, examples):
    request = app.Message(app.RecordDict(), dst_node_id=7, message_type="train")
    metrics = app.MetricRecord({"num-examples": examples})
    return app.Message(
        app.RecordDict({"arrays": record(arrays), "metrics": metrics}), reply_to=request
    )


def updates(dtype=np.float64):
    """Draw the start, and two clients' updates (3 examples and 1) for every round."""
    random = np.random.default_rng(0)
    start = {name: random.normal(size=shape).astype(dtype) for name, shape in START.items()}
    drawn = [
        [
            {name: random.normal(size=shape).astype(dtype) for name, shape in START.items()}
            for _ in range(2)
        ]
        for _ in range(ROUNDS)
    ]
    return start, drawn


def by_flower(strategy, dtype=np.float64, rounds=ROUNDS):
    """Return Flower's model after each round."""
    model, drawn = updates(dtype)
    history = []
    for number, pair in enumerate(drawn[:rounds], start=1):
        if isinstance(strategy, flower.FedAvgM):
            strategy.current_arrays = strategy.current_arrays or record(model)
        else:
            strategy.current_arrays = model
        replies = [
            reply({name: model[name] + update[name] for name in model}, examples)
            for update, examples in zip(pair, (3, 1), strict=True)
        ]
        arrays, _ = strategy.aggregate_train(number, replies)
        model = {name: array.numpy() for name, array in arrays.items()}
        history.append(model)
    return history


def by_us(name, rate_factor=lambda number: 1.0, **values):
    """Return our model after each round, on the same weighted mean updates."""
    start, drawn = updates()
    params = [(key, torch.tensor(value)) for key, value in start.items()]
    optimizer = build_optimizer(name, params, **values)
    history = []
    for number, (first, second) in enumerate(drawn, start=1):
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * rate_factor(number)
        for key, param in params:
            param.grad = torch.tensor(-(3 * first[key] + second[key]) / 4)
        optimizer.step()
        history.append({key: param.numpy().copy() for key, param in params})
    return history


def distance(one, two):
    return max(
        float(np.abs(a[name] - b[name]).max()) for a, b in zip(one, two, strict=True) for name in a
    )


def test_fedavg_agrees():
    assert distance(by_flower(flower.FedAvg()), by_us("fedavg", lr=1.0)) < 1e-12


def test_fedavgm_agrees():
    theirs = by_flower(flower.FedAvgM(server_learning_rate=0.3, server_momentum=0.9))
    assert distance(theirs, by_us("fedavgm", lr=0.3, momentum=0.9)) < 1e-12


def test_fedadagrad_differs_by_the_start_of_v_only():
    theirs = by_flower(flower.FedAdagrad(eta=0.1, tau=0.1))
    assert distance(theirs, by_us("fedadagrad", lr=0.1, tau=0.1, v_init=0.0)) < 1e-12
    assert distance(theirs, by_us("fedadagrad", lr=0.1, tau=0.1)) > 1e-3


def test_fedyogi_differs_by_the_start_of_v_only():
    theirs = by_flower(flower.FedYogi(**SETTINGS))
    assert distance(theirs, by_us("fedyogi", **OURS, v_init=0.0)) < 1e-12
    assert distance(theirs, by_us("fedyogi", **OURS)) > 1e-3


def shifted_correction(number):
    """Return Flower's factor: Adam's bias correction of the round after the present one."""
    return math.sqrt(1 - 0.99 ** (number + 1)) / (1 - 0.9 ** (number + 1))


def test_fedadam_differs_by_a_bias_correction_of_the_wrong_round_and_the_start_of_v():
    theirs = by_flower(flower.FedAdam(**SETTINGS))
    explained = by_us("fedadam", shifted_correction, **OURS, v_init=0.0)
    assert distance(theirs, explained) < 1e-12
    assert shifted_correction(1) == pytest.approx(0.7424, abs=1e-4)


def test_fedadam_is_neither_the_papers_nor_kingma_and_bas():
    theirs = by_flower(flower.FedAdam(**SETTINGS))
    assert distance(theirs, by_us("fedadam", **OURS)) > 0.01
    assert distance(theirs, by_us("fedadam", **OURS, v_init=0.0)) > 0.01
    kingma_and_ba = by_us("adam", lr=0.1, betas=(0.9, 0.99), eps=1e-3)
    assert distance(theirs, kingma_and_ba) > 0.01


def test_fedadam_turns_a_float32_model_into_float64_and_ours_does_not():
    theirs = by_flower(flower.FedAdam(**SETTINGS), dtype=np.float32, rounds=1)
    assert theirs[0]["weight"].dtype == np.float64
    for other in (flower.FedYogi(**SETTINGS), flower.FedAdagrad()):
        assert by_flower(other, dtype=np.float32, rounds=1)[0]["weight"].dtype == np.float32
    param = torch.ones(3, dtype=torch.float32)
    param.grad = torch.ones(3)
    build_optimizer("fedadam", [param], lr=0.1).step()
    assert param.dtype == torch.float32
