"""Check what the mods do to a node's reply: clip it, add a share of noise, or leave it alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
from flower_nodes import record
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp.typing import ClientAppCallable, Mod
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hypothesis_numpy

from clients.mods import noise_share_mod, per_layer_clip_mod
from clients.node_protocol import HAS_SHARE, IS_UPDATE, ClipOrder
from fedopt.local_grid import claim_flower_identity, worker_context

NODE = 2
ORDERS = {
    "clip": [per_layer_clip_mod],
    "clip then share": [per_layer_clip_mod, noise_share_mod],
    "share then clip": [noise_share_mod, per_layer_clip_mod],
    "share": [noise_share_mod],
}
Arrays = dict[str, np.ndarray]


def order(**changes: object) -> ClipOrder:
    """Tell a node to clip layer "w" to 3 and "b" to 4, without noise."""
    values = {"layers": ("w", "b"), "bounds": (3.0, 4.0), "clipping": "per-layer-dim"}
    return ClipOrder(**({"noise_share": 0.0} | values | changes))  # type: ignore[arg-type]


def message(arrays: Arrays, told: ClipOrder | None, kind: str = "train") -> Message:
    """Build a message as the server sends it."""
    claim_flower_identity()
    entries = {"server-round": 1} | (told.entries() if told is not None else {})
    content = RecordDict({"arrays": record(arrays), "config": ConfigRecord(entries)})
    return Message(content, dst_node_id=NODE, message_type=kind)


def replying(arrays: Arrays, metrics: bool = True) -> ClientAppCallable:
    """Build an app that replies with these trained weights."""

    def app(asked: Message, context: Context) -> Message:
        content = RecordDict({"trained": record(arrays)})
        if metrics:
            content["metrics"] = MetricRecord({"num-examples": 3, "loss": 0.5})
        return Message(content, reply_to=asked)

    return app


def answer(mods: list[Mod], asked: Message, app: ClientAppCallable) -> Message:
    """Call the mods around the app, the first one outermost, as Flower does."""
    for mod in reversed(mods):
        app = _around(mod, app)
    return app(asked, worker_context(NODE, 3))


def _around(mod: Mod, inner: ClientAppCallable) -> ClientAppCallable:
    return lambda asked, context: mod(asked, context, inner)


def arrays_in(reply: Message) -> Arrays:
    """Give the arrays of a reply."""
    return {name: a.numpy() for name, a in reply.content["trained"].items()}


START = {"w": np.zeros((2, 1), np.float32), "b": np.ones(2, np.float32)}
TRAINED = {"w": np.array([[6.0], [8.0]], np.float32), "b": np.array([1.0, 3.0], np.float32)}


def test_each_layer_is_clipped_to_its_own_bound() -> None:
    found = arrays_in(answer([per_layer_clip_mod], message(START, order()), replying(TRAINED)))
    # The update of "w" is (6, 8), norm 10, bound 3; that of "b" is (0, 2), within its bound 4.
    np.testing.assert_allclose(found["w"], [[1.8], [2.4]], rtol=1e-6)
    np.testing.assert_array_equal(found["b"], np.array([0.0, 2.0], np.float32))
    assert {array.dtype for array in found.values()} == {np.dtype(np.float32)}


def test_global_clipping_shrinks_all_layers_alike() -> None:
    told = order(clipping="global", bounds=(5.0,))
    found = arrays_in(answer([per_layer_clip_mod], message(START, told), replying(TRAINED)))
    scale = 5.0 / math.sqrt(104.0)
    np.testing.assert_allclose(found["w"], [[6 * scale], [8 * scale]], rtol=1e-6)
    np.testing.assert_allclose(found["b"], [0.0, 2 * scale], rtol=1e-6)


finite = hypothesis_numpy.arrays(
    np.float32, (3, 2), elements=st.floats(-(2.0**100), 2.0**100, width=32)
)


@settings(max_examples=60, deadline=None)
@given(w=finite, b=finite, bound=st.floats(1e-6, 1e6))
def test_no_reply_exceeds_its_bounds(w: np.ndarray, b: np.ndarray, bound: float) -> None:
    start = {"w": np.full((3, 2), 0.25, np.float32), "b": np.zeros((3, 2), np.float32)}
    asked = message(start, order(bounds=(bound, 2 * bound)))
    found = arrays_in(answer([per_layer_clip_mod], asked, replying({"w": w, "b": b})))
    for name, limit in (("w", bound), ("b", 2 * bound)):
        norm = math.sqrt(float(np.sum(np.square(found[name].astype(np.float64)))))
        assert norm <= limit


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_broken_update_leaves_as_zeros(broken: float) -> None:
    trained = TRAINED | {"w": np.full((2, 1), broken, np.float32)}
    found = arrays_in(answer([per_layer_clip_mod], message(START, order()), replying(trained)))
    assert not any(array.any() for array in found.values())


@pytest.mark.parametrize("mods", ORDERS)
def test_an_app_that_trains_the_received_arrays_in_place_still_has_an_update(mods: str) -> None:
    def in_place(asked: Message, context: Context) -> Message:
        asked.content["arrays"] = record(TRAINED)
        return replying(TRAINED)(asked, context)

    found = arrays_in(answer(ORDERS[mods], message(START, order()), in_place))
    np.testing.assert_allclose(found["w"], [[1.8], [2.4]], rtol=1e-6)


@pytest.mark.parametrize("mods", ORDERS)
def test_evaluation_passes_untouched(mods: str) -> None:
    found = answer(ORDERS[mods], message(START, order(), "evaluate"), replying(TRAINED))
    np.testing.assert_array_equal(arrays_in(found)["w"], TRAINED["w"])
    assert dict(found.content["metrics"].items()) == {"num-examples": 3, "loss": 0.5}


@pytest.mark.parametrize("mods", ORDERS)
def test_training_without_a_plan_passes_untouched(mods: str) -> None:
    found = answer(ORDERS[mods], message(START, None), replying(TRAINED))
    np.testing.assert_array_equal(arrays_in(found)["w"], TRAINED["w"])
    assert IS_UPDATE not in found.content["metrics"]


@pytest.mark.parametrize("mods", ORDERS)
def test_a_reply_says_what_was_done_and_keeps_its_metrics(mods: str) -> None:
    found = answer(ORDERS[mods], message(START, order()), replying(TRAINED))
    metrics = dict(found.content["metrics"].items())
    wanted = {IS_UPDATE: 1} | ({HAS_SHARE: 1} if "share" in mods else {})
    assert metrics == {"num-examples": 3, "loss": 0.5} | wanted


def test_a_reply_without_metrics_is_marked_all_the_same() -> None:
    asked = message(START, order())
    found = answer([per_layer_clip_mod], asked, replying(TRAINED, metrics=False))
    assert dict(found.content["metrics"].items()) == {IS_UPDATE: 1}


def test_only_the_trained_layers_leave_the_node() -> None:
    more = {"steps": np.array([7], np.int64), "norm.running_mean": np.ones(2, np.float32)}
    asked = message(START | more, order())
    found = answer([per_layer_clip_mod], asked, replying(TRAINED | more))
    assert list(arrays_in(found)) == ["w", "b"]


@pytest.mark.parametrize("mods", ["clip then share", "share then clip", "share"])
def test_one_share_of_noise_is_added_in_any_order_of_mods(mods: str) -> None:
    sizes = {"w": np.zeros((300, 200), np.float32), "b": np.zeros(300, np.float32)}
    asked = message(sizes, order(noise_share=0.25))
    found = arrays_in(answer(ORDERS[mods], asked, replying(sizes)))
    noise = np.concatenate([array.reshape(-1) for array in found.values()])
    # 60,300 coordinates: the standard error is 0.3 %; two shares would give 0.354.
    assert noise.std() == pytest.approx(0.25, rel=0.015)
    assert abs(noise.std() / 0.2625 - 1) > 0.02
    assert abs(noise.mean()) < 5 * 0.25 / math.sqrt(60_300)


def test_shares_are_secret_and_never_repeat() -> None:
    asked = [message(START, order(noise_share=1.0)) for _ in range(2)]
    first, second = (arrays_in(answer([noise_share_mod], each, replying(START))) for each in asked)
    assert not np.array_equal(first["w"], second["w"])


def test_a_share_comes_on_top_of_the_clipped_update() -> None:
    asked = message(START, order(noise_share=1e-4))
    found = arrays_in(answer([noise_share_mod], asked, replying(TRAINED)))
    np.testing.assert_allclose(found["w"], [[1.8], [2.4]], atol=1e-3)
    assert not np.array_equal(found["w"], np.float32([[1.8], [2.4]]))


def test_an_error_reply_passes_as_it_is() -> None:
    from flwr.app import Error

    def failing(asked: Message, context: Context) -> Message:
        return Message(Error(7, "no data"), reply_to=asked)

    for mods in ORDERS.values():
        found = answer(mods, message(START, order(noise_share=1.0)), failing)
        assert found.error.code == 7


def test_a_reply_without_a_layer_fails_on_the_node() -> None:
    asked = message(START, order())
    with pytest.raises(KeyError, match="b"):
        answer([per_layer_clip_mod], asked, replying({"w": TRAINED["w"]}))


def test_two_array_records_are_refused_on_the_node() -> None:
    def two(asked: Message, context: Context) -> Message:
        reply = replying(TRAINED)(asked, context)
        reply.content["more"] = record(START)
        return reply

    with pytest.raises(ValueError, match="2 array records"):
        answer([per_layer_clip_mod], message(START, order()), two)
