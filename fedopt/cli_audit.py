"""Run `fedopt audit`: show what the canary users of a run show of its epsilon."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from privacy.errors import SettingsError

WIDTH = 24


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command."""
    parser.add_argument("run", metavar="RUN", help="run directory of fedopt run --audit K")
    parser.add_argument("--json", action="store_true", help="the result as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Show the audit; returns 1 where a bound exceeds what the accountant says, else 0."""
    from fedopt.audit_result import audit_of_run
    from fedopt.report_json import plain

    folder = Path(arguments.run)
    audit = audit_of_run(folder)
    if audit is None:
        raise SettingsError(
            f"audit needs a run that released a model with canary users, got {arguments.run!r} "
            "without; train again with fedopt run --audit 200"
        )
    print(json.dumps(plain(audit), indent=2, allow_nan=False) if arguments.json else as_text(audit))
    return 1 if audit["exceeded"] else 0


def as_text(audit: dict[str, Any]) -> str:
    """Lay an audit out for reading."""
    rows = [*audit["bounds"], audit["cohorts_known"]]
    return "\n".join(
        [
            f"{audit['canaries']:,} canary users, {audit['included']:,} of them included, over "
            f"{audit['rounds']:,} rounds",
            f"{'':{WIDTH}} epsilon at least    best fit   accountant at most",
            *(_line(row) for row in rows),
            f"All bounds together hold with {audit['confidence']:.0%} confidence; fits take scores "
            "as Gaussian.",
            *(f"{names}: {adversary}." for adversary, names in _adversaries(rows).items()),
            _verdict(audit["exceeded"]),
        ]
    )


def _line(row: dict[str, Any]) -> str:
    """Write one bound: at least, best fit, at most."""
    from privacy.statement import round_up

    fitted = row["fitted_epsilon"]
    best = "-" if fitted is None else f"{fitted:.4g}"
    least = round_down(row["epsilon"])
    return f"{row['name']:{WIDTH}} {least:>16} {best:>11} {round_up(row['limit']):>20}"


def round_down(value: float) -> str:
    """Print a lower bound with two places, cut: it never says more than was shown."""
    return "infinity" if math.isinf(value) else f"{math.floor(value * 100) / 100:.2f}"


def _adversaries(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Name the bounds that each adversary stands for."""
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(row["adversary"], []).append(row["name"])
    return {adversary: "; ".join(names) for adversary, names in found.items()}


def _verdict(exceeded: list[str]) -> str:
    if exceeded:
        return (
            f"FAULT: {', '.join(exceeded)} above what the accountant says; less was done than was "
            "accounted"
        )
    return "No bound exceeds what the accountant says."
