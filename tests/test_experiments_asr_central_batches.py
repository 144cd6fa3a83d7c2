"""Check that endless batches go on from a place as if never stopped, and read nothing twice."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from experiments.asr.augmentation import Augmentation
from experiments.asr.batching import Batching
from experiments.asr.central_batches import EndlessBatches
from experiments.asr.corpora import Corpus, UnreadableAudio, Utterance
from experiments.asr.model import SpeechTransformer
from experiments.asr.speech_task import SpeechTask
from privacy.errors import SettingsError

UNREADABLE = "03"


class Reader:
    """Give noise of each utterance's length, keep which were read; one of them cannot be read."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def __call__(self, utterance: Utterance) -> NDArray[np.float32]:
        self.read.append(utterance.key)
        if utterance.key == UNREADABLE:
            raise UnreadableAudio("it is torn")
        generator = np.random.default_rng(int(utterance.key))
        # Not the length in the index: what is drawn goes by what is read.
        samples = round(16_000 * utterance.seconds) + 800
        return generator.uniform(-0.1, 0.1, samples).astype(np.float32)


def speech_task(reader: Reader, count: int = 7) -> SpeechTask:
    spoken = tuple(
        Utterance(f"{number:02d}", f"speaker {number % 2}", "train", "a", 0.3 + 0.1 * number)
        for number in range(count)
    )
    return SpeechTask(
        Corpus("noise", spoken, reader),
        lambda labels: SpeechTransformer(labels),
        augmentation=Augmentation(speed=0.1, tract=0.1, time_masks=2, frequency_masks=1),
        features="device",
    )


def endless(
    reader: Reader, batching: Batching, place: object = None, count: int = 7
) -> tuple[EndlessBatches, Iterator[object]]:
    everyone = speech_task(reader, count).all_training_data(batching)
    stored = json.loads(json.dumps(place))  # as on disk
    batches = EndlessBatches(everyone, seed=4, place=stored)
    return batches, iter(batches)


def taken(batches: Iterator[object], number: int) -> list[list[torch.Tensor | object]]:
    return [list(batch) for batch in itertools.islice(batches, number)]  # type: ignore[call-overload]


def assert_equal(first: list[object], second: list[object]) -> None:
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@pytest.mark.parametrize("batching", [Batching(1), Batching(2), Batching(seconds=1.5)])
@pytest.mark.parametrize("used", [1, 3, 4, 6, 7, 9])
def test_batches_go_on_from_every_place_in_an_epoch(batching: Batching, used: int) -> None:
    unbroken, all_batches = endless(Reader(), batching)
    taken(all_batches, used)
    place = unbroken.place()
    reader = Reader()
    resumed, more = endless(reader, batching, place)
    assert resumed.place() == place
    assert not reader.read
    for one, other in zip(taken(all_batches, 12), taken(more, 12), strict=True):
        assert_equal(one, other)
    assert resumed.place() == unbroken.place()


def test_what_was_used_is_not_read_again() -> None:
    before, after = Reader(), Reader()
    batches, started = endless(before, Batching(1))
    taken(started, 3)
    _, more = endless(after, Batching(1), batches.place())
    taken(more, 3)
    assert len(before.read) + len(after.read) == 7
    assert set(before.read).isdisjoint(after.read)


def test_a_place_among_other_utterances_is_refused() -> None:
    batches, started = endless(Reader(), Batching(2))
    taken(started, 1)
    with pytest.raises(SettingsError, match="resume needs the training utterances of the inter"):
        endless(Reader(), Batching(2), batches.place(), count=6)


def test_a_corpus_without_a_readable_utterance_is_refused_after_one_epoch() -> None:
    torn = Corpus("torn", (Utterance(UNREADABLE, "speaker", "train", "a", 0.5),), Reader())
    everyone = SpeechTask(torn, lambda labels: SpeechTransformer(labels)).all_training_data()
    with pytest.raises(SettingsError, match="must hold training speech that can be read"):
        next(iter(EndlessBatches(everyone, seed=0)))
