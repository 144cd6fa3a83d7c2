"""Build server optimizers of other libraries by name, or say by name why one cannot serve."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from privacy.errors import SettingsError
from strategies.hyperparameters import allowed_names, check_names

TORCH: Mapping[str, type[torch.optim.Optimizer]] = MappingProxyType(
    {
        "adadelta": torch.optim.Adadelta,
        "adafactor": torch.optim.Adafactor,
        "adagrad": torch.optim.Adagrad,
        "adam": torch.optim.Adam,
        "adamax": torch.optim.Adamax,
        "adamw": torch.optim.AdamW,
        "asgd": torch.optim.ASGD,
        "nadam": torch.optim.NAdam,
        "rmsprop": torch.optim.RMSprop,
        "rprop": torch.optim.Rprop,
        "sgd": torch.optim.SGD,
    }
)

# Checked one by one in tests: they step on .grad alone, from the first round, and resume exactly.
PYTORCH_OPTIMIZER = (
    "adabelief",
    "adamp",
    "adan",
    "ademamix",
    "came",
    "laprop",
    "lion",
    "qhadam",
    "sgdsai",
    "stableadamw",
    "stablespam",
)
# These want their parameters in two groups: matrices, and the rest under AdamW.
MUON_FAMILY = ("adamuon", "muon", "normuon")

_HESSIAN = "it needs second derivatives, and a server has only the aggregated update"
_LOSS = "it needs to evaluate the loss itself, and a server has only the aggregated update"
_MODEL = "it needs the model, hooks or further arguments, not only the aggregated update"
_IDLE = "it leaves weights unmoved in its first rounds, which would spend privacy for nothing"
_UNSAFE = "its state cannot be saved and loaded safely"
_TWO_POINTS = "it holds two sets of weights, and only one of them is sent to the clients"
_NETWORK = "it needs a process group"
_DIFFERS = "the library's form differs from the paper"

REFUSED: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("adahessian", "sophia", "sophiah"), _HESSIAN),
        **dict.fromkeys(("lbfgs", "alig"), _LOSS),
        **dict.fromkeys(
            ("adalomo", "adammini", "bsam", "lomo", "lorarite", "ranger21", "sparseadam"), _MODEL
        ),
        **dict.fromkeys(("adopt", "avagrad", "dadaptsgd", "magma", "radam", "sara", "soap"), _IDLE),
        "adashift": f"{_IDLE}, and {_UNSAFE}",
        **dict.fromkeys(("conda", "scalableshampoo", "scion", "scionlight"), _UNSAFE),
        **dict.fromkeys(("schedulefreeadamw", "schedulefreeradam", "schedulefreesgd"), _TWO_POINTS),
        **dict.fromkeys(("demo", "distributedmuon"), _NETWORK),
        "lamb": f'{_DIFFERS}; use "fedlamb"',
        "lars": f'{_DIFFERS} on vectors; use "fedlars"',
        "novograd": f'{_DIFFERS} in some settings; use "fednovograd"',
        "yogi": f'{_DIFFERS}; use "fedyogi"',
    }
)

# maximize would turn the sign of the contract around; the others need a GPU graph or autograd.
_HIDDEN = ("lr", "maximize", "capturable", "differentiable")


def foreign_names() -> list[str]:
    """Return the names that `build_foreign` knows, sorted."""
    return sorted([*TORCH, *PYTORCH_OPTIMIZER, *MUON_FAMILY])


def build_foreign(
    name: str,
    params: Sequence[Tensor] | Sequence[tuple[str, Tensor]],
    lr: float,
    hyperparameters: Mapping[str, Any],
) -> torch.optim.Optimizer:
    """Build an optimizer of torch.optim or pytorch-optimizer with its own hyperparameter names.

    The Muon family gets the tensors of two and more dimensions; the others go to its AdamW part,
    whose rate is adamw_lr.

    Raises: SettingsError when the name is unknown or refused, when the library is missing, or
    when it does not take the hyperparameters.
    """
    factory: Any = TORCH.get(name) or _load(name)
    problems = check_names(name, hyperparameters, allowed_names(factory, _HIDDEN))
    if problems:
        raise SettingsError(problems)
    defaults = inspect.signature(factory).parameters
    values = {key: _fit(value, defaults[key].default) for key, value in hyperparameters.items()}
    groups: Any = _muon_groups(params) if name in MUON_FAMILY else params
    try:
        built: torch.optim.Optimizer = factory(groups, lr=lr, **values)
    except Exception as problem:  # Each library has exceptions of its own for a bad value.
        raise SettingsError(f"{name} does not take these hyperparameters: {problem}") from problem
    return built


def _fit(value: Any, default: Any) -> Any:
    """Turn what a settings file can hold into what the libraries expect."""
    if isinstance(value, list):
        return tuple(value)
    whole = isinstance(default, int) and not isinstance(default, bool)
    return int(value) if whole and isinstance(value, float) and value.is_integer() else value


def _load(name: str) -> Any:
    if name in REFUSED:
        raise SettingsError(f"{name} cannot be a server optimizer: {REFUSED[name]}")
    if name not in (*PYTORCH_OPTIMIZER, *MUON_FAMILY):
        raise SettingsError(
            f"unknown server optimizer {name!r}; other libraries' names that work are "
            f"{', '.join(foreign_names())}"
        )
    try:
        from pytorch_optimizer import load_optimizer
    except ImportError as problem:
        raise SettingsError(
            f"{name} comes from the library pytorch-optimizer, which is not installed; "
            "install fedopt[optimizers]"
        ) from problem
    return load_optimizer(name)


def _muon_groups(
    params: Sequence[Tensor] | Sequence[tuple[str, Tensor]],
) -> list[dict[str, Any]]:
    """Part the parameters into matrices, which are orthogonalised, and the rest."""
    groups: list[dict[str, Any]] = []
    for use_muon in (True, False):
        chosen = [
            item
            for item in params
            if ((item[1] if isinstance(item, tuple) else item).ndim > 1) == use_muon
        ]
        if chosen:
            groups.append({"params": chosen, "use_muon": use_muon})
    return groups
