"""Check that utterances are grouped, ordered and padded as promised."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.asr.batching import (
    Batching,
    bucketed_batches,
    collate,
    padded_length,
    padding_share,
    random_batches,
    sorted_batches,
)

_LENGTHS = st.lists(st.integers(1, 500), max_size=40)


def test_padding_is_zero_and_labels_follow_each_other() -> None:
    long, short = np.full((3, 2), 1.0, np.float32), np.full((1, 2), 2.0, np.float32)
    batch = collate([long, short], [[4, 5], [6]])
    assert batch.features.tolist() == [[[1, 1], [1, 1], [1, 1]], [[2, 2], [0, 0], [0, 0]]]
    assert batch.feature_lengths.tolist() == [3, 1]
    assert batch.targets.tolist() == [4, 5, 6]
    assert batch.target_lengths.tolist() == [2, 1]


@given(_LENGTHS, st.integers(1, 7), st.integers(0, 2**32))
def test_one_epoch_holds_every_utterance_once(lengths: list[int], size: int, seed: int) -> None:
    batches = list(random_batches(lengths, size, np.random.default_rng(seed)))
    assert sorted(place for batch in batches for place in batch) == list(range(len(lengths)))
    assert all(1 <= len(batch) <= size for batch in batches)


def test_batches_depend_on_the_generator_only() -> None:
    lengths = list(range(100, 140))
    first, again, other = (
        list(random_batches(lengths, 2, np.random.default_rng(seed))) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_neighbours_in_length_share_a_batch() -> None:
    generator = np.random.default_rng(0)
    lengths = generator.permutation(np.repeat([50, 100, 200, 400], 10)).tolist()
    for batch in random_batches(lengths, 2, generator):
        assert len({lengths[place] for place in batch}) == 1


@given(_LENGTHS, st.integers(1, 1000))
def test_evaluation_batches_hold_everything_within_the_limit(
    lengths: list[int], limit: int
) -> None:
    batches = list(sorted_batches(lengths, limit))
    assert sorted(place for batch in batches for place in batch) == list(range(len(lengths)))
    for batch in batches:
        padded = max(lengths[place] for place in batch) * len(batch)
        assert padded <= limit or len(batch) == 1


@given(
    st.lists(st.integers(1, 500), max_size=40),
    st.integers(1, 2000),
    st.floats(0, 1),
    st.integers(1, 50),
    st.integers(0, 2**32),
)
def test_batches_by_seconds_keep_both_limits_and_hold_everything_once(
    lengths: list[int], most: int, most_padding: float, step: int, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    batches = list(bucketed_batches(lengths, most, most_padding, generator, step))
    assert sorted(place for batch in batches for place in batch) == list(range(len(lengths)))
    for batch in batches:
        held = [lengths[place] for place in batch]
        room = len(held) * padded_length(held, step)
        assert room <= most or len(batch) == 1
        assert len(held) * max(held) - sum(held) <= most_padding * room


def test_batches_by_seconds_are_as_full_as_the_limit_allows() -> None:
    batches = list(bucketed_batches([100] * 10, 350, 0.5, np.random.default_rng(0)))
    assert sorted(len(batch) for batch in batches) == [1, 3, 3, 3]


def test_a_low_padding_limit_parts_long_from_short() -> None:
    lengths = [100] * 4 + [1000] * 4
    strict, loose = (
        list(bucketed_batches(lengths, 10_000, limit, np.random.default_rng(0)))
        for limit in (0.1, 1.0)
    )
    assert sorted(map(sorted, strict)) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert len(loose) == 1
    assert padding_share(lengths, strict) == 0.0
    assert padding_share(lengths, loose) == pytest.approx(1 - 4400 / 8000)


def test_a_batch_of_seconds_is_cut_by_hundredths_and_one_of_utterances_by_number() -> None:
    lengths = [100, 100, 100, 100]
    by_seconds = Batching(size=1, seconds=2.0).draw(lengths, np.random.default_rng(0))
    assert sorted(map(len, by_seconds)) == [2, 2]
    by_number = Batching(size=3).draw(lengths, np.random.default_rng(0))
    assert sorted(map(len, by_number)) == [1, 3]


def test_features_are_padded_to_a_multiple() -> None:
    frames = [np.ones((7, 2), np.float32), np.ones((3, 2), np.float32)]
    batch = collate(frames, [[1], [2]], pad_to_frames=5)
    assert batch.features.shape == (2, 10, 2)
    assert batch.features.sum().item() == 20
    assert padding_share([7, 3], [[0, 1]], 5) == 0.5
    assert padding_share([], []) == 0.0
