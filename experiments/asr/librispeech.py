"""Index real speech that lies on disk as LibriSpeech does; read its FLAC or WAV files."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from experiments.asr.corpora import SPLITS, Corpus, UnreadableAudio, Utterance
from experiments.asr.features import SAMPLE_RATE
from experiments.asr.tokens import Tokens, normalise_text
from privacy.errors import SettingsError

_AUDIO_SUFFIXES = (".flac", ".wav")

_log = logging.getLogger(__name__)


def librispeech_corpus(data_root: str | Path | None, tokens: Tokens) -> Corpus:
    """Index SUBSET/SPEAKER/CHAPTER folders with their .trans.txt; each speaker is a user.

    data_root: a folder that holds subsets named train-..., dev-..., test-..., or a folder
    LibriSpeech that does. An utterance whose audio or text cannot be used is named in a warning,
    counted in the corpus' notes, and left out.
    Raises: SettingsError when the folder, a train subset or a dev subset is missing.
    """
    root = _corpus_root(data_root)
    notes: Counter[str] = Counter()
    indexed = [
        item
        for subset in _subsets(root)
        for transcript in sorted(subset.rglob("*.trans.txt"))
        for item in _read_transcript(transcript, subset, tokens, notes)
    ]
    utterances = tuple(utterance for utterance, _ in indexed)
    for split in ("train", "dev"):
        if not any(utterance.split == split for utterance in utterances):
            raise SettingsError(
                f"data_root must hold {split} speech that can be read, "
                f"got none in {str(root)!r}; see the warnings above"
            )
    paths = {utterance.key: path for utterance, path in indexed}
    return Corpus(f"librispeech layout at {root.name}", utterances, _Reader(paths), None, notes)


def _corpus_root(data_root: str | Path | None) -> Path:
    if data_root is None:
        raise SettingsError(
            "data_root must be given for the dataset librispeech, got nothing; "
            "name the folder that holds train-... and dev-..."
        )
    given = Path(data_root).expanduser()
    if not given.is_dir():
        raise SettingsError(
            f"data_root must be an existing folder, got {str(given)!r}; "
            "name the folder that holds train-... and dev-..."
        )
    inner = given / "LibriSpeech"
    root = inner if inner.is_dir() else given
    names = [subset.name for subset in _subsets(root)]
    missing = [split for split in ("train", "dev") if not _of_split(names, split)]
    if missing:
        wanted = " and ".join(f"{split}-..." for split in missing)
        raise SettingsError(
            f"data_root must hold subset folders named {wanted}, got {str(root)!r} with "
            f"{', '.join(names) or 'none'}; point it at the folder above the subsets"
        )
    return root


def _of_split(names: list[str], split: str) -> list[str]:
    return [name for name in names if name.startswith(f"{split}-")]


def _subsets(root: Path) -> list[Path]:
    prefixes = tuple(f"{split}-" for split in SPLITS)
    return sorted(
        path for path in root.iterdir() if path.is_dir() and path.name.startswith(prefixes)
    )


def _read_transcript(
    transcript: Path, subset: Path, tokens: Tokens, notes: Counter[str]
) -> Iterator[tuple[Utterance, Path]]:
    speaker = transcript.relative_to(subset).parts[0]
    split = subset.name.split("-")[0]
    for line in transcript.read_text(encoding="utf-8", errors="replace").splitlines():
        key, _, spoken = line.strip().partition(" ")
        text = normalise_text(spoken)
        path = _audio_path(transcript.parent, key)
        problem, seconds = _problem(path, text, tokens, notes)
        if problem:
            notes[problem] += 1
            _log.warning("Skipped %s in %s: %s", key or "an empty line", transcript, problem)
        elif path is not None:
            yield Utterance(key, speaker, split, text, seconds), path


def _audio_path(folder: Path, key: str) -> Path | None:
    candidates = (folder / f"{key}{suffix}" for suffix in _AUDIO_SUFFIXES)
    return next((path for path in candidates if key and path.is_file()), None)


def _problem(
    path: Path | None, text: str, tokens: Tokens, notes: Counter[str]
) -> tuple[str, float]:
    """Say why an utterance is left out ("" if it is not) and how many seconds it lasts."""
    import soundfile

    if not text:
        return "empty text", 0.0
    if tokens.unknown(text):
        return "characters without a label", 0.0
    if path is None:
        return "missing audio", 0.0
    try:
        header = soundfile.info(str(path))
    except (soundfile.SoundFileError, OSError):
        return "unreadable audio", 0.0
    notes["other sample rate, resampled"] += header.samplerate != SAMPLE_RATE
    notes["several channels, mixed down"] += header.channels > 1
    return "", header.frames / header.samplerate


@dataclass(frozen=True)
class _Reader:
    """Read the samples of an indexed utterance."""

    paths: dict[str, Path]

    def __call__(self, utterance: Utterance) -> NDArray[np.float32]:
        import soundfile

        path = self.paths[utterance.key]
        try:
            samples, rate = soundfile.read(str(path), dtype="float32", always_2d=True)
        except (soundfile.SoundFileError, OSError) as problem:
            raise UnreadableAudio(f"{path} cannot be decoded ({problem})") from problem
        return _resample(samples.mean(axis=1, dtype=np.float32), int(rate))


def _resample(samples: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
    if rate == SAMPLE_RATE or not len(samples):
        return samples
    import torch
    import torchaudio

    resampled = torchaudio.functional.resample(torch.from_numpy(samples), rate, SAMPLE_RATE)
    result: NDArray[np.float32] = resampled.numpy()
    return result
