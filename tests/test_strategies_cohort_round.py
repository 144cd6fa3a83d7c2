"""Show that a round is exact whatever is lost, and that its noise always has its scale."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Error, Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

from clients.arrays import weights_record
from clients.protocol import (
    TOTAL,
    WORKER_LATE,
    LocalWork,
    PartialSum,
    UserOutcome,
    decode_request,
    encode_reply,
)
from fedopt.population import DealtPopulation
from privacy.errors import FedOptError, WorkersLost
from privacy.noise import add_noise
from privacy.plan import PrivacyPlan
from privacy.seeds import Streams
from strategies.cohort_round import ENGINE_FAULT, LATE, LOST, RETRIES, CohortRound, last_line

pytestmark = pytest.mark.usefixtures("flower_identity")

SIZES = [5, 7]
ARRAYS = {"a": np.zeros(5, np.float32), "b": np.zeros(7, np.float32)}
NODES = [2, 3]
Fate = Callable[[int, tuple[int, ...]], str]
SURPRISE = 1e-6


def plan(noise: float = 0.0, placement: str = "clients") -> PrivacyPlan:
    return PrivacyPlan(
        population=1000,
        cohort=10,
        rounds=5,
        delta=1e-6,
        noise_multiplier=noise,
        clip_norm=2.0,
        noise_placement=placement,
    )


def new_round(users: list[int], chosen: PrivacyPlan, sizes: list[int] | None = None) -> CohortRound:
    drawn = np.array(users, dtype=np.int64)
    return CohortRound(
        plan=chosen,
        streams=Streams(1, "ab"),
        work=LocalWork(),
        number=3,
        attempt=0,
        users=drawn,
        groups=DealtPopulation(1000, most_groups=4).groups(drawn),
        sizes=sizes or SIZES,
    )


def partial_sum(message: Message) -> PartialSum:
    """Answer as a worker does: user u adds u to every coordinate, groups add their noise."""
    request = decode_request(message)
    users = [user for piece in request.pieces for user in piece.users]
    size = sum(array.size for array in request.weights.values())
    total = torch.full((size,), sum(users), dtype=torch.int64)
    streams = Streams(request.streams.seed, request.streams.settings_hash)
    for piece in request.pieces:
        if piece.noise_shares:
            deviation = (
                request.mechanism.noise_std * (piece.noise_shares / request.mechanism.cohort) ** 0.5
            )
            source = streams.source("noise", request.streams.round, 0, piece.group)
            add_noise(total, source, deviation, request.mechanism.grid_spacing)
    return PartialSum(
        total=total.numpy(),
        outcomes=tuple(UserOutcome(user, 1.0, 1.0, False, 0.1) for user in users),
        noise_shares=sum(piece.noise_shares for piece in request.pieces),
        layer_clipped=(0,) * len(request.weights),
        layer_norms=(2,) * len(request.weights),
        layer_norms_clipped=(1,) * len(request.weights),
    )


def play(current: CohortRound, fate: Fate, arrays: dict[str, np.ndarray] | None = None) -> None:
    """Exchange messages as the training does; `fate` says what becomes of each one."""
    record = weights_record(arrays or ARRAYS)
    messages = current.first_messages(DealtPopulation(1000), record, NODES)
    while messages:
        replies = []
        for message in messages:
            request = decode_request(message)
            users = tuple(user for piece in request.pieces for user in piece.users)
            replies += reply(message, fate(current.trials, users))
        current.take(replies)
        messages = current.retry_messages(record, NODES)


def reply(message: Message, fate: str) -> list[Message]:
    partial = partial_sum(message)
    if fate == "missing":
        return []
    if fate in ("lost", "late", "raised"):
        code = {"lost": 0, "late": WORKER_LATE, "raised": ENGINE_FAULT}[fate]
        return [Message(Error(code, "Traceback\n  File\nValueError: why"), reply_to=message)]
    answer = encode_reply(partial, message)
    if fate == "twice":
        return [answer, encode_reply(partial, message)]
    if fate == "short":
        answer.content[TOTAL] = ArrayRecord({TOTAL: Array(partial.total[:-1])})
    if fate == "float":
        answer.content[TOTAL] = ArrayRecord({TOTAL: Array(partial.total.astype(np.float64))})
    if fate == "empty":
        del answer.content[TOTAL]
    return [answer]


def always(trial: int, users: tuple[int, ...]) -> str:
    return ""


def test_the_release_is_the_sum_over_the_planned_cohort_and_not_over_the_replies() -> None:
    current = new_round([1, 2, 4], plan())
    play(current, always)
    wanted = 7 * current.plan.grid_spacing / 10
    assert current.finish().tolist() == [wanted] * 12
    assert sorted(current.outcomes) == [1, 2, 4]


@pytest.mark.parametrize("fate", ["lost", "missing", "twice", "short", "float", "empty", "late"])
def test_a_message_that_fails_once_changes_no_byte(fate: str) -> None:
    users = list(range(20, 39))
    undisturbed, disturbed = new_round(users, plan(1.0)), new_round(users, plan(1.0))
    play(undisturbed, always)
    play(disturbed, lambda trial, asked: fate if trial == 0 else "")
    assert disturbed.finish().numpy().tobytes() == undisturbed.finish().numpy().tobytes()
    assert disturbed.noised == len(users)
    assert not any(outcome.fault for outcome in disturbed.outcomes.values())


@pytest.mark.parametrize(("fate", "reason"), [("lost", LOST), ("late", LATE)])
@pytest.mark.parametrize("placement", ["clients", "server"])
def test_a_user_that_ends_its_worker_each_time_adds_zeros_and_is_named(
    fate: str, reason: str, placement: str
) -> None:
    users = list(range(20, 39))
    killed, kept = new_round(users, plan(1.0, placement)), new_round(users, plan(1.0, placement))
    play(killed, lambda trial, asked: fate if 27 in asked else "")
    play(kept, always)
    spacing = kept.plan.grid_spacing
    difference = (kept.finish() - killed.finish()) * 10 / spacing
    assert difference.round().tolist() == [27.0] * 12
    assert {u: o.fault for u, o in killed.outcomes.items() if o.fault} == {27: reason}


def test_a_cohort_of_one_user_who_ends_every_worker_is_released_as_noise() -> None:
    current = new_round([27], plan(1.0))
    play(current, lambda trial, asked: "lost" if 27 in asked else "")
    assert current.finish().abs().min() > 0.0
    assert current.outcomes[27].fault == LOST


def test_an_unasked_reply_is_left_aside() -> None:
    current, other = new_round([1, 2], plan()), new_round([50], plan())
    record = weights_record(ARRAYS)
    foreign = other.first_messages(DealtPopulation(1000), record, NODES)
    answers = [encode_reply(partial_sum(message), message) for message in foreign]
    current.number = 9
    play(current, always)
    current.take(answers)
    assert sorted(current.outcomes) == [1, 2]


def test_a_round_whose_users_are_not_accounted_for_is_not_released() -> None:
    nobody = new_round([1, 2, 3], plan(1.0))
    play(nobody, lambda trial, asked: "lost")
    with pytest.raises(WorkersLost, match="3 of 3 users"):
        nobody.finish()
    gone_later = new_round([1, 2, 3, 4, 5], plan(1.0))
    play(gone_later, lambda trial, asked: "" if trial == 0 and 1 in asked else "lost")
    with pytest.raises(WorkersLost, match="no worker answered"):
        gone_later.finish()
    unasked = new_round([1, 2, 3], plan(1.0))
    unasked.first_messages(DealtPopulation(1000), weights_record(ARRAYS), NODES)
    with pytest.raises(WorkersLost):
        unasked.finish()


def test_no_worker_left_to_ask_again_is_said() -> None:
    current = new_round([1, 2, 3], plan())
    current.first_messages(DealtPopulation(1000), weights_record(ARRAYS), NODES)
    with pytest.raises(WorkersLost, match="no worker is left"):
        current.retry_messages(weights_record(ARRAYS), [])


def test_a_failing_client_app_stops_the_run_with_the_last_line_of_its_traceback() -> None:
    with pytest.raises(FedOptError, match=r"failed: ValueError: why$"):
        play(new_round([1, 2], plan()), lambda trial, asked: "raised")
    assert last_line("\n\n") == "no reason given"


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    users=st.sets(st.integers(0, 10**9), max_size=40),
    fates=st.lists(st.sampled_from(["", "lost", "short", "twice", "late"]), max_size=30),
)
def test_whatever_fails_but_the_last_trial_the_sum_is_the_same(
    users: set[int], fates: list[str]
) -> None:
    quiet, disturbed = new_round(sorted(users), plan(0.5)), new_round(sorted(users), plan(0.5))
    play(quiet, always)
    coming = iter(fates)

    def fate(trial: int, asked: tuple[int, ...]) -> str:
        chosen = next(coming, "")
        return "" if trial == RETRIES or (chosen == "late" and len(asked) == 1) else chosen

    play(disturbed, fate)
    assert disturbed.finish().numpy().tobytes() == quiet.finish().numpy().tobytes()


def noise_of(users: list[int], chosen: PrivacyPlan, fate: Fate) -> np.ndarray:
    """Release a round of 40,000 coordinates to whose sum users add nothing but noise."""
    size = 20_000
    arrays = {"a": np.zeros(size, np.float32), "b": np.zeros(size, np.float32)}
    current = new_round(users, chosen, [size, size])
    play(current, fate, arrays)
    released = current.finish()
    total = sum(user for user, outcome in current.outcomes.items() if not outcome.fault)
    return (released - total * chosen.grid_spacing / 10).numpy()


def scale_is(values: np.ndarray, deviation: float) -> bool:
    below = stats.chi2.cdf(float(np.sum(np.square(values / deviation))), len(values))
    return bool(SURPRISE < below < 1.0 - SURPRISE)


@pytest.mark.parametrize("placement", ["clients", "server"])
@pytest.mark.parametrize(
    ("users", "fate"),
    [
        (list(range(10, 23)), always),
        ([], always),
        (list(range(10, 23)), lambda trial, asked: "lost" if trial < 2 else ""),
        (list(range(10, 23)), lambda trial, asked: "lost" if 12 in asked or 17 in asked else ""),
        (list(range(10, 23)), lambda trial, asked: "" if asked else "lost"),
    ],
    ids=["undisturbed", "nobody drawn", "lost twice", "two users lost", "noise lost"],
)
def test_the_noise_is_z_c_over_m_whatever_was_lost_and_5_percent_more_or_less_is_rejected(
    placement: str, users: list[int], fate: Fate
) -> None:
    chosen = plan(0.8, placement)
    values = noise_of(users, chosen, fate)
    assert scale_is(values, 0.8 * 2.0 / 10)
    for wrong in (1.05, 1 / 1.05):
        assert not scale_is(values, wrong * 0.8 * 2.0 / 10)
