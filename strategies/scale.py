"""Step as SCALE does: columns of length one everywhere, momentum on the last layer only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from privacy.errors import SettingsError
from strategies.hyperparameters import POSITIVE, RULES
from strategies.stepping import Parameters, ServerOptimizer


class Scale(ServerOptimizer):
    """Divide each column of the pseudo-gradient by its norm; average over rounds in one layer.

    With g = ``.grad``::

        last layer:  m <- momentum m + (1 - momentum) g;      elsewhere m = g
        p <- p - lr C(m) - lr weight_decay p,    C divides each column by max(its norm, eps)

    A column holds the weights of one output: m[i, ...] of a torch tensor whose first dimension
    counts outputs. For tensors named in ``embeddings`` it is m[..., j], the values of one
    embedding dimension. A tensor of at most one dimension is one column (the authors' code
    gives such tensors to AdamW; the paper does not define them). The authors' code divides by the
    root mean square, which is a rate larger by the root of the column's length.

    last_layer: name of the tensor with momentum; None takes the last one of two or more dimensions.
    relative_to: clip norm in whose units eps is given.
    Memory: m of the last layer.

    Raises: SettingsError for values out of range and for names that the optimizer does not hold.
    Reference: Glentis et al. 2025, arXiv 2506.16659, Algorithm 1.
    """

    def __init__(
        self,
        params: Parameters,
        *,
        lr: float = 0.01,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        eps: float = 1e-8,
        last_layer: str | None = None,
        embeddings: Sequence[str] = (),
        relative_to: float = 1.0,
    ) -> None:
        hyperparameters = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "eps": eps,
            "relative_to": relative_to,
        }
        # A column of zeros would be 0 / 0 with eps = 0.
        super().__init__(params, hyperparameters, {**RULES, "eps": POSITIVE})
        for group in self.param_groups:
            names = group.get("param_names", [""] * len(group["params"]))
            wanted = [*embeddings, *([] if last_layer is None else [last_layer])]
            _refuse_unknown(wanted, names)
            group["last"] = _last(group["params"], names, last_layer)
            group["embeddings"] = [
                number for number, name in enumerate(names) if name in embeddings
            ]

    def update_in_place(self, group: dict[str, Any], params: list[Tensor]) -> None:
        """Normalise and apply the pseudo-gradients, tensor by tensor."""
        numbers = {param: number for number, param in enumerate(group["params"])}
        floor = group["eps"] * group["relative_to"]
        for param in params:
            way = param.grad
            if way is None:
                continue
            number = numbers[param]
            if number == group["last"]:
                momentum = self.moments([param], "m")[0]
                way = momentum.lerp_(way, 1 - group["momentum"])
            if group["weight_decay"] > 0:
                param.mul_(1 - group["lr"] * group["weight_decay"])
            lengths = _column_norms(way, by_last=number in group["embeddings"]).clamp_(min=floor)
            param.addcdiv_(way, lengths, value=-group["lr"])


def _column_norms(tensor: Tensor, by_last: bool) -> Tensor:
    """Return the column norms in a shape that broadcasts against the tensor."""
    kept = tensor.ndim - 1 if by_last else 0
    summed = [number for number in range(tensor.ndim) if number != kept or tensor.ndim == 1]
    norms: Tensor = torch.linalg.vector_norm(tensor, dim=summed or None, keepdim=True)
    return norms


def _refuse_unknown(wanted: Sequence[str], names: Sequence[str]) -> None:
    unknown = sorted(set(wanted) - set(names))
    if unknown:
        raise SettingsError(
            f"last_layer and embeddings must name tensors of the optimizer, got "
            f"{', '.join(unknown)}; give parameters as (name, tensor) pairs and use their names"
        )


def _last(params: Sequence[Tensor], names: Sequence[str], last_layer: str | None) -> int:
    """Return the number of the tensor that has momentum, or -1 where there is none."""
    if last_layer is not None:
        return list(names).index(last_layer)
    matrices = [number for number, param in enumerate(params) if param.ndim > 1]
    return matrices[-1] if matrices else -1
