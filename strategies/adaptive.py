"""Step as FedAdagrad, FedAdam and FedYogi do: one rate per coordinate, no bias correction."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from strategies.stepping import Block, Parameters, ServerOptimizer, for_each_block, gradients, roots

SecondMoment = Literal["adagrad", "adam", "yogi"]


class Adaptive(ServerOptimizer):
    """Divide the first moment of the update by the root of its second moment, plus tau.

    With D the aggregated update (``.grad`` is -D), m from 0 and v from ``v_init``::

        m <- beta1 m + (1 - beta1) D
        adagrad:  v <- v + D^2
        adam:     v <- beta2 v + (1 - beta2) D^2
        yogi:     v <- v - (1 - beta2) D^2 sign(v - D^2)
        p <- p + lr m / (sqrt(v) + tau)

    ``v_init`` None means tau^2, the smallest start that the paper allows. With ``relative_to``
    = C, tau counts in units of C and v_init in units of C^2: when the clip norm and with it
    every update is scaled, the steps stay the same. Memory: v, and m where beta1 > 0.

    Raises: SettingsError when a value is out of range, one sentence per mistake.
    Reference: Reddi et al. 2021, arXiv 2003.00295, Algorithm 2.
    """

    def __init__(
        self,
        params: Parameters,
        *,
        second_moment: SecondMoment,
        lr: float,
        beta1: float,
        tau: float,
        beta2: float = 0.0,
        v_init: float | None = None,
        relative_to: float = 1.0,
    ) -> None:
        hyperparameters = {
            "lr": lr,
            "beta1": beta1,
            "beta2": beta2,
            "tau": tau,
            "v_init": v_init,
            "relative_to": relative_to,
            "second_moment": second_moment,
        }
        super().__init__(params, hyperparameters)

    def update_in_place(self, group: dict[str, Any], params: list[Tensor]) -> None:
        """Apply Algorithm 2 to the given tensors, block by block."""
        unit = group["relative_to"]
        tau = group["tau"] * unit
        start = tau**2 if group["v_init"] is None else group["v_init"] * unit**2
        columns = [params, gradients(params), self.moments(params, "v", start)]
        if group["beta1"] > 0:
            columns.append(self.moments(params, "m"))
        for_each_block(lambda block: _step_block(block, group, tau), *columns)


def _step_block(block: Block, group: dict[str, Any], tau: float) -> None:
    weights, slopes, second = block.columns[:3]
    first = block.columns[3] if len(block.columns) > 3 else slopes
    if first is not slopes:
        torch._foreach_lerp_(first, slopes, 1 - group["beta1"])
    _update_second_moment(group["second_moment"], second, slopes, group["beta2"])
    root = roots(second)
    torch._foreach_add_(root, tau)
    # .grad is -D, so the first moment carries a minus sign: descend instead of climb.
    torch._foreach_addcdiv_(weights, first, root, value=-group["lr"])


def _update_second_moment(
    rule: SecondMoment, second: list[Tensor], slopes: list[Tensor], beta2: float
) -> None:
    if rule == "adagrad":
        torch._foreach_addcmul_(second, slopes, slopes, value=1.0)
    elif rule == "adam":
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, slopes, slopes, value=1 - beta2)
    else:
        square = torch._foreach_mul(slopes, slopes)
        side = torch._foreach_sub(second, square)
        torch._foreach_sign_(side)
        torch._foreach_addcmul_(second, square, side, value=beta2 - 1)


def fed_adagrad(
    params: Parameters,
    *,
    lr: float = 0.1,
    beta1: float = 0.0,
    tau: float = 1e-3,
    v_init: float | None = None,
    relative_to: float = 1.0,
) -> Adaptive:
    """Build FedAdagrad; beta1 = 0 is the plain form, as in Flower."""
    return Adaptive(
        params,
        second_moment="adagrad",
        lr=lr,
        beta1=beta1,
        tau=tau,
        v_init=v_init,
        relative_to=relative_to,
    )


def fed_adam(
    params: Parameters,
    *,
    lr: float = 0.1,
    beta1: float = 0.9,
    beta2: float = 0.99,
    tau: float = 1e-3,
    v_init: float | None = None,
    relative_to: float = 1.0,
) -> Adaptive:
    """Build the paper's FedAdam; torch's bias-corrected Adam is the name "adam"."""
    return Adaptive(
        params,
        second_moment="adam",
        lr=lr,
        beta1=beta1,
        beta2=beta2,
        tau=tau,
        v_init=v_init,
        relative_to=relative_to,
    )


def fed_yogi(
    params: Parameters,
    *,
    lr: float = 0.01,
    beta1: float = 0.9,
    beta2: float = 0.99,
    tau: float = 1e-3,
    v_init: float | None = None,
    relative_to: float = 1.0,
) -> Adaptive:
    """Build FedYogi, whose second moment moves by steps of fixed relative size."""
    return Adaptive(
        params,
        second_moment="yogi",
        lr=lr,
        beta1=beta1,
        beta2=beta2,
        tau=tau,
        v_init=v_init,
        relative_to=relative_to,
    )
