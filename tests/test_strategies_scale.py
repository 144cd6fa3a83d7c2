"""SCALE: columns of length one, momentum in the last layer only."""

from __future__ import annotations

import numpy as np
import plain_optimizers as plain
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.errors import SettingsError
from strategies.optimizers import build_optimizer


def run(weights, rounds, **values):
    params = [(name, torch.tensor(value)) for name, value in weights.items()]
    optimizer = build_optimizer("scale", params, **values)
    for gradients in rounds:
        for name, param in params:
            param.grad = torch.tensor(gradients[name])
        optimizer.step()
    return {name: param.numpy() for name, param in params}, optimizer


def test_each_output_moves_by_lr():
    weights = {"w": np.zeros((2, 2)), "b": np.zeros(2)}
    gradients = {"w": np.array([[3.0, 4.0], [0.0, 1e-5]]), "b": np.array([0.6, -0.8])}
    after, _ = run(weights, [gradients], lr=0.5, momentum=0.0)
    assert after["w"] == pytest.approx(-0.5 * np.array([[0.6, 0.8], [0.0, 1.0]]), abs=1e-12)
    assert after["b"] == pytest.approx(-0.5 * np.array([0.6, -0.8]), abs=1e-12)


def test_embeddings_are_normalised_along_their_first_dimension():
    weights = {"e": np.zeros((2, 2)), "head": np.zeros((1, 1))}
    gradients = {"e": np.array([[3.0, 0.0], [4.0, 2.0]]), "head": np.ones((1, 1))}
    after, _ = run(weights, [gradients], lr=1.0, embeddings=["e"])
    assert after["e"] == pytest.approx(-np.array([[0.6, 0.0], [0.8, 1.0]]))


def test_column_of_zeros_stays_and_pure_decay_still_acts():
    weights = {"w": np.ones((2, 3))}
    after, _ = run(weights, [{"w": np.zeros((2, 3))}], lr=0.1, weight_decay=0.5)
    assert after["w"] == pytest.approx(np.full((2, 3), 0.95))


@given(seed=st.integers(0, 10**6), momentum=st.floats(0.0, 0.95), decay=st.floats(0.0, 0.1))
@settings(max_examples=40, deadline=None)
def test_pseudocode_is_followed(seed, momentum, decay):
    random = np.random.default_rng(seed)
    shapes = {"conv": (3, 2, 2), "head": (4, 3), "bias": (4,), "gain": ()}
    weights = {name: random.normal(size=shape) for name, shape in shapes.items()}
    rounds = [{name: random.normal(size=shape) for name, shape in shapes.items()} for _ in range(3)]
    after, optimizer = run(weights, rounds, lr=0.1, momentum=momentum, weight_decay=decay)
    for name, value in weights.items():
        memory = {}
        for gradients in rounds:
            value = plain.scale(
                value,
                gradients[name],
                memory,
                lr=0.1,
                momentum=momentum,
                is_last=name == "head",
                weight_decay=decay,
            )
        assert after[name] == pytest.approx(value, abs=1e-12)
    assert sum("m" in state for state in optimizer.state.values()) == 1


def test_the_last_layer_can_be_named_and_must_exist():
    params = [("head", torch.zeros(2, 2)), ("body", torch.zeros(2, 2))]
    assert build_optimizer("scale", params, lr=0.1).param_groups[0]["last"] == 1
    named = build_optimizer("scale", params, lr=0.1, last_layer="head")
    assert named.param_groups[0]["last"] == 0
    vectors = build_optimizer("scale", [torch.zeros(2)], lr=0.1)
    assert vectors.param_groups[0]["last"] == -1
    with pytest.raises(SettingsError, match="got nobody, typo"):
        build_optimizer("scale", params, lr=0.1, last_layer="typo", embeddings=["nobody"])
