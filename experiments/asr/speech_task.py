"""Offer speech recognition as a federated learning task: each speaker is a user."""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from clients.findings import Finding
from experiments.asr.augmentation import Augmentation, Variation
from experiments.asr.batching import Batching, SpeechBatch, halved, sorted_batches
from experiments.asr.corpora import Corpus, SpeechBank, Utterance
from experiments.asr.evaluation import Measured, measure
from experiments.asr.features import FRAMES_PER_STEP
from experiments.asr.index import Drops
from experiments.asr.loss import mean_ctc_loss
from experiments.asr.reading import SPOKEN, ReadingNotes
from experiments.asr.sounds import SoundBatch, features_on
from experiments.asr.speaker import SpeechUser, frames_in, frames_of, put_together
from experiments.asr.tokens import Tokens, steps_needed
from privacy.errors import SettingsError

if TYPE_CHECKING:
    import torch

    from experiments.asr.beam_search import BeamSearch
    from experiments.asr.cost import TrainingCost
    from fedopt.central import CentralTraining

LONGEST_SECONDS = 30.0
_EVALUATION_FRAMES = 6_000
_USERS_LOOKED_AT = 200

_log = logging.getLogger(__name__)


class SpeechTask:
    """Train a CTC model on the speakers of a corpus; measure it on speakers it never heard.

    splits: those of "dev" and "test" that the corpus has. latest: the last evaluation, if any.
    loss_per: what the loss is the mean over, one of experiments.asr.loss.MEANS.
    """

    metric = "wer"
    resumes_centrally = True

    def __init__(
        self,
        corpus: Corpus,
        build: Callable[[int], torch.nn.Module],
        *,
        tokens: Tokens | None = None,
        batching: Batching | None = None,
        augmentation: Augmentation | None = None,
        half_precision: bool = False,
        read_threads: int = 0,
        features: str = "auto",
        cost: TrainingCost | None = None,
        loss_per: str = "character",
        search: BeamSearch | None = None,
    ) -> None:
        self.corpus = corpus
        self.tokens = tokens or Tokens()
        self.latest: Measured | None = None
        self._build = build
        self._batching = batching or Batching()
        self._augmentation = augmentation or Augmentation()
        self._half_precision = half_precision
        self._read_threads = 0 if corpus.stored_features is not None else read_threads
        self._cost = cost
        self._features = features
        self.loss_per = loss_per
        self._search = search
        self._notes = ReadingNotes()
        self._bank = SpeechBank(corpus, raw=features == "device", notes=self._notes)
        self._dropped = Drops()
        usable = [utterance for utterance in corpus.utterances if self._fits(utterance)]
        self._users = _by_speaker(item for item in usable if item.split == "train")
        self._held_out = {
            split: tuple(item for item in usable if item.split == split)
            for split in ("dev", "test")
            if any(item.split == split for item in usable)
        }
        self.splits = tuple(self._held_out)
        self._covered: dict[str, int] = {}

    def _fits(self, utterance: Utterance) -> bool:
        """Say whether CTC can learn the utterance; name and count it where it cannot."""
        reason = ""
        frames = frames_of(utterance)
        if self.tokens.unknown(utterance.text):
            reason = "characters without a label"
        elif utterance.seconds > LONGEST_SECONDS:
            reason = "longer than 30 seconds"
        elif not frames:
            reason = "shorter than one 25 ms window"
        elif utterance.split == "train" and self._needed(utterance) > frames // FRAMES_PER_STEP:
            reason = "more labels than steps"
        if reason:
            self._dropped.add(reason, utterance.key, self.corpus.name)
        return not reason

    def _needed(self, utterance: Utterance) -> int:
        return steps_needed(self.tokens.encode(utterance.text))

    def prepare(self, device: torch.device | str) -> None:
        """Compute features on the device that trains, where it is no CPU and nothing else is asked.

        A CPU keeps them instead, and read-ahead threads compute them.
        """
        import torch

        raw = self._features == "device" or (
            self._features == "auto" and torch.device(device).type != "cpu"
        )
        if raw != self._bank.raw:
            self._bank = SpeechBank(self.corpus, raw=raw, notes=self._notes)

    @property
    def batching(self) -> Batching:
        """Give how a user's utterances are cut into batches."""
        return self._batching

    def user_ids(self) -> Sequence[str]:
        """List the training speakers, sorted."""
        return sorted(self._users)

    def user_data(self, user_id: str) -> SpeechUser:
        """Give the utterances of one training speaker."""
        return self._data_of(self._users[user_id])

    def all_training_data(self, batching: Batching | None = None) -> SpeechUser:
        """Give the utterances of all training speakers as if they were one; for central runs.

        batching: in place of the one that the task has for a single user.
        """
        everything = tuple(item for items in self._users.values() for item in items)
        return self._data_of(everything, batching)

    def train_centrally(
        self,
        model: torch.nn.Module,
        wanted: CentralTraining,
        progress: Callable[[int, float, Mapping[str, float]], None],
    ) -> None:
        """Train a model in place on all speakers' utterances together, or go on with it.

        Raises: SettingsError where an option is unknown or out of range.
        """
        from experiments.asr.central_training import train_as_wanted

        train_as_wanted(self, model, wanted, progress)

    def _data_of(
        self, utterances: tuple[Utterance, ...], batching: Batching | None = None
    ) -> SpeechUser:
        return SpeechUser(
            utterances,
            self._bank,
            self.tokens,
            batching or self._batching,
            self._augmentation,
            self._read_threads,
        )

    def model(self) -> torch.nn.Module:
        """Build the model with weights drawn from torch's global generator."""
        return self._build(self.tokens.labels)

    def signature(self) -> Mapping[str, str]:
        """Give the token set, which the head's shape does not tell."""
        return {"characters": self.tokens.characters}

    def loss(self, model: torch.nn.Module, batch: SpeechBatch) -> torch.Tensor:
        """Compute the CTC loss of one batch, in nats per character or per utterance.

        An utterance whose labels no longer fit its steps, after a stretch of time, counts zero.
        Reference: Graves et al. 2006, equation 5.
        """
        logits, lengths = self._forward(model, batch)
        return self._mean_loss(logits, lengths, batch)

    def _mean_loss(
        self, logits: torch.Tensor, lengths: torch.Tensor, batch: SpeechBatch
    ) -> torch.Tensor:
        return mean_ctc_loss(logits, lengths, batch.targets, batch.target_lengths, self.loss_per)

    def _forward(
        self, model: torch.nn.Module, batch: SpeechBatch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run the model, in bfloat16 where asked for; weights and loss stay float32."""
        import torch

        device = batch.features.device.type
        with torch.autocast(device, dtype=torch.bfloat16, enabled=self._half_precision):
            logits, lengths = model(batch.features, batch.feature_lengths)
        return logits, lengths

    def move(self, batch: SpeechBatch | SoundBatch, device: torch.device | str) -> SpeechBatch:
        """Put a batch on a device; the features of raw speech are computed there."""
        if isinstance(batch, SoundBatch):
            return features_on(batch, device)
        return SpeechBatch(*(tensor.to(device, non_blocking=True) for tensor in batch))

    def halve(
        self, batch: SpeechBatch | SoundBatch
    ) -> list[tuple[float, SpeechBatch | SoundBatch]]:
        """Cut a batch that the device's memory does not hold."""
        return halved(batch, self.loss_per)

    def evaluate(self, model: torch.nn.Module, split: str) -> Mapping[str, float]:
        """Measure the loss, a mean like that of training, and error rates in all and by speaker.

        evaluated_utterances: how many were read, where it is not the whole split. Where it is 0,
        loss and error rates are not there.
        Raises: SettingsError when the corpus has no such split.
        """
        if split not in self.splits:
            raise SettingsError(f"split must be one of {', '.join(self.splits)}, got {split!r}")
        device = next(model.parameters()).device
        placed = (
            (items, self.move(batch, device)) for items, batch in self._evaluation_batches(split)
        )
        was_training = model.training
        model.eval()
        self.latest = measure(
            model, placed, self.tokens, self._forward, self._mean_loss, self.loss_per, self._search
        )
        model.train(was_training)
        return self.latest.metrics | self._part_read(split, self.latest.utterances)

    def _part_read(self, split: str, read: int) -> dict[str, float]:
        """Say, and log once, that an evaluation did not cover its whole split."""
        wanted = len(self._held_out[split])
        if read < self._covered.get(split, wanted):
            if read:
                _log.warning("Evaluated %d of %d utterances of the %s split", read, wanted, split)
            else:
                _log.warning(
                    "No utterance of the %s split can be read, so it has no %s", split, self.metric
                )
        self._covered[split] = read
        return {"evaluated_utterances": read} if read < wanted else {}

    def _evaluation_batches(
        self, split: str
    ) -> Iterator[tuple[list[Utterance], SpeechBatch | SoundBatch]]:
        held = self._held_out[split]
        places = sorted_batches([frames_of(item) for item in held], _EVALUATION_FRAMES)
        groups = [[held[place] for place in batch] for batch in places]
        ahead = self._bank.read_ahead(groups, self._read_threads)
        for group, read in zip(groups, ahead, strict=True):
            found = [
                (item, kept) for item, kept in zip(group, read, strict=True) if kept is not None
            ]
            if found:
                items, speech = zip(*found, strict=True)
                labels = [self.tokens.encode(item.text) for item in items]
                unchanged = [Variation(frames_in(each)) for each in speech]
                yield list(items), put_together(speech, unchanged, labels)

    def gpu_hours(
        self, rounds: int, cohort: int, local_steps: int, local_epochs: int
    ) -> float | None:
        """Estimate the A100 hours of a training; None where nothing is known to estimate it from.

        cohort: users trained per round. A step is taken as full, epochs as the mean speech of the
        users: of those in the corpus, or without one of those in the publication.
        """
        if self._cost is None:
            return None
        return self._cost.gpu_hours(rounds * cohort, local_steps, local_epochs, self._spoken())

    def cost_assumption(self, local_steps: int) -> str:
        """Say in words what `gpu_hours` takes as the speech of a user's local work."""
        return "" if self._cost is None else self._cost.assumption(local_steps, self._spoken())

    def batch_megabytes(self) -> float | None:
        """Estimate what the largest batch keeps for the gradient; None for foreign models."""
        return None if self._cost is None else self._cost.batch_megabytes(self._spoken())

    def _spoken(self) -> list[list[float]]:
        return [[item.seconds for item in items] for items in self._users.values()]

    def describe(self) -> Mapping[str, str | int | float]:
        """Say what the corpus holds and what was left out, for the report."""
        trained = [item for items in self._users.values() for item in items]
        facts: dict[str, str | int | float] = {
            "corpus": self.corpus.name,
            "training speakers": len(self._users),
            "training utterances": len(trained),
            "training hours": round(sum(item.seconds for item in trained) / 3600, 3),
        }
        for split, items in self._held_out.items():
            facts[f"{split} speakers"] = len({item.speaker for item in items})
            facts[f"{split} utterances"] = len(items)
        if trained:
            facts["padding share of batches"] = round(self._padding_share(), 4)
        if self.latest is not None and self.latest.utterances:
            facts["real-time factor of evaluation"] = float(f"{self.latest.real_time_factor:.4g}")
            facts["padding share of evaluation"] = round(self.latest.padding_share, 4)
        if self._search is not None:
            facts |= self._search.describe()
        counts = Counter(self.corpus.notes) + self._dropped.notes
        facts.update({f"corpus: {reason}": count for reason, count in counts.items() if count})
        return facts | self._notes.counts

    def findings(self) -> Sequence[Finding]:
        """Name what reading found so far: files that cannot be used, files that were mended."""
        return self._notes.findings

    def amounts(self) -> Mapping[str, int]:
        """Count the speech that was given out for training so far."""
        return self._notes.amounts

    def describe_training(
        self, amounts: Mapping[str, int], seconds: float
    ) -> Mapping[str, str | int | float]:
        """Say how much speech was trained on, and the seconds of work for one second of it.

        seconds: of all workers together, for reading and training.
        """
        spoken = amounts.get(SPOKEN, 0) / 1000
        if not spoken:
            return {}
        return {
            "hours of speech trained on": round(spoken / 3600, 3),
            "real-time factor of training": float(f"{seconds / spoken:.4g}"),
        }

    def _padding_share(self) -> float:
        """Give the mean over users, at most 200 of them, evenly spaced."""
        users = self.user_ids()
        chosen = itertools.islice(users, 0, None, max(1, len(users) // _USERS_LOOKED_AT))
        return float(np.mean([self.user_data(user).padding_share() for user in chosen]))


def _by_speaker(utterances: Iterable[Utterance]) -> dict[str, tuple[Utterance, ...]]:
    grouped: dict[str, list[Utterance]] = {}
    for utterance in utterances:
        grouped.setdefault(utterance.speaker, []).append(utterance)
    return {speaker: tuple(items) for speaker, items in grouped.items()}
