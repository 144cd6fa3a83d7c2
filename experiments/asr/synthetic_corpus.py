"""Build the embedded corpus: synthetic speakers of digit strings, made once and kept on disk."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from experiments.asr import features, synthetic_speech
from experiments.asr.corpora import Corpus, Utterance
from privacy.errors import SettingsError

Progress = Callable[[int, int], None]
"""Is told after each speaker: speakers done, speakers in all."""

_SCHEMA_VERSION = 1
_SAMPLES, _FEATURES, _INDEX = "samples.int16", "features.float16", "index.json"
_FEWEST_WORDS, _MOST_WORDS = 2, 5

_Row = tuple[str, str, str, str, int, int]
"""An utterance in the index: key, speaker, split, text, number of samples, of frames."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SyntheticSettings:
    """Say how many speakers of each split speak how many utterances.

    seed: numbers another set of speakers and sentences. The voice of a speaker does not depend
    on how many others there are.
    """

    speakers: int = 120
    utterances: int = 20
    held_out_speakers: int = 12
    held_out_utterances: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every number.

        Raises: SettingsError with one sentence per mistake.
        """
        least = {field.name: 1 for field in dataclasses.fields(self)} | {"seed": 0}
        problems = [
            f"{name} must be a whole number of at least {bound}, got {value!r}; "
            f"the default is {type(self).__dataclass_fields__[name].default}"
            for name, bound in least.items()
            if not _is_whole(value := getattr(self, name), bound)
        ]
        if problems:
            raise SettingsError(problems)

    def folder_name(self) -> str:
        """Name the cache folder after the settings and the code that makes the speech."""
        digest = hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode())
        for module in (synthetic_speech, features):
            digest.update(Path(str(module.__file__)).read_bytes())
        digest.update(Path(__file__).read_bytes())
        return f"synthetic-{digest.hexdigest()[:16]}"


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def default_cache_dir() -> Path:
    """Give the user's cache folder: $XDG_CACHE_HOME/fedopt, or ~/.cache/fedopt."""
    given = os.environ.get("XDG_CACHE_HOME")
    return (Path(given) if given else Path.home() / ".cache") / "fedopt"


def synthetic_corpus(
    settings: SyntheticSettings,
    cache_dir: str | Path | None = None,
    progress: Progress | None = None,
) -> Corpus:
    """Load the corpus from the cache; synthesise it first where it is absent or damaged.

    Raises: SettingsError when the cache folder cannot be written.
    """
    parent = Path(cache_dir).expanduser() if cache_dir else default_cache_dir()
    folder = parent / settings.folder_name()
    corpus = _load(folder)
    if corpus is not None:
        return corpus
    try:
        _build(folder, settings, progress)
    except OSError as problem:
        raise SettingsError(
            f"cache_dir must be a folder that can be written, got {str(parent)!r} ({problem}); "
            "name another one"
        ) from problem
    corpus = _load(folder)
    if corpus is None:
        raise SettingsError(f"cache_dir {str(parent)!r} does not keep what is written to it")
    return corpus


def _build(folder: Path, settings: SyntheticSettings, progress: Progress | None) -> None:
    """Write the corpus beside its place, then rename: nobody ever sees half of it."""
    aside = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        _write(aside, settings, progress)
        if _load(folder) is None:
            _discard(folder)
            # Another process may have put its own, equal copy there in the meantime.
            with contextlib.suppress(OSError):
                aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _discard(folder: Path) -> None:
    if folder.exists():
        doomed = folder.with_name(f"{folder.name}.{os.getpid()}.damaged")
        folder.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _write(folder: Path, settings: SyntheticSettings, progress: Progress | None) -> None:
    plan = list(_speakers(settings))
    rows: list[_Row] = []
    checksums = {_SAMPLES: 0, _FEATURES: 0}
    with (folder / _SAMPLES).open("wb") as sounds, (folder / _FEATURES).open("wb") as frames:
        files = {_SAMPLES: sounds, _FEATURES: frames}
        for done, (split, number, count) in enumerate(plan, 1):
            speaker = f"{split}-{number:04d}"
            spoken = speaker_utterances(settings.seed, split, number, count)
            for turn, (text, samples) in enumerate(spoken):
                computed = features.utterance_features(_to_float(samples))
                key = f"{speaker}-{turn:03d}"
                rows.append((key, speaker, split, text, len(samples), len(computed)))
                for name, data in ((_SAMPLES, samples.tobytes()), (_FEATURES, computed.tobytes())):
                    checksums[name] = zlib.crc32(data, checksums[name])
                    files[name].write(data)
            if progress is not None:
                progress(done, len(plan))
    index = {"schema_version": _SCHEMA_VERSION, "checksums": checksums, "utterances": rows}
    (folder / _INDEX).write_text(json.dumps(index), encoding="utf-8")


def _to_float(samples: NDArray[np.int16]) -> NDArray[np.float32]:
    return np.asarray(samples, dtype=np.float32) / np.float32(32768)


def _speakers(settings: SyntheticSettings) -> Iterator[tuple[str, int, int]]:
    for number in range(settings.speakers):
        yield "train", number, settings.utterances
    for split in ("dev", "test"):
        for number in range(settings.held_out_speakers):
            yield split, number, settings.held_out_utterances


def speaker_utterances(
    seed: int, split: str, number: int, count: int
) -> Iterator[tuple[str, NDArray[np.int16]]]:
    """Yield text and samples (16-bit, 16 kHz) of one speaker's utterances."""
    generator = np.random.default_rng([seed, *split.encode(), number])
    voice = synthetic_speech.draw_voice(generator)
    words = sorted(synthetic_speech.LEXICON)
    for _ in range(count):
        length = generator.integers(_FEWEST_WORDS, _MOST_WORDS, endpoint=True)
        spoken = [words[choice] for choice in generator.integers(0, len(words), length)]
        yield " ".join(spoken), synthetic_speech.speak(spoken, voice, generator)


def _load(folder: Path) -> Corpus | None:
    """Load a cached corpus; give None where there is none or it is not whole."""
    if not folder.is_dir():
        return None
    try:
        index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
        if index["schema_version"] != _SCHEMA_VERSION:
            raise ValueError(f"its schema version is {index['schema_version']}")
        store = _Store.open(folder, index["utterances"])
        store.check(index["checksums"])
        utterances = tuple(
            Utterance(key, speaker, split, text, samples / features.SAMPLE_RATE)
            for key, speaker, split, text, samples, _ in index["utterances"]
        )
    except (OSError, ValueError, KeyError, TypeError) as problem:
        _log.warning("The cached corpus %s is damaged (%s) and is made again", folder, problem)
        return None
    return Corpus("synthetic digit strings", utterances, store.samples, store.features)


@dataclass(frozen=True)
class _Store:
    """Read slices of the two memory-mapped arrays, which all worker processes share."""

    all_samples: NDArray[np.int16]
    all_features: NDArray[np.float16]
    sample_range: dict[str, tuple[int, int]]
    frame_range: dict[str, tuple[int, int]]

    @classmethod
    def open(cls, folder: Path, rows: list[_Row]) -> _Store:
        keys = [row[0] for row in rows]
        samples = np.cumsum([0, *(row[4] for row in rows)]).tolist()
        frames = np.cumsum([0, *(row[5] for row in rows)]).tolist()
        return cls(
            _map(folder / _SAMPLES, np.int16, (samples[-1],)),
            _map(folder / _FEATURES, np.float16, (frames[-1], features.MEL_BINS)),
            dict(zip(keys, itertools.pairwise(samples), strict=True)),
            dict(zip(keys, itertools.pairwise(frames), strict=True)),
        )

    def check(self, checksums: dict[str, int]) -> None:
        for name, values in ((_SAMPLES, self.all_samples), (_FEATURES, self.all_features)):
            if zlib.crc32(values.data) != checksums[name]:
                raise ValueError(f"the checksum of {name} differs")

    def samples(self, utterance: Utterance) -> NDArray[np.float32]:
        start, end = self.sample_range[utterance.key]
        return _to_float(self.all_samples[start:end])

    def features(self, utterance: Utterance) -> NDArray[np.float16]:
        start, end = self.frame_range[utterance.key]
        return self.all_features[start:end]


def _map(path: Path, kind: type, shape: tuple[int, ...]) -> NDArray:  # type: ignore[type-arg]
    expected = int(np.prod(shape)) * np.dtype(kind).itemsize
    if path.stat().st_size != expected:
        raise ValueError(f"{path.name} has {path.stat().st_size} bytes, not {expected}")
    return np.memmap(path, dtype=kind, mode="r", shape=shape)
