"""Show that a user's part in the sum never passes its bound, and that sums have no order."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.clipped_sum import MARGIN, ClippedSum, cut
from privacy.clipping import CHUNK, CLIPPINGS, clip_scales, layer_bounds
from privacy.noise import grid_spacing, to_real


def summed(
    update: torch.Tensor, sizes: list[int], clipping: str, clip_norm: float, on_cpu: bool = True
) -> ClippedSum:
    found = ClippedSum(sizes)
    found.on_cpu = on_cpu
    found.start(clipping, layer_bounds(clipping, clip_norm, sizes), grid_spacing(clip_norm))
    found.add(update)
    return found


def real(found: ClippedSum) -> np.ndarray:
    return to_real(found.total, found.spacing).numpy()


def drawn(seed: int, size: int, scale: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=generator) * scale


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=6),
    clipping=st.sampled_from(CLIPPINGS),
    scale=st.sampled_from([1e-30, 1e-7, 0.1, 1.0, 1e3, 1e25]),
    clip_norm=st.sampled_from([1e-20, 0.01, 1.0, 1e20]),
)
def test_no_update_passes_the_bound_after_rounding(
    seed: int, sizes: list[int], clipping: str, scale: float, clip_norm: float
) -> None:
    found = summed(drawn(seed, sum(sizes), scale), sizes, clipping, clip_norm)
    assert math.sqrt(math.fsum(real(found) ** 2)) <= clip_norm


@pytest.mark.parametrize("clipping", CLIPPINGS)
@pytest.mark.parametrize("size", [1, 2, 1000, CHUNK + 5, 3 * CHUNK])
def test_a_large_update_reaches_its_bound_within_one_in_a_million(clipping: str, size: int) -> None:
    found = summed(drawn(3, size + 7, 50.0), [size, 7], clipping, 2.0)
    assert 2.0 * (1.0 - 1e-6) < np.linalg.norm(real(found)) <= 2.0


@pytest.mark.parametrize("clipping", CLIPPINGS)
def test_the_sum_holds_what_scaling_in_double_precision_gives(clipping: str) -> None:
    sizes = [30, CHUNK, 1, 500]
    update = drawn(5, sum(sizes), 0.01)
    found = summed(update, sizes, clipping, 1.5)
    parts = [part.double().numpy() for part in torch.split(update, sizes)]
    bounds = [bound * (1.0 - MARGIN) for bound in layer_bounds(clipping, 1.5, sizes)]
    scales = clip_scales(clipping, [float(np.linalg.norm(part)) for part in parts], bounds)
    wanted = np.concatenate([part * scale for part, scale in zip(parts, scales, strict=True)])
    np.testing.assert_allclose(real(found), wanted, rtol=2e-7, atol=found.spacing)


@given(
    values=st.lists(st.floats(-0.125, 0.125, width=32), min_size=1, max_size=30),
    clip_norm=st.floats(1.0, 100.0),
)
def test_an_update_within_its_bound_is_only_rounded_toward_zero(
    values: list[float], clip_norm: float
) -> None:
    update = torch.tensor(values, dtype=torch.float32)
    found = summed(update, [len(values)], "global", clip_norm)
    added, exact = real(found), update.double().numpy()
    assert (np.abs(added) <= np.abs(exact)).all()
    assert (np.abs(added - exact) < found.spacing).all()
    assert (added * exact >= 0).all()


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_the_sum_has_the_same_bytes_in_any_order_and_grouping(data: st.DataObject) -> None:
    updates = list(drawn(data.draw(st.integers(0, 1000)), 12 * 40, 0.1).view(12, 40))
    order = data.draw(st.permutations(range(12)))
    middle = data.draw(st.integers(0, 12))
    totals = []
    for numbers in (range(12), order[:middle], order[middle:]):
        found = ClippedSum([33, 7])
        found.start("per-layer-dim", [0.5, 0.2], grid_spacing(1.0))
        for number in numbers:
            found.add(updates[number])
        totals.append(found.total)
    assert torch.equal(totals[0], totals[1] + totals[2])


@pytest.mark.parametrize("clipping", CLIPPINGS)
@pytest.mark.parametrize("scale", [1e-44, 1e-3, 10.0])
def test_all_layers_at_once_give_the_same_sum_as_span_by_span(clipping: str, scale: float) -> None:
    sizes = [20, CHUNK + 3, 0, 50]
    update = drawn(9, sum(sizes), scale)
    ours = summed(update, sizes, clipping, 1.0)
    device = summed(update, sizes, clipping, 1.0, on_cpu=False)
    assert int((ours.total - device.total).abs().max()) <= 2**40 * 2**-24


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("on_cpu", [True, False])
def test_a_broken_update_adds_nothing_and_says_so(bad: float, on_cpu: bool) -> None:
    update = drawn(1, 10, 1.0)
    found = summed(update, [6, 4], "per-layer-dim", 1.0, on_cpu)
    before = found.total.clone()
    update[7] = bad
    clipped = found.add(update)
    assert not clipped.finite
    assert clipped.scales == [0.0, 0.0]
    assert torch.equal(found.total, before)


@pytest.mark.parametrize("on_cpu", [True, False])
def test_denormal_layers_are_normalised_without_overflow(on_cpu: bool) -> None:
    update = torch.tensor([1e-45, 0.0, 3.0, 4.0])
    found = summed(update, [2, 2], "normalise-uniform", 1.0, on_cpu)
    share = math.sqrt(0.5)
    np.testing.assert_allclose(real(found), [share, 0.0, 0.6 * share, 0.8 * share], rtol=1e-6)


def test_norms_before_and_factors_are_reported_by_layer() -> None:
    found = ClippedSum([2, 1])
    found.start("per-layer-dim", [1.0, 10.0], grid_spacing(10.0))
    clipped = found.add(torch.tensor([3.0, 4.0, 2.0]))
    assert clipped.norms == [5.0, 2.0]
    assert clipped.scales == pytest.approx([0.2, 1.0], rel=1e-6)
    assert clipped.scales[1] == 1.0
    assert clipped.whole_norm == pytest.approx(math.sqrt(29.0))


@pytest.mark.parametrize("on_cpu", [True, False])
def test_a_model_without_layers_sums_to_nothing(on_cpu: bool) -> None:
    found = summed(torch.zeros(0), [], "global", 1.0, on_cpu)
    assert found.total.tolist() == []


@given(sizes=st.lists(st.integers(0, 50), max_size=12), most=st.integers(1, 20))
def test_spans_cover_every_layer_once_and_stay_small(sizes: list[int], most: int) -> None:
    spans = list(cut(sizes, most))
    covered = [0] * len(sizes)
    at = 0
    for span in spans:
        assert span.start == at
        assert span.stop - span.start == sum(span.lengths) <= most
        at = span.stop
        for layer, length in zip(span.layers, span.lengths, strict=True):
            covered[layer] += length
    assert covered == sizes
    assert at == sum(sizes)
