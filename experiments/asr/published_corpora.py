"""Hold how much each speaker of the published corpora says, for plans without a corpus."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedSpeech:
    """Hold the mean speech of a training speaker and what it is the mean of."""

    name: str
    minutes: float


_LIBRISPEECH = {
    "train-clean-100": (100.6, 251),
    "train-clean-360": (363.6, 921),
    "train-other-500": (496.9, 1166),
}
"""Hours and speakers of each subset."""

_COMMON_VOICE = {
    ("en", "all"): 2.8,
    ("en", "seed-10"): 2.6,
    ("en", "fl-90"): 2.8,
    ("en", "seed-05"): 2.7,
    ("en", "fl-95"): 2.7,
    ("fr", "all"): 6.4,
    ("fr", "seed-10"): 4.2,
    ("fr", "fl-90"): 6.6,
    ("de", "all"): 7.2,
    ("de", "seed-10"): 4.4,
    ("de", "fl-90"): 7.5,
}
"""Mean minutes per speaker of version 13 by language and part of the users."""


def published_speech(
    dataset: str, *, subsets: Sequence[str] = (), language: str = "en", user_part: str = "all"
) -> PublishedSpeech | None:
    """Give the published mean of a corpus; None where it has none.

    A part of the users that was not published has the mean of all.
    Reference: arXiv 2310.00098, appendix on data: hours, speakers and minutes per speaker.
    """
    if dataset == "librispeech":
        return _librispeech([name for name in subsets if name.startswith("train-")])
    if dataset != "common-voice" or (language, "all") not in _COMMON_VOICE:
        return None
    known = (language, user_part) in _COMMON_VOICE
    part = user_part if known else "all"
    name = f"Common Voice 13 {language}" + ("" if part == "all" else f" {part}")
    return PublishedSpeech(name, _COMMON_VOICE[language, part])


def _librispeech(subsets: Sequence[str]) -> PublishedSpeech | None:
    chosen = list(subsets) or list(_LIBRISPEECH)
    if not set(chosen) <= set(_LIBRISPEECH):
        return None
    hours = sum(_LIBRISPEECH[name][0] for name in chosen)
    speakers = sum(_LIBRISPEECH[name][1] for name in chosen)
    return PublishedSpeech(f"LibriSpeech {', '.join(chosen)}", 60.0 * hours / speakers)
