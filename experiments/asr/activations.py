"""Count the memory that a training step holds from the forward pass to the gradient."""

from __future__ import annotations

from experiments.asr.batching import FRAMES_PER_SECOND
from experiments.asr.features import FRAMES_PER_STEP, MEL_BINS
from experiments.asr.layers import ModelSettings


def activation_megabytes(
    settings: ModelSettings, labels: int, seconds: float, *, half_precision: bool = False
) -> float:
    """Count what a step over so many seconds of speech, padding included, keeps for the gradient.

    half_precision: matrix products in bfloat16, of which each layer's matrix is kept as well.
    All blocks are counted, layer drop or not, since a step may use them all. Attention is taken as
    fused, so that its weights are not kept; a CPU keeps them where they are dropped out. Weights,
    gradients and the moments of an optimizer are not in here.
    """
    steps = seconds * FRAMES_PER_SECOND / FRAMES_PER_STEP
    size = 2 if half_precision else 4
    block = _block(settings, size)
    if settings.checkpoint_activations:
        blocks = settings.blocks * settings.width * size + (block if settings.blocks else 0)
    else:
        blocks = settings.blocks * block
    around = _front_end(settings, size) + settings.width * (4 + size) + 3 * 4 * labels
    matrices = 2 * _matrices(settings, labels) if half_precision else 0
    return (steps * (around + blocks) + matrices) / 1e6


def _block(settings: ModelSettings, size: int) -> int:
    """Count the bytes of one block for one step of 30 ms.

    Kept are: input (in float32) and output of both norms, query, key and value, the attended, the
    inner layer behind ReLU and behind dropout, and dropout's mask of one byte.
    """
    width, inner = settings.width, settings.inner_width
    dropped = inner * (size + 1) if settings.dropout else 0
    return 2 * width * (4 + size) + 4 * width * size + inner * size + dropped


def _front_end(settings: ModelSettings, size: int) -> int:
    """Count the bytes of front end and positions for one step of 30 ms."""
    width, frames = settings.width, FRAMES_PER_STEP * MEL_BINS
    positions = width * size if settings.positions == "convolution" else 0
    if settings.front_end == "glu":
        # Features, normalised once more; the input of the convolution; its output; the mask.
        return positions + frames * (8 + size) + 2 * width * size + width * bool(settings.dropout)
    # Features; the windows and outputs of both convolutions.
    return positions + frames * 4 + (5 * MEL_BINS + width + 3 * width + width) * size


def _matrices(settings: ModelSettings, labels: int) -> int:
    """Count the weights that autocast turns to bfloat16."""
    width, inner = settings.width, settings.inner_width
    convolution = 7 * MEL_BINS * 2 * width if settings.front_end == "glu" else 0
    return settings.blocks * (4 * width * width + 2 * width * inner) + convolution + width * labels
