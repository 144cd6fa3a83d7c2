"""Hold the model on the server and step it on a pseudo-gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

OptimizerFactory = Callable[[list[tuple[str, torch.nn.Parameter]]], torch.optim.Optimizer]

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""Endings of the names of batch norm's running statistics, which are no weights."""


class ServerModel:
    """Keep weights, optimizer and learning-rate schedule together.

    arrays: mapping of name to array in the model's order. Floating arrays are trained in their
    own dtype (half precision in float32); integer arrays and running statistics are set aside.
    schedule: factor on the optimizer's rate as a function of the round, from 1.
    """

    def __init__(
        self,
        arrays: Mapping[str, NDArray[Any]],
        factory: OptimizerFactory,
        schedule: Callable[[int], float],
    ) -> None:
        self.aside = {name: np.array(a) for name, a in arrays.items() if not is_trained(name, a)}
        self.order = list(arrays)
        self.dtypes = {name: array.dtype for name, array in arrays.items()}
        self.parameters = {
            name: torch.nn.Parameter(_master(array))
            for name, array in arrays.items()
            if name not in self.aside
        }
        self.sizes = [parameter.numel() for parameter in self.parameters.values()]
        self.optimizer = factory(list(self.parameters.items()))
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.schedule = schedule

    def step(self, mean: torch.Tensor, round_number: int) -> float:
        """Step on the aggregated update; returns the L2 norm of the change of the weights.

        mean: floating (coordinates,), trained arrays in order. The gradient is its negative,
        so plain SGD with rate 1 adds the mean.
        Reference: Reddi et al. 2021 (arXiv 2003.00295), Algorithm 1 (FedOpt).
        """
        factor = self.schedule(round_number)
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate * factor
        parts = torch.split(mean, self.sizes)
        for parameter, part in zip(self.parameters.values(), parts, strict=True):
            parameter.grad = part.view(parameter.shape).to(parameter.dtype).neg_()
        before = [parameter.detach().clone() for parameter in self.parameters.values()]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        pairs = zip(self.parameters.values(), before, strict=True)
        squares = [float((new.detach() - old).double().square().sum()) for new, old in pairs]
        return float(sum(squares) ** 0.5)

    def take_statistics(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take over what is not trained: running statistics and integers, cast back if averaged."""
        for name in self.aside:
            array, dtype = np.asarray(arrays[name]), self.dtypes[name]
            whole = np.issubdtype(dtype, np.integer)
            self.aside[name] = (np.rint(array) if whole else array).astype(dtype)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Give the current weights under their names, order and dtypes."""
        return {
            name: self.aside[name]
            if name in self.aside
            else self.parameters[name].detach().numpy().astype(self.dtypes[name], copy=True)
            for name in self.order
        }

    def load(self, arrays: Mapping[str, torch.Tensor], optimizer_state: dict[str, Any]) -> None:
        """Restore weights and optimizer; the rates come from the settings, not from the state."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(arrays[name])
        for name in self.aside:
            self.aside[name] = arrays[name].numpy()
        self.optimizer.load_state_dict(optimizer_state)
        for group, rate in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = rate


def is_trained(name: str, array: NDArray[Any]) -> bool:
    """Tell weights, which are trained, from integers and running statistics."""
    return np.issubdtype(array.dtype, np.floating) and not name.endswith(STATISTICS)


def _master(array: NDArray[Any]) -> torch.Tensor:
    wide = array.astype(np.float32) if array.dtype == np.float16 else np.array(array)
    return torch.from_numpy(np.ascontiguousarray(wide)).clone()
