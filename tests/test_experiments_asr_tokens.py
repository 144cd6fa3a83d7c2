"""Check text rules and label numbers of the speech task."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.asr.tokens import (
    ENGLISH,
    FRENCH,
    TOKEN_SETS,
    Tokens,
    normalise_text,
    steps_needed,
    token_characters,
    transliterate,
)
from privacy.errors import SettingsError


def test_english_has_thirty_labels_with_the_blank_as_in_the_paper() -> None:
    assert Tokens().labels == 30
    assert len(set(ENGLISH)) == 29


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("STOP", "stop"),
        ("  Hello,   World!  ", "hello world"),
        ("it\u2019s O'Clock", "it's o'clock"),
        ("-'quoted' - and well-known-", "'quoted' and well-known"),
        ("dots...between...words, e.g. and/or", "dotsbetweenwords eg andor"),
        ("dash\u2014dash \u2013 non\u2011breaking --- x", "dashdash nonbreaking x"),
        ("THE BOYS' BOOKS AND 'TIS", "the boys' books and 'tis"),
        ("the boys\u2019 books, \u2019tis \u02bctis", "the boys' books 'tis 'tis"),
        ("\u201cthe boys\u2019\u201d and \u2018stop,\u2019 he said", "the boys and stop he said"),
        ("it\u2019s\u2019 -\u2019tis", "it's' tis"),
        ("hard\u00a0space\tand tab", "hard space and tab"),
        ("Déjà vu", "déjà vu"),
        ("?!", ""),
    ],
)
def test_text_is_lower_case_without_punctuation(written: str, expected: str) -> None:
    assert normalise_text(written) == expected


@given(st.text(max_size=40))
def test_normalised_text_stays_as_it_is_when_normalised_again(text: str) -> None:
    once = normalise_text(text)
    assert normalise_text(once) == once
    assert "  " not in once
    assert once == once.strip()


@given(st.lists(st.text(alphabet=ENGLISH.replace(" ", ""), min_size=1), max_size=6))
def test_decoding_undoes_encoding(words: list[str]) -> None:
    text = " ".join(words)
    labels = Tokens().encode(text)
    assert Tokens().decode(labels) == text
    assert all(1 <= label <= 29 for label in labels)


def test_padded_labels_stand_between_two_spaces_and_decode_to_the_same_text() -> None:
    plain, padded = Tokens(), Tokens(padded=True)
    assert padded.encode("a b") == [1, *plain.encode("a b"), 1]
    assert padded.decode(padded.encode("a b")) == "a b"
    assert repr(padded) == repr(plain)  # so both use the same index of a corpus


def test_decoding_drops_blanks_and_collapses_spaces() -> None:
    assert Tokens("ab ").decode([0, 3, 1, 0, 3, 3, 2, 3]) == "a b"


def test_characters_without_a_label_are_named_once() -> None:
    assert Tokens().unknown("naïve 3 naïve") == "3ï"
    with pytest.raises(KeyError):
        Tokens().encode("ï")


@pytest.mark.parametrize(("labels", "steps"), [([], 0), ([1], 1), ([1, 2], 2), ([1, 1, 1, 2], 6)])
def test_equal_neighbours_need_a_step_between_them(labels: list[int], steps: int) -> None:
    assert steps_needed(labels) == steps


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("Stra\u00dfe", "strasse"),
        ("C\u0153ur, \u00c6ther", "coeur aether"),
        ("sm\u00f8rrebr\u00f8d \u0142\u00f3d\u017a", "smorrebrod lodz"),
        ("l\u2019\u00e9t\u00e9 - d\u00e9j\u00e0-vu", "l'ete deja-vu"),
        ("\u4f60\u597d \u041c\u043e\u0441\u043a\u0432\u0430", ""),
        ("5 \ufb01nal \u2460", "final"),
        ("\u0131s\u0131 \u00deor\u00f0ur \u014b", "isi thordur ng"),
        ("caf\u00e9s/bars, d\u2019\u00eatre \u00bd", "cafesbars d'etre"),
    ],
)
def test_letters_become_plain_or_vanish(written: str, expected: str) -> None:
    assert transliterate(written) == expected


@given(st.text(max_size=40))
def test_transliterated_text_has_english_characters_only_and_stays_as_it_is(text: str) -> None:
    once = transliterate(text)
    assert set(once) <= set(ENGLISH)
    assert transliterate(once) == once
    assert Tokens(transliterate=True).normalise(text) == once


@given(st.text(alphabet="ABCDEFGHIJKLMNOPQRSTUVWXYZ' ", max_size=40))
def test_text_of_librispeech_is_lower_cased_and_nothing_else(text: str) -> None:
    spoken = " ".join(text.split())
    assert normalise_text(spoken) == spoken.lower()
    assert Tokens(transliterate=True).normalise(spoken) == spoken.lower()


def test_letters_with_a_label_stay_when_others_are_written_plainly() -> None:
    french = Tokens(FRENCH, transliterate=True)
    assert (
        french.normalise("D\u00e9j\u00e0 Stra\u00dfe, \u0141\u00f3d\u017a")
        == "d\u00e9j\u00e0 strasse lodz"
    )


@given(st.text(max_size=40))
def test_text_with_a_token_set_is_a_fixed_point(text: str) -> None:
    french = Tokens(FRENCH, transliterate=True)
    once = french.normalise(text)
    assert not french.unknown(once)
    assert french.normalise(once) == once


def test_languages_have_their_letters_and_english_ones_first() -> None:
    assert TOKEN_SETS["fr"] == FRENCH
    assert all(characters.startswith(ENGLISH) for characters in TOKEN_SETS.values())
    assert not Tokens(FRENCH).unknown(normalise_text("O\u00f9 est l'\u0153uvre, \u00c7a?"))
    assert token_characters("fr", None) == FRENCH
    assert token_characters("xx", " abc") == " abc"


@pytest.mark.parametrize("characters", ["abc", " aa", " A", " a.", ""])
def test_what_is_no_token_set_is_a_settings_error(characters: str) -> None:
    with pytest.raises(SettingsError, match="characters must"):
        token_characters("en", characters)


def test_a_language_without_a_set_needs_characters() -> None:
    with pytest.raises(SettingsError, match="language must be one of en, fr, de"):
        token_characters("xx", None)


def test_plain_text_follows_the_same_rule_as_any_other() -> None:
    plain = "".join(map(chr, range(128)))
    # A letter outside ASCII leads to the general rule; it stands apart and is cut off again.
    assert normalise_text(plain) == normalise_text(f"{plain} \u00e9").removesuffix(" \u00e9")
    letters = "abcdefghijklmnopqrstuvwxyz"
    assert normalise_text(plain) == f"'-0123456789{letters}{letters}"
