"""Estimate what a federated training costs: hours of a GPU, and memory for a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from experiments.asr.activations import activation_megabytes
from experiments.asr.batching import Batching
from experiments.asr.flops import TYPICAL_SECONDS, gpu_hours, training_flops
from experiments.asr.layers import ModelSettings
from experiments.asr.published_corpora import PublishedSpeech

_LONGEST_SECONDS = 30.0


@dataclass(frozen=True)
class TrainingCost:
    """Know the model and the batches of a task, and how much its users speak.

    published: what a user speaks where no corpus is at hand.
    """

    model: ModelSettings
    labels: int
    batching: Batching
    half_precision: bool = False
    published: PublishedSpeech | None = None

    def gpu_hours(
        self, updates: int, local_steps: int, local_epochs: int, users: Sequence[Sequence[float]]
    ) -> float | None:
        """Estimate the A100 hours of so many local trainings; None where nothing says how long.

        users: seconds of each utterance, by user; empty without a corpus. Counts the model's
        arithmetic at the speed of the paper's own runs.
        """
        seconds = self._local_seconds(local_steps, local_epochs, users)
        if seconds is None:
            return None
        return gpu_hours(updates * training_flops(self.model, self.labels, seconds))

    def assumption(self, local_steps: int, users: Sequence[Sequence[float]]) -> str:
        """Say in words what `gpu_hours` takes as the speech of one local training."""
        if local_steps:
            full = self._batch_seconds(_mean(users))
            return f"every local step full, {full:,.0f} s of speech"
        if users:
            return f"{_user_mean(users) / 60:,.1f} minutes of each user, the corpus' mean"
        if self.published is None:
            return ""
        return (
            f"{self.published.minutes:,.1f} minutes of each user, the published mean of "
            f"{self.published.name}"
        )

    def batch_megabytes(self, users: Sequence[Sequence[float]]) -> float:
        """Estimate what a step keeps for the gradient at the largest batch that can come."""
        longest = max((each for spoken in users for each in spoken), default=_LONGEST_SECONDS)
        return activation_megabytes(
            self.model,
            self.labels,
            self._batch_seconds(longest),
            half_precision=self.half_precision,
        )

    def _local_seconds(
        self, local_steps: int, local_epochs: int, users: Sequence[Sequence[float]]
    ) -> float | None:
        if local_steps:
            return local_steps * self._batch_seconds(_mean(users))
        if users:
            return local_epochs * _user_mean(users)
        return None if self.published is None else local_epochs * 60.0 * self.published.minutes

    def _batch_seconds(self, each: float) -> float:
        """Give the seconds of a full batch; each: those of an utterance."""
        return self.batching.seconds or self.batching.size * each


def _mean(users: Sequence[Sequence[float]]) -> float:
    spoken = [seconds for each in users for seconds in each]
    return sum(spoken) / len(spoken) if spoken else TYPICAL_SECONDS


def _user_mean(users: Sequence[Sequence[float]]) -> float:
    return sum(map(sum, users)) / len(users)
