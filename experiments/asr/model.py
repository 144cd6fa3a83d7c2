"""Build the speech models: a convolutional front end, transformer blocks, a CTC head."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from experiments.asr.features import FRAMES_PER_STEP, inside_lengths
from experiments.asr.layers import (
    Block,
    ConvolutionPositions,
    GatedFrontEnd,
    ModelSettings,
    Norm,
    Positions,
    TimePositions,
    TwoConvolutions,
    init_lecun_uniform,
)
from privacy.errors import SettingsError

_TINY = ModelSettings(
    2,
    96,
    front_end="two-convolutions",
    positions="convolution",
    dropout=0.0,
    attention_dropout=False,
    layer_drop=0.0,
)

PRESETS = {
    "tiny": _TINY,
    "small": replace(_TINY, blocks=6, width=256, dropout=0.1),
    "base": ModelSettings(36, 768),
    "narrow": ModelSettings(36, 512, layer_drop=0.1),
    "shallow": ModelSettings(16, 768, layer_drop=0.1),
    "wide": ModelSettings(36, 1024, layer_drop=0.1),
    "deep": ModelSettings(72, 768, layer_drop=0.1),
}
"""base to deep: arXiv 2310.00098, base and its size studies. tiny and small: ours, for CPUs."""


@dataclass(frozen=True)
class ModelChanges:
    """Say what differs from a preset; None leaves the preset's value.

    checkpoint_activations: keep only the input of each block in training and compute the rest
    again for the gradient: less memory for about a third more time, equal results.
    """

    dropout: float | None = None
    layer_drop: float | None = None
    positions: Positions | None = None
    norm: Norm | None = None
    checkpoint_activations: bool = False

    def apply(self, settings: ModelSettings) -> ModelSettings:
        """Give the changed settings."""
        given = {
            name: value for name, value in dataclasses.asdict(self).items() if value is not None
        }
        return replace(settings, **given)

    def problems(self) -> list[str]:
        """List every value that no model can have, one sentence each."""
        found = [
            f"{rate} must be at least 0 and below 1, got {value!r}; try 0.1"
            for rate, value in (("dropout", self.dropout), ("layer_drop", self.layer_drop))
            if value is not None and not _is_rate(value)
        ]
        words = (("positions", self.positions, Positions), ("norm", self.norm, Norm))
        found += [
            f"{name} must be one of {', '.join(get_args(allowed))}, got {value!r}"
            for name, value, allowed in words
            if value is not None and value not in get_args(allowed)
        ]
        if not isinstance(self.checkpoint_activations, bool):
            found.append(
                f"checkpoint_activations must be true or false, got {self.checkpoint_activations!r}"
            )
        return found


def build_model(name: str, labels: int, changes: ModelChanges | None = None) -> nn.Module:
    """Build a model with weights drawn from torch's global generator.

    name: a preset, or "module:factory" of a callable that takes the number of labels and gives
    an nn.Module. labels: number of outputs, the blank included. changes: to the preset.
    The model's forward takes features (batch, frames, 80) and lengths (batch,) in frames, and
    gives logits (batch, steps, labels) and lengths (batch,) in steps.
    Raises: SettingsError when the name is unknown or a change is impossible.
    """
    chosen = changes or ModelChanges()
    check_model(name, chosen)
    if name not in PRESETS:
        return _foreign_model(name, labels)
    return SpeechTransformer(chosen.apply(PRESETS[name]), labels)


def check_model(name: str, changes: ModelChanges) -> None:
    """Refuse what `build_model` cannot build, without building it.

    Raises: SettingsError with one sentence per mistake.
    """
    problems = changes.problems()
    if name not in PRESETS and ":" not in name:
        problems.append(
            f"model must be one of {', '.join(PRESETS)} or MODULE:FACTORY, got {name!r}"
        )
    if ":" in name and changes != ModelChanges():
        problems.append(
            "dropout, layer_drop, positions, norm and checkpoint_activations change presets only, "
            f"got some of them with the model {name!r}; set them in its factory"
        )
    if problems:
        raise SettingsError(problems)


def compile_blocks(model: nn.Module, backend: str | Callable[..., Any] = "inductor") -> None:
    """Let torch.compile translate each block in place, for any batch shape; names stay as they are.

    backend: of torch.compile, by name or as a callable. A model without `blocks` is compiled as a
    whole.
    """
    parts = getattr(model, "blocks", None)
    for part in parts if isinstance(parts, nn.ModuleList) else [model]:
        part.compile(dynamic=True, backend=backend)


def _is_rate(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1


def _foreign_model(name: str, labels: int) -> nn.Module:
    module_name, _, attribute = name.partition(":")
    try:
        model = getattr(importlib.import_module(module_name), attribute)(labels)
    except (ImportError, AttributeError, TypeError, ValueError) as problem:
        raise SettingsError(
            f"model must be MODULE:FACTORY of a callable that takes the number of labels, "
            f"got {name!r} ({problem})"
        ) from problem
    if not isinstance(model, nn.Module):
        raise SettingsError(
            f"model factory {name!r} must give a torch.nn.Module, got {type(model).__name__}"
        )
    return model


class SpeechTransformer(nn.Module):
    """Write a label distribution for every 30 ms of speech.

    Reference: encoder of arXiv 2310.00098 for the presets base to deep.
    """

    def __init__(self, settings: ModelSettings, labels: int) -> None:
        super().__init__()
        self.layer_drop = settings.layer_drop
        self.checkpoint_activations = settings.checkpoint_activations
        self.front_end: nn.Module = (
            GatedFrontEnd(settings.width, settings.dropout)
            if settings.front_end == "glu"
            else TwoConvolutions(settings.width)
        )
        self.positions: nn.Module = (
            ConvolutionPositions(settings.width)
            if settings.positions == "convolution"
            else TimePositions(settings.width, 30.0 if settings.positions == "cape" else 0.0)
        )
        self.blocks = nn.ModuleList(Block(settings) for _ in range(settings.blocks))
        self.norm = nn.LayerNorm(settings.width)
        self.head = nn.Linear(settings.width, labels)
        init_lecun_uniform(self.head)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Give logits (batch, steps, labels) and their lengths; padding changes no result."""
        steps = lengths // FRAMES_PER_STEP
        inside = inside_lengths(steps, features.shape[1] // FRAMES_PER_STEP)
        hidden = self.front_end(features, lengths, inside)
        hidden = self.positions(hidden, steps, inside)
        visible = None if bool(inside.all()) else inside[:, None, None, :]
        for block in self.blocks:
            if self.training and self.layer_drop and torch.rand(()).item() < self.layer_drop:
                continue
            if self.training and self.checkpoint_activations:
                hidden = checkpoint(block, hidden, visible, use_reentrant=False)
            else:
                hidden = block(hidden, visible)
        logits: Tensor = self.head(self.norm(hidden))
        return logits, steps
