"""Index Common Voice as it is published: train.tsv, dev.tsv, test.tsv and clips/, any language."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from experiments.asr.audio import measure_audio
from experiments.asr.corpora import SPLITS, Corpus, Utterance
from experiments.asr.index import (
    Drops,
    FolderReader,
    Index,
    cached_index,
    fingerprint,
    text_problem,
)
from experiments.asr.tokens import Tokens
from privacy.errors import SettingsError

_COLUMNS = ("client_id", "path", "sentence")
_DURATIONS = "clip_durations.tsv"
_MEASURED_AT_ONCE = 4096

Row = tuple[str, str, str, str]
"""Speaker, name of the clip, normalised text, split."""


def common_voice_corpus(
    data_root: str | Path | None,
    tokens: Tokens,
    *,
    language: str = "en",
    cache_dir: Path | None = None,
    threads: int = 4,
) -> Corpus:
    """Index one language of Common Voice; each client_id is a user.

    data_root: the folder that holds train.tsv, dev.tsv and clips, or one whose subfolder
    `language` does; test.tsv is used where it is there. Clips may have any format that soundfile
    reads, mp3 among them. Their lengths come from clip_durations.tsv where the release has it, else
    from the head of each, read by `threads` threads. Clips that are missing, of another rate or of
    several channels are counted while indexing in the second case, and when they are read in the
    first.
    cache_dir: where the index is kept; None: nowhere.
    Raises: SettingsError when the folder, a list or a column is missing, or nothing is left.
    """
    root = _corpus_root(data_root, language)
    lists = {split: root / f"{split}.tsv" for split in SPLITS if (root / f"{split}.tsv").is_file()}
    _check_columns(lists)
    durations = root / _DURATIONS
    sources = [*lists.values(), *([durations] if durations.is_file() else [])]
    name = f"common-voice-{fingerprint(tokens, [*sources, root / 'clips' / '.'])}"
    utterances, drops = cached_index(
        cache_dir, name, lambda: _build(root, lists, tokens, max(1, threads))
    )
    for split in ("train", "dev"):
        if not any(item.split == split for item in utterances):
            raise SettingsError(
                f"data_root must hold {split} speech that can be read, got none in {str(root)!r}: "
                f"{_said(drops.notes)}"
            )
    mended: dict[str, Sequence[str]] = {}
    return Corpus(
        f"common voice {language} at {root.name}",
        utterances,
        FolderReader(root / "clips", mended if durations.is_file() else None),
        None,
        drops.notes,
        mended,
    )


def _said(notes: Counter[str]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in notes.items()) or "no lines"


def _corpus_root(data_root: str | Path | None, language: str) -> Path:
    wanted = "name the folder that holds train.tsv, dev.tsv and clips"
    if data_root is None:
        raise SettingsError(
            f"data_root must be given for the dataset common-voice, got nothing; {wanted}"
        )
    given = Path(data_root).expanduser()
    if not given.is_dir():
        raise SettingsError(f"data_root must be an existing folder, got {str(given)!r}; {wanted}")
    root = next(
        (each for each in (given, given / language) if (each / "train.tsv").is_file()), given
    )
    missing = [name for name in ("train.tsv", "dev.tsv", "clips") if not (root / name).exists()]
    if missing:
        raise SettingsError(
            f"data_root must hold {', '.join(missing)}, got {str(root)!r} without; {wanted}"
        )
    return root


def _check_columns(lists: dict[str, Path]) -> None:
    problems = []
    for path in lists.values():
        with path.open(encoding="utf-8", errors="replace") as lines:
            columns = lines.readline().rstrip("\r\n").split("\t")
        missing = [name for name in _COLUMNS if name not in columns]
        if missing:
            problems.append(
                f"{path} must have the columns {', '.join(_COLUMNS)}, got none called "
                f"{', '.join(missing)}; without client_id there are no users"
            )
    if problems:
        raise SettingsError(problems)


def _build(root: Path, lists: dict[str, Path], tokens: Tokens, threads: int) -> Index:
    drops = Drops()
    durations = _durations(root / _DURATIONS)
    rows = (row for split, path in lists.items() for row in _rows(path, split, tokens, drops))
    utterances = []
    with ThreadPoolExecutor(threads) as pool:
        while chunk := list(itertools.islice(rows, _MEASURED_AT_ONCE)):
            unknown = [row[1] for row in chunk if row[1] not in durations]
            measured = iter(list(pool.map(functools.partial(_measure, root / "clips"), unknown)))
            for speaker, clip, text, split in chunk:
                known = durations.get(clip)
                seconds, mended = (known, None) if known is not None else next(measured)
                drops.notes.update(mended)
                if seconds is None:
                    drops.add("missing or unreadable audio", clip, lists[split])
                else:
                    utterances.append(Utterance(clip, speaker, split, text, seconds))
    return tuple(utterances), drops


def _measure(clips: Path, clip: str) -> tuple[float | None, Counter[str]]:
    """Give the seconds of a clip, and counts of what has to be mended when it is read."""
    notes: Counter[str] = Counter()
    seconds = measure_audio(clips / clip, notes)
    return seconds, +notes


def _durations(path: Path) -> dict[str, float]:
    """Read clip names and seconds from "clip, milliseconds" lines; {} where there is no file."""
    found: dict[str, float] = {}
    if not path.is_file():
        return found
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            name, _, milliseconds = line.rstrip("\r\n").partition("\t")
            if milliseconds.isdecimal():
                found[name] = int(milliseconds) / 1000
    return found


def _rows(path: Path, split: str, tokens: Tokens, drops: Drops) -> Iterator[Row]:
    """Yield the usable lines of one list; equal speaker names share one string."""
    speakers: dict[str, str] = {}
    with path.open(encoding="utf-8", errors="replace", newline="\n") as lines:
        columns = next(lines).rstrip("\r\n").split("\t")
        places = [columns.index(name) for name in _COLUMNS]
        for number, line in enumerate(lines, 2):
            fields = line.rstrip("\r\n").split("\t")
            if len(fields) <= max(places):
                drops.add("damaged line", f"line {number}", path)
                continue
            speaker, clip, sentence = (fields[place] for place in places)
            text = tokens.normalise(sentence)
            problem = _row_problem(speaker, clip) or text_problem(text, tokens)
            if problem:
                drops.add(problem, clip or f"line {number}", path)
            else:
                yield speakers.setdefault(speaker, speaker), clip, text, split


def _row_problem(speaker: str, clip: str) -> str:
    if not speaker:
        return "no speaker id"
    return "" if clip and Path(clip).name == clip else "damaged line"
