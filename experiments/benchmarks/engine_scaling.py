"""Measure what a run starts with, and how its cost grows with workers, cohort and population."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

Found = dict[str, Any]


def run_json(command: Sequence[str]) -> Any:
    """Run a measurement in a process of its own and read its last line."""
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
        "FLWR_TELEMETRY_ENABLED": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def cost(**wish: Any) -> Found:
    """Run one simulation in a fresh process and measure it."""
    module = "experiments.benchmarks.engine_costs"
    found: Found = run_json([sys.executable, "-m", module, json.dumps(wish)])
    return found


def in_turns(
    turns: int, wishes: Mapping[int, Mapping[str, Any]], measure: str
) -> tuple[list[Found], dict[int, list[float]]]:
    """Run every wish once a turn, so that a machine that slows down slows all of them.

    Returns: all runs, and what they measured by the key of the wish.
    """
    runs: list[Found] = []
    values: dict[int, list[float]] = {key: [] for key in wishes}
    for _ in range(turns):
        for key, wish in wishes.items():
            runs.append(cost(**wish))
            values[key].append(runs[-1][measure])
    return runs, values


def ratio_in_turns(over: Sequence[float], under: Sequence[float]) -> float:
    """Give the median of the ratios by turn."""
    return round(statistics.median(o / u for o, u in zip(over, under, strict=True)), 3)


def workers(quick: bool) -> Found:
    """Compare the throughput of two Ray workers with that of one."""
    wish = {"size": "1M", "cohort": 100, "rounds": 3 if quick else 5, "users_at_once": 1}
    wishes = {n: {"engine": "ray", "workers": n, **wish} for n in (1, 2)}
    _, rates = in_turns(1 if quick else 3, wishes, "users_per_second")
    return {"users_per_second": rates, "ratio": ratio_in_turns(rates[2], rates[1])}


def start() -> Found:
    """Measure the time from the call to the first row of the log, imports done before."""
    wish = {"size": "10k", "cohort": 10, "rounds": 2, "users_at_once": 1}
    local, ray = cost(**wish), cost(engine="ray", workers=2, **wish)
    code = (
        "import ray, time; begun = time.perf_counter();"
        "ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False);"
        "print(time.perf_counter() - begun)"
    )
    alone = run_json([sys.executable, "-c", code])
    beyond = ray["seconds_to_first_round"] - alone
    return {
        "local": local,
        "ray": ray,
        "ray_init_seconds": round(alone, 3),
        "ray_beyond_init": round(beyond, 3),
    }


def cohort() -> Found:
    """Measure the time per user for growing cohorts; it should not change."""
    wish = {"size": "10k", "rounds": 5, "users_at_once": 1}
    wishes = {n: {"cohort": n, **wish} for n in (25, 50, 100, 200)}
    runs, found = in_turns(3, wishes, "milliseconds_per_user")
    return {"runs": runs, "ratio": ratio_in_turns(found[200], found[25])}


def population() -> Found:
    """Measure a round for growing populations of virtual users; it should not change."""
    wish = {"size": "10k", "cohort": 200, "rounds": 5, "users_at_once": 1}
    wishes = {n: {"population": n, **wish} for n in (10**4, 10**6, 10**9)}
    runs, found = in_turns(3, wishes, "seconds_per_round")
    return {"runs": runs, "ratio": ratio_in_turns(found[10**9], found[10**4])}
