"""Read audio files: any sample rate, any number of channels, whatever soundfile decodes."""

from __future__ import annotations

import logging
import math
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from experiments.asr.corpora import UnreadableAudio
from experiments.asr.features import SAMPLE_RATE

_LONGEST_SECONDS = 60
"""Twice the longest utterance that is trained on: an index or a list was wrong about the file."""

_MOST_VALUES = 2**26
_LARGEST_FILTER = 2**22
"""44,100 Hz needs 7 * 10^4 values; 44,101 Hz, which shares no divisor with 16 kHz, 7 * 10^8."""

_ZERO_CROSSINGS, _ROLLOFF = 6, 0.99
"""Of the sinc filter; torchaudio's defaults."""

_log = logging.getLogger(__name__)


def read_audio(path: Path, notes: Counter[str] | None = None) -> NDArray[np.float32]:
    """Give (samples,) float32, mono, 16 kHz; channels are averaged, other rates resampled.

    notes: counts what had to be mended, as in measure_audio.
    Raises: UnreadableAudio when the file is missing, cannot be decoded, or would take far more
    memory than an utterance does.
    """
    import soundfile

    try:
        with soundfile.SoundFile(str(path)) as opened:
            rate = int(opened.samplerate)
            problem = memory_problem(rate, opened.channels, opened.frames)
            samples = None if problem else opened.read(dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        raise UnreadableAudio(f"{path} cannot be decoded ({error})") from error
    if samples is None:
        raise UnreadableAudio(f"{path} {problem}")
    if notes is not None:
        _note_mended(path, rate, samples.shape[1], notes)
    return resample(samples.mean(axis=1, dtype=np.float32), rate)


def memory_problem(rate: int, channels: int = 1, frames: int = 0) -> str:
    """Say why a file would take far more memory than an utterance does; "" where it would not.

    One such file would otherwise end the process that reads it.
    """
    if frames > _LONGEST_SECONDS * rate:
        return f"is longer than {_LONGEST_SECONDS} seconds; cut it"
    if frames * channels > _MOST_VALUES:
        return f"holds {channels} channels of {frames:,} samples; mix them down"
    if rate != SAMPLE_RATE and _filter_size(rate) > _LARGEST_FILTER:
        return f"has a sample rate of {rate} Hz, which needs a huge filter; convert it to 16 kHz"
    return ""


def _filter_size(rate: int) -> int:
    """Count the values of torchaudio's filters: one for each place between two samples."""
    common = math.gcd(rate, SAMPLE_RATE)
    before, after = rate // common, SAMPLE_RATE // common
    half_width = math.ceil(_ZERO_CROSSINGS * before / (_ROLLOFF * min(before, after)))
    return after * (2 * half_width + before)


def resample(samples: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
    """Bring (samples,) from `rate` to 16 kHz by windowed sinc interpolation."""
    if rate == SAMPLE_RATE or not len(samples):
        return samples
    import torch
    import torchaudio

    resampled = torchaudio.functional.resample(
        torch.from_numpy(samples), rate, SAMPLE_RATE, _ZERO_CROSSINGS, _ROLLOFF
    )
    result: NDArray[np.float32] = resampled.numpy()
    return result


def measure_audio(path: Path, notes: Counter[str]) -> float | None:
    """Give the seconds of a file from its header, None where it cannot be read, or resampled.

    notes: counts files of another sample rate and of several channels, which are mended when read.
    """
    import soundfile

    try:
        header = soundfile.info(str(path))
    except (soundfile.SoundFileError, OSError):
        return None
    problem = memory_problem(header.samplerate)
    if problem:
        _log.info("%s %s", path, problem)
        return None
    _note_mended(path, header.samplerate, header.channels, notes)
    return float(header.frames / header.samplerate)


def _note_mended(path: Path, rate: int, channels: int, notes: Counter[str]) -> None:
    """Count what is mended when a file is read, and name the file for those who debug."""
    found = {
        "other sample rate, resampled": rate != SAMPLE_RATE,
        "several channels, mixed down": channels > 1,
    }
    for what in (what for what, true in found.items() if true):
        notes[what] += 1
        _log.debug("%s: %s", path, what)
