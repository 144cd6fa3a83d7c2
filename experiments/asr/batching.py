"""Put utterances of similar length together and pad them to one tensor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from experiments.asr.loss import counted

if TYPE_CHECKING:
    import torch

FRAMES_PER_SECOND = 100
_LENGTH_JITTER = 0.2


class SpeechBatch(NamedTuple):
    """Hold padded utterances.

    features: (batch, frames, bins) float32, 0 beyond each length; feature_lengths: (batch,)
    int64, in frames; targets: (all labels of the batch, one after the other,) int64;
    target_lengths: (batch,) int64.
    """

    features: torch.Tensor
    feature_lengths: torch.Tensor
    targets: torch.Tensor
    target_lengths: torch.Tensor

    def rows(self, rows: slice, labels: slice) -> SpeechBatch:
        """Give some utterances and their labels as a batch."""
        return SpeechBatch(
            self.features[rows],
            self.feature_lengths[rows],
            self.targets[labels],
            self.target_lengths[rows],
        )


class CanBeCut(Protocol):
    """Hold utterances that can be taken in two batches: of features, or of raw speech."""

    @property
    def targets(self) -> torch.Tensor:
        """Give all labels of the batch, one after the other."""
        ...

    @property
    def target_lengths(self) -> torch.Tensor:
        """Give the number of labels of each utterance."""
        ...

    def rows(self, rows: slice, labels: slice) -> Self:
        """Give some utterances and their labels as a batch."""
        ...


CutBatch = TypeVar("CutBatch", bound=CanBeCut)


def halved(batch: CutBatch, per: str = "character") -> list[tuple[float, CutBatch]]:
    """Cut a batch in two, each with its share of the mean; a single utterance stays whole.

    per: what the loss is the mean over, one of experiments.asr.loss.MEANS. The loss of the whole is
    then the weighted sum of the halves' losses.
    """
    count = len(batch.target_lengths)
    if count < 2:
        return [(1.0, batch)]
    middle = count // 2
    labels = int(batch.target_lengths[:middle].sum())
    halves = [
        batch.rows(slice(0, middle), slice(0, labels)),
        batch.rows(slice(middle, count), slice(labels, None)),
    ]
    whole = counted(batch.target_lengths, per)
    return [(counted(half.target_lengths, per) / whole, half) for half in halves]


@dataclass(frozen=True)
class Batching:
    """Say how utterances are cut into batches.

    size: utterances of a batch, where seconds is 0. seconds: a batch holds utterances up to so
    many seconds, padding included; one that is longer alone makes a batch of its own. most_padding:
    largest share of padding in a batch that is cut by seconds. pad_to_seconds: features are padded
    to a multiple of so many seconds, so that few shapes occur; 0: to the longest of the batch.
    Reference: arXiv 2310.00098, appendix on training: 120 s or 360 s of audio, padded to 5 s.
    """

    size: int = 2
    seconds: float = 0.0
    most_padding: float = 0.5
    pad_to_seconds: float = 0.0

    def draw(self, lengths: Sequence[int], generator: np.random.Generator) -> Iterator[list[int]]:
        """Yield one epoch of positions into `lengths` (frames), in a random order."""
        if not self.seconds:
            return random_batches(lengths, self.size, generator)
        limit = round(self.seconds * FRAMES_PER_SECOND)
        return bucketed_batches(lengths, limit, self.most_padding, generator, self.pad_to_frames)

    @property
    def pad_to_frames(self) -> int:
        """Give the number of frames whose multiples batches are padded to; 1: any length."""
        return max(1, round(self.pad_to_seconds * FRAMES_PER_SECOND))


def collate(
    features: Sequence[NDArray[np.float32]],
    labels: Sequence[Sequence[int]],
    pad_to_frames: int = 1,
) -> SpeechBatch:
    """Pad features to the longest of the batch, and on to a multiple of `pad_to_frames`."""
    import torch

    longest = padded_length([len(frames) for frames in features], pad_to_frames)
    padded = np.zeros((len(features), longest, features[0].shape[1]), dtype=np.float32)
    for row, frames in zip(padded, features, strict=True):
        row[: len(frames)] = frames
    return SpeechBatch(
        torch.from_numpy(padded),
        torch.tensor([len(frames) for frames in features]),
        *label_tensors(labels),
    )


def label_tensors(labels: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Give all labels of a batch, one after the other, and how many each utterance has."""
    import torch

    return (
        torch.tensor([label for sequence in labels for label in sequence], dtype=torch.int64),
        torch.tensor([len(sequence) for sequence in labels]),
    )


def random_batches(
    lengths: Sequence[int], batch_size: int, generator: np.random.Generator
) -> Iterator[list[int]]:
    """Yield one epoch of positions into `lengths`, neighbours in length together.

    Lengths are compared with 20 % of jitter, so that batches differ from epoch to epoch; the
    order of the batches is random.
    """
    jitter = generator.uniform(1 - _LENGTH_JITTER, 1 + _LENGTH_JITTER, len(lengths))
    order = np.argsort(np.asarray(lengths) * jitter, kind="stable").tolist()
    cuts = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    for number in generator.permutation(len(cuts)):
        yield cuts[number]


def bucketed_batches(
    lengths: Sequence[int],
    most_frames: int,
    most_padding: float,
    generator: np.random.Generator,
    pad_to_frames: int = 1,
) -> Iterator[list[int]]:
    """Yield one epoch of positions into `lengths`, each batch within two limits.

    most_frames: of a batch, padding included. most_padding: largest share of them that is padding
    beyond the longest utterance's own. An utterance that passes a limit by itself is alone.
    Utterances are taken in order of jittered length, so neighbours in length share a batch and
    batches differ from epoch to epoch; the order of the batches is random.
    """
    jitter = generator.uniform(1 - _LENGTH_JITTER, 1 + _LENGTH_JITTER, len(lengths))
    cuts: list[list[int]] = []
    longest = spoken = 0
    for place in np.argsort(np.asarray(lengths) * jitter, kind="stable").tolist():
        longest, spoken = max(longest, lengths[place]), spoken + lengths[place]
        rows = len(cuts[-1]) + 1 if cuts else 1
        room = rows * padded_length([longest], pad_to_frames)
        if not cuts or room > most_frames or rows * longest - spoken > most_padding * room:
            cuts.append([place])
            longest = spoken = lengths[place]
        else:
            cuts[-1].append(place)
    for number in generator.permutation(len(cuts)):
        yield cuts[number]


def padded_length(lengths: Sequence[int], pad_to_frames: int = 1) -> int:
    """Give the frames that every row of a batch takes."""
    return -(-max(lengths) // pad_to_frames) * pad_to_frames


def padding_share(
    lengths: Sequence[int], batches: Iterable[Sequence[int]], pad_to_frames: int = 1
) -> float:
    """Give the share of all frames of the batches that is padding; 0 where there are none."""
    spoken = padded = 0
    for batch in batches:
        held = [lengths[place] for place in batch]
        spoken += sum(held)
        padded += len(held) * padded_length(held, pad_to_frames)
    return 1.0 - spoken / padded if padded else 0.0


def sorted_batches(lengths: Sequence[int], most_frames: int) -> Iterator[list[int]]:
    """Yield positions in order of length, at most `most_frames` padded frames to a batch."""
    batch: list[int] = []
    for position in np.argsort(np.asarray(lengths), kind="stable").tolist():
        if batch and (len(batch) + 1) * lengths[position] > most_frames:
            yield batch
            batch = []
        batch.append(position)
    if batch:
        yield batch
