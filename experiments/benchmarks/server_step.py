"""Time one server step of each optimizer beside torch's Adam(foreach), on the same weights.

    python -m experiments.benchmarks.server_step --parameters 256000000 --output step.json

The two optimizers of a pair step in turn, so that other load on the machine meets both. The
quoted ratio is the median of the per-turn ratios; the target is at most 1.5.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from strategies.optimizers import OWN, build_optimizer

TARGET = 1.5
WIDTH = 2048
RATE = 1e-4


def model_like(count: int, dtype: torch.dtype, device: str) -> list[tuple[str, Tensor]]:
    """Build about ``count`` weights with gradients: square matrices, each with a bias."""
    generator = torch.Generator(device=device).manual_seed(0)
    shapes: list[tuple[int, ...]] = []
    left = count
    while left > 0:
        rows = max(1, min(WIDTH, left // WIDTH))
        shapes += [(rows, WIDTH), (WIDTH,)]
        left -= rows * WIDTH + WIDTH
    named = []
    for number, shape in enumerate(shapes):
        weight = torch.randn(shape, dtype=dtype, device=device, generator=generator)
        weight.grad = torch.randn(shape, dtype=dtype, device=device, generator=generator) * 1e-2
        named.append((f"tensor{number}", weight))
    return named


def timed_step(optimizer: torch.optim.Optimizer, device: str) -> float:
    """Return the seconds of one step, until the device has finished it."""
    begin = time.perf_counter()
    optimizer.step()
    if device != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - begin


def state_per_parameter(optimizer: torch.optim.Optimizer, count: int) -> float:
    """Return the number of state values per weight."""
    tensors = [
        value
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor)
    ]
    return sum(tensor.numel() for tensor in tensors) / count


def measure(
    name: str, params: list[tuple[str, Tensor]], repeats: int, device: str
) -> dict[str, Any]:
    """Let one optimizer and torch's Adam step in turn; the first turn of each is not counted."""
    count = sum(tensor.numel() for _, tensor in params)
    ours = build_optimizer(name, params, lr=RATE)
    adam = torch.optim.Adam(params, lr=RATE, foreach=True)
    turns = [(timed_step(ours, device), timed_step(adam, device)) for _ in range(repeats + 1)][1:]
    ratio = statistics.median(mine / theirs for mine, theirs in turns)
    return {
        "optimizer": name,
        "seconds": statistics.median(mine for mine, _ in turns),
        "adam_foreach_seconds": statistics.median(theirs for _, theirs in turns),
        "ratio": ratio,
        "largest_ratio": max(mine / theirs for mine, theirs in turns),
        "within_target": ratio <= TARGET,
        "state_values_per_parameter": state_per_parameter(ours, count),
    }


def commit() -> str | None:
    """Return the commit of the checkout, or None outside one."""
    command = ["git", "rev-parse", "HEAD"]
    found = subprocess.run(
        command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return found.stdout.strip() if found.returncode == 0 else None


def main() -> None:
    """Read the flags, measure, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parameters", type=int, default=256_000_000)
    parser.add_argument("--optimizers", nargs="+", default=list(OWN), choices=list(OWN))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", choices=["float32", "float64"], default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path)
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    params = model_like(flags.parameters, getattr(torch, flags.dtype), flags.device)
    load_before = os.getloadavg()[0]
    results = [measure(name, params, flags.repeats, flags.device) for name in flags.optimizers]
    text = json.dumps(
        {
            "schema_version": 1,
            "benchmark": "server_step",
            "target_ratio": TARGET,
            "parameters": sum(tensor.numel() for _, tensor in params),
            "tensors": len(params),
            "dtype": flags.dtype,
            "device": flags.device,
            "threads": flags.threads,
            "repeats": flags.repeats,
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "hardware": {
                "processor": platform.processor() or platform.machine(),
                "cores": os.cpu_count(),
                "load_average_before": load_before,
            },
            "commit": commit(),
            "results": results,
        },
        indent=1,
    )
    print(text)
    if flags.output is not None:
        flags.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
