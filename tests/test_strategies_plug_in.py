"""Check a private strategy in somebody's Flower app: sampling, clip, noise, ledger, faults."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from flower_nodes import NodeGrid, adding_app, record, weights
from flwr.app import Error, Message, MetricRecord
from flwr.serverapp.exception import PrivacyBudgetExhausted

from fedopt import FedAdam, FedAvg, PrivacyPlan, noise_share_mod, per_layer_clip_mod
from privacy.errors import SettingsError
from privacy.ledger import Ledger


def plan(**changes: object) -> PrivacyPlan:
    """Give a plan of 100 users, 20 a round, noise 0.1 on the mean."""
    settings = {
        "population": 100,
        "cohort": 20,
        "rounds": 3,
        "delta": 1e-5,
        "noise_multiplier": 1.0,
        "clip_norm": 2.0,
    }
    return PrivacyPlan(**(settings | changes))  # type: ignore[arg-type]


def released(strategy: FedAvg, grid: NodeGrid, rounds: int = 1) -> np.ndarray:
    """Run rounds of plain averaging and give the flat weights, which are the sum of releases."""
    result = strategy.start(grid, weights(), num_rounds=rounds)
    return np.concatenate([result.arrays[key].numpy().reshape(-1) for key in ("w", "b")])


MODS = {
    "no mod": [],
    "clip": [per_layer_clip_mod],
    "share then clip": [noise_share_mod, per_layer_clip_mod],
    "clip then share": [per_layer_clip_mod, noise_share_mod],
    "share alone": [noise_share_mod],
}


@pytest.mark.parametrize("mods", MODS)
def test_a_release_has_the_planned_noise_whoever_clips_and_noises(mods: str) -> None:
    chosen = plan()
    grid = NodeGrid(adding_app(mods=MODS[mods]), 60)
    values = released(FedAvg(privacy=chosen, seed=3), grid)
    # 60,300 coordinates: the standard error of a standard deviation is 0.3 %.
    assert values.std() == pytest.approx(chosen.noise_std_on_mean, rel=0.015)
    assert abs(values.std() / chosen.noise_std_on_mean - 1.05) > 0.02


@pytest.mark.parametrize("mods", MODS)
def test_clipped_updates_are_added_whoever_clips(mods: str) -> None:
    chosen = plan(noise_multiplier=1e-6)
    grid = NodeGrid(adding_app(mods=MODS[mods]), 60)
    values = released(FedAvg(privacy=chosen, seed=3), grid)
    # Every update is constant, so per-layer-dim clipping leaves C / sqrt(D) in each coordinate.
    each = chosen.clip_norm / math.sqrt(len(values))
    expected = len(grid.asked[0]) * each / chosen.cohort
    np.testing.assert_allclose(values.mean(), expected, rtol=1e-4)


def test_an_app_wide_mod_leaves_evaluation_alone() -> None:
    strategy = FedAvg(privacy=plan(), seed=1)
    grid = NodeGrid(adding_app(mods=[per_layer_clip_mod]), 10)
    result = strategy.start(grid, weights(4), num_rounds=1)
    assert result.evaluate_metrics_clientapp[1]["accuracy"] == pytest.approx(0.5)


def test_mods_change_nothing_where_the_server_has_no_plan() -> None:
    app = adding_app(mods=[noise_share_mod, per_layer_clip_mod])
    result = FedAvg().start(NodeGrid(app, 3), weights(4), num_rounds=1)
    np.testing.assert_allclose(result.arrays["w"].numpy(), 0.5)


def test_each_node_is_drawn_with_the_planned_rate_and_never_topped_up() -> None:
    chosen = plan(rounds=300, noise_multiplier=50.0)
    grid = NodeGrid(adding_app(), 50)
    strategy = FedAvg(privacy=chosen, seed=5, fraction_evaluate=0.0, min_available_nodes=50)
    strategy.start(grid, weights(1), num_rounds=300)
    sizes = np.array([len(asked) for asked in grid.asked[: 300 * 1]])
    # Binomial(50, 0.2) has mean 10 and variance 8; a fixed size would have variance 0.
    assert sizes.mean() == pytest.approx(10.0, abs=4 * math.sqrt(8 / 300))
    assert 5.5 < sizes.var() < 11.0


def test_nobody_replying_still_releases_noise_and_is_charged(tmp_path: Path) -> None:
    chosen = plan()
    silent = {node: lambda reply: None for node in range(2, 62)}
    grid = NodeGrid(adding_app(), 60, silent)
    strategy = FedAvg(privacy=chosen, seed=2, checkpoint_dir=tmp_path)
    values = released(strategy, grid)
    assert values.std() == pytest.approx(chosen.noise_std_on_mean, rel=0.015)
    assert values.mean() == pytest.approx(0.0, abs=5 * chosen.noise_std_on_mean / 245)
    (row,) = Ledger.read(tmp_path / "ledger.sqlite").rows()
    assert (row.state, row.replies) == ("committed", 0)


def _error(reply: Message) -> Message:
    failed = Message(Error(1, "died"), reply_to=reply)
    failed.metadata.__dict__["_src_node_id"] = reply.metadata.src_node_id
    return failed


def _arrays(**arrays: np.ndarray):  # type: ignore[no-untyped-def]
    def change(reply: Message) -> Message:
        reply.content["arrays"] = record(arrays)
        return reply

    return change


def _second_record(reply: Message) -> Message:
    reply.content["more"] = record({"w": np.ones((300, 200), np.float32)})
    return reply


def _no_weight_key(reply: Message) -> Message:
    if "arrays" in reply.content:
        reply.content["metrics"] = MetricRecord({"loss": 1.0})
    return reply


W, B = np.full((300, 200), 0.5, np.float32), np.full(300, 0.5, np.float32)
FAULTS = {
    "no reply": lambda reply: None,
    "error reply": _error,
    "missing key": _arrays(w=W),
    "other shape": _arrays(w=W[:10], b=B),
    "integers": _arrays(w=W.astype(np.int64), b=B),
    "nan": _arrays(w=np.full_like(W, np.nan), b=B),
    "infinity": _arrays(w=np.full_like(W, np.inf), b=B),
    "two array records": _second_record,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_node_counts_as_zeros_and_changes_nobody_else(fault: str) -> None:
    chosen = plan(noise_multiplier=1e-6)
    whole = released(FedAvg(privacy=chosen, seed=3), NodeGrid(adding_app(), 60))
    grid = NodeGrid(adding_app(), 60)
    released(FedAvg(privacy=chosen, seed=3), grid)
    faulty = grid.asked[0][1]
    broken = NodeGrid(adding_app(), 60, {faulty: FAULTS[fault]})
    values = released(FedAvg(privacy=chosen, seed=3), broken)
    count = len(grid.asked[0])
    np.testing.assert_allclose(values.mean(), whole.mean() * (count - 1) / count, rtol=1e-4)


def test_without_the_weight_key_a_reply_counts_like_any_other() -> None:
    chosen = plan(noise_multiplier=1e-6)
    whole = released(FedAvg(privacy=chosen, seed=3), NodeGrid(adding_app(), 60))
    changed = dict.fromkeys(range(2, 62), _no_weight_key)
    values = released(FedAvg(privacy=chosen, seed=3), NodeGrid(adding_app(), 60, changed))
    np.testing.assert_array_equal(values, whole)


def test_second_replies_and_replies_of_nodes_not_asked_are_left_aside() -> None:
    chosen = plan(noise_multiplier=1e-6)

    class Talkative(NodeGrid):
        def send_and_receive(self, messages, *, timeout=None):  # type: ignore[no-untyped-def]
            replies = list(super().send_and_receive(messages, timeout=timeout))
            stranger = list(NodeGrid(adding_app(), 90).send_and_receive(messages[:1]))
            stranger[0].metadata.__dict__["_src_node_id"] = 91
            return [*replies, *replies, *stranger]

    whole = released(
        FedAvg(privacy=chosen, seed=3, fraction_evaluate=0.0), NodeGrid(adding_app(), 60)
    )
    strategy = FedAvg(privacy=chosen, seed=3, fraction_evaluate=0.0)
    np.testing.assert_array_equal(released(strategy, Talkative(adding_app(), 60)), whole)


def test_a_false_mark_of_being_clipped_does_not_get_past_the_server() -> None:
    chosen = plan(noise_multiplier=1e-6)

    def lying(reply: Message) -> Message:
        reply.content["arrays"] = record({"w": W * 1e6, "b": B * 1e6})
        reply.content["metrics"]["fedopt.is-update"] = 1
        return reply

    lies = dict.fromkeys(range(2, 62), lying)
    values = released(FedAvg(privacy=chosen, seed=3), NodeGrid(adding_app(), 60, lies))
    whole = released(FedAvg(privacy=chosen, seed=3), NodeGrid(adding_app(), 60))
    np.testing.assert_allclose(values, whole, rtol=1e-4)


def test_the_round_that_would_pass_the_budget_is_not_started(tmp_path: Path) -> None:
    strategy = FedAvg(privacy=plan(), seed=1, checkpoint_dir=tmp_path, fraction_evaluate=0.0)
    grid = NodeGrid(adding_app(), 20)
    with pytest.raises(PrivacyBudgetExhausted, match="ceiling"):
        strategy.start(grid, weights(3), num_rounds=10)
    assert len([asked for asked in grid.asked if asked]) <= 3
    assert len(Ledger.read(tmp_path / "ledger.sqlite").rows()) == 3


def test_a_restart_keeps_model_and_account(tmp_path: Path) -> None:
    chosen = plan()
    for rounds in (1, 3):
        strategy = FedAdam(privacy=chosen, checkpoint_dir=tmp_path)
        strategy.start(NodeGrid(adding_app(), 20), weights(3), num_rounds=rounds)
    rows = Ledger.read(tmp_path / "ledger.sqlite").rows()
    assert [row.round for row in rows] == [1, 2, 3]
    assert len({row.key_hash for row in rows}) == 3


def test_runs_that_differ_in_their_schedule_share_no_noise() -> None:
    first, second = (
        released(FedAvg(privacy=plan(), seed=3, schedule=rate), NodeGrid(adding_app(step=0.0), 60))
        for rate in (lambda number: 1.0, lambda number: 1.0 if number == 1 else 0.5)
    )
    # Round 1 has the same rate, cohort size and zero updates; equal noise would give equal models.
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.03


def test_the_same_schedule_from_another_function_goes_on(tmp_path: Path) -> None:
    for rounds in (1, 2):
        strategy = FedAvg(
            privacy=plan(), seed=3, schedule=lambda number: 0.9**number, checkpoint_dir=tmp_path
        )
        strategy.start(NodeGrid(adding_app(), 20), weights(3), num_rounds=rounds)
    assert [row.round for row in Ledger.read(tmp_path / "ledger.sqlite").rows()] == [1, 2]


def test_secret_randomness_is_the_default_and_differs_each_time() -> None:
    first, second = (released(FedAvg(privacy=plan()), NodeGrid(adding_app(), 60)) for _ in range(2))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fraction_train": 0.5}, "fraction_train"),
        ({"min_train_nodes": 5}, "min_train_nodes"),
    ],
)
def test_flowers_own_sampling_is_refused_with_a_plan(
    settings: dict[str, float], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        FedAvg(privacy=plan(), **settings)  # type: ignore[arg-type]


def test_more_nodes_than_the_population_are_refused() -> None:
    strategy = FedAvg(privacy=plan(population=10, cohort=5), seed=1)
    with pytest.raises(SettingsError, match="population must be at least the 20"):
        strategy.start(NodeGrid(adding_app(), 20), weights(3), num_rounds=1)


def test_batch_norm_is_refused_with_advice() -> None:
    start = record({"w": np.ones(3, np.float32), "n.running_var": np.ones(3, np.float32)})
    with pytest.raises(SettingsError, match="use group norm or layer norm"):
        FedAvg(privacy=plan()).start(NodeGrid(adding_app(), 3), start, num_rounds=1)


def test_integer_buffers_stay_as_they_were_under_a_plan() -> None:
    start = record({"w": np.ones(3, np.float32), "steps": np.array([7], np.int64)})
    result = FedAvg(privacy=plan(), seed=1).start(NodeGrid(adding_app(), 30), start, num_rounds=2)
    assert result.arrays["steps"].numpy().tolist() == [7]


@pytest.mark.parametrize("mods", ["no mod", "share then clip"])
def test_drop_outs_leave_the_noise_whole(mods: str) -> None:
    chosen = plan()
    grid = NodeGrid(adding_app(mods=MODS[mods]), 60)
    released(FedAvg(privacy=chosen, seed=3), grid)
    silent = {node: lambda reply: None for node in grid.asked[0][::3]}
    values = released(
        FedAvg(privacy=chosen, seed=3), NodeGrid(adding_app(mods=MODS[mods]), 60, silent)
    )
    assert values.std() == pytest.approx(chosen.noise_std_on_mean, rel=0.015)
