"""Check that no single audio file can take the memory of the process that reads it."""

from __future__ import annotations

import math
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torchaudio

from experiments.asr import audio
from experiments.asr.audio import measure_audio, memory_problem, read_audio
from experiments.asr.corpora import Corpus, SpeechBank, UnreadableAudio, Utterance

COMMON_RATES = (
    8000, 11025, 12000, 16000, 22050, 24000, 32000, 37800, 44056, 44100, 47952, 48000, 50000,
    64000, 88200, 96000, 176400, 192000,
)  # fmt: skip


def _write(path: Path, rate: int, *, channels: int = 1, frames: int = 8000) -> Path:
    soundfile.write(str(path), np.full((frames, channels), 0.1), rate)
    return path


def test_a_rate_without_a_common_divisor_is_refused_before_any_memory_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _write(tmp_path / "odd.wav", 44101)
    monkeypatch.setattr(audio, "resample", lambda *given: pytest.fail("was resampled"))
    with pytest.raises(UnreadableAudio, match=r"odd\.wav has a sample rate of 44101 Hz"):
        read_audio(path)
    notes: Counter[str] = Counter()
    assert measure_audio(path, notes) is None
    assert not notes


@pytest.mark.parametrize("rate", [44100, 48000, 11025, 12345, 8000])
def test_the_filters_are_as_large_as_said(rate: int) -> None:
    common = math.gcd(rate, 16000)
    impulse = torch.zeros(1, 1)
    resampled = torchaudio.transforms.Resample(rate, 16000)
    assert resampled(impulse).numel() >= 1
    assert resampled.kernel.numel() == audio._filter_size(rate)
    assert resampled.kernel.shape[0] == 16000 // common


def test_every_common_rate_is_read(tmp_path: Path) -> None:
    refused = {rate for rate in COMMON_RATES if memory_problem(rate)}
    assert refused == {44056}
    for rate in (8000, 11025, 44100, 96000):
        seconds = len(read_audio(_write(tmp_path / "a.wav", rate, frames=rate // 2))) / 16000
        assert seconds == pytest.approx(0.5, abs=1e-3)


def test_a_file_far_longer_or_wider_than_an_utterance_is_not_read_into_memory(
    tmp_path: Path,
) -> None:
    long = _write(tmp_path / "long.flac", 16000, frames=61 * 16000)
    tracemalloc.start()
    try:
        with pytest.raises(UnreadableAudio, match="longer than 60 seconds"):
            read_audio(long)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert "1024 channels" in memory_problem(48000, channels=1024, frames=48000 * 30)
    assert memory_problem(192000, channels=2, frames=192000 * 30) == ""


def _raise(problem: Exception) -> Callable[[Utterance], np.ndarray]:
    def read(utterance: Utterance) -> np.ndarray:
        raise problem

    return read


@pytest.mark.parametrize(
    ("problem", "said"),
    [(RuntimeError("a tensor of 6 GB"), "a tensor of 6 GB"), (MemoryError(), "MemoryError")],
)
def test_what_a_library_raises_for_one_file_costs_that_file_alone(
    problem: Exception, said: str
) -> None:
    utterance = Utterance("a.wav", "anna", "dev", "yes", 1.0)
    bank = SpeechBank(Corpus("hand-made", (utterance,), _raise(problem)))
    assert bank.speech(utterance) is None
    (found,) = bank.notes.findings
    assert (found.name, found.why) == ("a.wav", said)
