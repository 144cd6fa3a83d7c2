"""Check the hyperparameters of server optimizers: their values and, by signature, their names."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

Rule = tuple[Callable[[Any], bool], str]


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _at_least_zero(value: Any) -> bool:
    return _number(value) and value >= 0


def _above_zero(value: Any) -> bool:
    return _number(value) and value > 0


def _fraction(value: Any) -> bool:
    return _number(value) and 0 <= value < 1


def _none_or_at_least_zero(value: Any) -> bool:
    return value is None or _at_least_zero(value)


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


NOT_NEGATIVE: Rule = (_at_least_zero, "a finite number >= 0")
POSITIVE: Rule = (_above_zero, "a finite number > 0")
FRACTION: Rule = (_fraction, "a number from 0 up to, not including, 1")
OPTIONAL: Rule = (_none_or_at_least_zero, "a finite number >= 0, or none")
FLAG: Rule = (_flag, "true or false")

RULES: Mapping[str, Rule] = {
    "lr": NOT_NEGATIVE,
    "lr_1d": OPTIONAL,
    "beta1": FRACTION,
    "beta2": FRACTION,
    "momentum": FRACTION,
    "tau": POSITIVE,
    "v_init": OPTIONAL,
    "eps": NOT_NEGATIVE,
    "weight_decay": NOT_NEGATIVE,
    "trust_coefficient": POSITIVE,
    "relative_to": POSITIVE,
    "noise_std": NOT_NEGATIVE,
    "floor_kappa": NOT_NEGATIVE,
    "scale_floor": POSITIVE,
    "bias_correction": FLAG,
    "skip_1d": FLAG,
    "grad_averaging": FLAG,
    "paper_init": FLAG,
    "decay": (lambda value: value in ("paper", "decoupled"), '"paper" or "decoupled"'),
    "scale": (
        lambda value: value in ("unit", "sqrt_d", "param"),
        '"unit", "sqrt_d" or "param"',
    ),
}


def check_values(
    hyperparameters: Mapping[str, Any], rules: Mapping[str, Rule] = RULES
) -> list[str]:
    """Return one sentence per hyperparameter whose value cannot be used."""
    problems = []
    for name, value in hyperparameters.items():
        fits, wanted = rules.get(name, (None, ""))
        if fits is not None and not fits(value):
            problems.append(f"{name} must be {wanted}, got {value!r}; correct it or leave it out")
    return problems


def allowed_names(factory: Callable[..., Any], hidden: Collection[str] = ()) -> list[str]:
    """Return the keyword names that a constructor or function declares, without ``hidden``."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = list(inspect.signature(factory).parameters.values())
    return [
        parameter.name
        for parameter in parameters
        if parameter.kind in kinds and parameter.name != "params" and parameter.name not in hidden
    ]


def check_names(owner: str, given: Collection[str], allowed: Collection[str]) -> list[str]:
    """Return one sentence per hyperparameter name that its owner does not have."""
    listed = ", ".join(sorted(allowed))
    return [
        f"{owner} has no setting {name!r}; use some of: {listed}"
        for name in given
        if name not in allowed
    ]
