"""Hold the published recipes of central training: LARS, its rate and how the rate decays."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from experiments.asr.batching import Batching
from privacy.errors import SettingsError

if TYPE_CHECKING:
    from fedopt.central import CentralTraining

DEFAULT_BATCH = 8
"""Utterances of a batch of central training, which one user's batches are too small for."""

OPTIMIZERS = ("adam", "fedlars", "fedlamb")
"""What central training offers; the latter two are the server optimizers of those names."""


@dataclass(frozen=True)
class Recipe:
    """Say how the weights move over the steps of a central training.

    optimizer: "adam" (rate rises over 100 steps and falls over the last half), or one of
    `OPTIMIZERS` at a rate that is kept up to step `start`, then multiplied by `factor` for every
    `every` steps: all along ("exponential"), at once ("step"), or never ("constant").
    batch_seconds, dropout, layer_drop, precision: what the publication sets beside; 0 and None: not
    set. steps: of the whole training; 0: no published recipe.
    Reference: arXiv 2310.00098, appendix on central training, and its published code.
    """

    learning_rate: float = 2e-3
    optimizer: str = "adam"
    decay: Literal["constant", "exponential", "step"] = "constant"
    start: int = 0
    every: int = 50_000
    factor: float = 0.5
    batch_seconds: float = 0.0
    dropout: float | None = None
    layer_drop: float | None = None
    precision: str = "bfloat16"
    steps: int = 0

    def rate_factor(self, rounds: int) -> Callable[[int], float]:
        """Give the factor on the rate by step, counted from 1, of a training of `rounds` steps."""
        from strategies.schedules import build_schedule

        if self.optimizer == "adam":
            return lambda step: ramp(step, rounds)
        if self.decay == "constant":
            return lambda step: 1.0
        if self.decay == "exponential":
            return build_schedule(
                "exponential",
                rounds=rounds,
                start=self.start,
                transition=self.every,
                factor=self.factor,
            )
        stairs = build_schedule("step", rounds=rounds, every=self.every, factor=self.factor)
        # The first fall is at `start`; the schedule's own is after `every` steps.
        return lambda step: stairs(step - self.start + self.every)

    def hyperparameters(self) -> dict[str, float]:
        """Give the further settings of the optimizer."""
        if self.optimizer == "fedlars":
            return {"momentum": 0.9, "trust_coefficient": 0.001, "weight_decay": 0.0, "eps": 1e-8}
        return {}

    def task_options(self) -> dict[str, Any]:
        """Give the options of the speech task that go with the recipe, where nobody says else."""
        if not self.steps:
            return {"batch_size": DEFAULT_BATCH}
        options = {
            "model": "base",
            "spec_augment": "paper",
            "loss": "utterance",
            "pad_text": True,
            "precision": self.precision,
            "pad_seconds": 5.0,
            "batch_seconds": self.batch_seconds,
            "dropout": self.dropout,
            "layer_drop": self.layer_drop,
        }
        return {name: value for name, value in options.items() if value is not None}


_SHORT, _LONG = 300_000, 600_000


def ramp(step: int, steps: int) -> float:
    """Give the share of the rate at a step: warm-up, plateau, linear fall to zero."""
    rise = min(1.0, step / min(100, steps))
    fall = min(1.0, 2.0 * (steps - step + 1) / steps)
    return min(rise, fall)


def _lars(
    start: int,
    rate: float = 0.5,
    decay: Literal["exponential", "step"] = "step",
    precision: str = "bfloat16",
) -> Recipe:
    steps = _LONG if start >= 250_000 else _SHORT
    return Recipe(
        rate, "fedlars", decay, start, batch_seconds=240.0, precision=precision, steps=steps
    )


RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "quick": Recipe(),
        "ls": _lars(250_000, decay="exponential"),
        "ls-100": _lars(330_000),
        "cv-en": _lars(330_000, precision="float32"),
        "ls-100-to-860": _lars(150_000),
        "ls-to-cv": _lars(150_000),
        "ls-100-to-cv": _lars(40_000),
        "cv-to-ls": _lars(250_000, decay="exponential"),
        "cv-en-to-ls": _lars(100_000),
        "cv-en-10": replace(
            _lars(100_000, decay="exponential"),
            every=25_000,
            batch_seconds=216.0,
            dropout=0.4,
            layer_drop=0.4,
        ),
        "cv-en-10-to-90": _lars(150_000, rate=0.2),
        "cv-de": _lars(150_000, rate=0.2),
        "cv-fr": _lars(200_000),
    }
)
"""By name of the published configuration; "quick" is ours, for small models in minutes.

A rate that is "halved" falls in steps of 50,000. Published batches are those seconds on each of 8
GPUs; here one device takes them. Published are 300,000 to 600,000 steps; which recipe took how many
is our reading: those whose rate falls late took the most.
"""


def central_options(hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """Give the task options that a central training takes where nobody names others.

    hyperparameters: those of the training, of which recipe is read; an unknown recipe has none.
    """
    recipe = RECIPES.get(str(hyperparameters.get("recipe", "quick")))
    return {} if recipe is None else recipe.task_options()


def wanted_recipe(wanted: CentralTraining, own: Batching) -> tuple[Recipe, Batching]:
    """Read the options of a central training: recipe, optimizer, batch_size (utterances).

    own: how the task cuts batches, which holds where batch_size is not given; its seconds are those
    of the recipe where it has none.
    Raises: SettingsError with one sentence per mistake.
    """
    options = dict(wanted.options)
    name, optimizer = options.pop("recipe", "quick"), options.pop("optimizer", None)
    size = options.pop("batch_size", None)
    if problems := [*_unknown(options), *_wrong(name, optimizer or "adam", size)]:
        raise SettingsError(problems)
    recipe = RECIPES[name]
    if optimizer:
        recipe = replace(recipe, optimizer=optimizer)
    if wanted.learning_rate is not None:
        recipe = replace(recipe, learning_rate=wanted.learning_rate)
    if size:
        return recipe, replace(own, size=int(size), seconds=0.0)
    return recipe, replace(own, seconds=own.seconds or recipe.batch_seconds)


def _unknown(options: Mapping[str, Any]) -> Iterator[str]:
    for key in options:
        yield (
            "hyperparameters of central speech training are recipe, optimizer and batch_size, "
            f"got {key}; leave it out"
        )


def _wrong(name: Any, optimizer: Any, size: Any) -> Iterator[str]:
    if name not in RECIPES:
        yield f"recipe must be one of {', '.join(RECIPES)}, got {name!r}; choose one"
    if optimizer not in OPTIMIZERS:
        yield f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {optimizer!r}; choose one"
    whole = type(size) in (int, float) and size >= 1 and size == int(size)
    if size is not None and not whole:
        yield f"batch_size must be a whole number of at least 1, got {size!r}; try {DEFAULT_BATCH}"
