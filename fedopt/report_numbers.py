"""Read the numbers of a report's JSON for drawing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

Report = Mapping[str, Any]


def number(value: Any) -> float:
    """Read a number of the JSON; "inf" and nothing at all are infinite."""
    return math.inf if value is None else float(value)


def finite(
    rows: Sequence[Mapping[str, Any]], across: str, up: str
) -> tuple[list[float], list[float]]:
    """Pick two columns of rows, leaving out what no axis can show."""
    pairs = [(number(row[across]), number(row[up])) for row in rows]
    kept = [pair for pair in pairs if math.isfinite(pair[0]) and math.isfinite(pair[1])]
    return [pair[0] for pair in kept], [pair[1] for pair in kept]
