"""Show that no user's update leaves clipping with a norm above the clip norm, whatever it held."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.clipping import (
    CLIPPINGS,
    clip_scales,
    clip_tensors_in_place,
    clip_update,
    layer_bounds,
)
from privacy.errors import SettingsError

STRICT = ("global", "per-layer-uniform", "per-layer-dim")
NORMALISING = ("normalise-uniform", "normalise-dim")
DTYPES = (torch.float32, torch.bfloat16, torch.float64)
SLACK = 1.0 + 1e-12  # the bounds C_h themselves are rounded to float64

layers_drawn = st.lists(
    st.tuples(st.integers(0, 40), st.integers(-38, 37), st.sampled_from(["normal", "constant"])),
    min_size=1,
    max_size=5,
)


def norm_of(*tensors: torch.Tensor) -> float:
    """Compute the L2 norm as the exact sum of exact squares, rounded once."""
    squares = [Fraction(value) ** 2 for tensor in tensors for value in tensor.flatten().tolist()]
    return math.sqrt(sum(squares, Fraction(0)))


def build(
    layers: list[tuple[int, int, str]], dtype: torch.dtype, seed: int
) -> dict[str, torch.Tensor]:
    """Draw layers of (elements, decimal exponent, kind)."""
    generator = torch.Generator().manual_seed(seed)
    update = {}
    for number, (size, exponent, kind) in enumerate(layers):
        drawn = torch.randn(size if kind == "normal" else 1, generator=generator)
        values = drawn.to(torch.float64).expand(size) * 10.0**exponent
        update[f"layer{number}"] = values.clamp(-3e38, 3e38).to(dtype)
    return update


@given(
    layers=layers_drawn,
    dtype=st.sampled_from(DTYPES),
    clipping=st.sampled_from(CLIPPINGS),
    exponent=st.integers(-20, 20),
    mantissa=st.floats(1.0, 9.999),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=300, deadline=None)
def test_the_whole_norm_never_exceeds_the_clip_norm_after_rounding(
    layers: list[tuple[int, int, str]],
    dtype: torch.dtype,
    clipping: str,
    exponent: int,
    mantissa: float,
    seed: int,
) -> None:
    clip_norm = mantissa * 10.0**exponent
    clipped = clip_update(build(layers, dtype, seed), clip_norm, clipping)
    assert norm_of(*clipped.update.values()) <= clip_norm * SLACK
    assert all(tensor.dtype == dtype for tensor in clipped.update.values())


@given(
    value=st.floats(1e-30, 1e30),
    size=st.integers(1, 3000),
    dtype=st.sampled_from((torch.float32, torch.bfloat16)),
    clipping=st.sampled_from(CLIPPINGS),
    clip_norm=st.floats(1e-6, 100.0),
)
@settings(max_examples=300, deadline=None)
def test_rounding_in_the_same_way_everywhere_keeps_the_bound(
    value: float, size: int, dtype: torch.dtype, clipping: str, clip_norm: float
) -> None:
    update = {"all": torch.full((size,), value, dtype=torch.float64).to(dtype)}
    clipped = clip_update(update, clip_norm, clipping)
    whole = abs(float(clipped.update["all"][0])) * math.sqrt(size)
    assert whole <= clip_norm * SLACK


@given(
    layers=layers_drawn,
    dtype=st.sampled_from(DTYPES),
    clipping=st.sampled_from(STRICT),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=150, deadline=None)
def test_strict_clipping_never_grows_or_turns_an_element(
    layers: list[tuple[int, int, str]], dtype: torch.dtype, clipping: str, seed: int
) -> None:
    update = build(layers, dtype, seed)
    clipped = clip_update(update, 0.5, clipping).update
    for name, before in update.items():
        assert bool((clipped[name].abs() <= before.abs()).all())
        assert bool((clipped[name] * before >= 0).all())


@given(
    layers=layers_drawn,
    dtype=st.sampled_from(DTYPES),
    clipping=st.sampled_from(("per-layer-uniform", "per-layer-dim")),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=150, deadline=None)
def test_every_layer_of_a_strict_clip_keeps_its_own_bound(
    layers: list[tuple[int, int, str]], dtype: torch.dtype, clipping: str, seed: int
) -> None:
    if sum(size for size, _, _ in layers) == 0:
        layers = [(3, 0, "normal"), *layers]
    clipped = clip_update(build(layers, dtype, seed), 2.0, clipping)
    for name, tensor in clipped.update.items():
        assert norm_of(tensor) <= clipped.bounds[name] * SLACK


def plain_loop(update: dict[str, list[float]], clip_norm: float, clipping: str) -> list[float]:
    """Clip by the definitions of arXiv 2310.00098, with Python floats and loops only."""
    total = sum(len(values) for values in update.values())
    norms = {name: math.hypot(*values) for name, values in update.items()}
    whole = math.hypot(*norms.values())
    result = []
    for name, values in update.items():
        share = len(values) / total if clipping.endswith("dim") else 1 / len(update)
        bound = clip_norm * math.sqrt(share)
        if clipping == "global":
            factor = min(1.0, clip_norm / whole)
        elif clipping.startswith("normalise"):
            factor = bound / norms[name] if whole > clip_norm else 1.0
        else:
            factor = min(1.0, bound / norms[name])
        result += [value * factor for value in values]
    return result


@given(
    update=st.dictionaries(
        st.sampled_from("abcd"),
        st.lists(st.floats(0.01, 50.0), min_size=1, max_size=6),
        min_size=1,
    ),
    clip_norm=st.floats(0.05, 50.0),
    clipping=st.sampled_from(CLIPPINGS),
)
@settings(deadline=None)
def test_every_mode_agrees_with_a_plain_loop(
    update: dict[str, list[float]], clip_norm: float, clipping: str
) -> None:
    tensors = {name: torch.tensor(values, dtype=torch.float64) for name, values in update.items()}
    clipped = clip_update(tensors, clip_norm, clipping).update
    found = [value for tensor in clipped.values() for value in tensor.tolist()]
    assert found == pytest.approx(plain_loop(update, clip_norm, clipping), rel=1e-12)


def test_bounds_are_shared_as_the_paper_says() -> None:
    assert layer_bounds("per-layer-dim", 1.0, [9, 16]) == [0.6, 0.8]
    assert layer_bounds("normalise-dim", 1.0, [9, 16]) == [0.6, 0.8]
    assert layer_bounds("per-layer-uniform", 2.0, [9, 16, 1, 5]) == [1.0] * 4
    assert layer_bounds("global", 2.0, [9, 16]) == [2.0, 2.0]


@given(
    clipping=st.sampled_from([name for name in CLIPPINGS if name != "global"]),
    clip_norm=st.floats(1e-20, 1e20),
    sizes=st.lists(st.integers(1, 10**9), min_size=1, max_size=300),
)
def test_the_squares_of_the_bounds_add_up_to_the_square_of_the_clip_norm(
    clipping: str, clip_norm: float, sizes: list[int]
) -> None:
    bounds = layer_bounds(clipping, clip_norm, sizes)
    assert math.hypot(*bounds) == pytest.approx(clip_norm, rel=1e-12)


def test_an_update_within_its_bounds_is_returned_bit_for_bit() -> None:
    update = {"a": torch.tensor([0.6, 0.0]), "b": torch.tensor([0.8])}
    for clipping in ("global", *NORMALISING):
        clipped = clip_update(update, 1.0 + 1e-6, clipping)
        assert all(torch.equal(clipped.update[name], update[name]) for name in update)
        assert clipped.was_clipped == {"a": False, "b": False}


def test_norms_before_clipping_and_what_was_clipped_are_told() -> None:
    update = {"small": torch.tensor([0.3, 0.4]), "large": torch.tensor([30.0, 40.0])}
    clipped = clip_update(update, math.sqrt(2.0), "per-layer-uniform")
    assert clipped.norms["small"] == pytest.approx(0.5, rel=1e-7)
    assert clipped.norms["large"] == pytest.approx(50.0, rel=1e-12)
    assert clipped.was_clipped == {"small": False, "large": True}
    assert clipped.bounds == pytest.approx({"small": 1.0, "large": 1.0})
    assert clipped.update["large"].tolist() == pytest.approx([0.6, 0.8], rel=1e-6)
    assert clipped.finite


@pytest.mark.parametrize("clipping", NORMALISING)
@pytest.mark.parametrize("dtype", DTYPES)
def test_normalising_lifts_a_small_layer_to_its_bound_and_not_beyond(
    clipping: str, dtype: torch.dtype
) -> None:
    update = {"small": torch.full((7,), 1e-12).to(dtype), "large": torch.full((9,), 5.0).to(dtype)}
    clipped = clip_update(update, 0.01, clipping)
    spacing = torch.finfo(dtype).eps
    for name, bound in clipped.bounds.items():
        assert bound * (1 - 4 * spacing) <= norm_of(clipped.update[name]) <= bound * SLACK


def test_a_zero_layer_stays_zero_under_normalising() -> None:
    update = {"zero": torch.zeros(3), "large": torch.full((3,), 9.0)}
    clipped = clip_update(update, 1.0, "normalise-dim")
    assert clipped.update["zero"].tolist() == [0.0, 0.0, 0.0]
    assert not clipped.was_clipped["zero"]


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("clipping", CLIPPINGS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_update_that_is_not_finite_becomes_zeros(
    broken: float, clipping: str, dtype: torch.dtype
) -> None:
    update = {"good": torch.ones(3, dtype=dtype), "bad": torch.tensor([1.0, broken]).to(dtype)}
    clipped = clip_update(update, 1e6, clipping)
    assert not clipped.finite
    assert all(not tensor.any() for tensor in clipped.update.values())
    assert all(clipped.was_clipped.values())


def test_the_factors_of_a_broken_update_are_zero() -> None:
    tensors = [torch.tensor([1.0, math.nan]), torch.ones(3)]
    norms, factors, finite = clip_tensors_in_place(tensors, "global", [1.0, 1.0])
    assert (factors, finite) == ([0.0, 0.0], False)
    assert math.isnan(norms[0])
    assert not any(tensor.any() for tensor in tensors)


def test_a_norm_beyond_float64_becomes_zeros() -> None:
    clipped = clip_update({"a": torch.tensor([1e200, 1e200], dtype=torch.float64)}, 1.0, "global")
    assert not clipped.finite
    assert not clipped.update["a"].any()


@pytest.mark.parametrize("clipping", CLIPPINGS)
def test_zero_and_empty_layers_pass(clipping: str) -> None:
    update = {"zero": torch.zeros(4), "empty": torch.zeros(0, 5), "scalar": torch.tensor(3.0)}
    clipped = clip_update(update, 1.0, clipping)
    assert clipped.finite
    assert clipped.update["empty"].shape == (0, 5)
    assert clipped.update["scalar"].shape == ()
    assert norm_of(*clipped.update.values()) <= SLACK


@pytest.mark.parametrize("clipping", CLIPPINGS)
@pytest.mark.parametrize("update", [{}, {"empty": torch.zeros(0)}, {"a": torch.zeros(2)}])
def test_an_update_without_any_content_passes(
    clipping: str, update: dict[str, torch.Tensor]
) -> None:
    clipped = clip_update(update, 1.0, clipping)
    assert clipped.finite
    assert clipped.update.keys() == update.keys()
    assert not any(clipped.was_clipped.values())


@pytest.mark.parametrize("clipping", CLIPPINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_denormal_numbers_are_clipped_like_others(clipping: str, dtype: torch.dtype) -> None:
    tiny = torch.finfo(dtype).tiny
    update = {"denormal": torch.full((50,), tiny / 64).to(dtype), "one": torch.ones(2, dtype=dtype)}
    clipped = clip_update(update, 0.01, clipping)
    assert norm_of(*clipped.update.values()) <= 0.01 * SLACK
    assert bool(torch.isfinite(clipped.update["denormal"]).all())


@pytest.mark.parametrize("clipping", CLIPPINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("clip_norm", [1e-13, 1e-5, 0.01])
def test_a_norm_so_large_that_its_factor_is_denormal_keeps_the_bound(
    clipping: str, dtype: torch.dtype, clip_norm: float
) -> None:
    for value in (1e26, 1.3e37, 1e38, 2.1e38, 3e38):
        update = {"huge": torch.full((1000,), value).to(dtype), "one": torch.ones(1, dtype=dtype)}
        clipped = clip_update(update, clip_norm, clipping)
        assert clipped.finite
        assert norm_of(*clipped.update.values()) <= clip_norm * SLACK


def test_a_copy_is_clipped_unless_asked_otherwise() -> None:
    update = {"a": torch.tensor([3.0, 4.0])}
    clipped = clip_update(update, 1.0, "global")
    assert update["a"].tolist() == [3.0, 4.0]
    again = clip_update(update, 1.0, "global", in_place=True)
    assert again.update["a"] is update["a"]
    assert torch.equal(update["a"], clipped.update["a"])


def test_tensors_of_any_memory_layout_are_clipped() -> None:
    whole = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    update = {"turned": whole.T[1:4], "strided": whole[:, ::2]}
    clipped = clip_update(update, 1.0, "per-layer-dim")
    plain = clip_update({name: part.contiguous() for name, part in update.items()}, 1.0)
    assert all(torch.equal(clipped.update[name], plain.update[name]) for name in update)


def test_bounds_given_by_the_user_are_kept() -> None:
    update = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([2.0])}
    clipped = clip_update(update, 1.0, bounds={"a": 0.6, "b": 0.8})
    assert norm_of(clipped.update["a"]) == pytest.approx(0.6, rel=1e-6)
    assert norm_of(clipped.update["b"]) == pytest.approx(0.8, rel=1e-6)
    silent = clip_update(update, 1.0, bounds={"a": 0.0, "b": 1.0})
    assert silent.update["a"].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("bounds", "clipping", "told"),
    [
        ({"a": 0.6}, "per-layer-dim", "name the layers"),
        ({"a": 0.6, "b": 0.8, "c": 0.1}, "per-layer-dim", "name the layers"),
        ({"a": 0.7, "b": 0.8}, "per-layer-dim", "sqrt"),
        ({"a": -0.1, "b": 0.8}, "per-layer-dim", "finite numbers >= 0"),
        ({"a": math.nan, "b": 0.8}, "per-layer-dim", "finite numbers >= 0"),
        ({"a": 0.6, "b": 0.8}, "global", "leave bounds out"),
    ],
)
def test_bounds_that_do_not_fit_are_refused(
    bounds: dict[str, float], clipping: str, told: str
) -> None:
    update = {"a": torch.ones(1), "b": torch.ones(1)}
    with pytest.raises(SettingsError, match=told):
        clip_update(update, 1.0, clipping, bounds=bounds)


def test_all_mistakes_are_told_at_once() -> None:
    update = {"ids": torch.ones(2, dtype=torch.int64), "flags": torch.ones(2, dtype=torch.bool)}
    with pytest.raises(SettingsError) as refusal:
        clip_update(update, -1.0, "soft")
    assert len(refusal.value.problems) == 4
    with pytest.raises(SettingsError, match="soft"):
        layer_bounds("soft", 1.0, [1])


@pytest.mark.parametrize("clip_norm", [0.0, -1.0, math.nan, math.inf, "1"])
def test_a_clip_norm_that_bounds_nothing_is_refused(clip_norm: float) -> None:
    with pytest.raises(SettingsError, match="clip-norm"):
        clip_update({"a": torch.ones(1)}, clip_norm)


def test_the_whole_norm_decides_about_normalising() -> None:
    assert clip_scales("normalise-dim", [0.9, 0.1], [0.5, 0.9]) == [1.0, 1.0]
    assert clip_scales("normalise-dim", [2.0, 0.1], [0.5, 0.9]) == [0.25, 9.0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("clipping", CLIPPINGS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gpu_clips_as_the_cpu_does(clipping: str, dtype: torch.dtype) -> None:
    update = build([(40, 3, "normal"), (7, -3, "normal"), (0, 0, "normal")], dtype, seed=1)
    here = clip_update(update, 0.3, clipping)
    there = clip_update({name: part.cuda() for name, part in update.items()}, 0.3, clipping)
    assert norm_of(*(part.cpu() for part in there.update.values())) <= 0.3 * SLACK
    assert there.norms == pytest.approx(here.norms, rel=1e-12)
    assert there.was_clipped == here.was_clipped


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_hundred_million_elements_keep_the_bound(dtype: torch.dtype) -> None:
    size = 100_000_000
    value = float(torch.tensor(0.0123, dtype=dtype))
    update = {"large": torch.full((size,), value, dtype=dtype), "small": torch.ones(3, dtype=dtype)}
    for clipping in ("global", "per-layer-uniform", "normalise-dim"):
        clipped = clip_update(update, 1.0, clipping)
        assert clipped.norms["large"] == pytest.approx(value * math.sqrt(size), rel=1e-9)
        element = float(clipped.update["large"][0])
        assert bool((clipped.update["large"] == element).all())
        whole = math.hypot(element * math.sqrt(size), norm_of(clipped.update["small"]))
        assert 0.5 < whole <= SLACK


def test_float16_is_refused_because_its_rounding_can_pass_the_bound() -> None:
    with pytest.raises(SettingsError, match="convert it to float32"):
        clip_update({"w": torch.ones(4, dtype=torch.float16)}, 1.0)
