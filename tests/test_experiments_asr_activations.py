"""Check the count of a training step's memory against what torch keeps for the gradient."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from experiments.asr.activations import activation_megabytes
from experiments.asr.layers import ModelSettings
from experiments.asr.model import PRESETS, SpeechTransformer

SMALL_PAPER = ModelSettings(4, 64, dropout=0.3, attention_dropout=False, layer_drop=0.0)


def _kept_megabytes(settings: ModelSettings, seconds: int) -> float:
    """Add up what torch keeps from one forward pass, the weights left out."""
    model = SpeechTransformer(settings, 30).train()
    weights = {each.untyped_storage().data_ptr() for each in model.parameters()}
    features = torch.randn(seconds // 5, 500, 80)
    kept = {features.data_ptr(): features.untyped_storage()}  # the batch itself

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits, _ = model(features, torch.full((seconds // 5,), 500))
        loss = torch.log_softmax(logits, -1).sum()
        del loss
    return sum(storage.nbytes() for storage in kept.values()) / 1e6


@pytest.mark.parametrize(
    "settings",
    [
        SMALL_PAPER,
        replace(SMALL_PAPER, dropout=0.0),
        replace(SMALL_PAPER, blocks=12),
        PRESETS["tiny"],
    ],
)
def test_the_count_is_what_torch_keeps(settings: ModelSettings) -> None:
    ours = activation_megabytes(settings, 30, 20.0)
    if settings.dropout:  # a CPU keeps its masks in float32, a GPU in one byte
        ours += 3 * settings.blocks * settings.inner_width * (2000 // 3) / 1e6
    assert ours == pytest.approx(_kept_megabytes(settings, 20), rel=0.03)


def test_the_count_grows_with_speech_and_blocks() -> None:
    base = PRESETS["base"]
    one, two = (activation_megabytes(base, 30, seconds) for seconds in (60.0, 120.0))
    assert two == pytest.approx(2 * one)
    half = activation_megabytes(base, 30, 120.0, half_precision=True)
    assert 0.5 * two < half < two
    saving = activation_megabytes(replace(base, checkpoint_activations=True), 30, 120.0)
    assert saving < 0.15 * two
