"""Ask the machine what it has: memory, cores, GPUs; keep a process within its share of memory."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
from collections.abc import Iterator
from pathlib import Path

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _LARGEST_INT = -1, -3, 2**30  # of malloc.h; 1 GiB

SHARE = 0.8
"""Part of the free memory that the workers may take together."""

WORKER_BASE_MEGABYTES = 350.0
"""What a worker process holds before any model: Python, torch, Flower, Ray (measured)."""

BYTES_PER_PARAMETER = 4 * 4 + 8
"""Weights, received weights, update and gradient in float32, the sum in int64."""


def available_megabytes() -> float:
    """Measure the memory that is free now, within the limit of a container if there is one."""
    facts = dict(
        line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines() if ":" in line
    )
    free = float(facts["MemAvailable"].split()[0]) / 1e3
    return min(free, _container_megabytes())


def _container_megabytes(folder: Path = Path("/sys/fs/cgroup")) -> float:
    try:
        limit = (folder / "memory.max").read_text().strip()
        used = int((folder / "memory.current").read_text())
    except (OSError, ValueError):
        return float("inf")
    return float("inf") if limit == "max" else max(int(limit) - used, 0) / 1e6


def cores() -> int:
    """Count the cores this process may use."""
    return len(os.sched_getaffinity(0))


def gpu_names() -> list[str]:
    """List the GPUs that torch can use."""
    import torch

    if not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def worker_share_megabytes(workers: int) -> float:
    """Give a worker's share of the memory that is free now."""
    return available_megabytes() * SHARE / workers


def worker_buffers_megabytes(parameters: int) -> float:
    """Compute what a worker's buffers hold for a model of so many trainable parameters."""
    return parameters * BYTES_PER_PARAMETER / 1e6


def limit_memory(megabytes: float) -> None:
    """Let this process take so much more memory; beyond it, asking for memory is an error.

    Only the soft limit moves. The operating system counts private memory that can be written, so
    what is shared with other processes is free. A user whose data need more then fails alone,
    where without a limit the operating system would end a process of its choice.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = _private_bytes() + int(megabytes * 1e6)
    resource.setrlimit(
        resource.RLIMIT_DATA,
        (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard),
    )


@contextlib.contextmanager
def limited_memory(megabytes: float) -> Iterator[None]:
    """Limit this process's memory for one block; 0 for no limit."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    if megabytes:
        limit_memory(megabytes)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def _private_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    return 0


def keep_freed_memory() -> None:
    """Let this process keep the memory it frees, so that each step reuses the step's before it.

    By default the C library gives large blocks back at once, and every local step asks the system
    for its gradients' memory anew: a quarter of the time of a step at a million parameters. Does
    nothing where the C library has no such setting.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _LARGEST_INT)
        mallopt(_TRIM_THRESHOLD, _LARGEST_INT)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread, so that results do not depend on the machine's cores."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
