"""Train a speech model on everybody's utterances together, without users or privacy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from experiments.asr.central_batches import EndlessBatches
from experiments.asr.recipes import RECIPES, Recipe, wanted_recipe

if TYPE_CHECKING:
    import torch

    from experiments.asr.batching import Batching, SpeechBatch
    from experiments.asr.sounds import SoundBatch
    from experiments.asr.speech_task import SpeechTask
    from fedopt.central import CentralTraining

Report = Callable[[int, float, dict[str, float]], None]
"""Is told: steps done, mean training loss since the last report, metrics on the split."""

DEFAULT_STEPS, DEFAULT_REPORT_EVERY = 600, 100
_LARGEST_GRADIENT_NORM = 1.0


@dataclasses.dataclass(frozen=True)
class Trained:
    """Hold a trained model and its last metrics on the development split."""

    model: torch.nn.Module
    metrics: dict[str, float]


def train_centrally(
    speech: SpeechTask,
    *,
    steps: int,
    recipe: Recipe = RECIPES["quick"],
    seed: int = 0,
    report_every: int = 100,
    report: Report = lambda step, loss, metrics: None,
    init_from: Path | None = None,
    device: str = "cpu",
    keep: Callable[[torch.nn.Module, int], None] = lambda model, step: None,
) -> Trained:
    """Train on all speakers' utterances together, gradients clipped to norm 1.

    Utterances of different speakers share a batch. init_from: first weights, loaded strictly.
    keep: is given the model and the steps done before each report.
    Raises: SettingsError when the weights do not fit, the recipe's values are out of range, or
    the corpus yields no batch.
    """
    from fedopt.weights import initial_model

    first = str(init_from) if init_from else None
    model = initial_model(speech.model, seed, first, speech.signature()).to(device)

    def kept(step: int, loss: float, metrics: dict[str, float]) -> None:
        keep(model, step)
        report(step, loss, metrics)

    metrics = train_model(
        speech, model, steps=steps, recipe=recipe, seed=seed, report_every=report_every, report=kept
    )
    return Trained(model, metrics)


def train_as_wanted(
    speech: SpeechTask, model: torch.nn.Module, wanted: CentralTraining, report: Report
) -> None:
    """Train a model in place as `fedopt run --strategy central` asks.

    Options: recipe (a name of RECIPES), optimizer, batch_size (utterances; default: as the task
    cuts batches). What else a recipe sets are options of the task, see recipes.central_options.
    Raises: SettingsError with one sentence per mistake.
    """
    recipe, batching = wanted_recipe(wanted, speech.batching)
    train_model(
        speech,
        model,
        steps=wanted.steps or recipe.steps or DEFAULT_STEPS,
        recipe=recipe,
        seed=wanted.seed,
        report_every=wanted.report_every or DEFAULT_REPORT_EVERY,
        report=report,
        batching=batching,
    )


def train_model(
    speech: SpeechTask,
    model: torch.nn.Module,
    *,
    steps: int,
    recipe: Recipe,
    seed: int,
    report_every: int,
    report: Report,
    batching: Batching | None = None,
) -> dict[str, float]:
    """Train a model in place; returns its last metrics on the development split.

    batching: in place of the task's own, which is made for one user. Dropout draws from torch's
    global generator, which is seeded here.
    Raises: SettingsError when the corpus yields no batch.
    """
    import torch

    speech.prepare(next(model.parameters()).device)
    optimizer = _optimizer(recipe, model)
    factor = recipe.rate_factor(steps)
    batches = iter(EndlessBatches(speech.all_training_data(batching), seed))
    losses: list[float] = []
    metrics: dict[str, float] = {}
    torch.manual_seed(seed)
    for step in range(1, steps + 1):
        optimizer.param_groups[0]["lr"] = recipe.learning_rate * factor(step)
        losses.append(_step(speech, model, optimizer, next(batches)))
        if step % report_every == 0 or step == steps:
            metrics = dict(speech.evaluate(model, "dev"))
            report(step, float(np.mean(losses)), metrics)
            losses.clear()
    return metrics


def _optimizer(recipe: Recipe, model: torch.nn.Module) -> torch.optim.Optimizer:
    import torch

    from clients.local_training import trainable
    from strategies.optimizers import build_optimizer

    named = trainable(model)
    if recipe.optimizer == "adam":
        return torch.optim.Adam(named.values(), lr=recipe.learning_rate)
    return build_optimizer(
        recipe.optimizer, named.items(), lr=recipe.learning_rate, **recipe.hyperparameters()
    )


def _step(
    speech: SpeechTask,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: SpeechBatch | SoundBatch,
) -> float:
    """Take one step; a block that layer drop left out keeps a gradient of zero."""
    import torch

    device = next(model.parameters()).device
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    loss = speech.loss(model.train(), speech.move(batch, device))
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), _LARGEST_GRADIENT_NORM)
    optimizer.step()
    return loss.item()
