"""Train the speech model in one place, without users or privacy: reference runs and seed models.

python -m experiments.asr.central --dataset synthetic --steps 400 --output seed.safetensors

`fedopt run --strategy central` does the same with the settings of a run.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.asr.options import DATASETS, SpeechOptions
from experiments.asr.recipes import DEFAULT_BATCH, OPTIMIZERS, RECIPES, Recipe, wanted_recipe
from experiments.asr.task import SpeechTask, task
from privacy.errors import SettingsError

if TYPE_CHECKING:
    import torch

    from experiments.asr.batching import Batching, SpeechBatch
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
) -> Trained:
    """Train on all speakers' utterances together, gradients clipped to norm 1.

    Utterances of different speakers share a batch. init_from: first weights, loaded strictly.
    Raises: SettingsError when the weights do not fit, the recipe's values are out of range, or
    the corpus yields no batch.
    """
    from fedopt.weights import initial_model

    model = initial_model(speech.model, seed, str(init_from) if init_from else None).to(device)
    metrics = train_model(
        speech, model, steps=steps, recipe=recipe, seed=seed, report_every=report_every,
        report=report,
    )  # fmt: skip
    return Trained(model, metrics)


def train_as_wanted(
    speech: SpeechTask, model: torch.nn.Module, wanted: CentralTraining, report: Report
) -> None:
    """Train a model in place as `fedopt run --strategy central` asks.

    Options: recipe (a name of RECIPES), optimizer, batch_size (utterances; default 8).
    Raises: SettingsError with one sentence per mistake.
    """
    recipe, batching = wanted_recipe(wanted)
    train_model(
        speech,
        model,
        steps=wanted.steps or DEFAULT_STEPS,
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

    optimizer = _optimizer(recipe, model)
    factor = recipe.rate_factor(steps)
    batches = _endless_batches(speech, np.random.default_rng(seed), batching)
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
    batch: SpeechBatch,
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


def _endless_batches(
    speech: SpeechTask, generator: np.random.Generator, batching: Batching | None
) -> Iterator[SpeechBatch]:
    everyone = speech.all_training_data(batching)
    while True:
        empty = True
        for batch in everyone.batches(generator):
            empty = False
            yield batch
        if empty:
            raise SettingsError(
                "the corpus must hold training speech that can be read, got none; see the warnings"
            )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; give the exit code: 0 finished, 2 bad settings."""
    given = _parser().parse_args(arguments)
    try:
        recipe = _recipe(given)
        _run(given, recipe)
    except SettingsError as problem:
        sys.stderr.write(f"{problem}\n")
        return problem.exit_code
    return 0


def _recipe(given: argparse.Namespace) -> Recipe:
    changes = {
        name: getattr(given, name)
        for name in ("learning_rate", "optimizer")
        if getattr(given, name) is not None
    }
    return dataclasses.replace(RECIPES[given.recipe], **changes)


def _run(given: argparse.Namespace, recipe: Recipe) -> None:
    speech = task(**_options(given, recipe))
    start = time.process_time()

    def report(step: int, loss: float, metrics: dict[str, float]) -> None:
        factor = speech.latest.real_time_factor if speech.latest else 0.0
        sys.stdout.write(
            f"step {step}  training loss {loss:.3f}  dev loss {metrics['loss']:.3f}  "
            f"WER {metrics['wer']:.3f}  CER {metrics['cer']:.3f}  "
            f"real-time factor {factor:.4f}  CPU seconds {time.process_time() - start:.0f}\n"
        )
        sys.stdout.flush()

    trained = train_centrally(
        speech,
        steps=given.steps,
        recipe=recipe,
        seed=given.seed,
        report_every=given.report_every,
        report=report,
        init_from=Path(given.init_from) if given.init_from else None,
        device=given.device,
    )
    if given.output:
        from experiments.asr.seed_models import save_model

        about = {"recipe": given.recipe, "steps": str(given.steps), "model": given.model}
        about |= {"characters": speech.tokens.characters, "seed": str(given.seed)}
        save_model(trained.model, Path(given.output), about)


def _options(given: argparse.Namespace, recipe: Recipe) -> dict[str, Any]:
    """Collect the task's options: the recipe's, then flags, then --option."""
    options: dict[str, Any] = {
        name: getattr(recipe, name)
        for name in ("batch_seconds", "dropout", "layer_drop")
        if getattr(recipe, name)
    }
    flags = ["dataset", "data_root", "model", "batch_size", "dropout", "spec_augment"]
    flags += ["speed", "tract"]
    options |= {name: getattr(given, name) for name in flags if getattr(given, name) is not None}
    known = {field.name for field in dataclasses.fields(SpeechOptions)}
    problems = []
    for text in given.option:
        name, equals, value = text.partition("=")
        if not equals or name.replace("-", "_") not in known:
            problems.append(f"option must be NAME=VALUE of the speech task, got {text!r}")
            continue
        try:
            options[name.replace("-", "_")] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            options[name.replace("-", "_")] = value
    if problems:
        raise SettingsError(problems)
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", choices=DATASETS, default="synthetic")
    parser.add_argument("--data-root")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--recipe", choices=RECIPES, default="quick")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, help="in place of the recipe's")
    parser.add_argument("--learning-rate", type=float, help="in place of the recipe's")
    parser.add_argument("--steps", type=int, default=DEFAULT_STEPS)
    parser.add_argument("--batch-size", type=int, default=DEFAULT_BATCH)
    parser.add_argument("--dropout", type=float)
    parser.add_argument("--spec-augment", default="none")
    parser.add_argument("--speed", type=float, default=0.0)
    parser.add_argument("--tract", type=float, default=0.0)
    parser.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="of the speech task"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--init-from", help="safetensors file with the first weights")
    parser.add_argument("--output", help="safetensors file for --init-from of fedopt run")
    parser.add_argument("--report-every", type=int, default=DEFAULT_REPORT_EVERY)
    parser.add_argument("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    sys.exit(main())
