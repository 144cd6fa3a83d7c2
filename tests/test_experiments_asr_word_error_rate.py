"""Check decoding and error counting by hand-made examples."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from experiments.asr.tokens import Tokens
from experiments.asr.word_error_rate import ErrorCounts, count_errors, greedy_decode

_LETTERS = Tokens("abc ")


def _logits(rows: list[list[int]]) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(rows), 5).float()


def test_greedy_decoding_collapses_repeats_then_drops_blanks() -> None:
    rows = [[1, 1, 0, 1, 2, 2, 0, 0], [0, 3, 4, 4, 0, 1, 1, 1]]
    lengths = torch.tensor([8, 8])
    assert greedy_decode(_logits(rows), lengths, _LETTERS) == ["aab", "c a"]


def test_steps_beyond_the_length_are_not_read() -> None:
    rows = [[1, 2, 3, 3], [1, 2, 3, 3]]
    assert greedy_decode(_logits(rows), torch.tensor([2, 0]), _LETTERS) == ["ab", ""]


def _collapse(labels: list[int]) -> str:
    kept = [label for place, label in enumerate(labels) if place == 0 or label != labels[place - 1]]
    return _LETTERS.decode(kept)


@given(st.lists(st.lists(st.integers(0, 4), min_size=6, max_size=6), min_size=1, max_size=4))
def test_a_batch_decodes_as_one_by_one(rows: list[list[int]]) -> None:
    lengths = torch.full((len(rows),), 6)
    assert greedy_decode(_logits(rows), lengths, _LETTERS) == [_collapse(row) for row in rows]


def test_rates_are_total_errors_over_total_words() -> None:
    counts = count_errors(["one two three four", "nine"], ["one too three", "nine nine nine"])
    assert counts == ErrorCounts(4, 5, counts.character_errors, 18 + 4)
    assert counts.wer == pytest.approx(4 / 5)
    mean_of_utterances = (2 / 4 + 2 / 1) / 2
    assert counts.wer != pytest.approx(mean_of_utterances)


def test_characters_count_spaces() -> None:
    assert count_errors(["ab c"], ["abc"]).cer == pytest.approx(1 / 4)


def test_writing_nothing_is_an_error_rate_of_one() -> None:
    counts = count_errors(["one two", "three"], ["", ""])
    assert (counts.wer, counts.cer) == (1.0, 1.0)


def test_sets_add_up_to_the_whole() -> None:
    said, written = ["one two", "three", "four"], ["one", "tree", "four five"]
    parts = count_errors(said[:1], written[:1]) + count_errors(said[1:], written[1:])
    assert parts == count_errors(said, written)


def test_no_utterances_have_no_errors() -> None:
    assert count_errors([], []) == ErrorCounts()
    assert math.isnan(ErrorCounts().wer)
    assert math.isnan(ErrorCounts().cer)
