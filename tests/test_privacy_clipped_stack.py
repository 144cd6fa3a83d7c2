"""Show that a stack of users adds, bit by bit, what the same users add one after another."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.clipped_stack import add_stack
from privacy.clipped_sum import Clipped, ClippedSum
from privacy.clipping import CHUNK, CLIPPINGS, layer_bounds
from privacy.noise import grid_spacing


def empty_sum(sizes: list[int], clipping: str, clip_norm: float) -> ClippedSum:
    found = ClippedSum(sizes)
    found.start(clipping, layer_bounds(clipping, clip_norm, sizes), grid_spacing(clip_norm))
    return found


def one_by_one(stack: list[torch.Tensor], summed: ClippedSum) -> list[Clipped]:
    users = len(stack[0])
    return [
        summed.add(torch.cat([layer[user].reshape(-1) for layer in stack])) for user in range(users)
    ]


def compare(stack: list[torch.Tensor], clipping: str, clip_norm: float) -> list[Clipped]:
    sizes = [layer[0].numel() for layer in stack]
    alone, together = (empty_sum(sizes, clipping, clip_norm) for _ in range(2))
    wanted = one_by_one(stack, alone)
    found = add_stack(together, [layer.clone() for layer in stack])
    assert torch.equal(together.total, alone.total)
    assert [one.scales for one in found] == [one.scales for one in wanted]
    assert [one.finite for one in found] == [one.finite for one in wanted]
    for one, other in zip(found, wanted, strict=True):
        pairs = zip(one.norms, other.norms, strict=True)
        assert all(a == b or (math.isnan(a) and math.isnan(b)) for a, b in pairs)
    return found


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    shapes=st.lists(st.lists(st.integers(1, 7), min_size=0, max_size=3), min_size=1, max_size=5),
    scales=st.lists(
        st.sampled_from([1e-43, 1e-30, 1e-7, 0.1, 1.0, 1e3, 1e25, math.nan, math.inf]),
        min_size=1,
        max_size=6,
    ),
    clipping=st.sampled_from(CLIPPINGS),
    clip_norm=st.sampled_from([1e-20, 0.01, 1.0, 1e20]),
)
def test_a_stack_adds_what_its_users_add_alone(
    seed: int, shapes: list[list[int]], scales: list[float], clipping: str, clip_norm: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    each = torch.tensor(scales)
    stack = [
        torch.randn(len(scales), *shape, generator=generator) * each.view(-1, *[1] * len(shape))
        for shape in shapes
    ]
    compare(stack, clipping, clip_norm)


@pytest.mark.parametrize("clipping", CLIPPINGS)
def test_layers_that_pass_the_cache_are_cut_in_the_same_places(clipping: str) -> None:
    generator = torch.Generator().manual_seed(1)
    shapes = [(300,), (CHUNK + 17,), (5, 40), (2 * CHUNK,)]
    stack = [torch.randn(3, *shape, generator=generator) for shape in shapes]
    compare(stack, clipping, 1.0)


def test_a_user_with_nan_adds_nothing_and_the_others_what_they_would() -> None:
    stack = [torch.ones(3, 4), torch.ones(3, 2)]
    stack[1][1, 0] = math.nan
    found = compare(stack, "per-layer-dim", 1.0)
    assert [one.finite for one in found] == [True, False, True]


def test_the_device_path_adds_what_the_other_does_within_rounding() -> None:
    generator = torch.Generator().manual_seed(2)
    stack = [torch.randn(4, 30, 2, generator=generator), torch.randn(4, 7, generator=generator)]
    on_cpu, on_device = (empty_sum([60, 7], "per-layer-uniform", 1.0) for _ in range(2))
    on_device.on_cpu = False
    add_stack(on_cpu, [layer.clone() for layer in stack])
    add_stack(on_device, [layer.clone() for layer in stack])
    apart = (on_cpu.total - on_device.total).abs().max()
    assert int(apart) <= 2 * 2**-23 / on_cpu.spacing
    assert int(on_cpu.total.abs().max()) > 1000 * int(apart)
