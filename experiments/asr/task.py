"""Build the speech task from options: its corpus, model, tokens, batches and expected cost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from experiments.asr.corpora import Corpus, Utterance
from experiments.asr.options import SpeechOptions
from experiments.asr.published_corpora import published_speech
from experiments.asr.speech_task import SpeechTask
from privacy.errors import SettingsError

if TYPE_CHECKING:
    import torch

    from experiments.asr.cost import TrainingCost

__all__ = ["SpeechTask", "central_options", "outline", "task"]


def task(**options: Any) -> SpeechTask:
    """Build the speech task; the options are the fields of SpeechOptions.

    Raises: SettingsError with one sentence per mistake; TypeError for an unknown option.
    """
    chosen = SpeechOptions(**options)
    return _task_on(chosen, chosen.corpus())


def central_options(hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """Give the options that a central training takes where nobody names others."""
    from experiments.asr import recipes

    return recipes.central_options(hyperparameters)


def outline(**options: Any) -> SpeechTask:
    """Build the task without its corpus, for plans: no users, no splits, but model and cost.

    Raises: SettingsError with one sentence per mistake; TypeError for an unknown option.
    """

    def nothing(utterance: Utterance) -> NDArray[np.float32]:
        raise SettingsError(f"the outline of a task has no audio, got {utterance.key}")

    chosen = SpeechOptions(**options)
    return _task_on(chosen, Corpus(f"{chosen.dataset}, not looked at", (), nothing))


def _task_on(chosen: SpeechOptions, corpus: Corpus) -> SpeechTask:
    tokens = chosen.tokens()
    return SpeechTask(
        corpus,
        lambda labels: _build_model(chosen, labels),
        tokens=tokens,
        batching=chosen.batching,
        augmentation=chosen.augmentation,
        half_precision=chosen.precision == "bfloat16",
        read_threads=chosen.read_threads,
        features=chosen.features,
        loss_per=chosen.loss,
        search=chosen.beam_search,
        cost=_cost(chosen, tokens.labels),
    )


def _build_model(chosen: SpeechOptions, labels: int) -> torch.nn.Module:
    from experiments.asr.model import build_model, compile_blocks
    from experiments.asr.seed_models import load_body

    model = build_model(chosen.model, labels, chosen.model_changes)
    if chosen.body_from is not None:
        load_body(model, Path(chosen.body_from))
    if chosen.compiled:
        compile_blocks(model)
    return model


def _cost(chosen: SpeechOptions, labels: int) -> TrainingCost | None:
    """Say what training costs; None for foreign models, whose arithmetic nobody counted."""
    from experiments.asr.cost import TrainingCost
    from experiments.asr.model import PRESETS

    if chosen.model not in PRESETS:
        return None
    return TrainingCost(
        chosen.model_changes.apply(PRESETS[chosen.model]),
        labels,
        chosen.batching,
        chosen.precision == "bfloat16",
        published_speech(
            chosen.dataset,
            subsets=chosen.subsets,
            language=chosen.language,
            user_part=chosen.user_part,
        ),
    )
