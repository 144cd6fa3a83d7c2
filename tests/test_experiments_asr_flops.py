"""Check the count of the models' arithmetic against torch's own."""

from __future__ import annotations

import pytest
import torch

from experiments.asr.flops import forward_flops, gpu_hours, training_flops
from experiments.asr.layers import ModelSettings
from experiments.asr.model import PRESETS, SpeechTransformer

SMALL_PAPER = ModelSettings(2, 32, dropout=0.0, layer_drop=0.0)


# Origin: torch's own flop counter, which counts matrix products, convolutions and attention.
@pytest.mark.parametrize("settings", [PRESETS["tiny"], SMALL_PAPER])
def test_the_arithmetic_is_counted_as_torch_counts_it(settings: ModelSettings) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model = SpeechTransformer(settings, 30).eval()
    # Only the plain form of attention is made of products that the counter knows on a CPU.
    with (
        FlopCounterMode(display=False) as counter,
        torch.no_grad(),
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
    ):
        model(torch.randn(1, 300, 80), torch.tensor([300]))
    ours = forward_flops(settings, 30, 100)
    assert ours == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_a_step_costs_three_passes_and_grows_with_the_seconds() -> None:
    one, two = (training_flops(SMALL_PAPER, 30, seconds) for seconds in (10.0, 20.0))
    assert one == pytest.approx(3 * forward_flops(SMALL_PAPER, 30, 333))
    assert two == pytest.approx(2 * one)
    assert gpu_hours(two) == pytest.approx(2 * gpu_hours(one))


def test_blocks_that_layer_drop_leaves_out_are_not_counted() -> None:
    none = ModelSettings(0, 32, layer_drop=0.0)
    half = ModelSettings(2, 32, layer_drop=0.5)
    around = training_flops(none, 30, 10.0)
    blocks = training_flops(SMALL_PAPER, 30, 10.0) - around
    assert training_flops(half, 30, 10.0) == pytest.approx(around + blocks / 2)
