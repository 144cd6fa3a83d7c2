"""Speak digits with a formant synthesiser: pulses and noise through moving resonances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 16_000
_HOP = 160
_WINDOW = 2 * _HOP
_FFT = 4 * _HOP
_OCTAVE_START = 500.0
_LARGEST_SAMPLE = 0.9

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Phone:
    """Describe one sound for a voice of average size.

    formants: three resonance frequencies in hertz; seconds: usual duration; voiced, hiss:
    amplitudes of pulses and noise; hiss_centre, hiss_width: band of the noise in hertz.
    """

    formants: tuple[float, float, float]
    seconds: float
    voiced: float = 1.0
    hiss: float = 0.0
    hiss_centre: float = 4000.0
    hiss_width: float = 1500.0


PHONES = {
    # Vowels: average formants of American English speakers, rounded.
    "IY": Phone((300, 2250, 3000), 0.11),
    "IH": Phone((410, 2000, 2550), 0.08),
    "EH": Phone((560, 1800, 2500), 0.09),
    "AH": Phone((640, 1200, 2400), 0.09),
    "AA": Phone((730, 1120, 2450), 0.09),
    "AO": Phone((560, 850, 2420), 0.11),
    "UW": Phone((320, 900, 2250), 0.12),
    # Sonorants.
    "R": Phone((420, 1250, 1650), 0.07, voiced=0.7),
    "W": Phone((300, 650, 2200), 0.06, voiced=0.6),
    "N": Phone((270, 1500, 2550), 0.08, voiced=0.35),
    # Fricatives and stops.
    "V": Phone((300, 1150, 2350), 0.06, voiced=0.3, hiss=0.12, hiss_centre=4500, hiss_width=2500),
    "Z": Phone((290, 1600, 2550), 0.08, voiced=0.25, hiss=0.3, hiss_centre=5800, hiss_width=1100),
    "F": Phone((340, 1150, 2350), 0.1, voiced=0.0, hiss=0.25, hiss_centre=4500, hiss_width=2500),
    "TH": Phone((340, 1400, 2500), 0.09, voiced=0.0, hiss=0.15, hiss_centre=6300, hiss_width=2200),
    "S": Phone((310, 1650, 2550), 0.11, voiced=0.0, hiss=0.6, hiss_centre=5800, hiss_width=1100),
    "closure": Phone((330, 1600, 2550), 0.05, voiced=0.0),
    "T": Phone((330, 1750, 2600), 0.03, voiced=0.0, hiss=0.7, hiss_centre=4600, hiss_width=1600),
    "K": Phone((330, 1800, 2300), 0.035, voiced=0.0, hiss=0.6, hiss_centre=2000, hiss_width=600),
    "silence": Phone((500, 1500, 2500), 0.08, voiced=0.0),
}

LEXICON = {
    "zero": "Z IH R AO UW",
    "one": "W AH N",
    "two": "closure T UW",
    "three": "TH R IY",
    "four": "F AO R",
    "five": "F AA IH V",
    "six": "S IH closure K S",
    "seven": "S EH V AH N",
    "eight": "EH IY closure T",
    "nine": "N AA IH N",
}


@dataclass(frozen=True)
class Voice:
    """Describe one speaker.

    pitch: mean fundamental frequency in hertz; melody: its relative rise and fall;
    tract: factor on all resonance frequencies (short vocal tracts above 1); rate: speed of
    speech; tilt: slope of the source in decibels per octave; breath: noise in voiced sounds;
    bandwidth: factor on the resonance widths; habit: relative shift of each formant;
    room: background noise relative to the speech.
    """

    pitch: float
    melody: float
    tract: float
    rate: float
    tilt: float
    breath: float
    bandwidth: float
    habit: tuple[float, float, float]
    room: float


def draw_voice(generator: np.random.Generator) -> Voice:
    """Draw a speaker; high voices tend to come from short vocal tracts, as in people."""
    size = generator.uniform(-1.0, 1.0)
    return Voice(
        pitch=float(145.0 * 1.6 ** (size + 0.3 * generator.standard_normal())),
        melody=float(generator.uniform(0.03, 0.2)),
        tract=float(1.0 + 0.12 * size + 0.04 * generator.standard_normal()),
        rate=float(generator.uniform(0.85, 1.25)),
        tilt=float(generator.uniform(-12.0, -5.0)),
        breath=float(generator.uniform(0.01, 0.12)),
        bandwidth=float(generator.uniform(0.8, 1.6)),
        habit=tuple(float(shift) for shift in generator.normal(1.0, 0.03, 3)),  # type: ignore[arg-type]
        room=float(10.0 ** generator.uniform(-2.4, -1.4)),
    )


@dataclass(frozen=True)
class _Tracks:
    """Hold what moves during an utterance, one row per 10 ms frame."""

    formants: Floats
    voiced: Floats
    hiss: Floats
    hiss_centre: Floats
    hiss_width: Floats
    pitch: Floats


def speak(words: Sequence[str], voice: Voice, generator: np.random.Generator) -> NDArray[np.int16]:
    """Speak words of the lexicon, with small variations drawn from `generator`.

    Returns: (samples,) 16-bit at 16 kHz.
    Reference: source and filter after Klatt 1980, with the resonances applied frame by frame to
    the short-time spectrum (their magnitudes only), not as recursive filters.
    """
    tracks = _draw_tracks(words, voice, generator)
    count = len(tracks.pitch) * _HOP
    pulses = _pulses(tracks.pitch, count)
    noise = generator.standard_normal(count, dtype=np.float32)
    resonances = _resonances(tracks.formants, voice) * _source_slope(voice)
    band = np.exp(
        -0.5 * ((_bins() - tracks.hiss_centre[:, None]) / tracks.hiss_width[:, None]) ** 2
    )
    hiss = tracks.hiss[:, None] * band + (voice.breath * tracks.voiced)[:, None] * resonances
    spectra = _spectra(pulses) * (tracks.voiced[:, None] * resonances) + _spectra(noise) * hiss
    return _to_sixteen_bits(_overlap_add(spectra), voice, generator)


def _draw_tracks(words: Sequence[str], voice: Voice, generator: np.random.Generator) -> _Tracks:
    phones = [PHONES[name] for name in _phone_names(words, generator)]
    usual = np.array([phone.seconds for phone in phones])
    speed = voice.rate * generator.uniform(0.9, 1.1)
    seconds = usual * generator.uniform(0.8, 1.2, len(phones)) / speed
    repeats = np.maximum(1, np.round(seconds * SAMPLE_RATE / _HOP)).astype(np.int64)
    table = np.array(
        [
            (*phone.formants, phone.voiced, phone.hiss, phone.hiss_centre, phone.hiss_width)
            for phone in phones
        ],
        dtype=np.float32,
    )
    habit = np.array(voice.habit) * voice.tract
    table[:, :3] *= habit * generator.normal(1.0, 0.02, (len(phones), 3))
    table[:, 3:5] *= generator.uniform(0.8, 1.2, (len(phones), 2))
    frames = np.repeat(table, repeats, axis=0)
    return _Tracks(
        formants=_smooth(frames[:, :3], 7),
        voiced=_smooth(frames[:, 3:4], 3)[:, 0],
        hiss=_smooth(frames[:, 4:5], 3)[:, 0],
        hiss_centre=frames[:, 5],
        hiss_width=frames[:, 6],
        pitch=_draw_pitch(len(frames), voice, generator),
    )


def _phone_names(words: Sequence[str], generator: np.random.Generator) -> list[str]:
    names = ["silence"]
    for word in words:
        names.extend(LEXICON[word].split())
        if generator.random() < 0.4:
            names.append("silence")
    return [*names, "silence"]


def _draw_pitch(frames: int, voice: Voice, generator: np.random.Generator) -> Floats:
    """Let the pitch fall over the utterance and wave twice or so a second, in hertz."""
    seconds = np.arange(frames) * (_HOP / SAMPLE_RATE)
    wave = np.sin(2 * np.pi * (generator.uniform(0.8, 2.5) * seconds + generator.random()))
    fall = np.linspace(0.5, -0.5, frames)
    jitter = 0.01 * generator.standard_normal(frames)
    pitch = voice.pitch * np.exp(voice.melody * (wave + fall) + jitter)
    return np.asarray(pitch, dtype=np.float32)


def _smooth(tracks: Floats, width: int) -> Floats:
    """Average each column over `width` frames, so that sounds flow into each other."""
    padded = np.pad(tracks, ((width // 2, width // 2), (0, 0)), mode="edge")
    sums = np.cumsum(np.pad(padded, ((1, 0), (0, 0))), axis=0, dtype=np.float64)
    return np.asarray((sums[width:] - sums[:-width]) / width, dtype=np.float32)


def _pulses(pitch: Floats, count: int) -> Floats:
    """Place one unit pulse per period; louder for low voices, so that power stays the same."""
    phase = np.cumsum(np.repeat(pitch, _HOP)[:count], dtype=np.float64) / SAMPLE_RATE
    starts = np.flatnonzero(np.diff(np.floor(phase), prepend=0.0) > 0)
    source = np.zeros(count, dtype=np.float32)
    source[starts] = np.sqrt(SAMPLE_RATE / pitch.mean())
    return source


def _bins() -> Floats:
    return np.linspace(0.0, SAMPLE_RATE / 2, _FFT // 2 + 1, dtype=np.float32)


def _source_slope(voice: Voice) -> Floats:
    """Give the factor per frequency that falls by `tilt` decibels per octave above 500 Hz."""
    octaves = np.log2(np.maximum(_bins(), _OCTAVE_START) / _OCTAVE_START)
    return np.asarray(10.0 ** (voice.tilt * octaves / 20.0), dtype=np.float32)


def _resonances(formants: Floats, voice: Voice) -> Floats:
    """Give the magnitude response (frames, bins) of a cascade of five two-pole resonators.

    A resonator 1 / (1 + a z^-1 + b z^-2) has the squared magnitude
    1 / (1 + a^2 + b^2 - 2 b + 2 a (1 + b) c + 4 b c^2) with c = cos(2 pi f / sample rate);
    it is scaled to 1 at 0 Hz.
    """
    cosine = np.cos(2 * np.pi * _bins() / SAMPLE_RATE)
    upper = np.array([3500.0, 4500.0], dtype=np.float32) * voice.tract
    centres = np.concatenate([formants, np.tile(upper, (len(formants), 1))], axis=1)
    widths = voice.bandwidth * np.array([70.0, 100.0, 150.0, 220.0, 300.0])
    squared = np.ones((len(formants), len(cosine)), dtype=np.float32)
    for number, width in enumerate(widths):
        radius = np.float32(np.exp(-np.pi * width / SAMPLE_RATE))
        a = -2 * radius * np.cos(2 * np.pi * centres[:, number : number + 1] / SAMPLE_RATE)
        b = radius * radius
        shape = 1 + a * a + b * b - 2 * b + (2 * a * (1 + b)) * cosine + (4 * b) * cosine**2
        squared *= (1 + a + b) ** 2 / shape
    return np.asarray(np.sqrt(squared), dtype=np.float32)


def _spectra(signal: Floats) -> NDArray[np.complex64]:
    """Give the short-time spectra (frames, bins); the Hann windows overlap to one."""
    import scipy.fft

    padded = np.concatenate([np.zeros(_HOP, dtype=np.float32), signal])
    frames = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::_HOP]
    frames = np.concatenate([frames, np.zeros((1, _WINDOW), dtype=np.float32)])
    window = np.hanning(_WINDOW + 1)[:-1].astype(np.float32)
    buffer = np.zeros((len(frames), _FFT), dtype=np.float32)
    buffer[:, _HOP : _HOP + _WINDOW] = frames * window
    spectra: NDArray[np.complex64] = scipy.fft.rfft(buffer, axis=1)[: len(signal) // _HOP]
    return spectra


def _overlap_add(spectra: NDArray[np.complex64]) -> Floats:
    import scipy.fft

    blocks = scipy.fft.irfft(spectra, n=_FFT, axis=1).reshape(len(spectra), 4, _HOP)
    sums = np.zeros((len(spectra) + 3, _HOP), dtype=np.float32)
    for shift in range(4):
        sums[shift : shift + len(spectra)] += blocks[:, shift]
    return sums.reshape(-1)


def _to_sixteen_bits(
    speech: Floats, voice: Voice, generator: np.random.Generator
) -> NDArray[np.int16]:
    loudness = 0.08 * generator.uniform(0.7, 1.4)
    level = np.float32(np.sqrt(np.mean(speech**2)) + 1e-9)
    noise = voice.room * generator.standard_normal(len(speech), dtype=np.float32)
    scaled = loudness * (speech / level + noise)
    # Low voices have sharp pulses: the whole utterance gets quieter rather than clipped.
    scaled *= min(1.0, _LARGEST_SAMPLE / float(np.abs(scaled).max()))
    return np.asarray(np.round(scaled * 32767), dtype=np.int16)
