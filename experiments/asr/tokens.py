"""Turn text into label numbers and back; decide what text a speech model is asked to write."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

BLANK = 0
"""Label number of the CTC blank; characters start at 1."""

ENGLISH = " '-abcdefghijklmnopqrstuvwxyz"
"""The 29 characters of the English models (arXiv 2310.00098, appendix on data)."""

_APOSTROPHES = str.maketrans({"\u2019": "'", "\u2018": "'", "\u02bc": "'", "\u2032": "'"})


def normalise_text(text: str) -> str:
    """Write text in lower case, without punctuation other than apostrophe and hyphen.

    A hyphen or an apostrophe that stands beside no letter is punctuation and goes too;
    spaces collapse to one. Accented letters stay: whether a model can write them is decided by
    its token set.
    """
    lowered = unicodedata.normalize("NFC", text).lower().translate(_APOSTROPHES)
    kept = "".join(letter if _stays(letter) else " " for letter in lowered)
    return " ".join(word for word in (word.strip("-'") for word in kept.split()) if word)


def _stays(letter: str) -> bool:
    return letter in "'-" or unicodedata.category(letter)[0] in "LMN"


@dataclass(frozen=True)
class Tokens:
    """Map characters to label numbers 1, 2, ...; number 0 is the CTC blank."""

    characters: str = ENGLISH

    @property
    def labels(self) -> int:
        """Count the labels: every character and the blank."""
        return len(self.characters) + 1

    def unknown(self, text: str) -> str:
        """Give the characters of `text` that have no label, sorted, each once."""
        return "".join(sorted(set(text) - set(self.characters)))

    def encode(self, text: str) -> list[int]:
        """Give the label numbers of `text`.

        Raises: KeyError when a character has no label.
        """
        numbers = {character: number for number, character in enumerate(self.characters, 1)}
        return [numbers[character] for character in text]

    def decode(self, labels: Iterable[int]) -> str:
        """Write the text of label numbers; blanks vanish, spaces collapse to one."""
        text = "".join(self.characters[label - 1] for label in labels if label != BLANK)
        return " ".join(text.split())


def steps_needed(labels: Sequence[int]) -> int:
    """Count the model steps that CTC needs for `labels`.

    One for each label, and one for the blank that must part two equal neighbours.
    Reference: Graves et al. 2006, section 3.1.
    """
    repeats = sum(first == second for first, second in itertools.pairwise(labels))
    return len(labels) + repeats
