"""Hold the table of bad input (experiments/flower_app/README.md): each row is a test here.

Without a plan a bad reply is a Flower exception that says which, and the model stays. Under a
plan it is a zero contribution of that node alone, and the round's charge stands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from flower_nodes import NodeGrid, adding_app, record, weights
from flwr.app import Array, ArrayRecord, Error, Message, MetricRecord
from flwr.serverapp.exception import InconsistentMessageReplies

from fedopt import FedAdam, FedAvg, PrivacyPlan, per_layer_clip_mod
from privacy.ledger import Ledger

Change = Callable[[Message], Message | None]
ROWS = 20
W, B = np.full((ROWS, 200), 0.5, np.float32), np.full(ROWS, 0.5, np.float32)


def arrays(**changed: np.ndarray) -> Change:
    """Reply with these arrays."""

    def change(reply: Message) -> Message:
        if "arrays" in reply.content:
            reply.content["arrays"] = record(changed)
        return reply

    return change


def metrics(**changed: float | list[float]) -> Change:
    """Reply with these metrics; underscores stand for hyphens."""

    def change(reply: Message) -> Message:
        found = {name.replace("_", "-"): value for name, value in changed.items()}
        reply.content["metrics"] = MetricRecord(found)
        return reply

    return change


def no_metrics(reply: Message) -> Message:
    del reply.content["metrics"]
    return reply


def no_arrays(reply: Message) -> Message:
    if "arrays" in reply.content:
        del reply.content["arrays"]
    return reply


def damaged(reply: Message) -> Message:
    if "arrays" in reply.content:
        cut = {
            name: Array(array.dtype, array.shape, array.stype, array.data[:-9])
            for name, array in reply.content["arrays"].items()
        }
        reply.content["arrays"] = ArrayRecord(cut)
    return reply


def error(reply: Message) -> Message:
    failed = Message(Error(1, "died"), reply_to=reply)
    failed.metadata.__dict__["_src_node_id"] = reply.metadata.src_node_id
    return failed


def two_records(reply: Message) -> Message:
    reply.content["more"] = record({"w": W, "b": B})
    return reply


def silent(reply: Message) -> None:
    return None


BAD_ARRAYS: dict[str, tuple[Change, str]] = {
    "missing key": (arrays(w=W), "same keys"),
    "no array record": (no_arrays, "exactly one ArrayRecord"),
    "two array records": (two_records, "exactly one ArrayRecord"),
    "another shape": (arrays(w=W[:10], b=B), "arrays w are missing or have another shape"),
    "a shape that broadcasts": (arrays(w=W[:1], b=B), "arrays w are missing or have another"),
    "integers": (arrays(w=W.astype(np.int64), b=B), r"arrays w \(int64\) must be floating"),
    "complex numbers": (arrays(w=W.astype(np.complex64), b=B), "must be floating"),
    "nan": (arrays(w=np.full_like(W, np.nan), b=B), "NaN"),
    "infinity": (arrays(w=np.full_like(W, np.inf), b=B), "NaN or infinity"),
    "damaged bytes": (damaged, "replies could not be averaged"),
}
BAD_METRICS: dict[str, tuple[Change, str]] = {
    "no metric record": (no_metrics, "exactly one MetricRecord"),
    "no weight key": (metrics(loss=1.0), "same keys"),
    "a list as weight": (metrics(loss=1.0, num_examples=[1.0, 2.0]), "single value"),
    "a negative weight": (metrics(loss=1.0, num_examples=-5), "num-examples must be a finite"),
    "nan as weight": (metrics(loss=1.0, num_examples=np.nan), "num-examples must be a finite"),
}


@pytest.mark.parametrize("row", [*BAD_ARRAYS, *BAD_METRICS])
def test_without_a_plan_a_bad_reply_raises_flowers_exception_and_the_model_stays(row: str) -> None:
    change, said = (BAD_ARRAYS | BAD_METRICS)[row]
    strategy = FedAdam()
    with pytest.raises(InconsistentMessageReplies, match=said):
        strategy.start(NodeGrid(adding_app(), 3, {3: change}), weights(ROWS), num_rounds=1)
    for array in strategy.arrays.values():
        np.testing.assert_array_equal(array.numpy(), 0.0)


def test_without_a_plan_weights_of_zero_everywhere_raise_flowers_exception() -> None:
    changed = dict.fromkeys((2, 3, 4), metrics(loss=1.0, num_examples=0))
    with pytest.raises(InconsistentMessageReplies, match="must not be 0 in every reply"):
        FedAvg().start(NodeGrid(adding_app(), 3, changed), weights(ROWS), num_rounds=1)


def test_without_a_plan_the_mean_is_of_those_who_replied() -> None:
    for fault in (error, silent):
        grid = NodeGrid(adding_app(), 3, {3: fault})
        result = FedAvg(fraction_evaluate=0.0).start(grid, weights(ROWS), num_rounds=1)
        np.testing.assert_allclose(result.arrays["w"].numpy(), 0.5)


def test_without_a_plan_nobody_replying_leaves_the_model_alone() -> None:
    for fault in (error, silent):
        grid = NodeGrid(adding_app(), 3, dict.fromkeys((2, 3, 4), fault))
        result = FedAdam(fraction_evaluate=0.0).start(grid, weights(ROWS), num_rounds=2)
        np.testing.assert_array_equal(result.arrays["w"].numpy(), 0.0)


class Talkative(NodeGrid):
    """Hand the first reply over twice, or under the id of a node that was not asked."""

    def __init__(self, nodes: int, stranger: int | None) -> None:
        super().__init__(adding_app(), nodes)
        self.stranger = stranger

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        sent = list(messages)
        replies = list(super().send_and_receive(sent, timeout=timeout))
        (more,) = NodeGrid.send_and_receive(self, sent[:1])
        if self.stranger is not None:
            more.metadata.__dict__["_src_node_id"] = self.stranger
        return [*replies, more]


@pytest.mark.parametrize(
    ("stranger", "said"), [(None, r"node \d replied 2 times"), (91, "node 91 was not asked")]
)
def test_without_a_plan_second_and_uncalled_replies_raise_flowers_exception(
    stranger: int | None, said: str
) -> None:
    strategy = FedAvg(fraction_evaluate=0.0)
    with pytest.raises(InconsistentMessageReplies, match=said):
        strategy.start(Talkative(3, stranger), weights(ROWS), num_rounds=1)
    np.testing.assert_array_equal(strategy.arrays["w"].numpy(), 0.0)


NODES = 12


def plan() -> PrivacyPlan:
    """Give a plan that draws every node and hardly any noise, so that single nodes show."""
    return PrivacyPlan(
        population=NODES, cohort=NODES, rounds=1, delta=1e-5, noise_multiplier=1e-6, clip_norm=2.0
    )


def trained(faults: dict[int, Change], folder: Path | None = None, **app: list[object]) -> float:
    """Train one round; gives the mean of the model, which started at zero."""
    strategy = FedAvg(privacy=plan(), seed=3, checkpoint_dir=folder)
    grid = NodeGrid(adding_app(**app), NODES, faults)  # type: ignore[arg-type]
    result = strategy.start(grid, weights(ROWS), num_rounds=1)
    return float(result.arrays["w"].numpy().mean())


UNDER_A_PLAN = {name: change for name, (change, _) in BAD_ARRAYS.items()} | {
    "error reply": error,
    "no reply": silent,
}


@pytest.mark.parametrize("row", UNDER_A_PLAN)
def test_under_a_plan_a_bad_reply_is_zeros_of_that_node_alone(row: str, tmp_path: Path) -> None:
    found = trained({5: UNDER_A_PLAN[row]}, tmp_path)
    each = 2.0 / np.sqrt(ROWS * 201)
    assert found == pytest.approx(each * (NODES - 1) / NODES, rel=1e-4)
    (charge,) = Ledger.read(tmp_path / "ledger.sqlite").rows()
    assert (charge.state, charge.cohort_realised) == ("committed", NODES)


@pytest.mark.parametrize("row", BAD_METRICS)
def test_under_a_plan_metrics_do_not_weigh(row: str) -> None:
    assert trained({5: BAD_METRICS[row][0]}) == trained({})


def test_under_a_plan_weights_of_zero_everywhere_do_not_weigh() -> None:
    nodes = range(2, 2 + NODES)
    assert trained(dict.fromkeys(nodes, metrics(loss=1.0, num_examples=0))) == trained({})


@pytest.mark.parametrize("row", ["missing key", "two array records"])
def test_under_a_plan_a_reply_that_the_mod_cannot_read_is_zeros_too(row: str) -> None:
    app = adding_app(mods=[per_layer_clip_mod])
    broken = adding_app(mods=[per_layer_clip_mod, _changing(BAD_ARRAYS[row][0])])
    strategy = FedAvg(privacy=plan(), seed=3)

    def mixed(message: Message, context: object) -> Message:
        return (broken if context.node_id == 5 else app)(message, context)  # type: ignore

    result = strategy.start(NodeGrid(mixed, NODES), weights(ROWS), num_rounds=1)  # type: ignore
    each = 2.0 / np.sqrt(ROWS * 201)
    found = float(result.arrays["w"].numpy().mean())
    assert found == pytest.approx(each * (NODES - 1) / NODES, rel=1e-4)


def _changing(change: Change) -> object:
    def mod(message: Message, context: object, call_next: Callable[..., Message]) -> object:
        reply = call_next(message, context)
        return change(reply) if message.metadata.message_type == "train" else reply

    return mod


@pytest.mark.parametrize("stranger", [None, 91])
def test_under_a_plan_second_and_uncalled_replies_change_nothing(stranger: int | None) -> None:
    strategy = FedAvg(privacy=plan(), seed=3, fraction_evaluate=0.0)
    result = strategy.start(Talkative(NODES, stranger), weights(ROWS), num_rounds=1)
    assert float(result.arrays["w"].numpy().mean()) == trained({})


def bad_evaluation(reply: Message) -> Message | None:
    return metrics(loss=1.0)(reply) if "arrays" not in reply.content else reply


def test_without_a_plan_a_bad_evaluation_raises_flowers_exception() -> None:
    grid = NodeGrid(adding_app(), 3, {3: bad_evaluation})
    with pytest.raises(InconsistentMessageReplies, match="MetricRecord"):
        FedAvg().start(grid, weights(ROWS), num_rounds=1)


def test_under_a_plan_a_bad_evaluation_costs_that_evaluation_alone() -> None:
    strategy = FedAvg(privacy=plan(), seed=3)
    grid = NodeGrid(adding_app(), NODES, {5: bad_evaluation})
    result = strategy.start(grid, weights(ROWS), num_rounds=1)
    assert result.evaluate_metrics_clientapp == {}
    assert float(result.arrays["w"].numpy().mean()) == trained({})
