"""Search the most probable text of a model's output, of any characters or of a lexicon's words."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.asr.lexicon import Lexicon
from experiments.asr.tokens import Tokens
from privacy.errors import SettingsError

if TYPE_CHECKING:
    import torch
    from torchaudio.models.decoder import CTCDecoder, CTCHypothesis

_BLANK, _SPACE = "<blank>", "|"
"""Names of labels in the decoder's files, where spaces part words; no character is called so."""

_NEVER = -1e4
"""Logarithm of no probability; infinity would become nan where such scores are added up."""


@dataclass(frozen=True)
class BeamSearch:
    """Write the text that is most probable in the sum over its alignments, of those in the beam.

    size: beginnings of texts that are kept after each step. lexicon: words of which every text is
    made, None where any characters may follow each other. language_model: file of KenLM, in ARPA or
    binary form, over words as the lexicon's file has them; it needs a lexicon.
    language_model_weight: of its base-ten logarithms beside the natural ones of the model.
    word_score: added for each word of a lexicon.
    The decoder is built when it is first needed, once in each process, and is never pickled.
    Reference: Graves and Jaitly 2014, algorithm 1; the decoder is Flashlight's (Kahn et al. 2022).
    """

    tokens: Tokens
    size: int = 50
    lexicon: Lexicon | None = None
    language_model: Path | None = None
    language_model_weight: float = 2.0
    word_score: float = 0.0

    def __call__(self, logits: torch.Tensor, lengths: torch.Tensor) -> list[str]:
        """Write the text of each utterance; "" where the model's output is not a number.

        logits: (batch, steps, labels) float tensor; lengths: (batch,) integer tensor of valid
        steps. The search runs on the CPU in float32, wherever the model is.
        Raises: SettingsError when the language model cannot be read.
        """
        import torch

        scores, steps = torch.log_softmax(logits.float().cpu(), dim=-1), lengths.cpu()
        if self.lexicon is not None:
            scores, steps = _ended(scores, steps, self._space)
        return [self._text(found) for found in self._decoder(scores.contiguous(), steps)]

    def _text(self, found: Sequence[CTCHypothesis]) -> str:
        if not found:
            return ""
        if self.lexicon is None:
            return self.tokens.decode(found[0].tokens.tolist())
        return self.tokens.normalise(" ".join(found[0].words))

    def describe(self) -> dict[str, str | int | float]:
        """Say how text is written, for the report."""
        facts: dict[str, str | int | float] = {"decoder": "beam search", "beam size": self.size}
        if self.lexicon is not None:
            counts = {
                "words": len(self.lexicon.words),
                "words that cannot be spelled": self.lexicon.left_out,
                "words spelled like another": self.lexicon.alike,
            }
            facts |= {f"lexicon: {name}": count for name, count in counts.items() if count}
        if self.word_score:
            facts["score of a word"] = self.word_score
        if self.language_model is not None:
            facts["language model"] = self.language_model.name
            facts["weight of the language model"] = self.language_model_weight
        return facts

    def __getstate__(self) -> dict[str, object]:
        """Leave the decoder behind, which another process builds anew."""
        return {name: value for name, value in vars(self).items() if name != "_decoder"}

    @property
    def _space(self) -> int:
        return self.tokens.encode(" ")[0]

    @functools.cached_property
    def _decoder(self) -> CTCDecoder:
        with tempfile.TemporaryDirectory() as folder:
            return self._built(self._lexicon_file(Path(folder)))

    def _lexicon_file(self, folder: Path) -> str | None:
        """Write the words as the decoder reads them: word, labels, and the space that ends it."""
        if self.lexicon is None:
            return None
        lines = [
            f"{word} {' '.join(spelling)} {_SPACE}\n"
            for spelling, word in self.lexicon.words.items()
        ]
        path = folder / "lexicon.txt"
        path.write_text("".join(lines), encoding="utf-8")
        return str(path)

    def _built(self, lexicon: str | None) -> CTCDecoder:
        from torchaudio.models.decoder import ctc_decoder

        named = [_SPACE if character == " " else character for character in self.tokens.characters]
        try:
            return ctc_decoder(
                lexicon=lexicon,
                tokens=[_BLANK, *named],
                lm=None if self.language_model is None else str(self.language_model),
                beam_size=self.size,
                lm_weight=self.language_model_weight,
                word_score=self.word_score,
                log_add=True,  # the probability of a text is the sum over its alignments
                blank_token=_BLANK,
                # Between words of a lexicon any number of spaces is one. Without one every text is
                # its labels and nothing more, so the silence is a label that no text holds.
                sil_token=_BLANK if lexicon is None else _SPACE,
            )
        except RuntimeError as problem:
            if self.language_model is None:
                raise
            reason = str(problem).splitlines()[-1]  # before it KenLM names its source and types
            raise SettingsError(
                "language_model must be a file that KenLM reads, in ARPA or binary form, got "
                f"{self.language_model}: {reason}; correct it"
            ) from problem


def _ended(
    scores: torch.Tensor, steps: torch.Tensor, space: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add a step to each utterance that is surely a space, with which a lexicon's words end."""
    import torch

    longer = torch.nn.functional.pad(scores, (0, 0, 0, 1))
    rows = torch.arange(len(steps))
    longer[rows, steps] = _NEVER
    longer[rows, steps, space] = 0.0
    return longer, steps + 1
