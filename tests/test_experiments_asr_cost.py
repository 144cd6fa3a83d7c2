"""Check what a training is said to cost, and from what."""

from __future__ import annotations

import pytest

from experiments.asr.activations import activation_megabytes
from experiments.asr.batching import Batching
from experiments.asr.cost import TrainingCost
from experiments.asr.flops import gpu_hours, training_flops
from experiments.asr.model import PRESETS
from experiments.asr.published_corpora import PublishedSpeech, published_speech

BASE = PRESETS["base"]
USERS = [[10.0, 20.0], [6.0]]


def _hours(seconds: float) -> float:
    return gpu_hours(training_flops(BASE, 30, seconds))


def test_steps_are_full_and_epochs_are_what_users_speak() -> None:
    by_seconds = TrainingCost(BASE, 30, Batching(seconds=120.0))
    by_count = TrainingCost(BASE, 30, Batching(4))
    for cost, steps, epochs, seconds, said in (
        (by_seconds, 3, 1, 360.0, "120 s of speech"),
        (by_count, 2, 1, 2 * 4 * 12.0, "48 s of speech"),
        (by_seconds, 0, 5, 5 * 18.0, "0.3 minutes of each user, the corpus' mean"),
    ):
        assert cost.gpu_hours(7, steps, epochs, USERS) == pytest.approx(7 * _hours(seconds))
        assert cost.assumption(steps, USERS).endswith(said)


def test_without_a_corpus_epochs_take_the_published_speech_or_nothing() -> None:
    known = TrainingCost(BASE, 30, Batching(), published=PublishedSpeech("somewhere", 2.5))
    assert known.gpu_hours(1, 0, 10, []) == pytest.approx(_hours(1500.0))
    assert known.assumption(0, []) == "2.5 minutes of each user, the published mean of somewhere"
    unknown = TrainingCost(BASE, 30, Batching())
    assert unknown.gpu_hours(1, 0, 10, []) is None
    assert unknown.assumption(0, []) == ""


def test_the_largest_batch_is_full_or_of_the_longest_utterances() -> None:
    by_count = TrainingCost(BASE, 30, Batching(4))
    assert by_count.batch_megabytes(USERS) == activation_megabytes(BASE, 30, 80.0)
    assert by_count.batch_megabytes([]) == activation_megabytes(BASE, 30, 120.0)
    half = TrainingCost(BASE, 30, Batching(seconds=120.0), half_precision=True)
    assert half.batch_megabytes(USERS) == activation_megabytes(BASE, 30, 120.0, half_precision=True)


# Origin: minutes per speaker printed in the appendix on data of arXiv 2310.00098.
@pytest.mark.parametrize(
    ("dataset", "options", "minutes"),
    [
        ("librispeech", {"subsets": ["train-clean-100", "dev-clean"]}, 24.1),
        ("librispeech", {"subsets": ["train-clean-360"]}, 23.7),
        ("librispeech", {"subsets": ["train-other-500"]}, 25.6),
        ("librispeech", {"subsets": ["train-clean-360", "train-other-500"]}, 24.7),
        ("librispeech", {}, 24.7),
        ("common-voice", {}, 2.8),
        ("common-voice", {"user_part": "seed-10"}, 2.6),
        ("common-voice", {"user_part": "fl-95"}, 2.7),
        ("common-voice", {"user_part": "fl-33"}, 2.8),
        ("common-voice", {"language": "fr", "user_part": "fl-90"}, 6.6),
        ("common-voice", {"language": "de"}, 7.2),
    ],
)
def test_the_published_speech_of_a_user(
    dataset: str, options: dict[str, str | list[str]], minutes: float
) -> None:
    found = published_speech(dataset, **options)  # type: ignore[arg-type]
    assert found is not None
    assert found.minutes == pytest.approx(minutes, abs=0.06)


def test_a_corpus_that_was_not_published_has_no_mean() -> None:
    assert published_speech("synthetic") is None
    assert published_speech("librispeech", subsets=["train-mine"]) is None
    assert published_speech("common-voice", language="xx") is None
