"""Time the default job of two source trees in turn, whole processes from start to report.

    git worktree add OLD COMMIT
    python -m experiments.benchmarks.default_job --before OLD --turns 3 --output FILE

Both run with this Python. Speech is made and cached in a first turn that does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MAIN = "import sys; from fedopt.cli import main; sys.exit(main())"
HERE = Path(__file__).resolve().parents[2]


def job(tree: Path, arguments: Sequence[str] = ()) -> dict[str, Any]:
    """Run `fedopt run` of a source tree once; gives seconds and word error rates."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        command = [sys.executable, "-c", MAIN, "run", "--quiet", *arguments]
        started = time.perf_counter()
        subprocess.run(
            [*command, "--output", str(output)],
            cwd=tree,
            env=os.environ | {"PYTHONPATH": str(tree)},
            check=True,
            capture_output=True,
        )
        seconds = time.perf_counter() - started
        rows = [json.loads(line) for line in (output / "rounds.jsonl").open(encoding="utf-8")]
    measured = [row["wer"] for row in rows if row.get("wer") is not None]
    return {
        "seconds": round(seconds, 2),
        "wer": round(measured[-1], 4),
        "test_wer": round(rows[-1].get("test_wer", float("nan")), 4),
    }


def compared(before: Path, turns: int) -> dict[str, Any]:
    """Run both trees in turn, each turn with a seed of its own."""
    for tree in (before, HERE):
        job(tree, ["--rounds", "1"])
    found: dict[str, list[dict[str, Any]]] = {"before": [], "after": []}
    for seed in range(1, turns + 1):
        for name, tree in (("before", before), ("after", HERE)):
            found[name].append({"seed": seed} | job(tree, ["--seed", str(seed)]))
            print(name, json.dumps(found[name][-1]), file=sys.stderr, flush=True)
    pairs = zip(found["before"], found["after"], strict=True)
    ratios = [round(old["seconds"] / new["seconds"], 3) for old, new in pairs]
    return {"ratio": statistics.median(ratios), "ratios": ratios} | found


def commit(tree: Path) -> str:
    """Name the commit of a source tree."""
    command = ["git", "-C", str(tree), "rev-parse", "HEAD"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, required=True, help="source tree to compare with")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args(arguments)
    facts = {
        "commits": {"before": commit(given.before), "after": commit(HERE)},
        "cores": os.cpu_count(),
    }
    text = json.dumps(facts | compared(given.before.resolve(), given.turns), indent=1)
    print(text)
    if given.output is not None:
        given.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
