"""Check the log-mel features against a plain numpy reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from experiments.asr.features import frame_count, log_mel, normalise, utterance_features


def _reference_log_mel(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    """Write out the front end of the paper frame by frame, in double precision."""
    mel_edges = np.linspace(0.0, 2595 * np.log10(1 + 8000 / 700), 82)
    edges = 700 * (10 ** (mel_edges / 2595) - 1)
    frequencies = np.arange(257) * 16000 / 512
    rows = []
    for start in range(0, len(samples) - 399, 160):
        frame = samples[start : start + 400] * 32768
        emphasised = np.empty(400)
        emphasised[0] = frame[0] * (1 - 0.97)
        emphasised[1:] = frame[1:] - 0.97 * frame[:-1]
        window = 0.54 - 0.46 * np.cos(2 * np.pi * np.arange(400) / 399)
        magnitude = np.abs(np.fft.rfft(emphasised * window, 512))
        row = []
        for low, centre, high in zip(edges, edges[1:], edges[2:], strict=False):
            rising = (frequencies - low) / (centre - low)
            falling = (high - frequencies) / (high - centre)
            row.append(magnitude @ np.maximum(0.0, np.minimum(rising, falling)))
        rows.append(np.log(np.maximum(row, 1.0)))
    return np.array(rows)


@pytest.fixture(scope="module")
def speech_like() -> NDArray[np.float64]:
    generator = np.random.default_rng(5)
    seconds = np.arange(6000) / 16000
    tones = sum(np.sin(2 * np.pi * hertz * seconds) / hertz for hertz in (150, 700, 2300, 6100))
    return np.asarray(tones * 20 + 0.01 * generator.standard_normal(6000))


def test_log_mel_equals_the_written_out_reference(speech_like: NDArray[np.float64]) -> None:
    computed = log_mel(torch.tensor(speech_like, dtype=torch.float32)).numpy()
    reference = _reference_log_mel(speech_like)
    assert computed.shape == reference.shape == (36, 80)
    assert np.abs(computed - reference).max() < 2e-3


def test_silence_gives_the_floor() -> None:
    assert torch.equal(log_mel(torch.zeros(800)), torch.zeros(3, 80))


def test_a_batch_gives_what_its_rows_give(speech_like: NDArray[np.float64]) -> None:
    rows = torch.tensor(speech_like, dtype=torch.float32).reshape(2, 3000)
    batch = log_mel(rows)
    for row, features in zip(rows, batch, strict=True):
        torch.testing.assert_close(features, log_mel(row))


@given(st.integers(0, 5000))
def test_frames_are_counted_as_they_are_made(samples: int) -> None:
    starts = [start for start in range(0, samples, 160) if start + 400 <= samples]
    assert frame_count(samples) == len(starts)


def test_normalised_features_have_mean_zero_and_variance_one_over_everything() -> None:
    torch.manual_seed(0)
    features = 3.0 + torch.randn(50, 80) * torch.linspace(0.5, 4.0, 80)
    result = normalise(features)
    assert result.mean().abs() < 1e-5
    assert (result.var(unbiased=False) - 1.0).abs() < 1e-5
    ratio = result.var(dim=0)[-1] / result.var(dim=0)[0]
    assert ratio > 30, "one scalar for all bins must keep the differences between bins"


def test_constant_features_stay_finite() -> None:
    assert torch.equal(normalise(torch.full((4, 80), 7.0)), torch.zeros(4, 80))


def test_utterance_features_do_not_depend_on_loudness(speech_like: NDArray[np.float64]) -> None:
    quiet = utterance_features((0.1 * speech_like).astype(np.float32))
    loud = utterance_features((0.9 * speech_like).astype(np.float32))
    assert quiet.dtype == np.float16
    np.testing.assert_allclose(quiet.astype(float), loud.astype(float), atol=0.02)
