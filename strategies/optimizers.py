"""Build a server optimizer by name: the named methods written here, then other libraries'."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from privacy.errors import SettingsError
from strategies.adaptive import fed_adagrad, fed_adam, fed_yogi
from strategies.foreign import build_foreign, foreign_names
from strategies.hyperparameters import allowed_names, check_names, check_values
from strategies.layerwise import Lamb, Lars
from strategies.novograd import NovoGrad
from strategies.scale import Scale
from strategies.stepping import Parameters

FLOATS = (torch.float32, torch.float64)


def fed_avg(params: Parameters, *, lr: float = 1.0) -> torch.optim.SGD:
    """Build FedAvg: p <- p + lr D; with lr = 1 the weights become the clients' average.

    Reference: McMahan et al. 2017, arXiv 1602.05629, Algorithm 1.
    """
    return torch.optim.SGD(params, lr=lr)


def fed_avgm(params: Parameters, *, lr: float = 1.0, momentum: float = 0.9) -> torch.optim.SGD:
    """Build FedAvgM: b <- momentum b - D, p <- p - lr b.

    Reference: Hsu et al. 2019, arXiv 1909.06335, section 4.3.
    """
    return torch.optim.SGD(params, lr=lr, momentum=momentum)


OWN: Mapping[str, Callable[..., torch.optim.Optimizer]] = MappingProxyType(
    {
        "fedavg": fed_avg,
        "fedavgm": fed_avgm,
        "fedadagrad": fed_adagrad,
        "fedadam": fed_adam,
        "fedyogi": fed_yogi,
        "fednovograd": NovoGrad,
        "fedlamb": Lamb,
        "fedlars": Lars,
        "scale": Scale,
    }
)


def optimizer_names() -> list[str]:
    """Return every name that `build_optimizer` takes, our own first."""
    return [*OWN, *foreign_names()]


def hyperparameter_names(name: str) -> list[str]:
    """Return the hyperparameters of one of our own optimizers, lr included.

    Raises: SettingsError when the name is not one of ours.
    """
    if name not in OWN:
        raise SettingsError(f"{name!r} is none of our optimizers; these are {', '.join(OWN)}")
    return allowed_names(OWN[name])


def build_optimizer(
    name: str,
    params: Iterable[Tensor] | Iterable[tuple[str, Tensor]],
    *,
    lr: float,
    **hyperparameters: Any,
) -> torch.optim.Optimizer:
    """Build the server optimizer of that name over the given weights.

    The caller puts minus the aggregated update into each tensor's ``.grad`` and calls ``step()``.
    Every parameter group has ``initial_lr``, the rate that a schedule's factor multiplies.

    name: one of `optimizer_names()`, in any case of letters.
    params: float32 or float64 tensors, or (name, tensor) pairs; names are needed for settings
        that speak of tensors by name. Integer buffers and running statistics stay outside.
    lr: server learning rate.

    Raises: SettingsError naming every unknown hyperparameter and every value out of range, for
    an unknown or refused name, and for tensors that cannot be optimized.
    """
    key = name.lower()
    checked = _check_parameters(list(params))
    if key in OWN:
        problems = check_names(key, hyperparameters, allowed_names(OWN[key], ("lr",)))
        problems += check_values({"lr": lr, **hyperparameters})
        if problems:
            raise SettingsError(problems)
        optimizer = OWN[key](checked, lr=lr, **hyperparameters)
    else:
        problems = check_values({"lr": lr})
        if problems:
            raise SettingsError(problems)
        optimizer = build_foreign(key, checked, lr, hyperparameters)
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    return optimizer


def _check_parameters(params: Sequence[Any]) -> Sequence[Any]:
    """Return the parameters unless some cannot be optimized."""
    named = [isinstance(item, tuple) for item in params]
    if not params or any(named) != all(named):
        raise SettingsError(
            "params must be tensors, or (name, tensor) pairs, at least one and not a mixture, "
            f"got {sum(named)} pairs and {len(params) - sum(named)} others"
        )
    tensors = [item[1] if isinstance(item, tuple) else item for item in params]
    problems = []
    for number, tensor in enumerate(tensors):
        label = params[number][0] if named[number] else f"number {number}"
        if not isinstance(tensor, Tensor) or tensor.dtype not in FLOATS or tensor.is_sparse:
            got = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
            problems.append(
                f"parameter {label} must be a dense float32 or float64 tensor, got {got}; "
                "keep float32 master weights and leave buffers out"
            )
    if len({id(tensor) for tensor in tensors}) < len(tensors):
        problems.append("params holds a tensor twice; give each tensor once")
    if problems:
        raise SettingsError(problems)
    return params
