"""Describe a speech corpus: who said what, in which split, and how to read it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from experiments.asr.features import WINDOW_SAMPLES, utterance_features
from experiments.asr.reading import ReadingNotes

SPLITS = ("train", "dev", "test")

Speech = NDArray[np.float16] | NDArray[np.float32]


class UnreadableAudio(Exception):
    """Report one utterance whose audio cannot be used; the message names it and says why."""


@dataclass(frozen=True, slots=True)
class Utterance:
    """Describe one utterance.

    key: its name in the corpus; speaker: who spoke, the user of federated training;
    split: "train", "dev" or "test"; text: what was said, normalised; seconds: its length.
    """

    key: str
    speaker: str
    split: str
    text: str
    seconds: float


@dataclass(frozen=True)
class Corpus:
    """Hold the index of a corpus and the ways to read it, whatever its source.

    read_samples: gives (samples,) float32 in [-1, 1], mono, 16 kHz; raises UnreadableAudio.
    stored_features: gives ready (frames, 80) float16 features, where the source keeps them.
    notes: counts of what was left out or mended while indexing, by reason.
    mended: what `read_samples` mended of an utterance just read, by key, where it was not counted
    while indexing.
    """

    name: str
    utterances: tuple[Utterance, ...]
    read_samples: Callable[[Utterance], NDArray[np.float32]]
    stored_features: Callable[[Utterance], NDArray[np.float16]] | None = None
    notes: Mapping[str, int] = field(default_factory=dict)
    mended: MutableMapping[str, Sequence[str]] = field(default_factory=dict)

    def split(self, name: str) -> tuple[Utterance, ...]:
        """Give the utterances of one split, in the order of the index."""
        return tuple(utterance for utterance in self.utterances if utterance.split == name)


class SpeechBank:
    """Read each utterance once and keep its features, or its samples, up to a memory limit.

    raw: give samples, (samples,) float32, for features that are computed elsewhere; else features,
    (frames, 80) float16. What cannot be read is named in a warning, noted in `notes`, and skipped
    from then on.
    """

    def __init__(
        self,
        corpus: Corpus,
        limit_megabytes: float = 1024.0,
        *,
        raw: bool = False,
        notes: ReadingNotes | None = None,
    ) -> None:
        self._corpus = corpus
        self.raw = raw
        self._kept: dict[str, Speech | None] = {}
        self._bytes_left = limit_megabytes * 2**20
        self.notes = notes or ReadingNotes()

    def speech(self, utterance: Utterance) -> Speech | None:
        """Give the features or samples of an utterance, None where its audio is unusable."""
        if self._corpus.stored_features is not None and not self.raw:
            return self._corpus.stored_features(utterance)
        if utterance.key in self._kept:
            return self._kept[utterance.key]
        speech = self._read(utterance)
        size = 0 if speech is None else speech.nbytes
        if size <= self._bytes_left:
            self._bytes_left -= size
            self._kept[utterance.key] = speech
        return speech

    def read_ahead(
        self, wanted: Sequence[Sequence[Utterance]], threads: int
    ) -> Iterator[list[Speech | None]]:
        """Yield the speech of each group of utterances, the next group read meanwhile.

        threads: how many read audio at once; 0: none, everything is read when it is asked for.
        The result is the same for any number of threads.
        """
        if not threads:
            yield from ([self.speech(item) for item in group] for group in wanted)
            return
        with ThreadPoolExecutor(threads) as pool:
            ahead = [pool.submit(self.speech, item) for group in wanted[:1] for item in group]
            for number in range(len(wanted)):
                following = wanted[number + 1] if number + 1 < len(wanted) else ()
                now, ahead = ahead, [pool.submit(self.speech, item) for item in following]
                yield [task.result() for task in now]

    def _read(self, utterance: Utterance) -> Speech | None:
        try:
            samples = checked_samples(self._corpus.read_samples(utterance))
            speech = samples if self.raw else utterance_features(samples)
        except (UnreadableAudio, RuntimeError, MemoryError) as problem:
            # Whatever a library makes of a damaged file, it costs this utterance alone.
            self.notes.note_unreadable(utterance.key, str(problem) or type(problem).__name__)
            return None
        self.notes.note_mended(utterance.key, self._corpus.mended.pop(utterance.key, ()))
        return speech


def checked_samples(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return samples that features can be computed from.

    Raises: UnreadableAudio when there is less than one 25 ms window or a value is not finite.
    """
    if len(samples) < WINDOW_SAMPLES:
        raise UnreadableAudio(f"it has {len(samples)} samples, fewer than one 25 ms window")
    if not np.isfinite(samples).all():
        raise UnreadableAudio("a sample is not a finite number")
    return samples
