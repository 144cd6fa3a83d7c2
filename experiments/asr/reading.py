"""Remember what reading a corpus brought to light, and how much speech was trained on."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable

from clients.findings import Finding
from experiments.asr.batching import FRAMES_PER_SECOND

UNREADABLE = "corpus: unreadable when read"
SPOKEN = "milliseconds of speech trained"

_log = logging.getLogger(__name__)


class ReadingNotes:
    """Note each file once: as unreadable, in a warning, and as mended, at level INFO.

    frames: of the speech that was given out for training, without padding.
    """

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.frames = 0
        self._mended: set[str] = set()
        self._unreadable: set[str] = set()

    @property
    def unreadable(self) -> int:
        """Count the utterances that were found unreadable so far."""
        return len(self._unreadable)

    @property
    def counts(self) -> Counter[str]:
        """Count the findings by label."""
        return Counter(found.what for found in self.findings)

    @property
    def amounts(self) -> dict[str, int]:
        """Give what only grows, in whole numbers, whose sums have no order."""
        return {SPOKEN: self.frames * 1000 // FRAMES_PER_SECOND}

    def note_unreadable(self, key: str, why: str) -> None:
        """Note an utterance that is left out."""
        if key not in self._unreadable:
            self._unreadable.add(key)
            self.findings.append(Finding(UNREADABLE, key, why))
            _log.warning("Skipped %s: %s", key, why)

    def note_mended(self, key: str, what: Iterable[str]) -> None:
        """Note an utterance that is used after a change."""
        if key not in self._mended:
            for each in what:
                self._mended.add(key)
                self.findings.append(Finding(f"corpus: {each} when read", key))
                _log.info("Mended %s: %s", key, each)
