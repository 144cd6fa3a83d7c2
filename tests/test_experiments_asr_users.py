"""Check which speech goes to which user: parts of the users, the even deal, the cap."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.asr.corpora import Corpus, Utterance
from experiments.asr.users import cap_users, check_part, deal_evenly, keep_part
from privacy.errors import SettingsError


def _nothing(utterance: Utterance) -> np.ndarray:
    raise AssertionError(utterance)


def _corpus(speakers: int, each: int = 1, seconds: float = 2.0) -> Corpus:
    train = [
        Utterance(f"{speaker}-{turn}", f"s{speaker:05d}", "train", "yes", seconds)
        for speaker in range(speakers)
        for turn in range(each)
    ]
    held_out = [Utterance("d", "dev-speaker", "dev", "no", 1.0)]
    return Corpus("made", (*train, *held_out), _nothing, notes={"empty text": 1})


def _speakers(corpus: Corpus) -> set[str]:
    return {item.speaker for item in corpus.split("train")}


# Origin: numbers of speakers printed for the splits of Common Voice 13.
@pytest.mark.parametrize(
    ("users", "percent", "seed", "rest"),
    [
        (34_753, 10, 3_475, 31_278),
        (34_753, 5, 1_737, 33_016),
        (6_856, 10, 685, 6_171),
        (7_127, 10, 712, 6_415),
    ],
)
def test_parts_have_the_papers_sizes(users: int, percent: int, seed: int, rest: int) -> None:
    corpus = _corpus(users)
    first, second = (
        _speakers(keep_part(corpus, part))
        for part in (f"seed-{percent:02d}", f"fl-{100 - percent}")
    )
    assert (len(first), len(second)) == (seed, rest)
    assert not first & second
    assert first | second == _speakers(corpus)


def test_a_part_is_drawn_once_and_for_all_and_keeps_the_held_out_speech() -> None:
    corpus = _corpus(100, each=3)
    part = keep_part(corpus, "seed-10")
    assert part.utterances == keep_part(corpus, "seed-10").utterances
    assert len(part.split("train")) == 30
    assert part.split("dev") == corpus.split("dev")
    assert _speakers(part) != {f"s{number:05d}" for number in range(10)}
    assert keep_part(corpus, "all") is corpus


# Origin: this project's first draw; whoever trains a seed model today and a federated one next year
# must find the same two halves. A change here mixes seed and federated speech of old runs.
def test_the_members_of_a_part_never_change() -> None:
    corpus = _corpus(40)
    members = {
        "seed-10": [2, 3, 7, 18],
        "seed-25": [0, 2, 3, 7, 10, 14, 15, 18, 21, 26],
    }
    for part, numbers in members.items():
        assert _speakers(keep_part(corpus, part)) == {f"s{number:05d}" for number in numbers}


@pytest.mark.parametrize("part", ["seed", "seed-0", "fl-100", "seed-00", "half", "fl-9", ""])
def test_an_unknown_part_is_a_settings_error(part: str) -> None:
    with pytest.raises(SettingsError, match="user_part must be all"):
        check_part(part)


def test_a_part_without_users_is_a_settings_error() -> None:
    with pytest.raises(SettingsError, match="must leave training users"):
        keep_part(_corpus(5), "seed-10")


def test_the_even_deal_moves_every_utterance_to_an_existing_user() -> None:
    corpus = _corpus(10, each=100)
    dealt = deal_evenly(corpus)
    assert [item.key for item in dealt.utterances] == [item.key for item in corpus.utterances]
    assert _speakers(dealt) == _speakers(corpus)
    assert dealt.split("dev") == corpus.split("dev")
    counts = Counter(item.speaker for item in dealt.split("train"))
    # 1,000 draws among 10: about 100 each, deviation 9.5.
    assert all(60 < count < 140 for count in counts.values())
    moved = sum(
        one.speaker != two.speaker
        for one, two in zip(dealt.utterances, corpus.utterances, strict=True)
    )
    assert 850 < moved < 950


@given(st.lists(st.floats(0.1, 30), min_size=1, max_size=30), st.floats(1, 100))
def test_no_user_keeps_more_seconds_than_the_cap(seconds: list[float], cap: float) -> None:
    train = tuple(
        Utterance(str(number), f"s{number % 2}", "train", "yes", value)
        for number, value in enumerate(seconds)
    )
    capped = cap_users(Corpus("made", train, _nothing), cap)
    totals: Counter[str] = Counter()
    for item in capped.utterances:
        totals[item.speaker] += item.seconds  # type: ignore[assignment]
    assert all(total <= cap * (1 + 1e-9) for total in totals.values())
    left_out = capped.notes["beyond the seconds of a user"]
    assert len(capped.utterances) + left_out == len(train)
    if max(seconds) <= cap:
        assert len(totals) == len({item.speaker for item in train})


def test_the_cap_leaves_held_out_speech_and_other_notes_alone() -> None:
    capped = cap_users(_corpus(3, each=10), 5.0)
    assert len(capped.split("train")) == 6
    assert len(capped.split("dev")) == 1
    assert capped.notes == {"empty text": 1, "beyond the seconds of a user": 24}
