"""Check that an app of Flower's own strategies works by changing the import line alone."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from flower_nodes import NodeGrid, adding_app, record, weights
from flwr.serverapp import strategy as flower
from flwr.serverapp.exception import InconsistentMessageReplies

import fedopt

SHARED = ["FedAvg", "FedAvgM", "FedAdagrad", "FedAdam", "FedYogi"]
ALL = [*SHARED, "FedNovoGrad", "FedLAMB", "FedLARS"]


@pytest.mark.parametrize("name", SHARED)
def test_every_keyword_of_flower_is_there_with_flowers_default(name: str) -> None:
    theirs = inspect.signature(getattr(flower, name).__init__).parameters
    ours = inspect.signature(getattr(fedopt, name).__init__).parameters
    for keyword, parameter in theirs.items():
        assert keyword in ours
        assert ours[keyword].default == parameter.default, keyword


@pytest.mark.parametrize("name", ["FedAvg", "FedAvgM"])
def test_positional_use_of_flower_means_the_same(name: str) -> None:
    theirs, ours = getattr(flower, name)(0.5, 0.25, 3), getattr(fedopt, name)(0.5, 0.25, 3)
    for attribute in ("fraction_train", "fraction_evaluate", "min_train_nodes"):
        assert getattr(theirs, attribute) == getattr(ours, attribute)


@pytest.mark.parametrize("name", ["FedAvg", "FedAvgM"])
def test_averaging_strategies_agree_with_flowers_own(name: str) -> None:
    extra = {"server_momentum": 0.9, "server_learning_rate": 0.5} if name == "FedAvgM" else {}
    results = [
        getattr(module, name)(**extra).start(NodeGrid(adding_app(), 5), weights(10), num_rounds=3)
        for module in (flower, fedopt)
    ]
    for key in ("w", "b"):
        theirs, ours = (result.arrays[key].numpy() for result in results)
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    for number in (1, 2, 3):
        for kind in ("train_metrics_clientapp", "evaluate_metrics_clientapp"):
            theirs, ours = (dict(getattr(result, kind)[number]) for result in results)
            assert ours == pytest.approx(theirs)


@pytest.mark.parametrize("name", ALL)
def test_the_dtype_of_the_model_is_kept(name: str) -> None:
    start = record({"w": np.ones((4, 3), np.float32), "h": np.ones(3, np.float16)})
    result = getattr(fedopt, name)().start(NodeGrid(adding_app(), 3), start, num_rounds=2)
    assert result.arrays["w"].numpy().dtype == np.float32
    assert result.arrays["h"].numpy().dtype == np.float16


def test_flowers_fedadam_turns_the_model_into_float64() -> None:
    result = flower.FedAdam().start(NodeGrid(adding_app(), 3), weights(4), num_rounds=2)
    assert result.arrays["w"].numpy().dtype == np.float64


def test_integers_and_running_statistics_are_not_stepped_by_the_optimizer() -> None:
    start = record(
        {
            "w": np.ones(3, np.float32),
            "norm.running_mean": np.ones(3, np.float32),
            "norm.num_batches_tracked": np.array(4, np.int64),
        }
    )
    app = adding_app(step=2.0)
    result = fedopt.FedAdam(eta=0.1).start(NodeGrid(app, 3), start, num_rounds=1)
    # The mean of the replies, as plain averaging gives it; Adam would have moved it by 0.1.
    np.testing.assert_allclose(result.arrays["norm.running_mean"].numpy(), 3.0)
    tracked = result.arrays["norm.num_batches_tracked"].numpy()
    assert tracked.dtype == np.int64
    assert tracked == 6


@pytest.mark.parametrize("name", ALL)
def test_a_restarted_strategy_goes_on_bit_for_bit(name: str, tmp_path: object) -> None:
    def run(folder: str, *counts: int) -> np.ndarray:
        for count in counts:
            strategy = getattr(fedopt, name)(checkpoint_dir=f"{tmp_path}/{folder}")
            result = strategy.start(NodeGrid(adding_app(), 3), weights(5), num_rounds=count)
        return result.arrays["w"].numpy()

    np.testing.assert_array_equal(run("whole", 4), run("parts", 1, 2, 4))


def test_a_checkpoint_of_another_strategy_is_refused(tmp_path: object) -> None:
    fedopt.FedAvg(checkpoint_dir=tmp_path).start(
        NodeGrid(adding_app(), 3), weights(5), num_rounds=1
    )
    with pytest.raises(fedopt_error("CheckpointError"), match="belongs to another"):
        fedopt.FedAdam(checkpoint_dir=tmp_path).start(
            NodeGrid(adding_app(), 3), weights(5), num_rounds=2
        )


def fedopt_error(name: str) -> type[Exception]:
    from privacy import errors

    return getattr(errors, name)  # type: ignore[no-any-return]


def _without(key: str):  # type: ignore[no-untyped-def]
    def change(reply):  # type: ignore[no-untyped-def]
        del reply.content["arrays"][key]
        return reply

    return change


def test_missing_arrays_raise_flowers_own_exception_without_a_plan() -> None:
    grid = NodeGrid(adding_app(), 3, {3: _without("b")})
    with pytest.raises(InconsistentMessageReplies, match="same keys"):
        fedopt.FedAvg().start(grid, weights(5), num_rounds=1)


def test_other_shapes_raise_flowers_exception_naming_the_array() -> None:
    def reshaped(reply):  # type: ignore[no-untyped-def]
        reply.content["arrays"] = record({"w": np.ones((2, 2)), "b": np.ones(5)})
        return reply

    grid = NodeGrid(adding_app(), 3, {2: reshaped, 3: reshaped, 4: reshaped})
    with pytest.raises(InconsistentMessageReplies, match="w are missing"):
        fedopt.FedAvg().start(grid, weights(5), num_rounds=1)


def test_nan_does_not_poison_the_model_without_a_plan() -> None:
    def broken(reply):  # type: ignore[no-untyped-def]
        nan = np.full((5, 200), np.nan, np.float32)
        reply.content["arrays"] = record({"w": nan, "b": np.ones(5, np.float32)})
        return reply

    strategy = fedopt.FedAvg()
    with pytest.raises(InconsistentMessageReplies, match="NaN"):
        strategy.start(NodeGrid(adding_app(), 3, {3: broken}), weights(5), num_rounds=1)
    assert np.isfinite(strategy.arrays["w"].numpy()).all()


def test_a_round_without_replies_leaves_model_and_optimizer_alone() -> None:
    strategy = fedopt.FedAvgM(server_momentum=0.9)
    grid = NodeGrid(adding_app(), 2)
    strategy.start(grid, weights(5), num_rounds=1)
    before = strategy.arrays["w"].numpy()
    assert strategy.aggregate_train(2, []) == (None, None)
    np.testing.assert_array_equal(strategy.arrays["w"].numpy(), before)


@pytest.mark.parametrize(("name", "advised"), [("FedNovoGrad", True), ("FedAdam", False)])
def test_a_constant_rate_is_advised_against_where_steps_never_shrink(
    name: str, advised: bool, caplog: pytest.LogCaptureFixture
) -> None:
    getattr(fedopt, name)().start(NodeGrid(adding_app(), 3), weights(4), num_rounds=1)
    assert ("let the rate decay" in caplog.text) == advised


def test_a_decaying_rate_is_not_advised_against(caplog: pytest.LogCaptureFixture) -> None:
    strategy = fedopt.FedNovoGrad(schedule=lambda number: 0.9**number)
    strategy.start(NodeGrid(adding_app(), 3), weights(4), num_rounds=1)
    assert "let the rate decay" not in caplog.text
