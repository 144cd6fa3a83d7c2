"""Pick out of a run's rows what its last evaluations measured, by split."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

_TEST, _DEV = "test_", "dev_"


def measured(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Give every number of the last evaluation of each split; empty where none was evaluated.

    rows: of rounds.jsonl. What is no part of a round's own record was measured by the task: names
    with "test_" on the test split, all others on development.
    Guarantee: none; evaluations are made on people's data.
    Not covered: everything here.
    """
    own = _own_names()
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        by_split: dict[str, dict[str, float]] = {}
        for name, value in row.items():
            if name not in own and _is_number(value):
                split = "test" if name.startswith(_TEST) else "dev"
                plain = name.removeprefix(_TEST).removeprefix(_DEV)
                by_split.setdefault(split, {})[plain] = value
        found |= by_split
    return found


def _own_names() -> set[str]:
    from strategies.round_record import RoundRecord

    return {field.name for field in dataclasses.fields(RoundRecord)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
