"""Measure a model on held-out speech: loss, error rates over all and by speaker, speed."""

from __future__ import annotations

import functools
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from experiments.asr.batching import FRAMES_PER_SECOND, SpeechBatch
from experiments.asr.corpora import Utterance
from experiments.asr.loss import counted
from experiments.asr.tokens import Tokens
from experiments.asr.word_error_rate import ErrorCounts, count_errors, greedy_decode

if TYPE_CHECKING:
    import torch

Forward = Callable[["torch.nn.Module", SpeechBatch], tuple["torch.Tensor", "torch.Tensor"]]
Loss = Callable[["torch.Tensor", "torch.Tensor", SpeechBatch], "torch.Tensor"]
Decode = Callable[["torch.Tensor", "torch.Tensor"], list[str]]


@dataclass(frozen=True)
class Measured:
    """Hold what an evaluation found.

    loss: nats per character, or per utterance. by_speaker: error counts of each speaker.
    speech_seconds: audio that was read; padded_seconds: the same with padding; wall_seconds: time
    it took, reading included. utterances: how many were read.
    """

    loss: float
    by_speaker: Mapping[str, ErrorCounts]
    speech_seconds: float
    padded_seconds: float
    wall_seconds: float
    utterances: int = 0

    @property
    def metrics(self) -> dict[str, float]:
        """Give the metrics of a run's rows; wer_p50, wer_p90: percentiles over speakers.

        Where nothing could be read there are none: a zero would look like a perfect model.
        """
        total = sum(self.by_speaker.values(), ErrorCounts())
        if not total.words:
            return {}
        rates = [counts.wer for counts in self.by_speaker.values()]
        middle, late = np.percentile(rates, [50, 90]).tolist()
        return {
            "loss": self.loss,
            "wer": total.wer,
            "cer": total.cer,
            "wer_p50": middle,
            "wer_p90": late,
        }

    @property
    def real_time_factor(self) -> float:
        """Give the seconds of computing for one second of speech."""
        return self.wall_seconds / self.speech_seconds if self.speech_seconds else 0.0

    @property
    def padding_share(self) -> float:
        """Give the share of the model's input that was padding."""
        return 1.0 - self.speech_seconds / self.padded_seconds if self.padded_seconds else 0.0


def measure(
    model: torch.nn.Module,
    batches: Iterable[tuple[Sequence[Utterance], SpeechBatch]],
    tokens: Tokens,
    forward: Forward,
    loss_of: Loss,
    per: str = "character",
    decode: Decode | None = None,
) -> Measured:
    """Decode every batch and count the errors of each speaker.

    batches: utterances beside their batch on the model's device. per: what `loss_of` is the mean
    over, one of experiments.asr.loss.MEANS. decode: writes the texts of logits and lengths; None
    for the best label of every step. The model stays as it is.
    """
    import torch

    started = time.perf_counter()
    write: Decode = decode or functools.partial(greedy_decode, tokens=tokens)
    said: defaultdict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    total_loss, spoken, frames, padded = 0.0, 0, 0, 0
    with torch.inference_mode():
        for utterances, batch in batches:
            logits, lengths = forward(model, batch)
            weight = counted(batch.target_lengths, per)
            total_loss += float(loss_of(logits, lengths, batch)) * weight
            spoken += weight
            frames += int(batch.feature_lengths.sum())
            padded += batch.features.shape[0] * batch.features.shape[1]
            guesses = write(logits, lengths)
            for item, guess in zip(utterances, guesses, strict=True):
                said[item.speaker][0].append(item.text)
                said[item.speaker][1].append(guess)
    return Measured(
        loss=total_loss / max(1, spoken),
        by_speaker={speaker: count_errors(*texts) for speaker, texts in said.items()},
        speech_seconds=frames / FRAMES_PER_SECOND,
        padded_seconds=padded / FRAMES_PER_SECOND,
        wall_seconds=time.perf_counter() - started,
        utterances=sum(len(texts) for texts, _ in said.values()),
    )
