"""Take one SGD step for many users at once on a stack of their weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from clients.local_training import with_momentum
from clients.protocol import LocalWork
from clients.stacked_trace import Tensors, Trace


class StackedStep:
    """Step the weights of a stack of users in place; one object for each shape of batch.

    A stack holds one copy of the weights for each user: (users, *shape) for every layer.

    Reference: McMahan et al. 2017 (arXiv 1602.05629), ClientUpdate; the arithmetic of
    torch.optim.SGD, whose last bits differ because products and sums are fused.
    """

    def __init__(self, traced: Trace, work: LocalWork) -> None:
        self.trace, self.work = traced, work

    def __call__(
        self,
        weights: Tensors,
        received: Tensors,
        leaves: Tensors,
        momenta: Tensors,
        generators: Sequence[torch.Generator],
    ) -> torch.Tensor:
        """Step in place; returns the losses before the step, (users,).

        received: the round's weights, for FedProx. leaves: the stacked batch's tensors.
        momenta: filled by the first step. generators: one for each user, for dropout.
        """
        self.trace.draws.generators = generators
        losses, *results = self.trace.graph(*weights, *leaves)
        found = iter(results)
        plain: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        for weight, start, fused in zip(weights, received, self.trace.fused, strict=True):
            if fused:
                weight.baddbmm_(next(found), next(found), alpha=-self.work.client_lr)
            else:
                plain.append((weight, start, next(found)))
        if plain:
            own, starts, gradients = (list(column) for column in zip(*plain, strict=True))
            direction = self._direction(own, starts, gradients, momenta)
            torch._foreach_add_(own, direction, alpha=-self.work.client_lr)
        return losses

    def _direction(
        self, weights: Tensors, received: Tensors, gradients: Tensors, momenta: Tensors
    ) -> Tensors:
        """Add FedProx, clipping, weight decay and momentum in the order of the one-user path."""
        work = self.work
        if work.proximal:
            for k, (weight, start) in enumerate(zip(weights, received, strict=True)):
                gradients[k] = gradients[k].add(weight - start, alpha=work.proximal)
        if work.gradient_clip:
            gradients = clipped_each(gradients, work.gradient_clip)
        if work.weight_decay:
            gradients = list(torch._foreach_add(gradients, weights, alpha=work.weight_decay))
        if work.momentum:
            gradients = with_momentum(gradients, momenta, work.momentum)
        return gradients


def steps_plainly(work: LocalWork) -> bool:
    """Tell whether a step only adds gradients, so that a product may go straight into weights."""
    return not (work.gradient_clip or work.momentum or work.weight_decay or work.proximal)


def clipped_each(gradients: Tensors, bound: float) -> Tensors:
    """Clip the global norm of each user's gradient as torch.nn.utils.clip_grad_norm_ does.

    Not covered: this steadies local training; no guarantee rests on it.
    """
    norms = [torch.linalg.vector_norm(gradient.flatten(1), dim=1) for gradient in gradients]
    total = torch.linalg.vector_norm(torch.stack(norms), dim=0)
    scale = torch.clamp(bound / (total + 1e-6), max=1.0)
    return [gradient * scale.view(-1, *[1] * (gradient.dim() - 1)) for gradient in gradients]
