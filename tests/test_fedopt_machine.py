"""Show that memory is measured, and that a limit turns a greedy allocation into an error."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest

from fedopt import machine


def test_free_memory_is_positive_and_not_more_than_the_machine_has() -> None:
    total = float(Path("/proc/meminfo").read_text().split()[1]) / 1e3
    assert 0.0 < machine.available_megabytes() <= total
    assert machine.cores() >= 1


@pytest.mark.parametrize(
    ("limit", "used", "left"), [("max", "5", float("inf")), ("3000000", "1000000", 2.0)]
)
def test_a_containers_limit_counts(limit: str, used: str, left: float, tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text(limit + "\n")
    (tmp_path / "memory.current").write_text(used + "\n")
    assert machine._container_megabytes(tmp_path) == left
    assert machine._container_megabytes(tmp_path / "none") == float("inf")


def test_beyond_the_limit_memory_is_refused_and_below_it_given() -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with machine.limited_memory(500.0):
        assert np.empty(200 * 10**6, np.uint8).nbytes == 200 * 10**6
        with pytest.raises(MemoryError):
            np.empty(900 * 10**6, np.uint8)
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    assert np.empty(900 * 10**6, np.uint8).nbytes == 900 * 10**6


def test_no_limit_is_no_limit() -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with machine.limited_memory(0.0):
        assert resource.getrlimit(resource.RLIMIT_DATA) == before
