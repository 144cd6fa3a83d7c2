"""Hold the utterances of one speaker, and cut them into batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from experiments.asr.augmentation import Augmentation
from experiments.asr.batching import Batching, SpeechBatch, collate, padding_share
from experiments.asr.corpora import FeatureBank, Utterance
from experiments.asr.features import SAMPLE_RATE, frame_count
from experiments.asr.tokens import Tokens


@dataclass(frozen=True)
class SpeechUser:
    """Hold the utterances of one speaker; features are computed when first asked for.

    read_threads: how many read audio ahead; 0: none. Batches are cut by the lengths in the index,
    so only one batch and the next are in memory at a time.
    """

    utterances: tuple[Utterance, ...]
    bank: FeatureBank
    tokens: Tokens
    batching: Batching
    augmentation: Augmentation
    read_threads: int = 0

    def batches(self, generator: np.random.Generator) -> Iterator[SpeechBatch]:
        """Yield the batches of one epoch; order and variations are drawn from `generator`."""
        lengths = [frames_of(utterance) for utterance in self.utterances]
        groups = [
            [self.utterances[place] for place in places]
            for places in self.batching.draw(lengths, generator)
        ]
        for group, read in zip(
            groups, self.bank.read_ahead(groups, self.read_threads), strict=True
        ):
            readable = [
                (self._vary(features, generator), self.tokens.encode(utterance.text))
                for utterance, features in zip(group, read, strict=True)
                if features is not None
            ]
            if readable:
                features, labels = zip(*readable, strict=True)
                yield collate(features, labels, self.batching.pad_to_frames)

    def padding_share(self) -> float:
        """Give the share of padding in the batches of one epoch, drawn with a fixed seed."""
        lengths = [frames_of(utterance) for utterance in self.utterances]
        drawn = self.batching.draw(lengths, np.random.default_rng(0))
        return padding_share(lengths, drawn, self.batching.pad_to_frames)

    def _vary(
        self, features: NDArray[np.float16], generator: np.random.Generator
    ) -> NDArray[np.float32]:
        return self.augmentation(np.asarray(features, dtype=np.float32), generator)


def frames_of(utterance: Utterance) -> int:
    """Count the frames that an utterance's length in the index gives."""
    return frame_count(round(utterance.seconds * SAMPLE_RATE))
