"""Time the engine beside a plain loop, stock Flower and pfl-research, all in one run.

    python -m experiments.benchmarks.engine --output experiments/results/engine.json
    python -m experiments.benchmarks.engine --quick --compare experiments/results/engine.json

Writes JSON and prints a table. Ratios are what counts: the machine may be busy. --pfl names the
Python of an environment made by make_pfl_environment.sh; without it that comparison is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.benchmarks.engine_scaling import (
    Found,
    cohort,
    cost,
    population,
    run_json,
    start,
    workers,
)

MOVED = 0.10


@dataclass(frozen=True)
class Goal:
    """Name a ratio, where it stands in the results, and what it should be.

    better: "lower" or "higher".
    """

    name: str
    value: Callable[[Found], float]
    bound: float
    better: str = "lower"

    def reached(self, value: float) -> bool:
        """Tell whether a value is good enough."""
        return value <= self.bound if self.better == "lower" else value >= self.bound


def plain(size: str) -> Callable[[Found], float]:
    """Look up fedopt / plain loop."""
    return lambda found: float(found["plain_loop"][size]["ratio"])


GOALS = (
    Goal("fedopt / plain loop, 10 k parameters", plain("10k"), 0.25),
    Goal("fedopt / plain loop, 1 M", plain("1M"), 0.9),
    Goal("fedopt / plain loop, 10 M", plain("10M"), 1.05),
    Goal("pfl-research / fedopt, 10 k", lambda f: float(f["pfl"]["10k"]["ratio"]), 8.0, "higher"),
    Goal("pfl-research / fedopt, 1 M", lambda f: float(f["pfl"]["1M"]["ratio"]), 1.35, "higher"),
    Goal(
        "stock Flower / fedopt, 10 kB x 100 users",
        lambda f: float(f["flower"]["10kB"]["ratio"]),
        50.0,
        "higher",
    ),
    Goal(
        "stock Flower / fedopt, 10 MB x 100 users",
        lambda f: float(f["flower"]["10MB"]["ratio"]),
        8.0,
        "higher",
    ),
    Goal("two workers / one, 1 M", lambda f: float(f["workers"]["ratio"]), 1.8, "higher"),
    Goal(
        "seconds from start to first round, local",
        lambda f: float(f["start"]["local"]["seconds_to_first_round"]),
        0.5,
    ),
    Goal(
        "seconds from start to first round beyond ray.init, Ray",
        lambda f: float(f["start"]["ray_beyond_init"]),
        1.0,
    ),
    Goal("speech step through the engine / alone", lambda f: float(f["speech"]["ratio"]), 1.15),
    Goal(
        "time per user, cohort 200 / cohort 25",
        lambda f: float(f["cohort"]["ratio"]),
        1.1,
    ),
    Goal(
        "time per round, population 10^9 / 10^4",
        lambda f: float(f["population"]["ratio"]),
        1.1,
    ),
)


def plain_loops(quick: bool) -> Found:
    """Time fedopt beside the plain loop at each size, in stacks where it chooses them, and not."""
    from experiments.benchmarks.engine_rounds import beside_plain

    plans = [("10k", 100, 8, None), ("10k", 100, 4, 1), ("100k", 100, 4, None)]
    plans += [("1M", 100, 2 if quick else 4, None), ("1M", 100, 2, 1)]
    plans += [] if quick else [("10M", 100, 2, None)]
    found = {}
    for size, users, rounds, at_once in plans:
        name = size if at_once is None else f"{size}, one user at a time"
        found[name] = told(name, beside_plain(size, users, rounds, at_once))
    return found


def pfl(python: str, quick: bool, ours: Found) -> Found:
    """Time pfl-research and set it against fedopt by way of the plain loop that ran beside each."""
    found = {}
    for size in ("10k", "1M"):
        module = "experiments.benchmarks.engine_pfl"
        rounds = "3" if quick else "5"
        got = run_json([python, "-m", module, "--size", size, "--rounds", rounds])
        pairs = zip(got["pfl"], got["plain"], strict=True)
        ratio = statistics.median(theirs[0] / plain[0] for theirs, plain in pairs)
        found[size] = told(
            f"pfl {size}",
            {
                "pfl_ms_per_user": round(statistics.median(t[0] for t in got["pfl"]) * 1e3, 4),
                "plain_ms_per_user": round(statistics.median(t[0] for t in got["plain"]) * 1e3, 4),
                "pfl_over_plain": round(ratio, 3),
                "ratio": round(ratio / ours[size]["ratio"], 3),
                "torch": got["torch"],
            },
        )
    return found


def flower(quick: bool) -> Found:
    """Time rounds of a trivial job in Flower's stock simulation and on both engines of fedopt."""
    found = {}
    for name, size in (("10kB", 10_000), ("10MB", 10_000_000)):
        rounds = 3 if quick or size > 10**6 else 6
        module = "experiments.benchmarks.engine_flower"
        command = [sys.executable, "-m", module, "--bytes", str(size), "--rounds", str(rounds)]
        stock = statistics.median(run_json(command)["seconds"][1:])
        wish = {"parameters": size // 4, "cohort": 100, "rounds": rounds + 1, "users_at_once": 1}
        ours = {
            engine: cost(engine=engine, workers=2, **wish)["seconds_per_round"]
            for engine in ("local", "ray")
        }
        found[name] = told(
            f"flower {name}",
            {
                "stock_seconds_per_round": round(stock, 4),
                "fedopt_seconds_per_round": ours,
                "ratio": round(stock / min(ours.values()), 2),
            },
        )
    return found


def told(name: str, found: Found) -> Found:
    """Say on standard error what was just measured."""
    print(f"{name}: {json.dumps(found)}", file=sys.stderr, flush=True)
    return found


def table(found: Found) -> str:
    """Lay the ratios out beside their goals, for reading."""
    lines = ["| what | measured | goal | |", "|---|---|---|---|"]
    for goal in GOALS:
        try:
            value = goal.value(found)
        except KeyError:
            continue
        sign = "<=" if goal.better == "lower" else ">="
        verdict = "reached" if goal.reached(value) else "not reached"
        lines.append(f"| {goal.name} | {value:.4g} | {sign} {goal.bound:g} | {verdict} |")
    return "\n".join(lines)


def moved(before: Found, after: Found) -> list[str]:
    """Name the ratios that differ by more than a tenth from another run's."""
    lines = []
    for goal in GOALS:
        try:
            old, new = goal.value(before), goal.value(after)
        except KeyError:
            continue
        if abs(new / old - 1.0) > MOVED:
            worse = (new > old) == (goal.better == "lower")
            word = "worse" if worse else "better"
            lines.append(f"{goal.name}: {old:.3g} -> {new:.3g} ({new / old - 1.0:+.0%}, {word})")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--compare", type=Path)
    parser.add_argument("--pfl", help="Python of the environment that has pfl")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, without 10 M")
    given = parser.parse_args(arguments)
    begun, load = time.time(), os.getloadavg()[0]
    from experiments.benchmarks.engine_speech import beside_bare_loop

    found: Found = {"plain_loop": plain_loops(given.quick)}
    if given.pfl:
        found["pfl"] = pfl(given.pfl, given.quick, found["plain_loop"])
    found |= {
        "flower": flower(given.quick),
        "workers": told("workers", workers(given.quick)),
        "start": told("start", start()),
        "cohort": told("cohort", cohort()),
        "population": told("population", population()),
        "speech": told("speech", beside_bare_loop(6, 2 if given.quick else 4)),
    }
    import torch

    found["machine"] = {
        "cores": os.cpu_count(),
        "processor": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "load_before": round(load, 2),
        "load_after": round(os.getloadavg()[0], 2),
        "seconds": round(time.time() - begun, 1),
    }
    print(table(found))
    if given.output:
        given.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if given.compare:
        changes = moved(json.loads(given.compare.read_text(encoding="utf-8")), found)
        print("\n".join(changes) or "no ratio moved by more than 10 %")


if __name__ == "__main__":
    main()
