"""Server optimizers: golden trajectories, the papers' pseudocode, state, bad input."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import plain_optimizers as plain
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.errors import SettingsError
from strategies import stepping
from strategies.optimizers import OWN, build_optimizer, hyperparameter_names, optimizer_names

# Origin: numpy, straight from the published formulas; the file says per case which independent
# libraries agree and how far.
GOLDEN = json.loads((Path(__file__).parent / "golden" / "optimizers.json").read_text())
GOLDEN_NAMES = {
    "fedavg": ("fedavg", {}),
    "fedadagrad_beta1": ("fedadagrad", {}),
    "fedadam_v0": ("fedadam", {}),
    "novograd_wd": ("fednovograd", {"paper_init": True}),
    "novograd_zero_first": ("fednovograd", {"paper_init": True}),
    "lamb_wd": ("fedlamb", {}),
    "lars_skip_1d": ("fedlars", {"skip_1d": True}),
}
ADAM = {"beta1": 0.9, "beta2": 0.99, "tau": 1e-3}
NOVOGRAD = {"beta1": 0.9, "beta2": 0.98, "eps": 1e-8, "weight_decay": 0.01}
LAMB = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-6, "weight_decay": 0.01}
LARS = {"momentum": 0.9, "weight_decay": 0.01, "trust_coefficient": 0.02}
# Every method and variant: name, plain function, hyperparameters.
CASES = [
    ("fedavg", plain.fedavg, {}),
    ("fedavgm", plain.fedavgm, {"momentum": 0.9}),
    ("fedadagrad", plain.fedadagrad, {"beta1": 0.0, "tau": 1e-3}),
    ("fedadagrad", plain.fedadagrad, {"beta1": 0.9, "tau": 1e-2, "v_init": 0.3}),
    ("fedadam", plain.fedadam, ADAM),
    ("fedadam", plain.fedadam, {**ADAM, "v_init": 0.0}),
    ("fedyogi", plain.fedyogi, ADAM),
    ("fedyogi", plain.fedyogi, {**ADAM, "beta1": 0.0, "v_init": 0.5}),
    ("fednovograd", plain.novograd, {**NOVOGRAD, "weight_decay": 0.0}),
    ("fednovograd", plain.novograd, NOVOGRAD),
    ("fednovograd", plain.novograd, {**NOVOGRAD, "decay": "decoupled"}),
    ("fednovograd", plain.novograd, {**NOVOGRAD, "grad_averaging": True}),
    ("fednovograd", plain.novograd, {**NOVOGRAD, "noise_std": 0.4, "floor_kappa": 1.0}),
    ("fednovograd", plain.novograd, {**NOVOGRAD, "noise_std": 3.0, "floor_kappa": 0.5}),
    ("fedlamb", plain.fedlamb, LAMB),
    ("fedlamb", plain.fedlamb, {**LAMB, "weight_decay": 0.0}),
    ("fedlamb", plain.fedlamb, {**LAMB, "bias_correction": False}),
    ("fedlamb", plain.fedlamb, {**LAMB, "skip_1d": True}),
    ("fedlars", plain.fedlars, LARS),
    ("fedlars", plain.fedlars, {**LARS, "weight_decay": 0.0}),
    ("fedlars", plain.fedlars, {**LARS, "eps": 0.5}),
    ("fedlars", plain.fedlars, {**LARS, "skip_1d": True}),
]
IDS = [f"{name}-{number}" for number, (name, _, _) in enumerate(CASES)]
SIX = ("fedadagrad", "fedadam", "fedyogi", "fednovograd", "fedlamb", "fedlars", "scale")


def tensors(values, dtype=torch.float64):
    return [(name, torch.tensor(np.array(value), dtype=dtype)) for name, value in values.items()]


def set_gradients(params, gradients):
    for name, param in params:
        param.grad = torch.tensor(np.array(gradients[name]), dtype=param.dtype)


def largest_error(optimizer, params, rounds, expected):
    error = 0.0
    for gradients, after in zip(rounds, expected, strict=True):
        set_gradients(params, gradients)
        optimizer.step()
        for name, param in params:
            difference = np.abs(param.detach().double().numpy() - np.array(after[name]))
            error = max(error, float(difference.max(initial=0.0)))
    return error


def problem(seed, shapes=((3, 4), (3,), (4,), (2, 3, 2), ()), rounds=4):
    random = np.random.default_rng(seed)
    weights = {str(i): random.normal(size=shape) for i, shape in enumerate(shapes)}
    weights["zero"] = np.zeros(3)
    steps = [{k: random.normal(size=v.shape) for k, v in weights.items()} for _ in range(rounds)]
    return weights, steps


@pytest.mark.parametrize("case", GOLDEN["cases"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_golden_trajectory_is_met(case, dtype):
    name, extra = GOLDEN_NAMES[case]
    content = GOLDEN["cases"][case]
    params = tensors(GOLDEN["params_initial"], dtype)
    optimizer = build_optimizer(name, params, **content["hyperparameters"], **extra)
    rounds = GOLDEN["pseudo_gradients"][content["pseudo_gradients"]]
    error = largest_error(optimizer, params, rounds, content["params_after"])
    assert error <= GOLDEN["tolerance"][str(dtype).removeprefix("torch.")]


@pytest.mark.parametrize(("name", "method", "values"), CASES, ids=IDS)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 5e-6)])
def test_every_variant_follows_its_pseudocode(name, method, values, dtype, bound):
    weights, rounds = problem(seed=1)
    expected = plain.run(weights, rounds, method, lr=0.05, **values)
    params = tensors(weights, dtype)
    optimizer = build_optimizer(name, params, lr=0.05, **values)
    assert largest_error(optimizer, params, rounds, expected) <= bound


@given(
    case=st.sampled_from(CASES),
    shapes=st.lists(
        st.lists(st.integers(1, 5), min_size=0, max_size=3).map(tuple), min_size=1, max_size=4
    ),
    seed=st.integers(0, 2**32 - 1),
    lr=st.floats(1e-4, 0.5),
)
@settings(max_examples=120, deadline=None)
def test_pseudocode_is_followed_on_any_shapes(case, shapes, seed, lr):
    name, method, values = case
    weights, rounds = problem(seed, shapes, rounds=3)
    expected = plain.run(weights, rounds, method, lr=lr, **values)
    params = tensors(weights)
    optimizer = build_optimizer(name, params, lr=lr, **values)
    assert largest_error(optimizer, params, rounds, expected) <= 1e-11


def test_fedavg_with_rate_one_is_the_average_to_the_last_bit():
    weights, rounds = problem(seed=2, rounds=1)
    params = tensors(weights)
    optimizer = build_optimizer("fedavg", params, lr=1.0)
    set_gradients(params, rounds[0])
    optimizer.step()
    for name, param in params:
        assert np.array_equal(param.numpy(), weights[name] + -rounds[0][name])


def test_fedadam_first_steps_are_these_for_a_constant_update_of_one():
    # Hand-computed from Algorithm 2 with v from tau^2: 0.1 m / (sqrt(v) + tau).
    p = torch.zeros(1, dtype=torch.float64)
    optimizer = build_optimizer("fedadam", [p], lr=0.1, beta1=0.9, beta2=0.99, tau=1e-3)
    moved = []
    for _ in range(2):
        before = p.clone()
        p.grad = torch.full((1,), -1.0, dtype=torch.float64)
        optimizer.step()
        moved.append(float(p - before))
    first = 0.1 * 0.1 / ((0.99e-6 + 0.01) ** 0.5 + 1e-3)
    second = 0.1 * 0.19 / ((0.99 * (0.99e-6 + 0.01) + 0.01) ** 0.5 + 1e-3)
    assert moved == pytest.approx([first, second], rel=1e-12)


def test_plain_fedadagrad_is_torch_adagrad_that_starts_at_tau_squared():
    weights, rounds = problem(seed=3)
    ours, theirs = tensors(weights), tensors(weights)
    own = build_optimizer("fedadagrad", ours, lr=0.1, tau=1e-3)
    other = build_optimizer("adagrad", theirs, lr=0.1, eps=1e-3, initial_accumulator_value=1e-6)
    for gradients in rounds:
        for params, optimizer in ((ours, own), (theirs, other)):
            set_gradients(params, gradients)
            optimizer.step()
    for (_, mine), (_, reference) in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, reference, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("fedadagrad", {"tau": 0.2, "v_init": 0.5}),
        ("fedadam", {"tau": 0.2}),
        ("fedyogi", {"tau": 0.2, "v_init": 0.01}),
        ("fednovograd", {"eps": 0.3}),
        ("fedlamb", {"eps": 0.3}),
        ("scale", {"eps": 2.0}),
    ],
)
def test_relative_settings_make_the_step_independent_of_the_clip_norm(name, values):
    weights, rounds = problem(seed=4)
    histories = []
    for clip_norm in (1.0, 1e-3):
        params = tensors(weights)
        optimizer = build_optimizer(name, params, lr=0.1, relative_to=clip_norm, **values)
        for gradients in rounds:
            set_gradients(params, {key: clip_norm * value for key, value in gradients.items()})
            optimizer.step()
        histories.append(torch.cat([param.reshape(-1) for _, param in params]))
    assert torch.allclose(*histories, rtol=0, atol=1e-9)
    absolute = tensors(weights)
    optimizer = build_optimizer(name, absolute, lr=0.1, **values)
    for gradients in rounds:
        set_gradients(absolute, {key: 1e-3 * value for key, value in gradients.items()})
        optimizer.step()
    drifted = torch.cat([param.reshape(-1) for _, param in absolute])
    assert not torch.allclose(histories[0], drifted, atol=1e-3)


@pytest.mark.parametrize(("name", "method", "values"), CASES, ids=IDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_saved_and_loaded_optimizer_goes_on_bit_for_bit(name, method, values, dtype):
    weights, rounds = problem(seed=5, rounds=6)
    straight = tensors(weights, dtype)
    optimizer = build_optimizer(name, straight, lr=0.05, **values)
    for gradients in rounds[:3]:
        set_gradients(straight, gradients)
        optimizer.step()
    resumed = [(key, param.detach().clone()) for key, param in straight]
    other = build_optimizer(name, resumed, lr=0.9, **values)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for gradients in rounds[3:]:
        for params, stepper in ((straight, optimizer), (resumed, other)):
            set_gradients(params, gradients)
            stepper.step()
    for (_, one), (_, two) in zip(straight, resumed, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("name", OWN)
def test_state_holds_tensors_and_plain_numbers_only(name):
    weights, rounds = problem(seed=6, rounds=1)
    params = tensors(weights, torch.float32)
    optimizer = build_optimizer(name, params, lr=0.1)
    set_gradients(params, rounds[0])
    optimizer.step()
    saved = optimizer.state_dict()
    for state in saved["state"].values():
        for value in state.values():
            assert value is None or type(value) in (torch.Tensor, int, float, bool, str)
    assert json.loads(json.dumps(saved["param_groups"])) == saved["param_groups"]


@pytest.mark.parametrize("name", OWN)
def test_tensor_without_gradient_is_left_alone(name):
    params = [("used", torch.ones(2, 2)), ("idle", torch.ones(2, 2))]
    optimizer = build_optimizer(name, params, lr=0.1)
    params[0][1].grad = torch.full((2, 2), 0.5)
    optimizer.step()
    assert torch.equal(params[1][1], torch.ones(2, 2))
    assert not torch.equal(params[0][1], torch.ones(2, 2))
    assert not optimizer.state.get(params[1][1])


@pytest.mark.parametrize("name", OWN)
def test_gradient_is_not_written_and_weights_keep_their_place(name):
    weights, rounds = problem(seed=7, rounds=2)
    params = [(key, torch.nn.Parameter(value)) for key, value in tensors(weights)]
    places = [param.data_ptr() for _, param in params]
    optimizer = build_optimizer(name, params, lr=0.1)
    for gradients in rounds:
        set_gradients(params, gradients)
        optimizer.step()
        for key, param in params:
            assert np.array_equal(param.grad.numpy(), gradients[key])
    assert places == [param.data_ptr() for _, param in params]


@pytest.mark.parametrize("name", OWN)
def test_zero_first_gradient_gives_finite_weights(name):
    params = [torch.zeros(3), torch.ones(2, 3)]
    optimizer = build_optimizer(name, params, lr=0.1)
    for gradient in (0.0, 0.0, 1.0):
        for param in params:
            param.grad = torch.full_like(param, gradient)
        optimizer.step()
    assert all(torch.isfinite(param).all() for param in params)
    assert all((param < 1).all() for param in params)


def large_problem(name, values):
    torch.manual_seed(0)
    params = [torch.randn(130, 257), torch.randn(70, 1031), torch.randn(9), torch.randn(70000)]
    # A transposed tensor cannot be cut into flat views.
    params.append(torch.randn(310, 200).t())
    params = [torch.nn.Parameter(param) for param in params]
    optimizer = build_optimizer(name, params, lr=0.05, **values)
    for _ in range(3):
        for param in params:
            param.grad = torch.randn(param.shape)
        optimizer.step()
    return params


@pytest.mark.parametrize(("name", "method", "values"), CASES, ids=IDS)
def test_blocks_and_threads_do_not_change_a_bit(name, method, values, monkeypatch):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        monkeypatch.setattr(stepping, "CPU_PIECE", 1 << 40)
        monkeypatch.setattr(stepping, "CPU_BLOCK", 1 << 40)
        whole = large_problem(name, values)
        torch.set_num_threads(3)
        monkeypatch.setattr(stepping, "CPU_PIECE", stepping.NORM_ROW)
        monkeypatch.setattr(stepping, "CPU_BLOCK", stepping.NORM_ROW)
        cut = large_problem(name, values)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, two) for one, two in zip(whole, cut, strict=True))


def test_roots_are_those_of_sqrt_to_the_last_bit():
    for dtype in (torch.float32, torch.float64):
        values = torch.rand(10_000, dtype=dtype) * 10.0 ** torch.randint(-30, 30, (10_000,))
        assert torch.equal(stepping.roots([values.to(dtype)])[0], values.to(dtype).sqrt())


def test_fault_in_a_block_is_not_lost_among_threads(monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.setattr(stepping, "CPU_BLOCK", 8)
    monkeypatch.setattr(stepping, "CPU_PIECE", 8)

    def fail(block):
        raise ArithmeticError("a block failed")

    try:
        torch.set_num_threads(2)
        with pytest.raises(ArithmeticError, match="a block failed"):
            stepping.for_each_block(fail, [torch.ones(100)])
    finally:
        torch.set_num_threads(threads)


def test_all_mistakes_are_reported_at_once():
    with pytest.raises(SettingsError) as caught:
        build_optimizer("fedadam", [torch.ones(2)], lr=-1.0, beta1=1.0, tau=0.0, betta2=0.9)
    assert len(caught.value.problems) == 4
    text = str(caught.value)
    for part in ("'betta2'", "beta1, beta2, relative_to, tau, v_init", "lr", "-1.0", "tau"):
        assert part in text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "0.1", True, None])
def test_rate_that_is_no_finite_number_is_refused(value):
    for name in ("fedadam", "lion"):
        with pytest.raises(SettingsError, match="lr must be a finite number"):
            build_optimizer(name, [torch.ones(2)], lr=value)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ([], "at least one"),
        ([torch.ones(2), ("a", torch.ones(2))], "mixture"),
        ([torch.ones(2, dtype=torch.bfloat16)], "bfloat16"),
        ([torch.ones(2, dtype=torch.int64)], "int64"),
        ([("mean", np.ones(2))], "parameter mean"),
        ([torch.ones(2)] * 2, "twice"),
    ],
)
def test_tensors_that_cannot_be_optimized_are_refused(params, words):
    with pytest.raises(SettingsError, match=words):
        build_optimizer("fedadam", params, lr=0.1)


@pytest.mark.parametrize("name", SIX)
def test_own_classes_list_their_settings(name):
    assert "lr" in hyperparameter_names(name)
    assert "params" not in hyperparameter_names(name)


def test_names_are_ours_first_and_taken_in_any_case():
    assert optimizer_names()[:9] == list(OWN)
    assert {"adam", "adamw", "lion", "muon"} <= set(optimizer_names())
    assert type(build_optimizer("FedAdam", [torch.ones(1)], lr=0.1)).__name__ == "Adaptive"
    with pytest.raises(SettingsError, match="none of our"):
        hyperparameter_names("adam")


def test_every_group_remembers_its_first_rate():
    for name in ("fedavg", "fednovograd", "adamw"):
        optimizer = build_optimizer(name, [torch.ones(2)], lr=0.25)
        assert optimizer.param_groups[0]["initial_lr"] == 0.25


def test_closure_is_called_with_gradients_enabled():
    weight = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer = build_optimizer("fedlamb", [weight], lr=0.1)

    def closure():
        loss = (weight**2).sum()
        loss.backward()
        return float(loss.detach())

    assert optimizer.step(closure) == 2.0
    assert (weight < 1).all()
