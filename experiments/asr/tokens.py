"""Turn text into label numbers and back; decide what text a speech model is asked to write."""

from __future__ import annotations

import functools
import itertools
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from string import ascii_lowercase
from types import MappingProxyType

from privacy.errors import SettingsError

BLANK = 0
"""Label number of the CTC blank; characters start at 1."""

ENGLISH = " '-abcdefghijklmnopqrstuvwxyz"
"""The 29 characters of the English models (arXiv 2310.00098, appendix on data)."""

FRENCH = ENGLISH + "àâæçèéêëîïôùûüÿœ"
GERMAN = ENGLISH + "äöüß"

TOKEN_SETS: Mapping[str, str] = MappingProxyType(
    {"en": ENGLISH, "fr": FRENCH, "de": GERMAN},
)
"""Characters by language; any other set can be given character by character."""

_LATIN = re.compile(r"LATIN SMALL (?:LETTER|LIGATURE) ([A-Z]{1,2})(?: WITH .*)?")

_OTHER_LATIN = {"\u0131": "i", "\u00f0": "d", "\u00fe": "th", "\u014b": "ng"}
"""Latin letters whose Unicode names do not tell their plain form: dotless i, eth, thorn, eng."""

_TYPOGRAPHIC = "\u2019\u02bc"
"""The typographic apostrophe, as punctuation (also a closing quotation mark) and as a letter."""

_ASCII_PUNCTUATION = re.compile(r"[^a-z0-9'\s-]")


def normalise_text(text: str) -> str:
    """Write text in lower case, without punctuation other than apostrophe and hyphen.

    Punctuation leaves no space behind: "e.g." is eg, "and/or" andor. A typographic apostrophe is
    kept as ' where no punctuation is beside it. A hyphen beside a space, or at an end, goes too;
    spaces collapse to one. Letters and digits stay: whether a model can write them is decided by
    its token set. Text of LibriSpeech, which has letters and apostrophes only, is lower-cased.
    Reference: text rules of arXiv 2310.00098.
    """
    if text.isascii():  # the rule below at a tenth of its cost: corpora have millions of lines
        kept = _ASCII_PUNCTUATION.sub("", text.lower())
    else:
        lowered = unicodedata.normalize("NFC", text).lower()
        # Again: what a removed character parted from its mark is one character now.
        kept = unicodedata.normalize("NFC", "".join(_kept(lowered)))
    return " ".join(word for word in (word.strip("-") for word in kept.split()) if word)


def _kept(text: str) -> Iterator[str]:
    for place, letter in enumerate(text):
        if letter in _TYPOGRAPHIC:
            beside = text[max(0, place - 1) : place] + text[place + 1 : place + 2]
            if not any(map(_is_punctuation, beside)):
                yield "'"
        elif letter.isspace() or _stays(letter):
            yield letter


def _is_punctuation(letter: str) -> bool:
    """Tell punctuation and symbols, the hyphen among them, from apostrophes and all else."""
    return unicodedata.category(letter)[0] in "PS" and letter not in f"'{_TYPOGRAPHIC}"


def _stays(letter: str) -> bool:
    return letter in "'-" or unicodedata.category(letter)[0] in "LMN"


def transliterate(text: str, characters: str = ENGLISH) -> str:
    """Write letters outside `characters` as plain a-z, and drop what has no such form.

    A letter is taken apart into letter and marks; failing that, its Unicode name tells the plain
    letters ("LATIN SMALL LETTER O WITH STROKE" is o, "LATIN SMALL LIGATURE OE" is oe). Letters of
    other scripts are dropped.
    Reference: text rules of arXiv 2310.00098; the table of plain forms is Unicode's, not theirs.

    >>> transliterate("straße, cœur, über, 你好")
    'strasse coeur uber'
    """
    return normalise_text(
        "".join(
            letter if letter in characters else _plain(letter) for letter in normalise_text(text)
        )
    )


def _plain(letter: str) -> str:
    if letter in ENGLISH:
        return letter
    apart = unicodedata.normalize("NFKD", letter.casefold())
    written = "".join(part for part in apart if unicodedata.category(part) != "Mn")
    if written and set(written) <= set(ascii_lowercase):
        return written
    named = _LATIN.fullmatch(unicodedata.name(letter, ""))
    return named[1].lower() if named else _OTHER_LATIN.get(letter, "")


def token_characters(language: str, characters: str | None) -> str:
    """Give the characters of a token set.

    characters: the set itself; None for that of the language.
    Raises: SettingsError when the language has no set, or a character is there twice, is no
    character of normalised text, or the space is missing.
    """
    if characters is None:
        if language not in TOKEN_SETS:
            raise SettingsError(
                f"language must be one of {', '.join(TOKEN_SETS)} where no characters are given, "
                f"got {language!r}; give the option characters"
            )
        return TOKEN_SETS[language]
    strange = [each for each in characters if each != " " and not _stays(each)]
    if not isinstance(characters, str) or " " not in characters or strange:
        raise SettingsError(
            "characters must hold the space and otherwise lower-case letters, digits, apostrophe "
            f"and hyphen, got {characters!r}"
        )
    if characters != characters.lower() or len(set(characters)) != len(characters):
        raise SettingsError(
            f"characters must be lower case and each be there once, got {characters!r}"
        )
    return characters


@dataclass(frozen=True)
class Tokens:
    """Map characters to label numbers 1, 2, ...; number 0 is the CTC blank.

    transliterate: whether letters without a label are written plainly. padded: whether labels begin
    and end with the space's, as in arXiv 2310.00098.
    """

    characters: str = ENGLISH
    transliterate: bool = False
    padded: bool = field(default=False, repr=False)  # no text, so no index, depends on it

    @property
    def labels(self) -> int:
        """Count the labels: every character and the blank."""
        return len(self.characters) + 1

    def normalise(self, text: str) -> str:
        """Write text by the rules of `normalise_text`, or of `transliterate` where asked for."""
        return transliterate(text, self.characters) if self.transliterate else normalise_text(text)

    def unknown(self, text: str) -> str:
        """Give the characters of `text` that have no label, sorted, each once."""
        return "".join(sorted(set(text) - set(self.characters)))

    def encode(self, text: str) -> list[int]:
        """Give the label numbers of `text`, between two spaces where they are padded.

        Raises: KeyError when a character has no label.
        """
        numbers = _numbers(self.characters)
        return [numbers[character] for character in (f" {text} " if self.padded else text)]

    def decode(self, labels: Iterable[int]) -> str:
        """Write the text of label numbers; blanks vanish, spaces collapse to one."""
        text = "".join(self.characters[label - 1] for label in labels if label != BLANK)
        return " ".join(text.split())


@functools.lru_cache(maxsize=8)
def _numbers(characters: str) -> Mapping[str, int]:
    return {character: number for number, character in enumerate(characters, 1)}


def steps_needed(labels: Sequence[int]) -> int:
    """Count the model steps that CTC needs for `labels`.

    One for each label, and one for the blank that must part two equal neighbours.
    Reference: Graves et al. 2006, section 3.1.
    """
    repeats = sum(first == second for first, second in itertools.pairwise(labels))
    return len(labels) + repeats
