"""Write the parts of the speech models: front ends, positions, transformer blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from experiments.asr.features import FRAMES_PER_STEP, MEL_BINS, inside_lengths

_STEP_SECONDS = 0.01 * FRAMES_PER_STEP

Positions = Literal["cape", "sinusoidal", "convolution"]
Norm = Literal["pre", "post"]


@dataclass(frozen=True)
class ModelSettings:
    """Describe one size of the model.

    front_end: "glu" (normalisation, one gated convolution; the paper's) or "two-convolutions".
    positions: "cape" (random shifts in training; the paper's), "sinusoidal" (no shifts) or
    "convolution" (a depthwise convolution learns them).
    norm: "pre" or "post". dropout: after ReLU and, where attention_dropout is set, of attention
    weights (which doubles the time of a step on a CPU). layer_drop: chance that a block is left
    out of a training step. checkpoint_activations: see ModelChanges.
    """

    blocks: int
    width: int
    heads: int = 4
    front_end: Literal["glu", "two-convolutions"] = "glu"
    positions: Positions = "cape"
    norm: Norm = "pre"
    dropout: float = 0.3
    attention_dropout: bool = True
    layer_drop: float = 0.3
    checkpoint_activations: bool = False

    @property
    def inner_width(self) -> int:
        """Give the width inside the perceptron of a block."""
        return 4 * self.width


def init_lecun_uniform(layer: nn.Linear | nn.Conv1d) -> None:
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
        init_lecun_uniform(self.convolution)

    def forward(self, features: Tensor, lengths: Tensor, inside: Tensor) -> Tensor:
        """Give (batch, steps, width) from (batch, frames, 80)."""
        valid = inside_lengths(lengths, features.shape[1])[:, :, None]
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
        init_lecun_uniform(self.first)
        init_lecun_uniform(self.second)

    def forward(self, features: Tensor, lengths: Tensor, inside: Tensor) -> Tensor:
        """Give (batch, steps, width) from (batch, frames, 80)."""
        first = functional.relu(convolve(self.first, features))
        return functional.relu(convolve(self.second, first * inside[:, :, None]))


def convolve(layer: nn.Conv1d, hidden: Tensor) -> Tensor:
    """Give (batch, steps, out) of (batch, frames, in): a convolution as one matrix product.

    For short utterances on one core this takes half the time of the convolution itself.
    """
    (kernel,), (stride,), padding = layer.kernel_size, layer.stride, int(layer.padding[0])
    windows = functional.pad(hidden, (0, 0, padding, padding)).unfold(1, kernel, stride)
    return functional.linear(windows.flatten(2), layer.weight.flatten(1), layer.bias)


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
