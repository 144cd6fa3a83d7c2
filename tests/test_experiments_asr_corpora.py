"""Check that speech is read while the batch before it is used, and no further ahead."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from experiments.asr.augmentation import Augmentation
from experiments.asr.batching import Batching
from experiments.asr.corpora import Corpus, SpeechBank, Utterance
from experiments.asr.speaker import SpeechUser
from experiments.asr.tokens import Tokens

PATIENCE = 20.0
"""Seconds after which a reading that should have begun did not."""


class Source:
    """Read noise, and tell which utterances were begun.

    together: so many readings wait for each other, where it is not 0.
    """

    def __init__(self, count: int, together: int = 0) -> None:
        self.begun = {f"u{number}": threading.Event() for number in range(count)}
        self._meeting = threading.Barrier(together) if together else None

    def __call__(self, utterance: Utterance) -> np.ndarray:
        self.begun[utterance.key].set()
        if self._meeting:
            self._meeting.wait(PATIENCE)
        return np.full(1600, 0.1, dtype=np.float32)

    @property
    def utterances(self) -> tuple[Utterance, ...]:
        return tuple(Utterance(key, "s", "train", "a", 0.1) for key in self.begun)

    @property
    def count(self) -> int:
        return sum(event.is_set() for event in self.begun.values())

    def bank(self) -> SpeechBank:
        return SpeechBank(Corpus("noise", self.utterances, self))


def test_the_next_group_is_read_before_the_current_one_is_used_up() -> None:
    source = Source(3)
    groups = [[item] for item in source.utterances]
    ahead = source.bank().read_ahead(groups, 1)
    next(ahead)
    assert source.begun["u1"].wait(PATIENCE)
    assert not source.begun["u2"].is_set()  # only one group ahead is in memory
    next(ahead)
    assert source.begun["u2"].wait(PATIENCE)
    assert len(list(ahead)) == 1


def test_without_threads_nothing_is_read_before_it_is_asked_for() -> None:
    source = Source(2)
    ahead = source.bank().read_ahead([[item] for item in source.utterances], 0)
    next(ahead)
    assert not source.begun["u1"].is_set()
    next(ahead)
    assert source.begun["u1"].is_set()


def test_as_many_are_read_at_once_as_there_are_threads() -> None:
    source = Source(3, together=3)
    (read,) = source.bank().read_ahead([list(source.utterances)], 3)
    assert all(features is not None for features in read)


@pytest.mark.parametrize("threads", [0, 1])
def test_the_batches_of_a_user_are_read_ahead_where_asked(threads: int) -> None:
    source = Source(3)
    user = SpeechUser(
        source.utterances, source.bank(), Tokens(), Batching(1), Augmentation(), threads
    )
    batches = user.batches(np.random.default_rng(0))
    next(batches)
    until = time.monotonic() + PATIENCE * threads
    while source.count < 1 + threads and time.monotonic() < until:
        time.sleep(0.005)
    assert source.count == 1 + threads
    assert len(list(batches)) == 2
