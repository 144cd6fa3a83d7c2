"""Check the loss of speech models against a sum over all paths, and its two means."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from experiments.asr.loss import MEANS, counted, mean_ctc_loss

LENGTHS, TARGETS = [4, 3, 4], [[1, 2, 1], [2], [2, 2]]
"""Steps and labels of three utterances; 0 is the blank."""


def _batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    logits = torch.randn(3, 4, 3, generator=torch.Generator().manual_seed(7))
    labels = [label for target in TARGETS for label in target]
    return (
        logits.requires_grad_(),
        torch.tensor(LENGTHS),
        torch.tensor(labels),
        torch.tensor([len(target) for target in TARGETS]),
    )


def _written(path: tuple[int, ...]) -> list[int]:
    """Collapse a path: repeats first, then blanks."""
    return [label for label, _ in itertools.groupby(path) if label]


def _losses(logits: Tensor) -> list[float]:
    """Give minus the logarithm of the probability of each target, summed over all its paths."""
    found = []
    for row, steps, target in zip(logits.softmax(-1).tolist(), LENGTHS, TARGETS, strict=True):
        paths = itertools.product(range(3), repeat=steps)
        held = [path for path in paths if _written(path) == target]
        odds = (math.prod(row[step][label] for step, label in enumerate(path)) for path in held)
        found.append(-math.log(sum(odds)))
    return found


def test_the_means_are_those_of_the_sum_over_all_paths() -> None:
    batch = _batch()
    losses = _losses(batch[0].detach())
    by_utterance = float(mean_ctc_loss(*batch, "utterance").detach())
    assert by_utterance == pytest.approx(sum(losses) / 3, rel=1e-5)
    by_character = float(mean_ctc_loss(*batch).detach())
    assert by_character == pytest.approx(sum(losses) / 6, rel=1e-5)


def test_the_gradients_differ_by_the_characters_of_an_utterance() -> None:
    per_character, per_utterance = (
        torch.autograd.grad(mean_ctc_loss(*batch, per), batch[0])[0]
        for per, batch in zip(MEANS, (_batch(), _batch()), strict=True)
    )
    assert float(per_character.norm()) > 0
    torch.testing.assert_close(per_utterance, per_character * (6 / 3))


def test_a_target_that_does_not_fit_counts_zero_but_is_counted() -> None:
    logits, lengths, targets, target_lengths = _batch()
    losses = _losses(logits.detach())
    short = torch.tensor([2, 3, 4])
    found = mean_ctc_loss(logits, short, targets, target_lengths, "utterance")
    assert float(found.detach()) == pytest.approx(sum(losses[1:]) / 3, rel=1e-5)
    assert counted(target_lengths, "utterance") == len(lengths)
    assert counted(target_lengths, "character") == 6
