"""Check what a list of words becomes, by hand-made files."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.asr.lexicon import Lexicon, read_lexicon
from experiments.asr.tokens import Tokens
from privacy.errors import SettingsError


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    path = tmp_path / "words.txt"
    path.write_text("HELLO\nwell-known\n\nDon\u2019t\nhello\ncafé\n--\n 2nd \r\n", encoding="utf-8")
    return path


def test_words_are_spelled_as_texts_are_and_counted_where_they_cannot_be(listed: Path) -> None:
    words = {"hello": "HELLO", "well-known": "well-known", "don't": "Don\u2019t"}
    assert read_lexicon(listed, Tokens()) == Lexicon(words, left_out=3, alike=1)


def test_transliteration_spells_more(listed: Path) -> None:
    found = read_lexicon(listed, Tokens(transliterate=True))
    assert found.words["cafe"] == "café"
    assert found.left_out == 1


def test_a_line_of_several_words_is_refused_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("one\nhello h e l l o |\n")
    with pytest.raises(SettingsError, match=r"one word a line, got 'hello h e l l o \|' in line 2"):
        read_lexicon(path, Tokens())


@pytest.mark.parametrize("text", ["", "\n\n", "你好\n"])
def test_a_lexicon_without_a_word_that_can_be_spelled_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "words.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError, match="lexicon must hold words of the characters"):
        read_lexicon(path, Tokens())


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "words.bin"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match="lexicon must be a text file in UTF-8"):
        read_lexicon(path, Tokens())
