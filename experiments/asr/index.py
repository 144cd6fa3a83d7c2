"""Keep the index of a corpus on disk, so that its files are looked through only once."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.asr.audio import read_audio
from experiments.asr.corpora import Utterance
from experiments.asr.tokens import Tokens
from privacy.errors import SettingsError

_SCHEMA_VERSION = 2
_NAMED_LOUDLY = 50

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Drops:
    """Count what is left out of an index, and name it.

    The first 50 of each reason are named as warnings, the others as information, so that a
    corpus with a million such lines still says what matters.
    notes: counts of what was left out or mended, by reason. named: reason, what and where of each
    that was left out by this process.
    """

    notes: Counter[str] = field(default_factory=Counter)
    named: list[tuple[str, str, str]] = field(default_factory=list)

    def add(self, reason: str, what: str, where: Path | str) -> None:
        """Count one more for a reason."""
        self.notes[reason] += 1
        self.named.append((reason, what, str(where)))
        level = logging.WARNING if self.notes[reason] <= _NAMED_LOUDLY else logging.INFO
        _log.log(level, "Skipped %s in %s: %s", what, where, reason)


Index = tuple[tuple[Utterance, ...], Drops]
"""The utterances of a corpus, and what was left out or mended."""


@dataclass(frozen=True)
class FolderReader:
    """Read the samples of an utterance whose key is a path below `folder`.

    mended: where what was mended is left, by key; see Corpus. None where it is known already.
    """

    folder: Path
    mended: dict[str, Sequence[str]] | None = None

    def __call__(self, utterance: Utterance) -> NDArray[np.float32]:
        """Give (samples,) float32, mono, 16 kHz."""
        notes: Counter[str] = Counter()
        samples = read_audio(self.folder / utterance.key, notes)
        if self.mended is not None and +notes:
            self.mended[utterance.key] = tuple(+notes)
        return samples


def text_problem(text: str, tokens: Tokens) -> str:
    """Say why a normalised text cannot be learned; "" where it can."""
    if not text:
        return "empty text"
    return "characters without a label" if tokens.unknown(text) else ""


def fingerprint(tokens: Tokens, sources: Iterable[Path]) -> str:
    """Hash the token set, and name, size and time of what an index is made from.

    sources: lists, and the folders of the audio: then audio that is added, removed or replaced is
    seen; audio that is written over in place is not.
    """
    found = hashlib.sha256(f"{_SCHEMA_VERSION} {tokens!r}".encode())
    for path in sources:
        status = path.stat()
        size = 0 if path.is_dir() else status.st_size
        found.update(f"{path}\0{size}\0{status.st_mtime_ns}\0".encode())
    return found.hexdigest()[:24]


def cached_index(cache_dir: Path | None, name: str, build: Callable[[], Index]) -> Index:
    """Load an index from the cache; build and keep it where it is absent or damaged.

    What is left out is listed beside it, all of it, one to a line; the log says where.
    cache_dir: None for no cache. name: that of the corpus with its fingerprint.
    Raises: SettingsError when the cache folder cannot be written.
    """
    if cache_dir is None:
        return build()
    path = cache_dir / f"index-{name}.jsonl"
    dropped = cache_dir / f"dropped-{name}.jsonl"
    built = _load(path)
    try:
        if built is None:
            built = build()
            _save_dropped(dropped, built[1])
            _save(path, built)
    except OSError as problem:
        raise SettingsError(
            f"cache_dir must be a folder that can be written, got {str(cache_dir)!r} ({problem}); "
            "name another one"
        ) from problem
    if dropped.is_file():
        _log.warning("All that is left out of the corpus is named in %s", dropped)
    return built


def _save(path: Path, index: Index) -> None:
    """Write the index, one utterance to a line."""
    utterances, drops = index
    head = {"schema_version": _SCHEMA_VERSION, "utterances": len(utterances), "notes": drops.notes}
    rows = ([item.key, item.speaker, item.split, item.text, item.seconds] for item in utterances)
    _write_lines(path, itertools.chain([head], rows))


def _save_dropped(path: Path, drops: Drops) -> None:
    """Write what was left out, so that no name is lost once the index is cached."""
    if drops.named:
        columns = ("reason", "what", "where")
        _write_lines(path, (dict(zip(columns, row, strict=True)) for row in drops.named))


def _write_lines(path: Path, rows: Iterable[Any]) -> None:
    """Write lines of JSON beside their place, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("w", encoding="utf-8") as lines:
            lines.writelines(json.dumps(row) + "\n" for row in rows)
        aside.rename(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            aside.unlink()


def _load(path: Path) -> Index | None:
    if not path.is_file():
        return None
    once: dict[str, str] = {}
    try:
        with path.open(encoding="utf-8") as lines:
            head = json.loads(next(lines))
            utterances = tuple(
                Utterance(
                    key, once.setdefault(speaker, speaker), once.setdefault(split, split), *rest
                )
                for key, speaker, split, *rest in map(json.loads, lines)
            )
        if (head["schema_version"], head["utterances"]) != (_SCHEMA_VERSION, len(utterances)):
            raise ValueError(f"it holds {len(utterances)} utterances")
        return utterances, Drops(Counter(head["notes"]))
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as problem:
        _log.warning("The cached index %s is damaged (%s) and is made again", path, problem)
        return None
