"""Train the speech model in one place from the command line: reference runs and seed models.

python -m experiments.asr.central --dataset synthetic --steps 400 --output seed.safetensors

`fedopt run --strategy central` does the same with the settings of a run, and goes on with --resume
where it was interrupted; here only the weights of the last report are kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.asr.central_training import (
    DEFAULT_REPORT_EVERY,
    DEFAULT_STEPS,
    train_centrally,
)
from experiments.asr.options import DATASETS, SpeechOptions
from experiments.asr.recipes import OPTIMIZERS, RECIPES, Recipe
from experiments.asr.seed_models import save_model
from experiments.asr.task import task
from privacy.errors import SettingsError

if TYPE_CHECKING:
    import torch


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
    options = _options(given, recipe)
    speech = task(**options)
    start = time.process_time()

    def report(step: int, loss: float, metrics: dict[str, float]) -> None:
        factor = speech.latest.real_time_factor if speech.latest else 0.0
        names = {"loss": "dev loss", "wer": "WER", "cer": "CER"}
        measured = [f"{said} {metrics[key]:.3f}" for key, said in names.items() if key in metrics]
        sys.stdout.write(
            f"step {step}  training loss {loss:.3f}  "
            f"{'  '.join(measured) or 'dev cannot be read'}  "
            f"real-time factor {factor:.4f}  CPU seconds {time.process_time() - start:.0f}\n"
        )
        sys.stdout.flush()

    def keep(model: torch.nn.Module, step: int) -> None:
        if given.output:
            about = {
                "recipe": given.recipe,
                "steps": str(step),
                "model": options.get("model", "tiny"),
                "seed": str(given.seed),
            }
            save_model(model, Path(given.output), about, speech.signature())

    train_centrally(
        speech,
        steps=given.steps or recipe.steps or DEFAULT_STEPS,
        recipe=recipe,
        seed=given.seed,
        report_every=given.report_every,
        report=report,
        init_from=Path(given.init_from) if given.init_from else None,
        device=given.device,
        keep=keep,
    )


def _options(given: argparse.Namespace, recipe: Recipe) -> dict[str, Any]:
    """Collect the task's options: the recipe's, then flags, then --option."""
    options = recipe.task_options()
    flags = ["dataset", "data_root", "model", "batch_size", "dropout", "spec_augment"]
    flags += ["speed", "tract"]
    options |= {name: getattr(given, name) for name in flags if getattr(given, name) is not None}
    if given.batch_size is not None:
        options.pop("batch_seconds", None)
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
    parser.add_argument("--model", help="in place of the recipe's; quick: tiny")
    parser.add_argument("--recipe", choices=RECIPES, default="quick")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, help="in place of the recipe's")
    parser.add_argument("--learning-rate", type=float, help="in place of the recipe's")
    parser.add_argument("--steps", type=int, help="in place of the recipe's; quick: 600")
    parser.add_argument("--batch-size", type=int, help="in place of the recipe's seconds or 8")
    parser.add_argument("--dropout", type=float)
    parser.add_argument("--spec-augment", help="in place of the recipe's; quick: none")
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
