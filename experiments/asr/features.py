"""Turn samples into normalised log-mel features, as the paper's front end does."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

SAMPLE_RATE = 16_000
WINDOW_SAMPLES = 400
HOP_SAMPLES = 160
FFT_SIZE = 512
MEL_BINS = 80
PRE_EMPHASIS = 0.97
SAMPLE_SCALE = 32_768.0
MEL_FLOOR = 1.0
FRAMES_PER_STEP = 3
"""Frames that our models merge into one step of 30 ms."""

VARIANCE_FLOOR = 1e-7


def frame_count(samples: int) -> int:
    """Count the whole 25 ms windows, 10 ms apart, that fit into `samples` samples."""
    return max(0, (samples - WINDOW_SAMPLES) // HOP_SAMPLES + 1)


def log_mel(waveform: torch.Tensor) -> torch.Tensor:
    """Compute log-mel magnitudes on the device of `waveform`.

    waveform: (..., samples) float32 in [-1, 1] at 16 kHz, at least 400 samples.
    Returns: (..., frames, 80) float32.
    Reference: front end of arXiv 2310.00098: 25 ms Hamming windows every 10 ms, pre-emphasis
    0.97 inside each window, 512-point FFT, magnitude, 80 HTK mel bins up to 8 kHz, floor 1, log.
    """
    import torch

    frames = (waveform * SAMPLE_SCALE).unfold(-1, WINDOW_SAMPLES, HOP_SAMPLES)
    previous = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
    window, mel = _constants()
    emphasised = (frames - PRE_EMPHASIS * previous) * window.to(waveform.device)
    magnitudes = torch.fft.rfft(emphasised, n=FFT_SIZE).abs()
    return torch.matmul(magnitudes, mel.to(waveform.device)).clamp(min=MEL_FLOOR).log()


def normalise(features: torch.Tensor) -> torch.Tensor:
    """Shift and scale one utterance to mean 0 and variance 1 over time and frequency together.

    features: (frames, 80). One scalar mean and variance, so the shape of the spectrum stays.
    """
    variance = features.var(unbiased=False)
    return (features - features.mean()) / (variance + VARIANCE_FLOOR).sqrt()


def normalise_rows(features: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
    """Normalise each utterance of a padded batch as `normalise` does; what is padded becomes 0.

    features: (batch, frames, bins). frames: (batch,) int64, of each row on the same device.
    """
    spoken = inside_lengths(frames, features.shape[1])[:, :, None]
    count = (frames * features.shape[2])[:, None, None]
    mean = (features * spoken).sum((1, 2), keepdim=True) / count
    centred = (features - mean) * spoken
    variance = centred.square().sum((1, 2), keepdim=True) / count
    return centred / (variance + VARIANCE_FLOOR).sqrt()


def inside_lengths(lengths: torch.Tensor, size: int) -> torch.Tensor:
    """Mark the places before each length: (batch, size) bool."""
    import torch

    return torch.arange(size, device=lengths.device)[None, :] < lengths[:, None]


def utterance_features(samples: NDArray[np.float32]) -> NDArray[np.float16]:
    """Compute the normalised features of one utterance.

    samples: (samples,) float32 in [-1, 1] at 16 kHz. Returns: (frames, 80) float16, which halves
    the memory of a corpus; its rounding is 1e-3 of a standard deviation.
    """
    import torch

    with torch.no_grad():
        features = normalise(log_mel(torch.from_numpy(samples)))
    return features.numpy().astype(np.float16)


@functools.lru_cache(maxsize=1)
def _constants() -> tuple[torch.Tensor, torch.Tensor]:
    """Give the Hamming window (400,) and the mel matrix (257, 80)."""
    import torch
    import torchaudio

    mel = torchaudio.functional.melscale_fbanks(
        FFT_SIZE // 2 + 1, 0.0, SAMPLE_RATE / 2, MEL_BINS, SAMPLE_RATE, mel_scale="htk"
    )
    return torch.hamming_window(WINDOW_SAMPLES, periodic=False), mel
