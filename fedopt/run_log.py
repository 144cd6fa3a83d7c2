"""Write one line of JSON per round, or per report of a central training, and read them back."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from privacy.errors import SettingsError


class RunLog:
    """Append a row per round to rounds.jsonl; round 0 is the state before training.

    counted: the key of a row that tells how far the training was; "step" in steps.jsonl.
    """

    def __init__(self, path: Path, counted: str = "round") -> None:
        self.path = path
        self.counted = counted

    def rows(self) -> list[dict[str, Any]]:
        """Read all rows; a last line cut off by a crash is left out.

        Raises: SettingsError where another line is damaged.
        """
        if not self.path.exists():
            return []
        rows = []
        lines = self.path.read_text(encoding="utf-8").split("\n")
        for number, line in enumerate(lines, start=1):
            if not line:
                continue
            try:
                rows.append(json.loads(line))
            except ValueError as problem:
                if number == len(lines):
                    break
                raise SettingsError(
                    f"{self.path.name} line {number} must be JSON, got {line[:40]!r}; "
                    "the file was changed or damaged"
                ) from problem
        return rows

    def keep_until(self, last: int) -> list[dict[str, Any]]:
        """Drop rows after a round, as when a run goes on from its checkpoint; returns the rest."""
        kept = [row for row in self.rows() if row[self.counted] <= last]
        self.replace(kept)
        return kept

    def replace(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write rows in place of all that are there."""
        partial = self.path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        os.replace(partial, self.path)

    def append(self, row: Mapping[str, Any]) -> None:
        """Add one row; it is on the disk when this returns."""
        with self.path.open("a", encoding="utf-8") as opened:
            opened.write(json.dumps(row) + "\n")
            opened.flush()
            os.fsync(opened.fileno())
