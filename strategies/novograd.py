"""Step as FedNovoGrad does: every layer's update has the same length, whatever its scale."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from privacy.errors import SettingsError
from strategies.stepping import (
    Block,
    Parameters,
    ServerOptimizer,
    for_each_block,
    gradients,
    sums_of_squares,
)

Decay = Literal["paper", "decoupled"]
Scale = Literal["unit", "sqrt_d", "param"]


class NovoGrad(ServerOptimizer):
    """Divide each layer's pseudo-gradient by a running norm of that layer.

    With g = ``.grad`` of a layer of d entries, k = 1 - beta1 under ``grad_averaging``, else 1::

        first:  v = |g|^2,                            m = k (a g / (sqrt(v) + eps) + weight_decay p)
        later:  v <- beta2 v + (1 - beta2) |g|^2,     m <- beta1 m + k (the same)
        p <- p - lr m

    layer: one tensor; ``groups`` maps tensor names to a shared key whose tensors share v.
    first: the first round in which the layer is not exactly zero; before it, the layer and its
        state stay untouched. ``paper_init``: the first round, zero or not.
    decay: "paper" as above; "decoupled" takes lr weight_decay p from the weights instead.
        ``skip_1d`` leaves tensors of at most one dimension without decay.
    scale: "unit" a = 1; "sqrt_d" a = sqrt(d / mean d of all layers), the same step per
        coordinate in every layer; "param" a = max(|p|, scale_floor sqrt(d)).
    lr_1d: rate of tensors of at most one dimension; it follows lr through a schedule.
    noise_std: standard deviation s, per coordinate of the aggregated update, of the privacy
        noise in it; a public number. Its expected part of v is then subtracted::

            u <- beta2 u + (1 - beta2) d s^2,  w <- beta2^2 w + (1 - beta2)^2  (first: d s^2, 1)
            v is replaced by max(v - u, floor_kappa u sqrt(2 w / d), eps^2) in the division

        0 switches it off. Set ``group["noise_std"]`` anew where s changes from round to round.
    relative_to: clip norm in whose units eps is given.

    Steps do not shrink with the gradient: let the rate decay (strategies.schedules).
    Memory: m, and three numbers per layer.

    Raises: SettingsError for values out of range and for groups of unknown names.
    Reference: Ginsburg et al. 2019, arXiv 1905.11286, Algorithm 1; the noise term follows the
    idea of Tang et al. 2024, arXiv 2312.14334, with one number per layer.
    """

    def __init__(
        self,
        params: Parameters,
        *,
        lr: float = 0.01,
        beta1: float = 0.9,
        beta2: float = 0.98,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        decay: Decay = "paper",
        grad_averaging: bool = False,
        paper_init: bool = False,
        scale: Scale = "unit",
        scale_floor: float = 1e-3,
        lr_1d: float | None = None,
        skip_1d: bool = False,
        noise_std: float = 0.0,
        floor_kappa: float = 1.0,
        groups: Mapping[str, str] | None = None,
        relative_to: float = 1.0,
    ) -> None:
        hyperparameters = {
            "lr": lr,
            "initial_lr": lr,
            "beta1": beta1,
            "beta2": beta2,
            "eps": eps,
            "weight_decay": weight_decay,
            "decay": decay,
            "grad_averaging": grad_averaging,
            "paper_init": paper_init,
            "scale": scale,
            "scale_floor": scale_floor,
            "lr_1d": lr_1d,
            "skip_1d": skip_1d,
            "noise_std": noise_std,
            "floor_kappa": floor_kappa,
            "relative_to": relative_to,
        }
        super().__init__(params, hyperparameters)
        for group in self.param_groups:
            group["layers"] = _layer_numbers(group, groups or {})

    def update_in_place(self, group: dict[str, Any], params: list[Tensor]) -> None:
        """Normalise, average and apply the pseudo-gradients of the given tensors."""
        factors = self._factors(group, params)
        moving = [param for param in params if param in factors]
        keep = 1 - group["beta1"] if group["grad_averaging"] else 1.0
        slopes = [keep * factors[param] for param in moving]
        rates = [_rate(group, param) for param in moving]
        decays = [_decay(group, param) for param in moving]

        def step_block(block: Block) -> None:
            weights, slope, first = block.columns
            torch._foreach_mul_(first, group["beta1"])
            torch._foreach_add_(first, torch._foreach_mul(slope, block.pick(slopes)))
            if any(decays) and group["decay"] == "paper":
                pull = [keep * decay for decay in block.pick(decays)]
                torch._foreach_add_(first, torch._foreach_mul(weights, pull))
            elif any(decays):
                pairs = zip(block.pick(rates), block.pick(decays), strict=True)
                torch._foreach_mul_(weights, [1 - rate * decay for rate, decay in pairs])
            torch._foreach_sub_(weights, torch._foreach_mul(first, block.pick(rates)))

        for_each_block(step_block, moving, gradients(moving), self.moments(moving, "m"))

    def _factors(self, group: dict[str, Any], params: list[Tensor]) -> dict[Tensor, float]:
        """Update v, u, w of each layer that moves; return what its gradients are multiplied by."""
        energies = dict(zip(params, sums_of_squares(gradients(params)), strict=True))
        layers = _members(group)
        mean_size = sum(param.numel() for param in group["params"]) / len(layers)
        factors: dict[Tensor, float] = {}
        for layer in layers:
            present = [param for param in layer if param in energies]
            energy = sum(energies[param] for param in present)
            known = "v" in self.state.get(layer[0], {}) or group["paper_init"]
            if not present or (energy == 0 and not known):
                continue
            norm = self._norm(group, layer, energy, sum(param.numel() for param in present))
            length = _length(group, present, mean_size)
            factors.update(dict.fromkeys(present, length / norm if norm > 0 else 0.0))
        return factors

    def _norm(self, group: dict[str, Any], layer: list[Tensor], energy: float, d: int) -> float:
        """Fold one round into the layer's v, u and w; return its norm plus eps."""
        state, beta2 = self.state[layer[0]], group["beta2"]
        noise = d * group["noise_std"] ** 2
        v, u, w = energy, noise, 1.0
        if "v" in state:
            v = beta2 * state["v"] + (1 - beta2) * energy
            u = beta2 * state["u"] + (1 - beta2) * noise
            # w is the sum of the squared weights with which the rounds enter v.
            w = beta2**2 * state["w"] + (1 - beta2) ** 2
        for param in layer:
            self.state[param].update(v=v, u=u, w=w)
        eps = group["eps"] * group["relative_to"]
        if u > 0:
            v = max(v - u, group["floor_kappa"] * u * math.sqrt(2 * w / d), eps**2)
        return math.sqrt(v) + float(eps)


def _length(group: dict[str, Any], layer: list[Tensor], mean_size: float) -> float:
    """Return the length of the layer's normalised pseudo-gradient under the scale mode."""
    if group["scale"] == "unit":
        return 1.0
    count = sum(param.numel() for param in layer)
    if group["scale"] == "sqrt_d":
        return math.sqrt(count / mean_size)
    norm = math.sqrt(sum(sums_of_squares(layer)))
    return max(norm, float(group["scale_floor"]) * math.sqrt(count))


def _rate(group: dict[str, Any], param: Tensor) -> float:
    lr = float(group["lr"])
    if param.ndim > 1 or group["lr_1d"] is None:
        return lr
    # A schedule changes lr alone; the rate of vectors follows in proportion.
    return float(group["lr_1d"]) * lr / group["initial_lr"] if group["initial_lr"] else 0.0


def _decay(group: dict[str, Any], param: Tensor) -> float:
    return 0.0 if group["skip_1d"] and param.ndim <= 1 else float(group["weight_decay"])


def _members(group: dict[str, Any]) -> list[list[Tensor]]:
    """Return the tensors of each layer, in the order of each layer's first tensor."""
    layers: dict[int, list[Tensor]] = {}
    for number, param in zip(group["layers"], group["params"], strict=True):
        layers.setdefault(number, []).append(param)
    return list(layers.values())


def _layer_numbers(group: dict[str, Any], keys: Mapping[str, str]) -> list[int]:
    """Number the layer of each tensor: its own, or the one it shares through ``keys``."""
    names = group.get("param_names", [str(number) for number in range(len(group["params"]))])
    unknown = sorted(set(keys) - set(names))
    if unknown:
        raise SettingsError(
            f"groups names tensors that the optimizer does not hold: {', '.join(unknown)}; "
            "give parameters as (name, tensor) pairs and use their names"
        )
    numbers: dict[tuple[bool, str], int] = {}
    # A shared key and a tensor's own name may be the same word; they are different layers.
    owners = [(name in keys, keys.get(name, name)) for name in names]
    return [numbers.setdefault(owner, len(numbers)) for owner in owners]
