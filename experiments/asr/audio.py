"""Read audio files: any sample rate, any number of channels, whatever soundfile decodes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from experiments.asr.corpora import UnreadableAudio
from experiments.asr.features import SAMPLE_RATE


def read_audio(path: Path) -> NDArray[np.float32]:
    """Give (samples,) float32, mono, 16 kHz; channels are averaged, other rates resampled.

    Raises: UnreadableAudio when the file is missing or cannot be decoded.
    """
    import soundfile

    try:
        samples, rate = soundfile.read(str(path), dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as problem:
        raise UnreadableAudio(f"{path} cannot be decoded ({problem})") from problem
    return resample(samples.mean(axis=1, dtype=np.float32), int(rate))


def resample(samples: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
    """Bring (samples,) from `rate` to 16 kHz by windowed sinc interpolation."""
    if rate == SAMPLE_RATE or not len(samples):
        return samples
    import torch
    import torchaudio

    resampled = torchaudio.functional.resample(torch.from_numpy(samples), rate, SAMPLE_RATE)
    result: NDArray[np.float32] = resampled.numpy()
    return result


def measure_audio(path: Path, notes: Counter[str]) -> float | None:
    """Give the seconds of a file from its header, None where it cannot be read.

    notes: counts files of another sample rate and of several channels, which are mended when read.
    """
    import soundfile

    try:
        header = soundfile.info(str(path))
    except (soundfile.SoundFileError, OSError):
        return None
    notes["other sample rate, resampled"] += header.samplerate != SAMPLE_RATE
    notes["several channels, mixed down"] += header.channels > 1
    return float(header.frames / header.samplerate)
