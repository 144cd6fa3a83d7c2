"""Index real speech that lies on disk as LibriSpeech does; read its FLAC or WAV files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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

_AUDIO_SUFFIXES = (".flac", ".wav")


def librispeech_corpus(
    data_root: str | Path | None,
    tokens: Tokens,
    *,
    subsets: Sequence[str] = (),
    cache_dir: Path | None = None,
) -> Corpus:
    """Index SUBSET/SPEAKER/CHAPTER folders with their .trans.txt; each speaker is a user.

    data_root: a folder that holds subsets named train-..., dev-..., test-..., or a folder
    LibriSpeech that does. subsets: names of the subsets to use; none: all. An utterance whose
    audio or text cannot be used is named in a warning, counted in the corpus' notes, and left out.
    cache_dir: where the index is kept; None: nowhere.
    Raises: SettingsError when the folder, a train subset or a dev subset is missing.
    """
    root = _corpus_root(data_root, subsets)
    transcripts = [
        (subset, transcript)
        for subset in _subsets(root, subsets)
        for transcript in sorted(subset.rglob("*.trans.txt"))
    ]
    sources = (each for _, transcript in transcripts for each in (transcript, transcript.parent))
    name = f"librispeech-{fingerprint(tokens, sources)}"
    utterances, drops = cached_index(cache_dir, name, lambda: _build(root, transcripts, tokens))
    for split in ("train", "dev"):
        if not any(utterance.split == split for utterance in utterances):
            raise SettingsError(
                f"data_root must hold {split} speech that can be read, "
                f"got none in {str(root)!r}; see the warnings above"
            )
    name = f"librispeech layout at {root.name}"
    return Corpus(name, utterances, FolderReader(root), None, drops.notes)


def _corpus_root(data_root: str | Path | None, subsets: Sequence[str]) -> Path:
    if data_root is None:
        raise SettingsError(
            "data_root must be given for the dataset librispeech, got nothing; "
            "name the folder that holds train-... and dev-..."
        )
    given = Path(data_root).expanduser()
    if not given.is_dir():
        raise SettingsError(
            f"data_root must be an existing folder, got {str(given)!r}; "
            "name the folder that holds train-... and dev-..."
        )
    inner = given / "LibriSpeech"
    root = inner if inner.is_dir() else given
    present = [subset.name for subset in _subsets(root)]
    absent = sorted(set(subsets) - set(present))
    if absent:
        raise SettingsError(
            f"subsets must be folders of {str(root)!r}, got {', '.join(absent)} which are not; "
            f"there are {', '.join(present) or 'none'}"
        )
    names = [subset.name for subset in _subsets(root, subsets)]
    missing = [split for split in ("train", "dev") if not _of_split(names, split)]
    if missing:
        wanted = " and ".join(f"{split}-..." for split in missing)
        raise SettingsError(
            f"data_root must hold subset folders named {wanted}, got {str(root)!r} with "
            f"{', '.join(names) or 'none'}; point it at the folder above the subsets"
        )
    return root


def _of_split(names: list[str], split: str) -> list[str]:
    return [name for name in names if name.startswith(f"{split}-")]


def _subsets(root: Path, wanted: Sequence[str] = ()) -> list[Path]:
    prefixes = tuple(f"{split}-" for split in SPLITS)
    return sorted(
        path
        for path in root.iterdir()
        if path.is_dir() and path.name.startswith(prefixes) and (not wanted or path.name in wanted)
    )


def _build(root: Path, transcripts: Sequence[tuple[Path, Path]], tokens: Tokens) -> Index:
    drops = Drops()
    utterances = tuple(
        item
        for subset, transcript in transcripts
        for item in _read_transcript(transcript, subset, root, tokens, drops)
    )
    return utterances, drops


def _read_transcript(
    transcript: Path, subset: Path, root: Path, tokens: Tokens, drops: Drops
) -> Iterator[Utterance]:
    folders = transcript.relative_to(subset).parts[:-1]
    split = subset.name.split("-")[0]
    for line in transcript.read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, spoken = line.strip().partition(" ")
        text = tokens.normalise(spoken)
        path = _audio_path(transcript.parent, name)
        problem = text_problem(text, tokens) if folders else "no speaker id"
        seconds = None if problem or path is None else measure_audio(path, drops.notes)
        if path is None or seconds is None:
            problem = problem or ("missing audio" if path is None else "unreadable audio")
            drops.add(problem, name or "an empty line", transcript)
        else:
            yield Utterance(path.relative_to(root).as_posix(), folders[0], split, text, seconds)


def _audio_path(folder: Path, name: str) -> Path | None:
    candidates = (folder / f"{name}{suffix}" for suffix in _AUDIO_SUFFIXES)
    return next((path for path in candidates if name and path.is_file()), None)
