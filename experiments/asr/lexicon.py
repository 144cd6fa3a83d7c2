"""Read a list of words, and spell each with the characters that a model can write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from experiments.asr.tokens import Tokens
from privacy.errors import SettingsError


@dataclass(frozen=True)
class Lexicon:
    """Hold the words that may be written.

    words: each word as its file has it, by its spelling, which is text of the token set.
    left_out: how many words of the file cannot be spelled. alike: how many have the spelling of an
    earlier one, which stands for them.
    """

    words: Mapping[str, str]
    left_out: int = 0
    alike: int = 0


def read_lexicon(path: Path, tokens: Tokens) -> Lexicon:
    """Read a file of one word a line, each spelled by the rules that texts of a corpus follow.

    Raises: SettingsError when the file cannot be read as text, a line has several words, or no word
    can be spelled.
    """
    words: dict[str, str] = {}
    left_out, alike = 0, 0
    for word in _listed(path):
        spelling = tokens.normalise(word)
        if not spelling or tokens.unknown(spelling):
            left_out += 1
        elif spelling in words:
            alike += 1
        else:
            words[spelling] = word
    if not words:
        raise SettingsError(
            f"lexicon must hold words of the characters {tokens.characters!r}, got {left_out} "
            f"words of other characters in {path}; correct the file or the option characters"
        )
    return Lexicon(words, left_out, alike)


def _listed(path: Path) -> list[str]:
    """Give the words of a file, empty lines left out."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        raise SettingsError(
            f"lexicon must be a text file in UTF-8, got {path}: {problem}; correct it"
        ) from problem
    parted = [(number, line.split()) for number, line in enumerate(lines, 1)]
    wrong = [(number, words) for number, words in parted if len(words) > 1]
    if wrong:
        number, words = wrong[0]
        raise SettingsError(
            f"lexicon must hold one word a line, got {' '.join(words)[:60]!r} in line {number} of "
            f"{path}; spellings are made from the words, leave them out"
        )
    return [words[0] for _, words in parted if words]
