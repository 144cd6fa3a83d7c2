"""Check that the synthesiser makes the pitch, the resonances and the variety it is asked for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from experiments.asr.synthetic_speech import (
    LEXICON,
    PHONES,
    SAMPLE_RATE,
    Phone,
    Voice,
    draw_voice,
    speak,
)

PLAIN = Voice(
    pitch=100.0,
    melody=0.0,
    tract=1.0,
    rate=1.0,
    tilt=-6.0,
    breath=0.0,
    bandwidth=1.0,
    habit=(1.0, 1.0, 1.0),
    room=0.0,
)


def _held(monkeypatch: pytest.MonkeyPatch, phone: Phone, voice: Voice) -> NDArray[np.float64]:
    """Give the power spectrum, one value per hertz, of one second of a held sound."""
    monkeypatch.setitem(PHONES, "held", replace(phone, seconds=2.0))
    monkeypatch.setitem(LEXICON, "aah", "held")
    samples = speak(["aah"], voice, np.random.default_rng(0))
    middle = samples[len(samples) // 2 - 8000 : len(samples) // 2 + 8000].astype(float)
    return np.abs(np.fft.rfft(middle * np.hanning(len(middle)))) ** 2


def _power(spectrum: NDArray[np.float64], low: float, high: float) -> float:
    return float(spectrum[int(low) : int(high)].sum())


@pytest.mark.parametrize("pitch", [90.0, 140.0, 230.0])
def test_a_voice_speaks_at_its_pitch(monkeypatch: pytest.MonkeyPatch, pitch: float) -> None:
    spectrum = _held(monkeypatch, PHONES["AH"], replace(PLAIN, pitch=pitch))
    log_power = np.log(np.convolve(spectrum, np.ones(5), "same")[:2000] + 1.0)
    spacing = np.correlate(log_power - log_power.mean(), log_power - log_power.mean(), "full")
    found = 60 + int(spacing[len(log_power) - 1 :][60:350].argmax())
    assert found == pytest.approx(pitch, rel=0.05)


@pytest.mark.parametrize("name", ["IY", "EH", "AA", "AO", "UW"])
@pytest.mark.parametrize("tract", [0.9, 1.15])
def test_a_vowel_resonates_at_its_formants(
    monkeypatch: pytest.MonkeyPatch, name: str, tract: float
) -> None:
    phone = PHONES[name]
    spectrum = _held(monkeypatch, phone, replace(PLAIN, tract=tract, tilt=0.0, pitch=60.0))
    envelope = np.convolve(spectrum, np.hanning(140), "same")
    for formant in phone.formants[:2]:
        expected = formant * tract
        around = slice(int(expected * 0.85), int(expected * 1.15))
        peak = around.start + int(envelope[around].argmax())
        assert peak == pytest.approx(expected, rel=0.1, abs=70)


def test_hiss_lies_in_its_band_and_has_no_pitch(monkeypatch: pytest.MonkeyPatch) -> None:
    spectrum = _held(monkeypatch, PHONES["S"], PLAIN)
    assert _power(spectrum, 4000, 7600) > 20 * _power(spectrum, 0, 3000)


def test_the_tilt_is_in_decibels_per_octave_above_500_hertz(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decibels = []
    for tilt in (-5.0, -12.0):
        spectrum = _held(monkeypatch, PHONES["AH"], replace(PLAIN, tilt=tilt))
        contrast = _power(spectrum, 1900, 2100) / _power(spectrum, 300, 500)
        decibels.append(10 * np.log10(contrast))
    two_octaves = 2 * (12.0 - 5.0)
    assert decibels[0] - decibels[1] == pytest.approx(two_octaves, abs=1.0)


def test_the_same_generator_gives_the_same_bytes() -> None:
    first, again, other = (
        speak(["six", "two"], PLAIN, np.random.default_rng(seed)) for seed in (4, 4, 5)
    )
    assert first.dtype == np.int16
    assert np.array_equal(first, again)
    assert not np.array_equal(first[:5000], other[:5000])


def test_faster_voices_are_shorter_in_proportion() -> None:
    slow, fast = (
        len(speak(["seven"] * 5, replace(PLAIN, rate=rate), np.random.default_rng(1)))
        for rate in (0.8, 1.6)
    )
    assert slow / fast == pytest.approx(2.0, rel=0.1)


def test_every_word_is_spoken_without_overflow_or_silence() -> None:
    generator = np.random.default_rng(2)
    for word in LEXICON:
        for _ in range(5):
            samples = speak([word], draw_voice(generator), generator).astype(float)
            assert 0.1 < len(samples) / SAMPLE_RATE < 1.5
            assert 300 < samples.std() < 6000
            assert np.abs(samples).max() < 32767


def test_drawn_voices_differ_and_stay_human() -> None:
    generator = np.random.default_rng(0)
    voices = [draw_voice(generator) for _ in range(300)]
    pitches = np.array([voice.pitch for voice in voices])
    tracts = np.array([voice.tract for voice in voices])
    assert len(set(voices)) == 300
    assert pitches.min() > 50
    assert pitches.max() < 400
    assert pitches.std() > 25
    assert 0.75 < tracts.min() < tracts.max() < 1.3
    assert np.corrcoef(pitches, tracts)[0, 1] > 0.5


def test_the_lexicon_uses_known_phones_only() -> None:
    assert len(LEXICON) == 10
    assert {phone for word in LEXICON.values() for phone in word.split()} <= set(PHONES)
