"""Compute the loss of speech models: connectionist temporal classification, per character."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def loss_per_character(
    logits: Tensor, lengths: Tensor, targets: Tensor, target_lengths: Tensor
) -> Tensor:
    """Sum the CTC loss of a batch and divide by its characters, in nats.

    logits: (batch, steps, labels). lengths, target_lengths: (batch,). targets: (batch, letters), or
    all labels one after the other. A target that does not fit its steps counts zero.

    Reference: Graves et al. 2006, equation 5.
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
    return total / target_lengths.sum()
