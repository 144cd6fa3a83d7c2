"""Hold the utterances of one speaker, and cut them into batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from experiments.asr.augmentation import Augmentation, Variation
from experiments.asr.batching import Batching, SpeechBatch, collate, padding_share
from experiments.asr.corpora import Speech, SpeechBank, Utterance
from experiments.asr.features import MEL_BINS, SAMPLE_RATE, frame_count
from experiments.asr.sounds import SoundBatch, collate_sounds
from experiments.asr.tokens import Tokens


@dataclass(frozen=True)
class SpeechUser:
    """Hold the utterances of one speaker; they are read when first asked for.

    read_threads: how many read audio ahead; 0: none. Batches are cut by the lengths in the index,
    so only one batch and the next are in memory at a time.
    """

    utterances: tuple[Utterance, ...]
    bank: SpeechBank
    tokens: Tokens
    batching: Batching
    augmentation: Augmentation
    read_threads: int = 0

    def batches(self, generator: np.random.Generator) -> Iterator[SpeechBatch | SoundBatch]:
        """Yield the batches of one epoch; order and variations are drawn from `generator`."""
        for batch in self.batches_of(self.groups(generator), generator):
            if batch is not None:
                yield batch

    def groups(self, generator: np.random.Generator) -> list[list[Utterance]]:
        """Draw which utterances share a batch, and the order of the batches, for one epoch."""
        lengths = [frames_of(utterance) for utterance in self.utterances]
        drawn = self.batching.draw(lengths, generator)
        return [[self.utterances[place] for place in places] for places in drawn]

    def batches_of(
        self, groups: Sequence[Sequence[Utterance]], generator: np.random.Generator
    ) -> Iterator[SpeechBatch | SoundBatch | None]:
        """Read group after group and yield a batch of each, None where none of it can be read.

        The variations of a group are drawn from `generator` when its batch is asked for.
        """
        for group, read in zip(
            groups, self.bank.read_ahead(groups, self.read_threads), strict=True
        ):
            readable = [
                (speech, self._drawn(speech, generator), self.tokens.encode(utterance.text))
                for utterance, speech in zip(group, read, strict=True)
                if speech is not None
            ]
            if not readable:
                yield None
                continue
            speech, variations, labels = zip(*readable, strict=True)
            self.bank.notes.frames += sum(map(frames_in, speech))
            yield put_together(speech, variations, labels, self.batching.pad_to_frames)

    def padding_share(self) -> float:
        """Give the share of padding in the batches of one epoch, drawn with a fixed seed."""
        lengths = [frames_of(utterance) for utterance in self.utterances]
        drawn = self.batching.draw(lengths, np.random.default_rng(0))
        return padding_share(lengths, drawn, self.batching.pad_to_frames)

    def _drawn(self, speech: Speech, generator: np.random.Generator) -> Variation:
        return self.augmentation.draw(frames_in(speech), MEL_BINS, generator)


def put_together(
    speech: Sequence[Speech],
    variations: Sequence[Variation],
    labels: Sequence[Sequence[int]],
    pad_to_frames: int = 1,
) -> SpeechBatch | SoundBatch:
    """Vary features here and pad them; leave both to the device where samples are given."""
    if speech[0].ndim == 1:
        samples = [np.asarray(each, dtype=np.float32) for each in speech]
        return collate_sounds(samples, variations, labels, pad_to_frames)
    varied = [
        vary(np.asarray(features, dtype=np.float32))
        for features, vary in zip(speech, variations, strict=True)
    ]
    return collate(varied, labels, pad_to_frames)


def frames_in(speech: Speech) -> int:
    """Count the frames of features (frames, bins), or of samples (samples,)."""
    return len(speech) if speech.ndim == 2 else frame_count(len(speech))


def frames_of(utterance: Utterance) -> int:
    """Count the frames that an utterance's length in the index gives."""
    return frame_count(round(utterance.seconds * SAMPLE_RATE))
