"""Build the speech models: a convolutional front end, transformer blocks, a CTC head."""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from experiments.asr.features import FRAMES_PER_STEP, MEL_BINS
from privacy.errors import SettingsError

_STEP_SECONDS = 0.01 * FRAMES_PER_STEP


@dataclass(frozen=True)
class ModelSettings:
    """Describe one size of the model.

    front_end: "glu" (normalisation, one gated convolution; the paper's) or "two-convolutions".
    positions: "cape" (random shifts in training; the paper's), "sinusoidal" (no shifts) or
    "convolution" (a depthwise convolution learns them).
    norm: "pre" or "post". dropout: after ReLU and, where attention_dropout is set, of attention
    weights (which doubles the time of a step on a CPU). layer_drop: chance that a block is left
    out of a training step.
    """

    blocks: int
    width: int
    heads: int = 4
    front_end: Literal["glu", "two-convolutions"] = "glu"
    positions: Literal["cape", "sinusoidal", "convolution"] = "cape"
    norm: Literal["pre", "post"] = "pre"
    dropout: float = 0.3
    attention_dropout: bool = True
    layer_drop: float = 0.3

    @property
    def inner_width(self) -> int:
        """Give the width inside the perceptron of a block."""
        return 4 * self.width


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


def build_model(
    name: str, labels: int, *, dropout: float | None = None, layer_drop: float | None = None
) -> nn.Module:
    """Build a model with weights drawn from torch's global generator.

    name: a preset, or "module:factory" of a callable that takes the number of labels and gives
    an nn.Module. labels: number of outputs, the blank included. dropout, layer_drop: replace the
    preset's.
    The model's forward takes features (batch, frames, 80) and lengths (batch,) in frames, and
    gives logits (batch, steps, labels) and lengths (batch,) in steps.
    Raises: SettingsError when the name is unknown or a rate is not in [0, 1).
    """
    check_model(name, dropout, layer_drop)
    if name not in PRESETS:
        return _foreign_model(name, labels)
    settings = PRESETS[name]
    if dropout is not None:
        settings = replace(settings, dropout=float(dropout))
    if layer_drop is not None:
        settings = replace(settings, layer_drop=float(layer_drop))
    return SpeechTransformer(settings, labels)


def check_model(name: str, dropout: float | None, layer_drop: float | None) -> None:
    """Refuse what `build_model` cannot build, without building it.

    Raises: SettingsError with one sentence per mistake.
    """
    problems = [
        f"{rate} must be at least 0 and below 1, got {value!r}; try 0.1"
        for rate, value in (("dropout", dropout), ("layer_drop", layer_drop))
        if value is not None and not _is_rate(value)
    ]
    if name not in PRESETS and ":" not in name:
        problems.append(
            f"model must be one of {', '.join(PRESETS)} or MODULE:FACTORY, got {name!r}"
        )
    if problems:
        raise SettingsError(problems)


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
        _init_lecun_uniform(self.head)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Give logits (batch, steps, labels) and their lengths; padding changes no result."""
        steps = lengths // FRAMES_PER_STEP
        inside = _inside(steps, features.shape[1] // FRAMES_PER_STEP)
        hidden = self.front_end(features, lengths, inside)
        hidden = self.positions(hidden, steps, inside)
        visible = None if bool(inside.all()) else inside[:, None, None, :]
        for block in self.blocks:
            if self.training and self.layer_drop and torch.rand(()).item() < self.layer_drop:
                continue
            hidden = block(hidden, visible)
        logits: Tensor = self.head(self.norm(hidden))
        return logits, steps


def _inside(lengths: Tensor, size: int) -> Tensor:
    """Mark the places before each length: (batch, size) bool."""
    return torch.arange(size, device=lengths.device)[None, :] < lengths[:, None]


def _init_lecun_uniform(layer: nn.Linear | nn.Conv1d) -> None:
    """Draw weights with variance 1 / fan-in; set the bias to 0."""
    bound = math.sqrt(3.0 / layer.weight[0].numel())
    nn.init.uniform_(layer.weight, -bound, bound)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class GatedFrontEnd(nn.Module):
    """Normalise each utterance once more, then convolve over 7 frames, stride 3, with a gate."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.shift = nn.Parameter(torch.zeros(1))
        self.convolution = nn.Conv1d(MEL_BINS, 2 * width, 7, stride=FRAMES_PER_STEP, padding=2)
        self.dropout = nn.Dropout(dropout)
        _init_lecun_uniform(self.convolution)

    def forward(self, features: Tensor, lengths: Tensor, inside: Tensor) -> Tensor:
        """Give (batch, steps, width) from (batch, frames, 80)."""
        valid = _inside(lengths, features.shape[1])[:, :, None]
        count = (lengths * features.shape[2]).clamp(min=1)[:, None, None]
        mean = (features * valid).sum((1, 2), keepdim=True) / count
        variance = ((features - mean).square() * valid).sum((1, 2), keepdim=True) / count
        normalised = (features - mean) * torch.rsqrt(variance + 1e-7)
        scaled = (normalised * self.scale + self.shift) * valid
        convolved = self.convolution(scaled.transpose(1, 2))
        gated: Tensor = self.dropout(functional.glu(convolved, dim=1).transpose(1, 2))
        return gated


class TwoConvolutions(nn.Module):
    """Convolve over 5 frames with stride 3, then over 3 steps; light enough for one CPU core."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(MEL_BINS, width, 5, stride=FRAMES_PER_STEP, padding=1)
        self.second = nn.Conv1d(width, width, 3, padding=1)
        _init_lecun_uniform(self.first)
        _init_lecun_uniform(self.second)

    def forward(self, features: Tensor, lengths: Tensor, inside: Tensor) -> Tensor:
        """Give (batch, steps, width) from (batch, frames, 80)."""
        first = functional.relu(self.first(features.transpose(1, 2)))
        second = functional.relu(self.second(first * inside[:, None, :]))
        return second.transpose(1, 2)


class ConvolutionPositions(nn.Module):
    """Tell steps apart by their neighbourhood: add a depthwise convolution over 15 steps."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(width, width, 15, padding=7, groups=width)

    def forward(self, hidden: Tensor, steps: Tensor, inside: Tensor) -> Tensor:
        """Give hidden (batch, steps, width) plus what the convolution says."""
        masked = (hidden * inside[:, :, None]).transpose(1, 2)
        moved: Tensor = hidden + self.convolution(masked).transpose(1, 2)
        return moved


class TimePositions(nn.Module):
    """Add sinusoids of the time in seconds, counted from the middle of the utterance.

    shift_seconds: in training every utterance is moved by up to this much either way.
    Reference: CAPE, Likhomanenko et al. 2021, with a global shift only.
    """

    def __init__(self, width: int, shift_seconds: float) -> None:
        super().__init__()
        self.width = width
        self.shift_seconds = shift_seconds

    def forward(self, hidden: Tensor, steps: Tensor, inside: Tensor) -> Tensor:
        """Give hidden (batch, steps, width) plus the sinusoids."""
        device = hidden.device
        places = torch.arange(hidden.shape[1], device=device)[None, :]
        seconds = (places - (steps[:, None] - 1) / 2) * _STEP_SECONDS
        if self.training and self.shift_seconds:
            seconds = seconds + self.shift_seconds * (2 * torch.rand_like(seconds[:, :1]) - 1)
        channels = torch.arange(self.width, device=device)
        frequencies = 30.0 * torch.exp((channels // 2) * (-2.0 * math.log(1e4) / self.width))
        angles = seconds[:, :, None] * frequencies + (channels % 2) * (math.pi / 2)
        return hidden + torch.sin(angles).to(hidden.dtype)


class Block(nn.Module):
    """Attend to all steps, then transform each: a transformer block without linear biases."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        width, inner = settings.width, settings.inner_width
        self.heads = settings.heads
        self.dropout = settings.dropout
        self.attention_dropout = settings.dropout if settings.attention_dropout else 0.0
        self.norm_first = settings.norm == "pre"
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, inner, bias=False)
        self.mlp_out = nn.Linear(inner, width, bias=False)
        for layer in (self.query_key_value, self.attention_out, self.mlp_in, self.mlp_out):
            bound = 1.0 / math.sqrt(layer.in_features)
            nn.init.uniform_(layer.weight, -bound, bound)

    def forward(self, hidden: Tensor, visible: Tensor | None) -> Tensor:
        """Give (batch, steps, width); visible: (batch, 1, 1, steps) bool, None where all are."""
        if self.norm_first:
            hidden = hidden + self._attend(self.attention_norm(hidden), visible)
            return hidden + self._transform(self.mlp_norm(hidden))
        attended: Tensor = self.attention_norm(hidden + self._attend(hidden, visible))
        transformed: Tensor = self.mlp_norm(attended + self._transform(attended))
        return transformed

    def _attend(self, hidden: Tensor, visible: Tensor | None) -> Tensor:
        batch, steps, width = hidden.shape
        projected = self.query_key_value(hidden).view(batch, steps, 3, self.heads, -1)
        query, key, value = projected.permute(2, 0, 3, 1, 4).unbind(0)
        drop = self.attention_dropout if self.training else 0.0
        attended = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=visible, dropout_p=drop
        )
        out: Tensor = self.attention_out(attended.transpose(1, 2).reshape(batch, steps, width))
        return out

    def _transform(self, hidden: Tensor) -> Tensor:
        inner = functional.relu(self.mlp_in(hidden))
        out: Tensor = self.mlp_out(functional.dropout(inner, self.dropout, self.training))
        return out
