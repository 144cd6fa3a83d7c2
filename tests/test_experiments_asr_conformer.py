"""Check the example of a model of one's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from experiments.asr.model import ModelChanges, build_model, check_model
from privacy.errors import SettingsError


def test_the_conformer_is_a_model_that_can_be_named() -> None:
    torch.manual_seed(0)
    model = build_model("experiments.asr.conformer:small_conformer", 12).eval()
    assert not any(isinstance(module, nn.BatchNorm1d) for module in model.modules())
    features = torch.randn(2, 70, 80)
    logits, steps = model(features, torch.tensor([60, 31]))
    assert logits.shape == (2, 20, 12)
    assert steps.tolist() == [20, 10]
    together = model(features, torch.tensor([66, 66]))[0]
    alone = model(features[1:], torch.tensor([66]))[0]
    torch.testing.assert_close(together[1], alone[0], atol=1e-4, rtol=1e-3)
    with pytest.raises(SettingsError, match="change presets only"):
        check_model("experiments.asr.conformer:small_conformer", ModelChanges(dropout=0.1))
