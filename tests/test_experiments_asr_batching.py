"""Check that utterances are grouped, ordered and padded as promised."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from experiments.asr.batching import collate, random_batches, sorted_batches

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
