"""Check how text shall be read off a model's output: label by label, or by a search."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from experiments.asr.beam_search import BeamSearch
from experiments.asr.lexicon import read_lexicon
from experiments.asr.tokens import Tokens
from privacy.errors import SettingsError

DECODERS = ("greedy", "beam")

_SEARCH = "flashlight.lib.text.decoder"
_KENLM = "flashlight.lib.text.flashlight_lib_text_decoder_kenlm"
_KENLM_BEGINNINGS = (b"\\data\\", b"mmap lm ", b"\x1f\x8b", b"BZh", b"\xfd7zXZ")
"""Of ARPA files, of binary ones, and of ARPA files that gzip, bzip2 or xz has packed."""

_LARGEST_SCORE = 100.0


@dataclass(frozen=True)
class Decoding:
    """Say how evaluations write text.

    decoder: "greedy", the best label of every step, or "beam", see BeamSearch, for which the other
    fields are. lexicon: text file of one word a line.
    Raises: SettingsError with one sentence per mistake.
    """

    decoder: str = "greedy"
    beam_size: int = 50
    lexicon: str | Path | None = None
    language_model: str | Path | None = None
    language_model_weight: float = 2.0
    word_score: float = 0.0

    def __post_init__(self) -> None:
        """Refuse every impossible choice, all in one error."""
        problems = [
            *self._wrong_values(),
            *self._wrong_files(),
            *self._without_use(),
            *self._missing_packages(),
        ]
        if problems:
            raise SettingsError(problems)

    def search(self, tokens: Tokens) -> BeamSearch | None:
        """Give the search; None where the best label of every step is written.

        Raises: SettingsError when the lexicon has a line of several words, or no word that can be
        spelled.
        """
        if self.decoder == "greedy":
            return None
        return BeamSearch(
            tokens,
            self.beam_size,
            None if self.lexicon is None else read_lexicon(Path(self.lexicon), tokens),
            None if self.language_model is None else Path(self.language_model),
            float(self.language_model_weight),
            float(self.word_score),
        )

    def _wrong_values(self) -> Iterator[str]:
        if self.decoder not in DECODERS:
            yield f"decoder must be one of {', '.join(DECODERS)}, got {self.decoder!r}"
        size = self.beam_size
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            yield f"beam_size must be a whole number of at least 1, got {size!r}; try 50"
        for name, least, advice in (
            ("language_model_weight", 0.0, "2"),
            ("word_score", -_LARGEST_SCORE, "0"),
        ):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not least <= value <= _LARGEST_SCORE:
                yield (
                    f"{name} must be between {least:g} and {_LARGEST_SCORE:g}, got {value!r}; "
                    f"try {advice}"
                )

    def _wrong_files(self) -> Iterator[str]:
        for name in ("lexicon", "language_model"):
            value = getattr(self, name)
            if value is None:
                continue
            if not isinstance(value, str | Path) or not Path(value).is_file():
                yield f"{name} must be an existing file, got {str(value)!r}; correct it"
            elif name == "language_model" and not _begins_like_kenlm(Path(value)):
                yield (
                    "language_model must be a file of KenLM, in ARPA or binary form, got "
                    f"{str(value)!r} with another beginning; correct it"
                )

    def _without_use(self) -> Iterator[str]:
        """Name what is given and would change nothing."""
        given = [field.name for field in dataclasses.fields(self) if self._differs(field)]
        if self.decoder == "greedy" and given:
            yield (
                f"decoder must be beam to use {', '.join(given)}, got 'greedy'; set decoder=beam "
                "or leave the rest out"
            )
        if self.decoder != "beam":
            return
        needs = {
            "language_model": "lexicon",
            "word_score": "lexicon",
            "language_model_weight": "language_model",
        }
        for name, needed in needs.items():
            if name in given and getattr(self, needed) is None:
                yield f"{name} must come with a {needed}, got none; give the option {needed}"

    def _differs(self, field: dataclasses.Field[object]) -> bool:
        return field.name != "decoder" and getattr(self, field.name) != field.default

    def _missing_packages(self) -> Iterator[str]:
        if self.decoder != "beam":
            return
        if not _installed(_SEARCH):
            yield (
                "decoder beam needs flashlight-text, got no such package; install fedopt[beam] or "
                "set decoder=greedy"
            )
        elif self.language_model is not None and not _installed(_KENLM):
            yield (
                "language_model needs flashlight-text with KenLM, got it built without; install "
                "its wheel from PyPI"
            )


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a package that holds it is missing, or is another of that name
        return False


def _begins_like_kenlm(path: Path) -> bool:
    """Tell a language model from other files without loading it, which can take minutes."""
    with path.open("rb") as file:
        return file.read(1024).lstrip().startswith(_KENLM_BEGINNINGS)
