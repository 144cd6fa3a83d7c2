"""Offer speech recognition as a federated learning task: each speaker is a user."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from experiments.asr.augmentation import Augmentation
from experiments.asr.batching import SpeechBatch, collate, random_batches, sorted_batches
from experiments.asr.corpora import Corpus, FeatureBank, Utterance
from experiments.asr.features import FRAMES_PER_STEP, SAMPLE_RATE, frame_count
from experiments.asr.options import SpeechOptions
from experiments.asr.tokens import Tokens, steps_needed
from experiments.asr.word_error_rate import ErrorCounts, count_errors, greedy_decode
from privacy.errors import SettingsError

if TYPE_CHECKING:
    import torch

LONGEST_SECONDS = 30.0
_EVALUATION_FRAMES = 6_000


@dataclass(frozen=True)
class SpeechUser:
    """Hold the utterances of one speaker; features are computed when first asked for."""

    utterances: tuple[Utterance, ...]
    bank: FeatureBank
    tokens: Tokens
    batch_size: int
    augmentation: Augmentation

    def batches(self, generator: np.random.Generator) -> Iterator[SpeechBatch]:
        """Yield the batches of one epoch; order and variations are drawn from `generator`."""
        readable = [
            (frames, self.tokens.encode(utterance.text))
            for utterance in self.utterances
            if (frames := self.bank.features(utterance)) is not None
        ]
        lengths = [len(frames) for frames, _ in readable]
        for positions in random_batches(lengths, self.batch_size, generator):
            yield collate(
                [self._vary(readable[place][0], generator) for place in positions],
                [readable[place][1] for place in positions],
            )

    def _vary(
        self, features: NDArray[np.float16], generator: np.random.Generator
    ) -> NDArray[np.float32]:
        return self.augmentation(np.asarray(features, dtype=np.float32), generator)


class SpeechTask:
    """Train a CTC model on the speakers of a corpus; measure it on speakers it never heard.

    splits: those of "dev" and "test" that the corpus has.
    """

    metric = "wer"

    def __init__(
        self,
        corpus: Corpus,
        build: Callable[[int], torch.nn.Module],
        *,
        tokens: Tokens | None = None,
        batch_size: int = 2,
        augmentation: Augmentation | None = None,
    ) -> None:
        self.corpus = corpus
        self.tokens = tokens or Tokens()
        self._build = build
        self._batch_size = batch_size
        self._augmentation = augmentation or Augmentation()
        self._bank = FeatureBank(corpus)
        self._dropped: Counter[str] = Counter()
        usable = [utterance for utterance in corpus.utterances if self._fits(utterance)]
        self._users = _by_speaker(item for item in usable if item.split == "train")
        self._held_out = {
            split: tuple(item for item in usable if item.split == split)
            for split in ("dev", "test")
            if any(item.split == split for item in usable)
        }
        self.splits = tuple(self._held_out)

    def _fits(self, utterance: Utterance) -> bool:
        """Say whether CTC can learn the utterance; count the reason where it cannot."""
        if utterance.seconds > LONGEST_SECONDS:
            self._dropped["longer than 30 seconds"] += 1
            return False
        steps = frame_count(round(utterance.seconds * SAMPLE_RATE)) // FRAMES_PER_STEP
        needed = steps_needed(self.tokens.encode(utterance.text))
        if utterance.split == "train" and needed > steps:
            self._dropped["more labels than steps"] += 1
            return False
        return True

    def user_ids(self) -> Sequence[str]:
        """List the training speakers, sorted."""
        return sorted(self._users)

    def user_data(self, user_id: str) -> SpeechUser:
        """Give the utterances of one training speaker."""
        return self._data_of(self._users[user_id])

    def all_training_data(self) -> SpeechUser:
        """Give the utterances of all training speakers as if they were one; for central runs."""
        return self._data_of(tuple(item for items in self._users.values() for item in items))

    def _data_of(self, utterances: tuple[Utterance, ...]) -> SpeechUser:
        return SpeechUser(utterances, self._bank, self.tokens, self._batch_size, self._augmentation)

    def model(self) -> torch.nn.Module:
        """Build the model with weights drawn from torch's global generator."""
        return self._build(self.tokens.labels)

    def loss(self, model: torch.nn.Module, batch: SpeechBatch) -> torch.Tensor:
        """Compute the CTC loss per character of one batch, in nats.

        An utterance whose labels no longer fit its steps, after a stretch of time, counts zero.
        Reference: Graves et al. 2006, equation 5.
        """
        logits, lengths = model(batch.features, batch.feature_lengths)
        return _loss_per_character(logits, lengths, batch)

    def move(self, batch: SpeechBatch, device: torch.device | str) -> SpeechBatch:
        """Put a batch on a device."""
        return SpeechBatch(*(tensor.to(device, non_blocking=True) for tensor in batch))

    def evaluate(self, model: torch.nn.Module, split: str) -> Mapping[str, float]:
        """Measure loss per character, word and character error rates (total errors / total).

        Raises: SettingsError when the corpus has no such split.
        """
        if split not in self.splits:
            raise SettingsError(f"split must be one of {', '.join(self.splits)}, got {split!r}")
        was_training = model.training
        model.eval()
        loss, errors = self._measure(model, split)
        model.train(was_training)
        return {"loss": loss, "wer": errors.wer, "cer": errors.cer}

    def _measure(self, model: torch.nn.Module, split: str) -> tuple[float, ErrorCounts]:
        import torch

        device = next(model.parameters()).device
        total_loss, characters, errors = 0.0, 0, ErrorCounts()
        with torch.inference_mode():
            for texts, batch in self._evaluation_batches(split):
                placed = self.move(batch, device)
                logits, lengths = model(placed.features, placed.feature_lengths)
                spoken = sum(len(text) for text in texts)
                total_loss += float(_loss_per_character(logits, lengths, placed)) * spoken
                characters += spoken
                errors += count_errors(texts, greedy_decode(logits, lengths, self.tokens))
        return total_loss / max(1, characters), errors

    def _evaluation_batches(self, split: str) -> Iterator[tuple[list[str], SpeechBatch]]:
        readable = [
            (item.text, kept)
            for item in self._held_out[split]
            if (kept := self._bank.features(item)) is not None
        ]
        lengths = [len(frames) for _, frames in readable]
        for positions in sorted_batches(lengths, _EVALUATION_FRAMES):
            texts = [readable[place][0] for place in positions]
            labels = [self.tokens.encode(text) for text in texts]
            frames = [np.asarray(readable[place][1], dtype=np.float32) for place in positions]
            yield texts, collate(frames, labels)

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
        counts = Counter(self.corpus.notes) + self._dropped
        counts["unreadable when read"] += self._bank.unreadable
        facts.update({f"corpus: {reason}": count for reason, count in counts.items() if count})
        return facts


def _loss_per_character(
    logits: torch.Tensor, lengths: torch.Tensor, batch: SpeechBatch
) -> torch.Tensor:
    from torch.nn import functional

    total = functional.ctc_loss(
        functional.log_softmax(logits.float(), dim=-1).transpose(0, 1),
        batch.targets,
        lengths,
        batch.target_lengths,
        reduction="sum",
        zero_infinity=True,
    )
    return total / batch.target_lengths.sum()


def _by_speaker(utterances: Iterable[Utterance]) -> dict[str, tuple[Utterance, ...]]:
    grouped: dict[str, list[Utterance]] = {}
    for utterance in utterances:
        grouped.setdefault(utterance.speaker, []).append(utterance)
    return {speaker: tuple(items) for speaker, items in grouped.items()}


def task(**options: Any) -> SpeechTask:
    """Build the speech task; the options are the fields of SpeechOptions.

    Raises: SettingsError with one sentence per mistake; TypeError for an unknown option.
    """
    chosen = SpeechOptions(**options)
    tokens = Tokens()

    def build(labels: int) -> torch.nn.Module:
        from experiments.asr.model import build_model

        return build_model(
            chosen.model, labels, dropout=chosen.dropout, layer_drop=chosen.layer_drop
        )

    return SpeechTask(
        chosen.corpus(tokens),
        build,
        tokens=tokens,
        batch_size=chosen.batch_size,
        augmentation=chosen.augmentation,
    )
