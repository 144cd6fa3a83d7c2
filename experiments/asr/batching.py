"""Put utterances of similar length together and pad them to one tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

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


def collate(
    features: Sequence[NDArray[np.float32]], labels: Sequence[Sequence[int]]
) -> SpeechBatch:
    """Pad features to the longest of the batch."""
    import torch

    longest = max(len(frames) for frames in features)
    padded = np.zeros((len(features), longest, features[0].shape[1]), dtype=np.float32)
    for row, frames in zip(padded, features, strict=True):
        row[: len(frames)] = frames
    return SpeechBatch(
        torch.from_numpy(padded),
        torch.tensor([len(frames) for frames in features]),
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
