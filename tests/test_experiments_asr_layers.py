"""Check the constants and the random parts of the layers against the published ones."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from experiments.asr.layers import (
    Block,
    GatedFrontEnd,
    ModelSettings,
    TimePositions,
    TwoConvolutions,
)
from experiments.asr.model import PRESETS, SpeechTransformer

GOLDEN = json.loads((Path(__file__).parent / "golden" / "asr_models.json").read_text())


@pytest.mark.parametrize("name", sorted(GOLDEN["models"]))
def test_a_preset_has_the_published_constants(name: str) -> None:
    expected = {**GOLDEN["all"], **GOLDEN["models"][name]}
    settings = PRESETS[name]
    assert dataclasses.asdict(settings) | {"inner_width": settings.inner_width} == expected
    with torch.device("meta"):
        block = Block(settings)
    assert (block.heads, block.dropout, block.attention_dropout) == (4, 0.3, 0.3)
    assert block.mlp_in.weight.shape == (expected["inner_width"], expected["width"])


def test_every_preset_is_published_or_known_to_be_ours() -> None:
    assert set(PRESETS) == {*GOLDEN["models"], "tiny", "small"}
    ours = {name: PRESETS[name] for name in ("tiny", "small")}
    assert [(each.blocks, each.width, each.heads) for each in ours.values()] == [
        (2, 96, 4),
        (6, 256, 4),
    ]
    assert [(each.dropout, each.layer_drop) for each in ours.values()] == [(0.0, 0.0), (0.1, 0.0)]


def _shifts(layer: TimePositions, draws: int) -> Tensor:
    """Read (draws, steps) times in seconds off the slowest channel, which turns by below 0.1."""
    steps = torch.full((draws,), 5)
    inside = torch.ones(draws, 5, dtype=torch.bool)
    hidden = torch.zeros(draws, 5, layer.width, dtype=torch.float64)
    slowest = layer.width - 2
    frequency = 30.0 * 10000.0 ** (-slowest / layer.width)
    return torch.asin(layer(hidden, steps, inside)[:, :, slowest]) / frequency


def test_training_shifts_by_up_to_thirty_seconds_either_way_all_steps_alike() -> None:
    torch.manual_seed(0)
    seconds = _shifts(TimePositions(256, 30.0).train(), 20_000)
    shifts = seconds[:, 2]  # the middle of the utterance is at 0
    # Of 20,000 uniform draws, none is within 0.03 s of an end with a chance of e^-10.
    assert 29.97 < shifts.max().item() < 30.001
    assert -30.001 < shifts.min().item() < -29.97
    assert abs(shifts.mean().item()) < 0.5  # four deviations of the mean
    assert shifts.var().item() == pytest.approx(30.0**2 / 3, rel=0.03)
    around = seconds - shifts[:, None]
    expected = torch.tensor([-0.06, -0.03, 0.0, 0.03, 0.06]).expand_as(around)
    torch.testing.assert_close(around, expected.to(around.dtype), atol=2e-3, rtol=0)


def _is_uniform(weight: Tensor, bound: float) -> bool:
    values = weight.detach().flatten()
    assert len(values) > 4000
    within = 0.99 * bound < values.abs().max().item() <= bound * (1 + 1e-6)
    spread = values.var().item() == pytest.approx(bound**2 / 3, rel=0.08)
    return within and spread and abs(values.mean().item()) < 0.05 * bound


def test_linear_layers_of_a_block_start_uniform_by_their_fan_in() -> None:
    torch.manual_seed(1)
    block = Block(ModelSettings(1, 64))
    for layer in (block.query_key_value, block.attention_out, block.mlp_in, block.mlp_out):
        assert layer.bias is None
        assert _is_uniform(layer.weight, 1 / math.sqrt(layer.in_features))
    for norm in (block.attention_norm, block.mlp_norm):
        assert norm.eps == 1e-5
        assert torch.equal(norm.weight, torch.ones(64))
        assert not norm.bias.any()


def test_convolutions_and_the_head_start_as_lecun_uniform() -> None:
    torch.manual_seed(2)
    light = TwoConvolutions(16)
    model = SpeechTransformer(ModelSettings(0, 160), 30)
    convolutions = [GatedFrontEnd(16, 0.0).convolution, light.first]
    assert [layer.weight[0].numel() for layer in convolutions] == [80 * 7, 80 * 5]
    for layer in (*convolutions, model.head):
        assert _is_uniform(layer.weight, math.sqrt(3 / layer.weight[0].numel()))
        assert layer.bias is not None
        assert not layer.bias.any()


def test_dropout_acts_behind_the_gate_of_the_front_end() -> None:
    torch.manual_seed(3)
    layer = GatedFrontEnd(64, 0.3)
    arguments = torch.randn(4, 300, 80), torch.full((4,), 300), torch.ones(4, 100).bool()
    still, dropped = layer.eval()(*arguments), layer.train()(*arguments)
    kept = dropped != 0
    # 25,600 values: a share of 0.3 has a deviation of 0.003.
    assert (~kept).float().mean().item() == pytest.approx(0.3, abs=0.012)
    torch.testing.assert_close(dropped[kept], still[kept] / 0.7)


def test_dropout_of_a_block_acts_behind_the_relu_and_not_on_its_output() -> None:
    torch.manual_seed(4)
    block = Block(ModelSettings(1, 16, dropout=0.5, attention_dropout=False)).train()
    seen: list[Tensor] = []
    block.mlp_out.register_forward_pre_hook(lambda layer, given: seen.append(given[0]))
    out = block(torch.randn(8, 50, 16), None)
    # ReLU leaves half at zero, dropout half of the others.
    assert (seen[0] == 0).float().mean().item() == pytest.approx(0.75, abs=0.02)
    assert (out != 0).all()


def test_blocks_that_layer_drop_keeps_are_used_as_they_are() -> None:
    torch.manual_seed(5)
    settings = ModelSettings(
        6, 16, positions="sinusoidal", dropout=0.0, layer_drop=0.5, attention_dropout=False
    )
    model = SpeechTransformer(settings, 5).train()
    features, lengths = torch.randn(2, 30, 80), torch.tensor([30, 24])
    steps = lengths // 3
    inside = torch.arange(10)[None, :] < steps[:, None]
    counts = set()
    for seed in range(6):
        torch.manual_seed(seed)
        result = model(features, lengths)[0]
        torch.manual_seed(seed)
        hidden = model.positions(model.front_end(features, lengths, inside), steps, inside)
        kept = [block for block in model.blocks if torch.rand(()).item() >= 0.5]
        for block in kept:
            hidden = block(hidden, inside[:, None, None, :])
        assert torch.equal(result, model.head(model.norm(hidden)))
        counts.add(len(kept))
    assert len(counts) > 1
    assert counts != {0, 6}


def test_layer_drop_leaves_out_the_share_that_it_names() -> None:
    torch.manual_seed(6)
    model = SpeechTransformer(ModelSettings(4, 8, dropout=0.0, layer_drop=0.3), 5).train()
    used: list[nn.Module] = []
    for block in model.blocks:
        block.register_forward_hook(lambda layer, given, out: used.append(layer))
    with torch.no_grad():
        for _ in range(250):
            model(torch.zeros(1, 6, 80), torch.tensor([6]))
    # 1,000 draws at 0.7: a deviation of 14.5.
    assert 642 < len(used) < 758
