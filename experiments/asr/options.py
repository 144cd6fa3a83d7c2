"""Check every option of the speech task at once, and build the corpus they name."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.asr.augmentation import PAPER_SPEC_AUGMENT, Augmentation
from experiments.asr.batching import Batching
from experiments.asr.common_voice import common_voice_corpus
from experiments.asr.corpora import Corpus
from experiments.asr.decoding import Decoding
from experiments.asr.librispeech import librispeech_corpus
from experiments.asr.loss import MEANS
from experiments.asr.synthetic_corpus import (
    Progress,
    SyntheticSettings,
    default_cache_dir,
    synthetic_corpus,
)
from experiments.asr.tokens import Tokens, token_characters
from experiments.asr.users import cap_users, check_part, deal_evenly, keep_part
from privacy.errors import SettingsError

if TYPE_CHECKING:
    from experiments.asr.beam_search import BeamSearch
    from experiments.asr.layers import Norm, Positions
    from experiments.asr.model import ModelChanges

DATASETS = ("synthetic", "librispeech", "common-voice")
PRECISIONS = ("float32", "bfloat16")
FEATURES = ("auto", "ahead", "device")

SPEC_AUGMENTS = {
    "none": Augmentation(),
    "light": Augmentation(frequency_masks=2, frequency_width=16, time_masks=2),
    "paper": PAPER_SPEC_AUGMENT,
}


@dataclass(frozen=True)
class SpeechOptions:
    """Say on what speech which model is trained, and how.

    Corpus. dataset: "synthetic" (made by the project), "librispeech" or "common-voice" (folders
    below data_root). speakers, utterances (of each), held_out_speakers (of dev and of test each),
    seed: size and number of the synthetic corpus. subsets: of LibriSpeech; none: all. language: of
    Common Voice, and of the token set. cache_dir: where synthetic speech and indexes are kept.
    read_threads: how many read audio ahead. features: computed "ahead" by them and kept, on the
    "device" that trains, or "auto": there where it is a GPU. progress: show a bar on stderr while
    speech is made, or a callable told of it.
    Users. user_part: "all", "seed-10" (a tenth of the users), "fl-90" (the others), or any other
    share. iid: deal all utterances evenly to the users. most_user_seconds: of one user; 0: all.
    Text. characters: the token set, in place of the language's. transliterate: write letters
    without a label as plain ones, and drop what has no such form. pad_text: begin and end what the
    model is taught to write with a space.
    Model. model: a preset of experiments.asr.model or MODULE:FACTORY. dropout, layer_drop,
    positions ("cape", "sinusoidal", "convolution"), norm ("pre", "post"): replace the preset's.
    body_from: safetensors file of a model with other characters, whose tensors outside the head
    become the first weights; the head is drawn anew.
    Training. batch_size: utterances per local batch; or batch_seconds, most_padding, pad_seconds:
    see Batching. loss: the mean per "character" or per "utterance". spec_augment: "none", "light",
    "paper", or True for "paper". speed, tract: largest relative stretch of time and of the
    frequency axis. precision: "float32", or "bfloat16"
    for the arithmetic of forward passes (weights and loss stay float32). compiled: translate the
    blocks by torch.compile. checkpoint_activations: less memory, more arithmetic.
    Evaluation. decoder: "greedy" writes the best label of every step, "beam" the most probable text
    of a search, as lexicon (a file of one word a line) and language_model (a file of KenLM) allow;
    beam_size, language_model_weight, word_score: see BeamSearch.
    Raises: SettingsError with one sentence per mistake.
    """

    dataset: str = "synthetic"
    data_root: str | Path | None = None
    speakers: int = 120
    utterances: int = 20
    held_out_speakers: int = 12
    seed: int = 0
    subsets: Sequence[str] = ()
    language: str = "en"
    cache_dir: str | Path | None = None
    read_threads: int = 2
    features: str = "auto"
    progress: bool | Progress = True
    user_part: str = "all"
    iid: bool = False
    most_user_seconds: float = 0.0
    characters: str | None = None
    transliterate: bool = False
    pad_text: bool = False
    model: str = "tiny"
    dropout: float | None = None
    layer_drop: float | None = None
    positions: Positions | None = None
    norm: Norm | None = None
    body_from: str | Path | None = None
    batch_size: int = 2
    batch_seconds: float = 0.0
    most_padding: float = 0.5
    pad_seconds: float = 0.0
    loss: str = "character"
    spec_augment: bool | str = False
    speed: float = 0.0
    tract: float = 0.0
    precision: str = "float32"
    compiled: bool = False
    checkpoint_activations: bool = False
    decoder: str = "greedy"
    beam_size: int = 50
    lexicon: str | Path | None = None
    language_model: str | Path | None = None
    language_model_weight: float = 2.0
    word_score: float = 0.0

    def __post_init__(self) -> None:
        """Refuse every impossible option, all in one error."""
        from experiments.asr.model import check_model

        problems = [*self._wrong_choices(), *self._wrong_numbers(), *self._missing_packages()]
        for check in (
            lambda: check_model(self.model, self.model_changes),
            lambda: check_part(self.user_part),
            self.tokens,
            lambda: self.beam_search,
            self.synthetic_settings,
        ):
            try:
                check()
            except SettingsError as problem:
                problems.extend(each for each in problem.problems if each not in problems)
        if problems:
            raise SettingsError(problems)

    def _wrong_choices(self) -> Iterator[str]:
        for name, given, allowed in (
            ("dataset", self.dataset, DATASETS),
            ("precision", self.precision, PRECISIONS),
            ("features", self.features, FEATURES),
            ("loss", self.loss, MEANS),
        ):
            if given not in allowed:
                yield f"{name} must be one of {', '.join(allowed)}, got {given!r}"
        for name in ("iid", "transliterate", "pad_text", "compiled"):
            if not isinstance(getattr(self, name), bool):
                yield f"{name} must be true or false, got {getattr(self, name)!r}"
        if self._spec_augment_name not in SPEC_AUGMENTS:
            yield (
                f"spec_augment must be true, false or one of {', '.join(SPEC_AUGMENTS)}, "
                f"got {self.spec_augment!r}"
            )
        if isinstance(self.subsets, str) or not all(isinstance(each, str) for each in self.subsets):
            yield f"subsets must be a list of folder names, got {self.subsets!r}"
        elif self.subsets and self.dataset != "librispeech":
            yield f"subsets are for the dataset librispeech, got them for {self.dataset}; leave out"
        if self.body_from is not None and not Path(self.body_from).is_file():
            yield f"body_from must be an existing file, got {str(self.body_from)!r}; correct it"

    def _wrong_numbers(self) -> Iterator[str]:
        for name, least in (("batch_size", 1), ("read_threads", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                yield f"{name} must be a whole number of at least {least}, got {value!r}; try 2"
        for name, most, advice in (
            ("speed", 0.5, "0.1"),
            ("tract", 0.5, "0.1"),
            ("most_padding", 1.0, "0.5"),
            ("batch_seconds", 86400.0, "120"),
            ("pad_seconds", 30.0, "5"),
            ("most_user_seconds", 1e9, "3600"),
        ):
            value = getattr(self, name)
            if (
                isinstance(value, bool)
                or not isinstance(value, int | float)
                or not 0 <= value <= most
            ):
                yield f"{name} must be between 0 and {most:g}, got {value!r}; try {advice}"

    def _missing_packages(self) -> Iterator[str]:
        needed = ["torchaudio", "jiwer"]
        needed += [] if self.dataset == "synthetic" else ["soundfile"]
        missing = [name for name in needed if importlib.util.find_spec(name) is None]
        if missing:
            yield (
                f"the speech task needs {', '.join(missing)}, got no such package; "
                "install fedopt[speech]"
            )

    @property
    def model_changes(self) -> ModelChanges:
        """Give what differs from the model preset."""
        from experiments.asr.model import ModelChanges

        return ModelChanges(
            self.dropout, self.layer_drop, self.positions, self.norm, self.checkpoint_activations
        )

    def tokens(self) -> Tokens:
        """Give the token set.

        Raises: SettingsError when the language has none or the characters are no token set.
        """
        characters = token_characters(self.language, self.characters)
        return Tokens(characters, self.transliterate, self.pad_text)

    @functools.cached_property  # its lexicon is read to check it, and not again to use it
    def beam_search(self) -> BeamSearch | None:
        """Give the search that writes text in evaluations; None for the best label of every step.

        Raises: SettingsError when its options are wrong or its lexicon cannot be used.
        """
        decoding = Decoding(
            self.decoder,
            self.beam_size,
            self.lexicon,
            self.language_model,
            self.language_model_weight,
            self.word_score,
        )
        return decoding.search(self.tokens())

    @property
    def batching(self) -> Batching:
        """Give how a user's utterances are cut into batches."""
        return Batching(
            self.batch_size, float(self.batch_seconds), self.most_padding, self.pad_seconds
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

    def corpus(self) -> Corpus:
        """Load the corpus, synthesised or indexed first where it is not in the cache.

        Raises: SettingsError when a folder is missing or cannot be written.
        """
        corpus = keep_part(self._whole_corpus(), self.user_part)
        if self.iid:
            corpus = deal_evenly(corpus)
        return cap_users(corpus, self.most_user_seconds) if self.most_user_seconds else corpus

    def _whole_corpus(self) -> Corpus:
        cache_dir = Path(self.cache_dir).expanduser() if self.cache_dir else default_cache_dir()
        if self.dataset == "librispeech":
            return librispeech_corpus(
                self.data_root, self.tokens(), subsets=self.subsets, cache_dir=cache_dir
            )
        if self.dataset == "common-voice":
            return common_voice_corpus(
                self.data_root, self.tokens(), language=self.language, cache_dir=cache_dir
            )
        with _shown(self.progress) as progress:
            return synthetic_corpus(self.synthetic_settings(), cache_dir, progress)


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
