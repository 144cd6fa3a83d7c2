"""Step as FedLAMB and FedLARS do: each layer's step is in proportion to its weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from strategies.hyperparameters import POSITIVE, RULES
from strategies.stepping import (
    Block,
    Parameters,
    RowNorms,
    ServerOptimizer,
    for_each_block,
    gradients,
    roots,
    sums_of_squares,
)


class Lamb(ServerOptimizer):
    """Give each tensor Adam's direction and the length lr |p|.

    With g = ``.grad`` and t the tensor's own step number from 1::

        m <- beta1 m + (1 - beta1) g,    v <- beta2 v + (1 - beta2) g^2
        r = (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps) + weight_decay p
        p <- p - lr (|p| / |r|) r,       ratio 1 where |p| or |r| is 0

    bias_correction: False leaves out both divisions by 1 - beta^t.
    skip_1d: tensors of at most one dimension take ratio 1 and no decay. Else a bias that
        starts at zero is nearly frozen after its first step.
    relative_to: clip norm in whose units eps is given.
    Memory: m and v. The direction is computed twice instead of being stored.

    Raises: SettingsError when a value is out of range, one sentence per mistake.
    Reference: You et al. 2020, arXiv 1904.00962, Algorithm 2 with phi the identity.
    """

    def __init__(
        self,
        params: Parameters,
        *,
        lr: float = 0.002,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        bias_correction: bool = True,
        skip_1d: bool = False,
        relative_to: float = 1.0,
    ) -> None:
        hyperparameters = {
            "lr": lr,
            "beta1": beta1,
            "beta2": beta2,
            "eps": eps,
            "weight_decay": weight_decay,
            "bias_correction": bias_correction,
            "skip_1d": skip_1d,
            "relative_to": relative_to,
        }
        # A tensor whose gradient was always zero would be 0 / 0 with eps = 0.
        super().__init__(params, hyperparameters, {**RULES, "eps": POSITIVE})

    def update_in_place(self, group: dict[str, Any], params: list[Tensor]) -> None:
        """Update the moments and measure each direction, then apply it with its ratio."""
        for param in params:
            self.state[param]["step"] = self.state[param].get("step", 0) + 1
        plain = [group["skip_1d"] and param.ndim <= 1 for param in params]
        decays = [0.0 if bare else group["weight_decay"] for bare in plain]
        factors = _Corrections.of(group, [self.state[param]["step"] for param in params])
        columns = (params, gradients(params), self.moments(params, "m"), self.moments(params, "v"))
        ratios = _measure(columns, group, factors, decays)
        rates = [
            group["lr"] * (1.0 if bare else ratio)
            for ratio, bare in zip(ratios, plain, strict=True)
        ]
        keeps = [1 - rate * decay for rate, decay in zip(rates, decays, strict=True)]
        lengths = [-rate * way for rate, way in zip(rates, factors.direction, strict=True)]

        def apply(block: Block) -> None:
            weights, m, v = block.columns
            if any(decays):
                torch._foreach_mul_(weights, block.pick(keeps))
            bottoms = _bottoms(v, block, factors)
            torch._foreach_addcdiv_(weights, m, bottoms, block.pick(lengths))

        for_each_block(apply, params, *columns[2:])


@dataclass(frozen=True)
class _Corrections:
    """Hold, per tensor, the factors of m / (sqrt(v) + eps) that correct both moments.

    With c1 = 1 - beta1^t and c2 = sqrt(1 - beta2^t), (m / c1) / (sqrt(v) / c2 + eps) is
    (c2 / c1) m / (sqrt(v) + c2 eps): one pass less over the weights.
    """

    direction: list[float]
    eps: list[float]

    @staticmethod
    def of(group: dict[str, Any], steps: list[int]) -> _Corrections:
        eps = group["eps"] * group["relative_to"]
        if not group["bias_correction"]:
            return _Corrections([1.0] * len(steps), [eps] * len(steps))
        first = [1 - group["beta1"] ** step for step in steps]
        second = [math.sqrt(1 - group["beta2"] ** step) for step in steps]
        direction = [c2 / c1 for c1, c2 in zip(first, second, strict=True)]
        return _Corrections(direction, [c2 * eps for c2 in second])


def _measure(
    columns: Sequence[Sequence[Tensor]],
    group: dict[str, Any],
    factors: _Corrections,
    decays: list[float],
) -> list[float]:
    """Fold the pseudo-gradients into m and v in place; return |p| / |r| of each tensor."""
    pulls = [decay / way for decay, way in zip(decays, factors.direction, strict=True)]
    weight_norms, way_norms = RowNorms(len(decays)), RowNorms(len(decays))

    def fold(block: Block) -> None:
        weights, slopes, m, v = block.columns
        torch._foreach_lerp_(m, slopes, 1 - group["beta1"])
        torch._foreach_mul_(v, group["beta2"])
        torch._foreach_addcmul_(v, slopes, slopes, value=1 - group["beta2"])
        ways = torch._foreach_div(m, _bottoms(v, block, factors))
        if any(decays):
            torch._foreach_add_(ways, torch._foreach_mul(weights, block.pick(pulls)))
        weight_norms.add(block.numbers, weights)
        way_norms.add(block.numbers, ways)

    for_each_block(fold, *columns)
    # The directions were measured without the factor that corrects both moments.
    return [
        math.sqrt(weight / way) / factor if weight > 0 and way > 0 else 1.0
        for weight, way, factor in zip(
            weight_norms.squares(), way_norms.squares(), factors.direction, strict=True
        )
    ]


def _bottoms(second: list[Tensor], block: Block, factors: _Corrections) -> list[Tensor]:
    bottoms = roots(second)
    torch._foreach_add_(bottoms, block.pick(factors.eps))
    return bottoms


class Lars(ServerOptimizer):
    """Give each tensor a step in proportion to |p| / |g|, with momentum.

    With g = ``.grad`` and b from 0::

        ratio = trust_coefficient |p| / (|g| + weight_decay |p| + eps),   1 where |p| or |g| is 0
        b <- momentum b + lr ratio (g + weight_decay p)
        p <- p - b

    The rate sits inside the momentum buffer, so a change of rate acts on new updates only.
    skip_1d: tensors of at most one dimension take ratio 1 and no decay.
    Memory: b.

    Raises: SettingsError when a value is out of range, one sentence per mistake.
    Reference: You et al. 2017, arXiv 1708.03888, Algorithm 1.
    """

    def __init__(
        self,
        params: Parameters,
        *,
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
        skip_1d: bool = False,
        eps: float = 0.0,
    ) -> None:
        hyperparameters = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "skip_1d": skip_1d,
            "eps": eps,
        }
        super().__init__(params, hyperparameters)

    def update_in_place(self, group: dict[str, Any], params: list[Tensor]) -> None:
        """Measure every layer, then add its scaled pseudo-gradient to the buffer and step."""
        slopes = gradients(params)
        plain = [group["skip_1d"] and param.ndim <= 1 for param in params]
        decays = [0.0 if bare else group["weight_decay"] for bare in plain]
        weight_norms = [math.sqrt(square) for square in sums_of_squares(params)]
        slope_norms = [math.sqrt(square) for square in sums_of_squares(slopes)]
        rates = []
        for p, g, decay, bare in zip(weight_norms, slope_norms, decays, plain, strict=True):
            bottom = g + decay * p + group["eps"]
            ratio = group["trust_coefficient"] * p / bottom if p > 0 and g > 0 else 1.0
            rates.append(group["lr"] * (1.0 if bare else ratio))
        pulls = [rate * decay for rate, decay in zip(rates, decays, strict=True)]

        def step_block(block: Block) -> None:
            weights, slope, buffer = block.columns
            torch._foreach_mul_(buffer, group["momentum"])
            torch._foreach_add_(buffer, torch._foreach_mul(slope, block.pick(rates)))
            if any(pulls):
                torch._foreach_add_(buffer, torch._foreach_mul(weights, block.pick(pulls)))
            torch._foreach_sub_(weights, buffer)

        for_each_block(step_block, params, slopes, self.moments(params, "b"))
