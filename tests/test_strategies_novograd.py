"""FedNovoGrad: layers, first rounds, scales, vector rates, noise correction."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.errors import SettingsError
from strategies.optimizers import build_optimizer


def moved(params, gradients, rounds=1, **values):
    """Take rounds with the same gradients; return how far each tensor went, as a list."""
    before = [param.clone() for _, param in params]
    optimizer = build_optimizer("fednovograd", params, **{"lr": 0.1, "eps": 0.0, **values})
    for _ in range(rounds):
        for (_, param), gradient in zip(params, gradients, strict=True):
            param.grad = gradient
        optimizer.step()
    return [old - param for old, (_, param) in zip(before, params, strict=True)]


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_first_step_has_length_lr_whatever_the_gradient():
    params = [("a", torch.zeros(2, dtype=torch.float64)), ("b", torch.zeros(2, 2).double())]
    steps = moved(params, [double(3.0, 4.0), torch.full((2, 2), 1e-6, dtype=torch.float64)])
    assert torch.allclose(steps[0], double(0.06, 0.08), atol=1e-15)
    assert steps[1].norm().item() == pytest.approx(0.1, abs=1e-14)


def test_second_step_blends_the_squared_norms():
    # v = .5 * 25 + .5 * 25 / 4 and m = .9 g1/5 + g2 / sqrt(v), by hand.
    p = torch.zeros(2, dtype=torch.float64)
    optimizer = build_optimizer("fednovograd", [p], lr=1.0, beta1=0.9, beta2=0.5, eps=0.0)
    for gradient in (double(3.0, 4.0), double(1.5, 2.0)):
        before = p.clone()
        p.grad = gradient
        optimizer.step()
    first = 0.9 * 0.6 + 1.5 / math.sqrt(0.5 * 25 + 0.5 * 6.25)
    assert float((before - p)[0]) == pytest.approx(first, abs=1e-14)


def test_layer_that_was_zero_starts_at_its_first_non_zero_round():
    p = torch.zeros(2, dtype=torch.float64)
    optimizer = build_optimizer("fednovograd", [p], lr=0.1, eps=0.0, weight_decay=0.1)
    p.grad = torch.zeros(2, dtype=torch.float64)
    optimizer.step()
    assert not optimizer.state[p]
    p.grad = double(0.0, 2.0)
    optimizer.step()
    assert torch.allclose(p, double(0.0, -0.1), atol=1e-15)


def test_untrained_layer_does_not_decay_before_its_first_round():
    for decay in ("paper", "decoupled"):
        p = torch.ones(2)
        build = build_optimizer("fednovograd", [p], lr=0.1, weight_decay=0.5, decay=decay)
        p.grad = torch.zeros(2)
        build.step()
        assert torch.equal(p, torch.ones(2))


def test_paper_start_makes_the_step_after_a_zero_round_seven_times_too_long():
    p = torch.zeros(2, dtype=torch.float64)
    optimizer = build_optimizer("fednovograd", [p], lr=0.1, beta2=0.98, eps=0.0, paper_init=True)
    for gradient in (double(0.0, 0.0), double(0.0, 2.0)):
        p.grad = gradient
        optimizer.step()
    assert float(-p[1]) == pytest.approx(0.1 / math.sqrt(0.02), rel=1e-12)


def test_grouped_tensors_share_one_norm():
    params = [("weight", torch.zeros(1, 1).double()), ("bias", torch.zeros(1).double())]
    gradients = [torch.full((1, 1), 3.0, dtype=torch.float64), double(4.0)]
    apart = moved([(k, p.clone()) for k, p in params], gradients)
    together = moved(params, gradients, groups={"weight": "dense", "bias": "dense"})
    assert [float(step) for step in apart] == pytest.approx([0.1, 0.1])
    assert [float(step) for step in together] == pytest.approx([0.06, 0.08])


def test_group_key_that_equals_a_tensor_name_is_another_layer():
    params = [("a", torch.zeros(1).double()), ("b", torch.zeros(1).double())]
    steps = moved(params, [double(3.0), double(4.0)], groups={"a": "b"})
    assert [float(step) for step in steps] == pytest.approx([0.1, 0.1])


def test_member_without_gradient_keeps_in_step_with_its_group():
    a, b = torch.zeros(1).double(), torch.zeros(1).double()
    keys = {"a": "x", "b": "x"}
    optimizer = build_optimizer("fednovograd", [("a", a), ("b", b)], lr=0.1, groups=keys)
    a.grad = double(3.0)
    optimizer.step()
    assert optimizer.state[a]["v"] == optimizer.state[b]["v"] == 9.0
    assert b.item() == 0.0
    b.grad = double(4.0)
    optimizer.step()
    assert optimizer.state[b]["v"] == pytest.approx(0.98 * 9 + 0.02 * 25)


def test_groups_of_unknown_tensors_are_refused():
    for params in ([("a", torch.zeros(1))], [torch.zeros(1)]):
        with pytest.raises(SettingsError, match="does not hold: typo"):
            build_optimizer("fednovograd", params, lr=0.1, groups={"typo": "x"})


def test_sqrt_d_gives_every_layer_the_same_step_per_coordinate_and_the_same_total():
    shapes = [(4, 8), (3,), (1,), (2, 5, 5)]
    params = [(str(i), torch.zeros(shape).double()) for i, shape in enumerate(shapes)]
    torch.manual_seed(0)
    gradients = [torch.randn(shape).double() * 10**i for i, shape in enumerate(shapes)]
    steps = moved(params, gradients, scale="sqrt_d")
    sizes = [step.square().mean().sqrt().item() for step in steps]
    assert sizes == pytest.approx([sizes[0]] * len(shapes), rel=1e-12)
    total = math.sqrt(sum(step.square().sum().item() for step in steps))
    assert total == pytest.approx(0.1 * math.sqrt(len(shapes)), rel=1e-12)


def test_param_scale_follows_the_weights_down_to_its_floor():
    params = [("a", double(3.0, 4.0)), ("b", double(0.0, 0.0))]
    steps = moved(params, [double(0.0, 7.0), double(0.0, 9.0)], scale="param", scale_floor=0.01)
    assert float(steps[0][1]) == pytest.approx(0.1 * 5.0)
    assert float(steps[1][1]) == pytest.approx(0.1 * 0.01 * math.sqrt(2))


def test_vectors_have_their_own_rate_which_follows_the_schedule():
    params = [("matrix", torch.zeros(1, 1).double()), ("vector", torch.zeros(1).double())]
    optimizer = build_optimizer("fednovograd", params, lr=0.1, lr_1d=0.02, eps=0.0, beta1=0.0)
    for factor, wanted in ((1.0, [0.1, 0.02]), (0.5, [0.05, 0.01]), (0.0, [0.0, 0.0])):
        before = [param.clone() for _, param in params]
        optimizer.param_groups[0]["lr"] = 0.1 * factor
        for _, param in params:
            param.grad = torch.ones_like(param)
        optimizer.step()
        steps = [float(old - param) for old, (_, param) in zip(before, params, strict=True)]
        assert steps == pytest.approx(wanted, abs=1e-15)


def test_vectors_can_be_spared_from_decay():
    for decay in ("paper", "decoupled"):
        params = [("matrix", torch.ones(1, 1).double()), ("vector", torch.ones(1).double())]
        gradients = [torch.ones(1, 1).double(), torch.ones(1).double()]
        steps = moved(params, gradients, weight_decay=0.5, skip_1d=True, decay=decay)
        assert float(steps[0]) == pytest.approx(0.1 + 0.05)
        assert float(steps[1]) == pytest.approx(0.1)


def noisy_norms(size, true_norm, noise, rounds, seed, **values):
    """Return the norms that the optimizer divides by, seen through its steps."""
    generator = torch.Generator().manual_seed(seed)
    signal = torch.full((size,), true_norm / math.sqrt(size), dtype=torch.float64)
    p = torch.zeros(size, dtype=torch.float64)
    optimizer = build_optimizer(
        "fednovograd", [p], lr=1.0, beta1=0.0, beta2=0.98, eps=1e-12, **values
    )
    norms = []
    for _ in range(rounds):
        before = p.clone()
        p.grad = signal + noise * torch.randn(size, generator=generator, dtype=torch.float64)
        optimizer.step()
        norms.append((p.grad.norm() / (before - p).norm()).item())
    return norms


@pytest.mark.parametrize("size", [320, 2048])
def test_noise_correction_recovers_the_true_norm_and_its_absence_does_not(size):
    # Noise energy d s^2 = 4 beside a true squared norm of 1: uncorrected sqrt(5) = 2.24.
    noise = 2.0 / math.sqrt(size)
    runs = [noisy_norms(size, 1.0, noise, 100, seed, noise_std=noise)[-1] for seed in range(8)]
    plain = [noisy_norms(size, 1.0, noise, 100, seed)[-1] for seed in range(8)]
    assert sum(runs) / 8 == pytest.approx(1.0, abs=0.03)
    assert sum(plain) / 8 == pytest.approx(math.sqrt(5), abs=0.05)
    wrong = noisy_norms(size, 1.0, noise, 100, 0, noise_std=0.9 * noise)[-1]
    assert abs(wrong - 1.0) > 0.2


def test_corrected_norm_does_not_fall_under_its_floor_on_pure_noise():
    size, noise = 10, 1.0
    norms = noisy_norms(size, 0.0, noise, 300, 3, noise_std=noise, floor_kappa=1.0)
    weights = 1.0
    for number, found in enumerate(norms):
        if number:
            weights = 0.98**2 * weights + 0.02**2
        floor = math.sqrt(size * noise**2 * math.sqrt(2 * weights / size))
        assert found >= floor * (1 - 1e-9)


@given(
    noises=st.lists(st.floats(0.0, 3.0), min_size=1, max_size=6),
    beta2=st.floats(0.0, 0.99),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_noise_part_of_v_is_the_expected_one_when_the_noise_changes(noises, beta2, seed):
    generator = torch.Generator().manual_seed(seed)
    p = torch.zeros(7, dtype=torch.float64)
    optimizer = build_optimizer("fednovograd", [p], lr=0.1, beta2=beta2)
    for noise in noises:
        optimizer.param_groups[0]["noise_std"] = noise
        p.grad = torch.randn(7, generator=generator, dtype=torch.float64)
        optimizer.step()
    shares = [beta2 ** (len(noises) - 1)] + [
        (1 - beta2) * beta2 ** (len(noises) - 1 - number) for number in range(1, len(noises))
    ]
    state = optimizer.state[p]
    expected = sum(share * 7 * noise**2 for share, noise in zip(shares, noises, strict=True))
    assert state["u"] == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert state["w"] == pytest.approx(sum(share**2 for share in shares), rel=1e-9)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"decay": "adamw"}, '"paper" or "decoupled"'),
        ({"scale": "none"}, '"sqrt_d"'),
        ({"noise_std": -1.0}, "noise_std"),
        ({"lr_1d": float("nan")}, "lr_1d"),
        ({"paper_init": 1}, "true or false"),
        ({"scale_floor": 0.0}, "scale_floor"),
    ],
)
def test_settings_out_of_range_are_refused(values, word):
    with pytest.raises(SettingsError, match=word):
        build_optimizer("fednovograd", [torch.ones(2)], lr=0.1, **values)
