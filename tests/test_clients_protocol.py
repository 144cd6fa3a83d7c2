"""Show that nothing is lost between server and worker, and what a broken request lacks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clients.arrays import weights_record
from clients.findings import Finding
from clients.protocol import (
    CONFIG,
    FINDINGS,
    REPLY_SECONDS,
    WEIGHTS,
    LocalWork,
    MechanismSettings,
    PartialSum,
    Piece,
    StreamSettings,
    TrainRequest,
    UserOutcome,
    decode_reply,
    decode_request,
    encode_reply,
    encode_request,
    seconds_allowed,
)
from privacy.errors import SettingsError

pytestmark = pytest.mark.usefixtures("flower_identity")

MECHANISM = MechanismSettings("per-layer-dim", (0.6, 0.8), 2.0**-40, 0.5, 7)
STREAMS = StreamSettings(2**62, "ab" * 32, False, 3, 1)
USERS = st.lists(st.integers(0, 10**9), max_size=6).map(tuple)
PIECES = st.lists(st.builds(Piece, st.integers(0, 31), USERS, st.integers(0, 6)), max_size=5).map(
    tuple
)
REAL = st.floats(allow_nan=False, allow_infinity=False)
OUTCOMES = st.lists(
    st.builds(
        UserOutcome, st.integers(0, 10**9), REAL, REAL, st.booleans(), REAL, st.text(max_size=40)
    ),
    max_size=5,
    unique_by=lambda outcome: outcome.user,
).map(tuple)
FOUND = st.lists(
    st.builds(Finding, st.text(max_size=9), st.text(max_size=9), st.text(max_size=9)), max_size=3
).map(tuple)
QUICK = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def request(pieces: tuple[Piece, ...], work: LocalWork) -> TrainRequest:
    weights = {"b": np.arange(3, dtype=np.float32), "a": np.ones((2, 2), np.float32)}
    return TrainRequest(weights, pieces, MECHANISM, STREAMS, work)


def sent(pieces: tuple[Piece, ...], work: LocalWork) -> Any:
    asked = request(pieces, work)
    return encode_request(asked, weights_record(asked.weights), node=2, label="3.1.0")


@QUICK
@given(pieces=PIECES, rate=st.floats(1e-6, 10), steps=st.integers(0, 9), seconds=st.floats(0, 9))
def test_a_request_comes_out_as_it_went_in(
    pieces: tuple[Piece, ...], rate: float, steps: int, seconds: float
) -> None:
    work = LocalWork(client_lr=rate, local_steps=steps, user_seconds=seconds, proximal=0.1)
    found = decode_request(sent(pieces, work))
    wanted = request(pieces, work)
    assert (found.pieces, found.mechanism, found.streams, found.work) == (
        wanted.pieces,
        wanted.mechanism,
        wanted.streams,
        wanted.work,
    )
    assert list(found.weights) == ["b", "a"]
    for name, array in wanted.weights.items():
        assert found.weights[name].tobytes() == array.tobytes()


@QUICK
@given(outcomes=OUTCOMES, shares=st.integers(0, 9), layers=st.integers(0, 4), found=FOUND)
def test_a_reply_comes_out_as_it_went_in(
    outcomes: tuple[UserOutcome, ...], shares: int, layers: int, found: tuple[Finding, ...]
) -> None:
    total = np.array([2**61, -(2**61), 0, 7], dtype=np.int64)
    norms, after = tuple(range(5, 5 + layers)), tuple(range(2**60, 2**60 + layers))
    clipped = tuple(range(layers))
    phases, amounts = {"noise": 0.25}, {"frames of speech": 2**50}
    partial = PartialSum(
        total, outcomes, shares, clipped, 12.5, phases, norms, after, found, amounts
    )
    back = decode_reply(encode_reply(partial, sent((), LocalWork())))
    assert back.total.tobytes() == total.tobytes()
    assert back.outcomes == outcomes
    assert (back.noise_shares, back.layer_clipped) == (shares, clipped)
    assert (back.layer_norms, back.layer_norms_clipped) == (norms, after)
    assert (back.peak_megabytes, dict(back.phases)) == (12.5, phases)
    assert (back.findings, dict(back.amounts)) == (found, amounts)


def test_a_reply_of_a_worker_that_sends_no_findings_is_read() -> None:
    reply = encode_reply(PartialSum(np.zeros(1, np.int64), (), 0), sent((), LocalWork()))
    assert FINDINGS not in reply.content
    assert (decode_reply(reply).findings, decode_reply(reply).amounts) == ((), {})


def test_a_file_name_that_is_no_text_can_be_sent() -> None:
    partial = PartialSum(np.zeros(1, np.int64), (), 0, findings=(Finding("odd", "a\udcff.wav"),))
    reply = encode_reply(partial, sent((), LocalWork()))
    assert [each.name for each in decode_reply(reply).findings] == ["a\\udcff.wav"]


def test_a_reply_carries_the_label_of_its_request() -> None:
    message = sent((Piece(0, (1,), 1),), LocalWork())
    reply = encode_reply(PartialSum(np.zeros(1, np.int64), (), 0), message)
    assert reply.metadata.group_id == "3.1.0"


@pytest.mark.parametrize("key", ["user-ids", "localwork.client-lr", "mechanismsettings.bounds"])
def test_a_request_that_lacks_a_key_is_refused_with_its_name(key: str) -> None:
    message = sent((Piece(0, (1,), 1),), LocalWork())
    kept = {name: value for name, value in message.content[CONFIG].items() if name != key}
    message.content[CONFIG] = ConfigRecord(kept)
    with pytest.raises(SettingsError, match=key):
        decode_request(message)


def test_weights_that_lie_apart_in_memory_arrive_in_order() -> None:
    apart = np.arange(12, dtype=np.float32).reshape(3, 4)[:, ::2]
    message = encode_request(
        request((), LocalWork()), weights_record({"w": apart}), node=2, label="l"
    )
    assert message.content[WEIGHTS]["w"].numpy().tolist() == apart.tolist()


def test_a_worker_is_given_time_for_each_of_its_users_and_none_without_a_deadline() -> None:
    pieces = (Piece(0, (1, 2), 0), Piece(1, (5,), 0))
    assert seconds_allowed(sent(pieces, LocalWork(user_seconds=4.0))) == REPLY_SECONDS + 24.0
    assert seconds_allowed(sent(pieces, LocalWork())) == math.inf
