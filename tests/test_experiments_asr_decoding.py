"""Check the options of reading text off a model's output."""

from __future__ import annotations

import importlib.util
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

from experiments.asr.decoding import Decoding
from experiments.asr.options import SpeechOptions
from experiments.asr.tokens import Tokens
from privacy.errors import SettingsError


def _problems(**options: Any) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        Decoding(**options)
    return caught.value.problems


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Give the names of what shall be missing; all else seems to be installed."""
    missing: list[str] = []

    def found(name: str) -> ModuleSpec | None:
        if any(name.startswith(f"{each}.") for each in missing):
            raise ModuleNotFoundError(name)
        return None if name in missing else ModuleSpec(name, None)

    monkeypatch.setattr(importlib.util, "find_spec", found)
    return missing


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    words, model = tmp_path / "words.txt", tmp_path / "words.arpa"
    words.write_text("one\ntwo\n")
    model.write_text("\n\\data\\\nngram 1=3\n")
    return {"lexicon": words, "language_model": model}


def test_greedy_decoding_needs_nothing_and_searches_nothing(
    installed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed.append("flashlight")
    assert Decoding().search(Tokens()) is None
    monkeypatch.undo()
    assert SpeechOptions().beam_search is None


def test_the_options_reach_the_search(installed: list[str], files: dict[str, Path]) -> None:
    search = Decoding("beam", 7, **files, language_model_weight=3, word_score=-1).search(Tokens())
    assert search is not None
    assert (search.size, search.language_model) == (7, files["language_model"])
    assert (search.language_model_weight, search.word_score) == (3.0, -1.0)
    assert search.lexicon is not None
    assert list(search.lexicon.words) == ["one", "two"]
    assert search.describe() == {
        "decoder": "beam search",
        "beam size": 7,
        "lexicon: words": 2,
        "score of a word": -1.0,
        "language model": "words.arpa",
        "weight of the language model": 3.0,
    }


def test_every_wrong_value_is_reported_at_once(installed: list[str]) -> None:
    wrong = {
        "beam_size": 0,
        "lexicon": "/no/such/list",
        "language_model": 3,
        "language_model_weight": -1,
        "word_score": "much",
    }
    problems = _problems(decoder="beam", **wrong)
    assert len(problems) == len(wrong)
    for name, value in wrong.items():
        assert any(text.startswith(f"{name} must be") and str(value) in text for text in problems)
    assert _problems(decoder="best") == ("decoder must be one of greedy, beam, got 'best'",)


def test_what_greedy_decoding_does_not_read_is_refused(files: dict[str, Path]) -> None:
    assert _problems(**files) == (
        "decoder must be beam to use lexicon, language_model, got 'greedy'; set decoder=beam or "
        "leave the rest out",
    )
    assert "to use beam_size, got" in _problems(beam_size=4)[0]


def test_what_needs_something_else_says_so(installed: list[str], files: dict[str, Path]) -> None:
    told = _problems(
        decoder="beam",
        language_model=files["language_model"],
        word_score=1.0,
    )
    assert told == (
        "language_model must come with a lexicon, got none; give the option lexicon",
        "word_score must come with a lexicon, got none; give the option lexicon",
    )
    (alone,) = _problems(decoder="beam", language_model_weight=1.0)
    assert "language_model_weight must come with a language_model" in alone


def test_a_missing_package_is_one_sentence_with_the_extra(
    installed: list[str], files: dict[str, Path]
) -> None:
    installed.append("flashlight")
    (told,) = _problems(decoder="beam")
    assert told.startswith("decoder beam needs flashlight-text, got no such package")
    assert "install fedopt[beam]" in told
    installed[:] = ["flashlight.lib.text.flashlight_lib_text_decoder_kenlm"]
    (told,) = _problems(decoder="beam", **files)
    assert told.startswith("language_model needs flashlight-text with KenLM")
    assert Decoding("beam", lexicon=files["lexicon"]).decoder == "beam"


def test_a_file_that_is_no_language_model_is_refused(
    installed: list[str], files: dict[str, Path]
) -> None:
    (told,) = _problems(decoder="beam", lexicon=files["lexicon"], language_model=files["lexicon"])
    assert "language_model must be a file of KenLM" in told


def test_the_task_reports_them_beside_all_other_mistakes(
    installed: list[str], files: dict[str, Path]
) -> None:
    with pytest.raises(SettingsError) as caught:
        SpeechOptions(precision="half", decoder="beam", beam_size=-1, speed=3.0)
    assert len(caught.value.problems) == 3
    with pytest.raises(SettingsError) as caught:
        SpeechOptions(decoder="beam", lexicon=files["lexicon"], language="xx")
    assert len(caught.value.problems) == 1
    with pytest.raises(SettingsError, match="lexicon must hold words of the characters ' b'"):
        SpeechOptions(decoder="beam", lexicon=files["lexicon"], characters=" b")
