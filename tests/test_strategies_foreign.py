"""Other libraries' optimizers: checked names step and resume, the rest is refused with a reason."""

from __future__ import annotations

import copy
import sys

import pytest
import torch

from privacy.errors import SettingsError
from strategies.foreign import MUON_FAMILY, PYTORCH_OPTIMIZER, REFUSED, TORCH, foreign_names
from strategies.optimizers import build_optimizer

SHAPES = {"w": (3, 4), "b": (3,), "conv": (2, 3, 2, 2), "scale": ()}


def parameters(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [(name, torch.randn(shape, generator=generator)) for name, shape in SHAPES.items()]


def step(optimizer, params, seed):
    generator = torch.Generator().manual_seed(seed)
    for _, param in params:
        param.grad = torch.randn(param.shape, generator=generator)
    optimizer.step()


def need(name):
    if name not in TORCH:
        pytest.importorskip("pytorch_optimizer")


@pytest.mark.parametrize("name", foreign_names())
def test_every_tensor_moves_in_the_first_round(name):
    need(name)
    params = parameters()
    optimizer = build_optimizer(name, params, lr=0.01)
    before = [param.clone() for _, param in params]
    step(optimizer, params, 1)
    for old, (_, param) in zip(before, params, strict=True):
        assert torch.isfinite(param).all()
        assert not torch.equal(old, param)


@pytest.mark.parametrize("name", foreign_names())
def test_steps_go_against_the_gradient(name):
    need(name)
    params = [("w", torch.zeros(3, 4)), ("b", torch.zeros(3))]
    optimizer = build_optimizer(name, params, lr=0.01)
    for _ in range(3):
        for _, param in params:
            param.grad = torch.ones_like(param)
        optimizer.step()
    for _, param in params:
        assert (param.sum() < 0).item()


@pytest.mark.parametrize("name", foreign_names())
def test_saved_and_loaded_optimizer_goes_on_bit_for_bit(name):
    need(name)
    straight = parameters()
    optimizer = build_optimizer(name, straight, lr=0.01)
    for seed in range(3):
        step(optimizer, straight, seed)
    resumed = [(key, param.clone()) for key, param in straight]
    other = build_optimizer(name, resumed, lr=0.01)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for seed in range(3, 6):
        step(optimizer, straight, seed)
        step(other, resumed, seed)
    for (_, one), (_, two) in zip(straight, resumed, strict=True):
        assert torch.equal(one, two)
    for state in optimizer.state_dict()["state"].values():
        for value in state.values():
            assert value is None or type(value) in (torch.Tensor, int, float, bool, str)


@pytest.mark.parametrize("name", foreign_names())
def test_unknown_settings_are_refused_with_the_allowed_ones(name):
    need(name)
    with pytest.raises(SettingsError, match=f"{name} has no setting 'beta_one'; use some of: .*,"):
        build_optimizer(name, parameters(), lr=0.01, beta_one=0.5)
    with pytest.raises(SettingsError, match="maximize"):
        build_optimizer(name, parameters(), lr=0.01, maximize=True)


@pytest.mark.parametrize("name", [*PYTORCH_OPTIMIZER, "adam", "rmsprop", *MUON_FAMILY])
def test_value_that_the_library_refuses_is_a_settings_error(name):
    need(name)
    with pytest.raises(SettingsError, match=f"{name} does not take"):
        build_optimizer(name, parameters(), lr=0.01, weight_decay=-1.0)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_names_say_why(name):
    with pytest.raises(SettingsError, match=f"{name} cannot be a server optimizer: .* "):
        build_optimizer(name, parameters(), lr=0.01)


def test_no_name_is_both_refused_and_offered():
    assert not set(REFUSED) & set(foreign_names())
    assert len(set(foreign_names())) == len(foreign_names())


@pytest.mark.parametrize("name", ["radam", "schedulefreeradam"])
def test_reason_idle_is_true(name):
    po = pytest.importorskip("pytorch_optimizer")
    weight = torch.ones(3, 3)
    optimizer = po.load_optimizer(name)([weight], lr=0.1)
    weight.grad = torch.ones(3, 3)
    optimizer.step()
    assert torch.equal(weight, torch.ones(3, 3))


def test_unknown_name_lists_those_that_work():
    with pytest.raises(SettingsError, match=r"unknown server optimizer 'adamm'.*adamw.*lion"):
        build_optimizer("adamm", parameters(), lr=0.01)


def test_missing_library_is_said_with_the_cure(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(SettingsError, match=r"install fedopt\[optimizers\]"):
        build_optimizer("lion", parameters(), lr=0.01)
    assert build_optimizer("adamw", parameters(), lr=0.01)


def test_lists_and_whole_floats_of_a_settings_file_are_understood():
    pytest.importorskip("pytorch_optimizer")
    lion = build_optimizer("lion", parameters(), lr=0.01, betas=[0.8, 0.9])
    assert lion.param_groups[0]["betas"] == (0.8, 0.9)
    muon = build_optimizer("muon", parameters(), lr=0.01, ns_steps=3.0, weight_decay=1)
    assert muon.param_groups[0]["ns_steps"] == 3
    step(muon, parameters(), 1)


def test_muon_orthogonalises_matrices_and_hands_vectors_to_adamw():
    pytest.importorskip("pytorch_optimizer")
    optimizer = build_optimizer("muon", parameters(), lr=0.02, adamw_lr=0.001)
    matrices, vectors = optimizer.param_groups
    assert [param.ndim > 1 for param in matrices["params"]] == [True, True]
    assert [param.ndim > 1 for param in vectors["params"]] == [False, False]
    assert (matrices["initial_lr"], vectors["initial_lr"]) == (0.02, 0.001)
