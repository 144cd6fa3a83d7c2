"""Carry raw speech to a device, and compute and vary its features there, a whole batch at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from experiments.asr.augmentation import Span, Variation
from experiments.asr.batching import SpeechBatch, label_tensors, padded_length
from experiments.asr.features import frame_count, inside_lengths, log_mel, normalise_rows

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class SoundBatch(NamedTuple):
    """Hold recordings whose features are still to be computed.

    samples: (batch, samples) float32 in [-1, 1], 0 beyond each recording. frames: of each before
    it is varied. variations: how each is varied. pad_to_frames: features are padded to a multiple
    of it. targets, target_lengths: as in SpeechBatch.
    """

    samples: Tensor
    frames: tuple[int, ...]
    variations: tuple[Variation, ...]
    pad_to_frames: int
    targets: Tensor
    target_lengths: Tensor

    def rows(self, rows: slice, labels: slice) -> SoundBatch:
        """Give some recordings and their labels as a batch."""
        return self._replace(
            samples=self.samples[rows],
            frames=self.frames[rows],
            variations=self.variations[rows],
            targets=self.targets[labels],
            target_lengths=self.target_lengths[rows],
        )


def collate_sounds(
    recordings: Sequence[NDArray[np.float32]],
    variations: Sequence[Variation],
    labels: Sequence[Sequence[int]],
    pad_to_frames: int = 1,
) -> SoundBatch:
    """Pad recordings to the longest of the batch; in memory that a GPU reads by itself."""
    import torch

    padded = np.zeros((len(recordings), max(map(len, recordings))), dtype=np.float32)
    for row, samples in zip(padded, recordings, strict=True):
        row[: len(samples)] = samples
    held = torch.from_numpy(padded)
    return SoundBatch(
        held.pin_memory() if torch.cuda.is_available() else held,
        tuple(frame_count(len(samples)) for samples in recordings),
        tuple(variations),
        pad_to_frames,
        *label_tensors(labels),
    )


def features_on(batch: SoundBatch, device: torch.device | str) -> SpeechBatch:
    """Compute the varied, normalised features of a batch on a device.

    They are those of `utterance_features` and `Variation`, but for the rounding to float16 there.
    """
    import torch

    with torch.no_grad():
        samples = batch.samples.to(device, non_blocking=True)
        features = normalise_rows(log_mel(samples), torch.tensor(batch.frames, device=device))
        lengths = torch.tensor([each.frames for each in batch.variations], device=device)
        features = _masked(_warped(_stretched(features, batch, lengths), batch), batch.variations)
        features = features * inside_lengths(lengths, features.shape[1])[:, :, None]
        longest = padded_length([each.frames for each in batch.variations], batch.pad_to_frames)
        beyond = longest - features.shape[1]
        features = torch.nn.functional.pad(features, (0, 0, 0, beyond))
    return SpeechBatch(
        features,
        lengths,
        batch.targets.to(device, non_blocking=True),
        batch.target_lengths.to(device, non_blocking=True),
    )


def _stretched(features: Tensor, batch: SoundBatch, lengths: Tensor) -> Tensor:
    """Stretch time, each row by its own factor, by linear interpolation."""
    import torch

    if all(each.speed == 1.0 for each in batch.variations):
        return features
    last = torch.tensor(batch.frames, device=features.device)[:, None] - 1
    times = torch.arange(max(each.frames for each in batch.variations), device=features.device)
    step = last.double() / (lengths[:, None] - 1).clamp(min=1)
    positions = torch.minimum(times * step, last.double())
    return _interpolated(features, positions[:, :, None], last[:, :, None], dim=1)


def _warped(features: Tensor, batch: SoundBatch) -> Tensor:
    """Stretch the frequency axis, each row by its own factor."""
    import torch

    factors = [each.tract for each in batch.variations]
    if all(factor == 1.0 for factor in factors):
        return features
    last = torch.tensor(features.shape[2] - 1, device=features.device)
    bins = torch.arange(features.shape[2], device=features.device, dtype=torch.float64)
    tract = torch.tensor(factors, device=features.device, dtype=torch.float64)
    positions = torch.minimum(bins / tract[:, None], last.double())
    return _interpolated(features, positions[:, None, :], last, dim=2)


def _interpolated(features: Tensor, positions: Tensor, last: Tensor, dim: int) -> Tensor:
    """Read features at positions between whole ones along an axis.

    positions: float64, as long as the result along `dim` and 1 along the other axis.
    """
    import torch

    lower = positions.floor().long()
    share = (positions - lower).to(features.dtype)
    shape = list(features.shape)
    shape[dim] = positions.shape[dim]
    below, above = (
        features.gather(dim, torch.minimum(place, last).expand(shape))
        for place in (lower, lower + 1)
    )
    return below + share * (above - below)


def _masked(features: Tensor, variations: Sequence[Variation]) -> Tensor:
    """Fill what the masks of each row cover with 0."""
    for masks, axis in (
        ([each.frame_masks for each in variations], 1),
        ([each.bin_masks for each in variations], 2),
    ):
        if any(masks):
            covered = _covered(masks, features.shape[axis], features.device)
            features = features.masked_fill(covered.unsqueeze(3 - axis), 0.0)
    return features


def _covered(masks: Sequence[Sequence[Span]], size: int, device: torch.device) -> Tensor:
    """Tell of each row which places its masks cover: (batch, size) bool; all rows have as many."""
    import torch

    starts, ends = torch.tensor(masks, device=device).unbind(dim=2)
    places = torch.arange(size, device=device)
    return ((places >= starts[:, :, None]) & (places < ends[:, :, None])).any(dim=1)
