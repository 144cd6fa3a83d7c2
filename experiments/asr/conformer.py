"""Show how to bring a model of one's own: torchaudio's Conformer as --model MODULE:FACTORY.

fedopt run --model experiments.asr.conformer:small_conformer
"""

from __future__ import annotations

from torch import Tensor, nn

from experiments.asr.features import FRAMES_PER_STEP, MEL_BINS


def small_conformer(labels: int) -> nn.Module:
    """Build a Conformer of 3 blocks, width 96; group norm, because batch norm is not private."""
    return StackedConformer(labels, width=96, blocks=3)


class StackedConformer(nn.Module):
    """Stack 3 frames to a step of 30 ms, transform the steps, write label logits.

    Reference: Conformer, Gulati et al. 2020 (arXiv 2005.08100), as torchaudio has it.
    """

    def __init__(self, labels: int, *, width: int, blocks: int) -> None:
        super().__init__()
        from torchaudio.models import Conformer

        self.stack = nn.Linear(FRAMES_PER_STEP * MEL_BINS, width)
        self.encoder = Conformer(
            width,
            num_heads=4,
            ffn_dim=4 * width,
            num_layers=blocks,
            depthwise_conv_kernel_size=15,
            use_group_norm=True,
        )
        self.head = nn.Linear(width, labels)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Give logits (batch, steps, labels) and lengths (batch,) in steps.

        features: (batch, frames, 80); lengths: (batch,) in frames. torchaudio's mask is as long as
        the longest utterance, so padding beyond it is cut off. Its convolutions and norms see the
        padding inside a batch, so a short utterance's result depends a little on its neighbours.
        """
        steps = lengths // FRAMES_PER_STEP
        longest = int(steps.max())
        kept = features[:, : longest * FRAMES_PER_STEP]
        stacked = kept.reshape(len(kept), longest, FRAMES_PER_STEP * MEL_BINS)
        hidden, _ = self.encoder(self.stack(stacked), steps)
        logits: Tensor = self.head(hidden)
        return logits, steps
