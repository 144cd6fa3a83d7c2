"""Decide which speech belongs to which user: parts by user, an IID deal, a cap on seconds."""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterable

import numpy as np

from experiments.asr.corpora import Corpus, Utterance
from privacy.errors import SettingsError

_PART = re.compile(r"(seed|fl)-(\d\d)")
_SPLIT_SEED, _DEAL_SEED, _CAP_SEED = 123, 124, 125


def check_part(part: str) -> None:
    """Refuse a part that is not "all", "seed-PERCENT" or "fl-PERCENT".

    Raises: SettingsError.
    """
    found = _PART.fullmatch(str(part))
    if part != "all" and not (found and 0 < int(found[2]) < 100):
        raise SettingsError(
            f"user_part must be all, seed-PERCENT or fl-PERCENT, got {part!r}; "
            "seed-10 and fl-90 are the two parts of one split"
        )


def keep_part(corpus: Corpus, part: str) -> Corpus:
    """Keep the training speech of one part of the users; dev and test stay whole.

    part: "all"; "seed-10": a tenth of the users, rounded down, drawn once and for all;
    "fl-90": all others. The draw depends only on the sorted list of speakers.
    Reference: arXiv 2310.00098, appendix on data: splits by user, 10/90 and 5/95; the sizes are
    theirs, the draw is ours, because theirs hangs on the order of an unpublished list.
    Raises: SettingsError when the part is unknown or would be empty.
    """
    check_part(part)
    if part == "all":
        return corpus
    kind, percent = part.split("-")
    speakers = _training_speakers(corpus.utterances)
    seed_percent = int(percent) if kind == "seed" else 100 - int(percent)
    order = np.random.default_rng(_SPLIT_SEED).permutation(len(speakers))
    size = len(speakers) * seed_percent // 100
    chosen = order[:size] if kind == "seed" else order[size:]
    kept = {speakers[place] for place in chosen}
    if not kept:
        raise SettingsError(
            f"user_part {part} must leave training users, got none of {len(speakers)}; use all"
        )
    return dataclasses.replace(
        corpus,
        utterances=tuple(
            item for item in corpus.utterances if item.split != "train" or item.speaker in kept
        ),
    )


def deal_evenly(corpus: Corpus) -> Corpus:
    """Give every training utterance to a user drawn uniformly from the existing ones.

    The number of users stays unless one draws nothing; their voices and amounts become alike.
    Reference: IID variant of arXiv 2310.00098, appendix on data.
    """
    speakers = _training_speakers(corpus.utterances)
    spoken = sum(item.split == "train" for item in corpus.utterances)
    drawn = iter(np.random.default_rng(_DEAL_SEED).integers(0, max(1, len(speakers)), spoken))
    return dataclasses.replace(
        corpus,
        utterances=tuple(
            dataclasses.replace(item, speaker=speakers[next(drawn)])
            if item.split == "train"
            else item
            for item in corpus.utterances
        ),
    )


def cap_users(corpus: Corpus, most_seconds: float) -> Corpus:
    """Keep at most so many seconds of each training user, utterances drawn at random.

    What is left out is counted in the corpus' notes.
    """
    order = np.random.default_rng(_CAP_SEED).permutation(len(corpus.utterances))
    seconds: defaultdict[str, float] = defaultdict(float)
    left_out = set()
    for place in order.tolist():
        item = corpus.utterances[place]
        if item.split != "train":
            continue
        if seconds[item.speaker] + item.seconds > most_seconds:
            left_out.add(place)
        else:
            seconds[item.speaker] += item.seconds
    kept = tuple(item for place, item in enumerate(corpus.utterances) if place not in left_out)
    notes = {**corpus.notes, "beyond the seconds of a user": len(left_out)}
    return dataclasses.replace(corpus, utterances=kept, notes=notes)


def _training_speakers(utterances: Iterable[Utterance]) -> list[str]:
    return sorted({item.speaker for item in utterances if item.split == "train"})
