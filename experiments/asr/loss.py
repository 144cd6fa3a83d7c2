"""Compute the loss of speech models: connectionist temporal classification, as a mean."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

MEANS = ("character", "utterance")
"""What the summed loss of a batch can be divided by the number of."""


def mean_ctc_loss(
    logits: Tensor,
    lengths: Tensor,
    targets: Tensor,
    target_lengths: Tensor,
    per: str = "character",
) -> Tensor:
    """Sum the CTC loss of a batch and divide by its characters, or its utterances, in nats.

    logits: (batch, steps, labels). lengths, target_lengths: (batch,). targets: (batch, letters), or
    all labels one after the other. per: one of MEANS. A target that does not fit its steps counts
    zero in the sum.

    Reference: Graves et al. 2006, equation 5; the mean per utterance is that of arXiv 2310.00098.
    """
    from torch.nn import functional

    total = functional.ctc_loss(
        functional.log_softmax(logits.float(), dim=-1).transpose(0, 1),
        targets,
        lengths,
        target_lengths,
        reduction="sum",
        zero_infinity=True,
    )
    return total / (len(target_lengths) if per == "utterance" else target_lengths.sum())


def counted(target_lengths: Tensor, per: str) -> int:
    """Count what the loss of a batch is the mean over, which is its weight among batches."""
    return len(target_lengths) if per == "utterance" else int(target_lengths.sum())
