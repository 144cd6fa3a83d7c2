"""Keep what was found in the data while it was read: each thing once, over workers and restarts."""

from __future__ import annotations

import contextlib
import json
import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from clients.findings import Finding

_log = logging.getLogger(__name__)


class DataFindings:
    """Append findings to a file of the run directory, count them, and name them on the log.

    A file that several workers read, or that is read again after a restart, is counted once.
    Not covered: names and counts are people's data and not private.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.logs = True
        self.counts: Counter[str] = Counter()
        self._known: set[tuple[str, str]] = set()
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        self._torn = not text.endswith("\n") and bool(text)
        self._note(_written(text))

    def add(self, found: Iterable[Finding], *, logged: bool | None = None) -> None:
        """Keep what is new.

        logged: name it here too; by default as `logs` says, which is False where the task that
        found it lives in this process and has named it itself.
        """
        new = self._note(found)
        if not new:
            return
        with self.path.open("a", encoding="utf-8") as lines:
            if self._torn:
                lines.write("\n")
                self._torn = False
            lines.writelines(json.dumps(asdict(each)) + "\n" for each in new)
        for each in new if (self.logs if logged is None else logged) else ():
            level = logging.WARNING if each.why else logging.INFO
            _log.log(level, "A worker found %s: %s", each.name, each.why or each.what)

    def _note(self, found: Iterable[Finding]) -> list[Finding]:
        new = []
        for each in found:
            if (each.what, each.name) not in self._known:
                self._known.add((each.what, each.name))
                self.counts[each.what] += 1
                new.append(each)
        return new


def _written(text: str) -> list[Finding]:
    """Read what was found before a restart; a line that was cut off is left out."""
    found = []
    for line in text.splitlines():
        with contextlib.suppress(ValueError, TypeError):
            found.append(Finding(**json.loads(line)))
    return found
