"""Check every option of the speech task at once, and build the corpus they name."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from experiments.asr.augmentation import PAPER_SPEC_AUGMENT, Augmentation
from experiments.asr.corpora import Corpus
from experiments.asr.librispeech import librispeech_corpus
from experiments.asr.synthetic_corpus import Progress, SyntheticSettings, synthetic_corpus
from experiments.asr.tokens import Tokens
from privacy.errors import SettingsError

DATASETS = ("synthetic", "librispeech")

SPEC_AUGMENTS = {
    "none": Augmentation(),
    "light": Augmentation(frequency_masks=2, frequency_width=16, time_masks=2),
    "paper": PAPER_SPEC_AUGMENT,
}


@dataclass(frozen=True)
class SpeechOptions:
    """Say on what speech which model is trained.

    dataset: "synthetic" (made by the project) or "librispeech" (folders below data_root).
    model: a preset of experiments.asr.model or MODULE:FACTORY. batch_size: utterances per local
    batch. speakers, utterances (of each), held_out_speakers (of dev and of test each), seed:
    size and number of the synthetic corpus. cache_dir: where that corpus is kept.
    dropout, layer_drop: replace the model preset's. spec_augment: "none", "light", "paper", or
    True for "paper". speed, tract: largest relative stretch of time and of the frequency axis in
    training. progress: show a bar on stderr while speech is made, or a callable told of it.
    Raises: SettingsError with one sentence per mistake.
    """

    dataset: str = "synthetic"
    data_root: str | Path | None = None
    model: str = "tiny"
    batch_size: int = 2
    speakers: int = 120
    utterances: int = 20
    held_out_speakers: int = 12
    seed: int = 0
    cache_dir: str | Path | None = None
    dropout: float | None = None
    layer_drop: float | None = None
    spec_augment: bool | str = False
    speed: float = 0.0
    tract: float = 0.0
    progress: bool | Progress = True

    def __post_init__(self) -> None:
        """Refuse every impossible option, all in one error."""
        from experiments.asr.model import check_model

        problems = [*self._wrong_choices(), *self._wrong_numbers(), *self._missing_packages()]
        for check in (
            lambda: check_model(self.model, self.dropout, self.layer_drop),
            self.synthetic_settings,
        ):
            try:
                check()
            except SettingsError as problem:
                problems.extend(problem.problems)
        if problems:
            raise SettingsError(problems)

    def _wrong_choices(self) -> Iterator[str]:
        if self.dataset not in DATASETS:
            yield f"dataset must be one of {', '.join(DATASETS)}, got {self.dataset!r}"
        if self._spec_augment_name not in SPEC_AUGMENTS:
            yield (
                f"spec_augment must be true, false or one of {', '.join(SPEC_AUGMENTS)}, "
                f"got {self.spec_augment!r}"
            )

    def _wrong_numbers(self) -> Iterator[str]:
        size = self.batch_size
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            yield f"batch_size must be a whole number of at least 1, got {size!r}; try 2"
        for name in ("speed", "tract"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 <= value <= 0.5:
                yield f"{name} must be between 0 and 0.5, got {value!r}; try 0.1"

    def _missing_packages(self) -> Iterator[str]:
        needed = ["torchaudio", "jiwer"]
        needed += ["soundfile"] if self.dataset == "librispeech" else []
        missing = [name for name in needed if importlib.util.find_spec(name) is None]
        if missing:
            yield (
                f"the speech task needs {', '.join(missing)}, got no such package; "
                "install fedopt[speech]"
            )

    @property
    def _spec_augment_name(self) -> str:
        if isinstance(self.spec_augment, bool):
            return "paper" if self.spec_augment else "none"
        return self.spec_augment

    @property
    def augmentation(self) -> Augmentation:
        """Give the variations of training features that the options ask for."""
        masks = SPEC_AUGMENTS[self._spec_augment_name]
        return dataclasses.replace(masks, speed=float(self.speed), tract=float(self.tract))

    def synthetic_settings(self) -> SyntheticSettings:
        """Give the size of the synthetic corpus."""
        return SyntheticSettings(
            speakers=self.speakers,
            utterances=self.utterances,
            held_out_speakers=self.held_out_speakers,
            seed=self.seed,
        )

    def corpus(self, tokens: Tokens) -> Corpus:
        """Load the corpus; synthesise it first where it is not in the cache.

        Raises: SettingsError when a folder is missing or cannot be written.
        """
        if self.dataset == "librispeech":
            return librispeech_corpus(self.data_root, tokens)
        with _shown(self.progress) as progress:
            return synthetic_corpus(self.synthetic_settings(), self.cache_dir, progress)


@contextlib.contextmanager
def _shown(progress: bool | Progress) -> Iterator[Progress | None]:
    """Turn the option into a callable; the bar appears when it is first told of progress."""
    if not isinstance(progress, bool):
        yield progress
        return
    if not progress:
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress as Bar

    with contextlib.ExitStack() as stack:
        started: list[Callable[[int, int], None]] = []

        def advance(done: int, total: int) -> None:
            if not started:
                bar = stack.enter_context(Bar(console=Console(stderr=True), transient=True))
                number = bar.add_task("Making synthetic speakers", total=total)
                started.append(lambda now, _: bar.update(number, completed=now))
            started[0](done, total)

        yield advance
