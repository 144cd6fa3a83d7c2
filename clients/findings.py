"""Hand on what a task finds while it reads its data, and how much it has trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Finding:
    """Name one thing of the data that was not as it should be; not private.

    what: the label under which the report counts it. name: which file or record. why: why it was
    left out; empty where it was mended and used.
    """

    what: str
    name: str
    why: str = ""


class News:
    """Ask a task for what is new since it was last asked; nothing where it keeps no such list."""

    def __init__(self, task: Any) -> None:
        self._task = task
        self._told = 0
        self._before: Mapping[str, int] = {}

    def start(self) -> None:
        """Begin a request: amounts are counted from here."""
        self._before = self._amounts()

    def findings(self) -> tuple[Finding, ...]:
        """Give the findings that were not given before."""
        if not hasattr(self._task, "findings"):
            return ()
        found: Sequence[Finding] = self._task.findings()[self._told :]
        self._told += len(found)
        return tuple(found)

    def amounts(self) -> dict[str, int]:
        """Give how far each amount has grown in this request."""
        return {name: now - self._before.get(name, 0) for name, now in self._amounts().items()}

    def _amounts(self) -> dict[str, int]:
        return dict(self._task.amounts()) if hasattr(self._task, "amounts") else {}
