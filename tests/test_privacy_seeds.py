"""Show that every draw has a stream of its own, repeatable when keyed and fresh when secret."""

from __future__ import annotations

import hashlib
import math
import os
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from privacy.seeds import KeyedSource, Purpose, Source, Streams, SystemSource

SURPRISE = 1e-6
PURPOSES = get_args(Purpose)
SOURCES = [KeyedSource(b"s" * 16), SystemSource()]

names = st.tuples(
    st.integers(-10, 10**6),
    st.sampled_from(["", "ab", "ab1", "a|noise|1", "1|ab"]),
    st.sampled_from(PURPOSES),
    st.integers(0, 10**6),
    st.integers(0, 100),
    st.integers(0, 10**10),
)


def key_of(name: tuple[int, str, Purpose, int, int, int]) -> bytes:
    seed, settings_hash, purpose, number, attempt, index = name
    return Streams(seed, settings_hash).key(purpose, number, attempt, index)


@given(first=names, second=names)
def test_two_streams_share_a_key_only_if_nothing_differs(
    first: tuple[int, str, Purpose, int, int, int], second: tuple[int, str, Purpose, int, int, int]
) -> None:
    assert (key_of(first) == key_of(second)) == (first == second)


def test_no_two_runs_rounds_attempts_purposes_or_groups_share_a_stream() -> None:
    keys = {
        Streams(seed, settings_hash).key(purpose, number, attempt, index)
        for seed in (0, 1, 11)
        for settings_hash in ("a", "b", "1")
        for purpose in PURPOSES
        for number in range(1, 24)
        for attempt in range(3)
        for index in (0, 1, 11, 111)
    }
    assert len(keys) == 3 * 3 * len(PURPOSES) * 23 * 3 * 4


def test_digits_do_not_move_from_one_part_of_a_name_to_the_next() -> None:
    streams = Streams(seed=1, settings_hash="ab")
    assert streams.key("noise", 1, 11) != streams.key("noise", 11, 1)
    assert streams.key("noise", 1, 1, 1) != streams.key("noise", 11, 1)
    assert Streams(11, "ab").key("noise", 1) != Streams(1, "1ab").key("noise", 1)


def test_a_key_is_the_blake2b_hash_of_its_name() -> None:
    wanted = hashlib.blake2b(b"7|ab|noise|3|1|9", digest_size=16, person=b"fedopt-stream-v1")
    assert Streams(7, "ab").key("noise", 3, 1, 9) == wanted.digest()


def test_the_first_numbers_of_a_stream_stay_what_they_were() -> None:
    # Golden: numpy's Philox under the key above, as first released. A change breaks old runs.
    source = Streams(7, "ab").source("noise", 3, 1, 9)
    philox = np.random.Philox(key=int.from_bytes(Streams(7, "ab").key("noise", 3, 1, 9), "little"))
    assert source.normal(3).tolist() == np.random.Generator(philox).standard_normal(3).tolist()
    assert Streams(7, "ab").key("noise", 3, 1, 9).hex() == "25216dcdbb3e130d577e53a3ad7dab7a"


def test_a_keyed_stream_repeats_itself_and_others_differ() -> None:
    streams = Streams(seed=1, settings_hash="ab")
    first, again = streams.source("noise", 1), streams.source("noise", 1)
    assert first.normal(5).tolist() == again.normal(5).tolist()
    assert (
        streams.source("noise", 2).normal(5).tolist()
        != streams.source("noise", 1).normal(5).tolist()
    )
    assert (
        streams.generator("training", 1, 4).random() == streams.generator("training", 1, 4).random()
    )
    assert (
        streams.generator("training", 1, 4).random() != streams.generator("training", 1, 5).random()
    )


def test_secret_streams_never_repeat() -> None:
    streams = Streams(seed=1, settings_hash="ab", secure=True)
    draws = {streams.source("noise", 1).normal(1)[0] for _ in range(200)}
    assert len(draws) == 200
    assert isinstance(streams.source("cohort", 1), SystemSource)


def test_forked_processes_draw_different_secrets() -> None:
    source, (read, write) = SystemSource(), os.pipe()
    children = []
    for _ in range(2):
        child = os.fork()
        if child == 0:
            os.write(write, source.normal(4).tobytes())
            os._exit(0)
        children.append(child)
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
    os.close(write)
    drawn = np.frombuffer(os.read(read, 64))
    os.close(read)
    assert len(set(drawn.tolist()) | set(source.normal(4).tolist())) == 12


def test_training_randomness_is_repeatable_even_where_noise_is_secret() -> None:
    public, secret = Streams(1, "ab"), Streams(1, "ab", secure=True)
    assert (
        public.generator("training", 2, 3).random() == secret.generator("training", 2, 3).random()
    )
    assert public.torch_seed("training", 2, 3) == secret.torch_seed("training", 2, 3)


def test_seeds_for_torch_are_distinct_and_fit_63_bits() -> None:
    streams = Streams(1, "ab")
    seeds = {
        streams.torch_seed("training", number, user) for number in range(50) for user in range(50)
    }
    assert len(seeds) == 2500
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_key_hash_names_a_release_without_giving_its_key_away() -> None:
    streams = Streams(1, "ab")
    assert streams.key_hash(1, 0) == streams.key_hash(1, 0)
    others = {streams.key_hash(1, 1), streams.key_hash(2, 0), Streams(2, "ab").key_hash(1, 0)}
    assert len(others | {streams.key_hash(1, 0)}) == 4
    key = streams.key("noise", 1, 0)
    assert key.hex() not in streams.key_hash(1, 0)
    assert streams.key_hash(1, 0) != hashlib.sha256(key).hexdigest()


def test_a_secret_release_has_a_fresh_key_hash_each_time() -> None:
    streams = Streams(1, "ab", secure=True)
    hashes = [streams.key_hash(1, 0) for _ in range(3)]
    assert len(set(hashes)) == 3
    assert all(len(each) == 64 for each in hashes)


@pytest.mark.parametrize("source", SOURCES)
def test_uniform_numbers_are_uniform_and_never_zero(source: Source) -> None:
    drawn = source.uniform(200_000)
    assert drawn.min() > 0.0
    assert drawn.max() <= 1.0
    assert stats.kstest(drawn, "uniform").pvalue > SURPRISE
    assert stats.kstest(drawn**1.05, "uniform").pvalue < SURPRISE


@pytest.mark.parametrize("source", SOURCES)
def test_normal_numbers_are_standard_normal_and_5_percent_off_is_rejected(source: Source) -> None:
    drawn = source.normal(200_001)
    assert len(drawn) == 200_001
    assert stats.kstest(drawn, "norm").pvalue > SURPRISE
    assert stats.kstest(drawn * 1.05, "norm").pvalue < SURPRISE
    halves = drawn[:100_000], drawn[100_001:]
    for powers in ((1, 1), (2, 2)):
        pair = [half**power for half, power in zip(halves, powers, strict=True)]
        assert abs(np.corrcoef(pair[0], pair[1])[0, 1]) < 5.0 / math.sqrt(100_000)


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("bound", [1, 2, 7, 1000, 2**40 + 1, 2**63 - 1])
def test_integers_are_uniform_below_their_bound(source: Source, bound: int) -> None:
    drawn = source.integers(bound, 50_000)
    assert drawn.dtype == np.int64
    assert drawn.min() >= 0
    assert drawn.max() < bound
    bins = min(bound, 7)
    found = np.bincount((drawn.astype(object) * bins // bound).astype(int), minlength=bins)
    assert stats.chisquare(found).pvalue > SURPRISE or bins == 1


@pytest.mark.parametrize("source", SOURCES)
def test_nothing_asked_is_nothing_drawn(source: Source) -> None:
    assert len(source.uniform(0)) == len(source.normal(0)) == len(source.integers(5, 0)) == 0


def test_biased_words_are_thrown_away(monkeypatch: pytest.MonkeyPatch) -> None:
    # 2**64 is 1 modulo 5: the largest word must be drawn again, or 0 would be too frequent.
    words = [2**64 - 1] * 9 + [3] * 20
    stream = b"".join(word.to_bytes(8, "little") for word in words)
    position = 0

    def replay(count: int) -> bytes:
        nonlocal position
        position += count
        return stream[position - count : position]

    monkeypatch.setattr("privacy.seeds.os.urandom", replay)
    assert SystemSource().integers(5, 1).tolist() == [3]


def urandom_of(monkeypatch: pytest.MonkeyPatch, byte: int) -> list[int]:
    """Let the system answer with one byte over and over; list the sizes that were asked for."""
    asked: list[int] = []

    def answer(count: int) -> bytes:
        asked.append(count)
        return bytes([byte]) * count

    monkeypatch.setattr("privacy.seeds.os.urandom", answer)
    return asked


def test_the_smallest_and_the_largest_word_give_numbers_above_zero_and_up_to_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    urandom_of(monkeypatch, 0)
    assert SystemSource().uniform(2).tolist() == [2.0**-53, 2.0**-53]
    # The noise then has its longest tail: sqrt(2 * 53 ln 2) = 8.57 deviations.
    assert SystemSource().normal(1)[0] == pytest.approx(math.sqrt(106 * math.log(2)))
    urandom_of(monkeypatch, 255)
    assert SystemSource().uniform(2).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(("count", "pairs"), [(1, 1), (4, 2), (1001, 501)])
def test_secret_noise_reads_two_words_for_two_numbers(
    count: int, pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = urandom_of(monkeypatch, 77)
    assert len(SystemSource().normal(count)) == count
    assert asked == [8 * pairs, 8 * pairs]


def test_where_every_fourth_word_is_thrown_away_as_many_are_drawn_again() -> None:
    # 3 x (2**62 + 1) is the largest multiple below 2**64: a quarter of all words is above it.
    drawn = SystemSource().integers(2**62 + 1, 4000)
    assert len(drawn) == 4000
    assert stats.kstest(drawn / 2.0**62, "uniform").pvalue > SURPRISE


def test_a_stream_without_attempt_and_index_is_the_first_one() -> None:
    streams = Streams(seed=3, settings_hash="ab")
    assert streams.key("noise", 7) == streams.key("noise", 7, 0, 0)
    first = KeyedSource(streams.key("noise", 7, 0, 0)).uniform(3).tolist()
    assert streams.source("noise", 7).uniform(3).tolist() == first
    ordered = KeyedSource(streams.key("training", 7, 0, 5)).generator.random(3).tolist()
    assert streams.generator("training", 7, 5).random(3).tolist() == ordered
    assert streams.torch_seed("training", 7) == streams.torch_seed("training", 7, 0)
    start = KeyedSource(streams.key("training", 7, 0, 0)).generator.random(3).tolist()
    assert streams.generator("training", 7).random(3).tolist() == start
