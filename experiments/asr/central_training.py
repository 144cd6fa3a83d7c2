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
    from fedopt.central_state import TrainingState

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
        go_on_from=wanted.go_on_from,
        keep=wanted.keep,
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
    go_on_from: TrainingState | None = None,
    keep: Callable[[TrainingState], None] = lambda state: None,
) -> dict[str, float]:
    """Train a model in place; returns its last metrics on the development split.

    batching: in place of the task's own, which is made for one user. Dropout draws from torch's
    global generator, which is seeded here. go_on_from: where an interrupted training stood; what
    its epoch had used is not read again. keep: is given the state before each report.
    Raises: SettingsError when the corpus yields no batch, or is not that of the interrupted
    training; CheckpointError when the state is of another model or optimizer.
    """
    from fedopt.central_state import state_of

    speech.prepare(next(model.parameters()).device)
    optimizer = _optimizer(recipe, model)
    factor = recipe.rate_factor(steps)
    place = go_on_from.place if go_on_from else None
    batches = EndlessBatches(speech.all_training_data(batching), seed, place)
    losses: list[float] = []
    metrics: dict[str, float] = {}
    done = _begin(seed, go_on_from, model, optimizer)
    for step, batch in zip(range(done + 1, steps + 1), batches, strict=False):
        optimizer.param_groups[0]["lr"] = recipe.learning_rate * factor(step)
        losses.append(_step(speech, model, optimizer, batch))
        if step % report_every == 0 or step == steps:
            metrics = dict(speech.evaluate(model, "dev"))
            keep(state_of(step, model, optimizer, batches.place()))
            report(step, float(np.mean(losses)), metrics)
            losses.clear()
    return metrics


def _begin(
    seed: int,
    go_on_from: TrainingState | None,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
) -> int:
    """Seed torch's generators, or set all to where a training stood; returns the steps done."""
    import torch

    from fedopt.central_state import put_back

    torch.manual_seed(seed)
    if go_on_from is None:
        return 0
    put_back(go_on_from, model, optimizer)
    return go_on_from.step


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
