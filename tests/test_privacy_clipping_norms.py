"""The squared norm of a layer: all its digits, in chunks that fit the device."""

from __future__ import annotations

import math

import pytest
import torch

from privacy.clipping import CHUNK, DEVICE_CHUNK, squared_norm

DTYPES = (torch.float32, torch.bfloat16, torch.float64)


@pytest.mark.parametrize("size", [CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 7])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_norm_over_several_chunks_has_all_its_digits(size: int, dtype: torch.dtype) -> None:
    tensor = torch.randn(size, generator=torch.Generator().manual_seed(size)).to(dtype)
    exact = math.fsum(value * value for value in tensor.tolist())
    squared = squared_norm(tensor)
    assert squared.dtype == torch.float64
    assert float(squared) == pytest.approx(exact, rel=1e-14)


@pytest.mark.parametrize(("device", "size"), [("cpu", CHUNK), ("meta", DEVICE_CHUNK)])
def test_a_processor_sums_in_small_chunks_and_other_devices_in_large_ones(
    device: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A "meta" tensor stands for a GPU's here: it takes the same way without any numbers.
    asked: list[int] = []
    dot = torch.dot
    monkeypatch.setattr(torch, "dot", lambda one, two: (asked.append(len(one)), dot(one, two))[1])
    found = squared_norm(torch.empty(2 * size + 3, device=device))
    assert asked == [size, size, 3]
    assert (found.device.type, found.dtype, found.shape) == (device, torch.float64, ())
