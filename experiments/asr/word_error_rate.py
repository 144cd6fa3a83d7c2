"""Read text off a model's output and count its errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from experiments.asr.tokens import BLANK, Tokens

if TYPE_CHECKING:
    import torch


def greedy_decode(logits: torch.Tensor, lengths: torch.Tensor, tokens: Tokens) -> list[str]:
    """Write the text of the best label of every step: collapse repeats, drop blanks.

    logits: (batch, steps, labels) float tensor; lengths: (batch,) integer tensor of valid steps.
    The whole batch is reduced on its device and moved to the host once.
    Reference: Graves et al. 2006, section 3.2, best path decoding.
    """
    import torch

    best = logits.argmax(dim=-1)
    steps = torch.arange(best.shape[1], device=best.device)
    inside = steps[None, :] < lengths.to(best.device)[:, None]
    changed = torch.ones_like(inside)
    changed[:, 1:] = best[:, 1:] != best[:, :-1]
    written = torch.where(inside & changed, best, BLANK).tolist()
    return [tokens.decode(row) for row in written]


@dataclass(frozen=True)
class ErrorCounts:
    """Count the errors of a set of utterances, so that sets can be added up."""

    word_errors: int = 0
    words: int = 0
    character_errors: int = 0
    characters: int = 0

    def __add__(self, other: ErrorCounts) -> ErrorCounts:
        """Count two sets together."""
        return ErrorCounts(
            self.word_errors + other.word_errors,
            self.words + other.words,
            self.character_errors + other.character_errors,
            self.characters + other.characters,
        )

    @property
    def wer(self) -> float:
        """Give total word errors / total words; above 1 when words are invented, nan of none."""
        return self.word_errors / self.words if self.words else math.nan

    @property
    def cer(self) -> float:
        """Give total character errors / total characters, spaces included; nan of none."""
        return self.character_errors / self.characters if self.characters else math.nan


def count_errors(references: Sequence[str], guesses: Sequence[str]) -> ErrorCounts:
    """Count substitutions, deletions and insertions over all utterances.

    references: what was said, one non-empty text per utterance; guesses: what the model wrote,
    in the same order.

    >>> count_errors(["one two", "nine"], ["one too two", "nine"]).wer
    0.3333333333333333
    """
    import jiwer

    if not references:
        return ErrorCounts()
    words = jiwer.process_words(list(references), list(guesses))
    characters = jiwer.process_characters(list(references), list(guesses))
    return ErrorCounts(
        word_errors=words.substitutions + words.deletions + words.insertions,
        words=words.substitutions + words.deletions + words.hits,
        character_errors=(characters.substitutions + characters.deletions + characters.insertions),
        characters=characters.substitutions + characters.deletions + characters.hits,
    )
