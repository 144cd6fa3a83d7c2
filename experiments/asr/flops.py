"""Count the arithmetic of training, and estimate from it what a run costs on a GPU."""

from __future__ import annotations

from experiments.asr.batching import FRAMES_PER_SECOND
from experiments.asr.features import FRAMES_PER_STEP, MEL_BINS
from experiments.asr.layers import ModelSettings

TYPICAL_SECONDS = 10.0
"""Length of an utterance in the estimates; between Common Voice's 6 s and LibriSpeech's 12 s."""

PAPER_FLOPS_PER_SECOND = 2.34e13
"""Arithmetic that an A100-80GB got through per second in the paper's runs, by this count.

Origin: arXiv 2310.00098, cost table: 1,120 hours for 2,000 rounds of 1,024 users with 10 steps
each; every step is taken as 120 s of speech in base, layer drop counted.
"""


def forward_flops(settings: ModelSettings, labels: int, steps: int) -> float:
    """Count the additions and multiplications of one pass over one utterance, all blocks used.

    steps: length of the utterance in model steps. A multiply-add counts two. Normalisations,
    activations and the features are left out: below a hundredth.
    """
    width, inner = settings.width, settings.inner_width
    if settings.front_end == "glu":
        front_end = MEL_BINS * 2 * width * 7
    else:
        front_end = MEL_BINS * width * 5 + width * width * 3
    positions = 15 * width if settings.positions == "convolution" else 0
    block = 4 * width * width + 2 * width * inner + 2 * steps * width
    return 2.0 * steps * (front_end + positions + settings.blocks * block + width * labels)


def training_flops(settings: ModelSettings, labels: int, seconds: float) -> float:
    """Count one training step over so many seconds of speech in utterances of typical length.

    The gradient costs twice the forward pass. Blocks that layer drop leaves out are not counted.
    """
    shortest = min(seconds, TYPICAL_SECONDS)
    steps = max(1, round(shortest * FRAMES_PER_SECOND / FRAMES_PER_STEP))
    without = ModelSettings(
        0, settings.width, front_end=settings.front_end, positions=settings.positions
    )
    around = forward_flops(without, labels, steps)
    blocks = forward_flops(settings, labels, steps) - around
    return 3.0 * (around + (1.0 - settings.layer_drop) * blocks) * seconds / shortest


def gpu_hours(flops: float) -> float:
    """Estimate the hours of an A100-80GB at the speed of the paper's own runs."""
    return flops / PAPER_FLOPS_PER_SECOND / 3600
