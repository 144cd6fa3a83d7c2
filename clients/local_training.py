"""Train one user: from the received weights to an update, in buffers that are never reallocated."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from clients.batches import mapped
from clients.memory import PiecewiseBatches
from clients.protocol import LocalWork
from clients.task import Batch, Task, UserData
from privacy.errors import SettingsError


class UserFault(Exception):
    """Say why one user contributes nothing this round."""


class LocalTrainer:
    """Hold one resident model whose trainable weights are views of one flat buffer.

    names, sizes: trainable parameter tensors in the model's order; each is a layer.
    update: float (coordinates,), the last trained user's update; layers: its views by layer.
    """

    def __init__(self, task: Task, device: str = "cpu") -> None:
        self.task = task
        self.device = torch.device(device)
        if hasattr(task, "prepare"):
            task.prepare(self.device)
        self.moves = self.device.type != "cpu" or hasattr(task, "move")
        self.model = task.model().to(self.device)
        refuse_batch_norm(self.model)
        named = trainable(self.model)
        self.names = list(named)
        self.parameters: list[torch.Tensor] = list(named.values())
        self.sizes = [parameter.numel() for parameter in self.parameters]
        self.weights = torch.cat([parameter.detach().reshape(-1) for parameter in self.parameters])
        self.received = self.weights.clone()
        self.update = torch.zeros_like(self.weights)
        self.layers = list(torch.split(self.update, self.sizes))
        for parameter, view in zip(
            self.parameters, torch.split(self.weights, self.sizes), strict=True
        ):
            parameter.data = view.view(parameter.shape)
        self.buffers = [(buffer, buffer.detach().clone()) for buffer in self.model.buffers()]
        self.data_seconds = 0.0
        self.differentiated = PiecewiseBatches(task, self.differentiate)

    def receive(self, weights: Mapping[str, NDArray[np.float32]]) -> None:
        """Take the round's weights; raises SettingsError where names or shapes differ."""
        shapes = {name: tuple(array.shape) for name, array in weights.items()}
        own = {n: tuple(p.shape) for n, p in zip(self.names, self.parameters, strict=True)}
        if shapes != own:
            raise SettingsError(
                "the received weights do not fit the worker's model: "
                f"{sorted(set(shapes.items()) ^ set(own.items()))[:4]}; use one task on both sides"
            )
        # The arrays may be read-only pages shared by all workers; they are only copied from.
        flat = np.concatenate([np.asarray(weights[name]).reshape(-1) for name in self.names])
        self.received.copy_(torch.from_numpy(flat))

    def train(
        self,
        data: UserData,
        work: LocalWork,
        generator: np.random.Generator,
        deadline: float = math.inf,
    ) -> float:
        """Train one user from the received weights; leaves the update in `self.update`.

        deadline: reading of time.monotonic() after which the user is given up.
        Returns: mean loss over the local steps.
        Raises: UserFault for no data, a deadline passed, or a loss that is not finite.
        Reference: McMahan et al. 2017 (arXiv 1602.05629), ClientUpdate.
        """
        self._reset()
        momenta: list[torch.Tensor] = []
        losses: list[torch.Tensor] = []
        for batch in self._timed(local_batches(data, work, generator)):
            losses.append(self.step(batch, work, momenta))
            if time.monotonic() > deadline:
                raise UserFault(f"passed its deadline of {work.user_seconds} s")
        if not losses:
            raise UserFault("has no data")
        loss = float(torch.stack(losses).mean())
        if not math.isfinite(loss):
            raise UserFault(f"its loss is {loss}")
        torch.sub(self.weights, self.received, out=self.update)
        return loss

    def _timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Add what is waited for data to `data_seconds`."""
        over = object()
        while True:
            started = time.perf_counter()
            batch = next(batches, over)
            self.data_seconds += time.perf_counter() - started
            if batch is over:
                return
            yield batch

    def _reset(self) -> None:
        """Forget the user before: weights as received, buffers as the model was built."""
        self.differentiated.halvings = 0
        self.weights.copy_(self.received)
        for buffer, first in self.buffers:
            buffer.copy_(first)
        self.model.train()

    def step(self, batch: Batch, work: LocalWork, momenta: list[torch.Tensor]) -> torch.Tensor:
        """Take one SGD step in place; same arithmetic as torch.optim.SGD after clip_grad_norm_."""
        loss, found = self.differentiated(batch)
        gradients = self.direction(found, work)
        if work.momentum:
            gradients = with_momentum(gradients, momenta, work.momentum)
        with torch.no_grad():
            torch._foreach_add_(self.parameters, gradients, alpha=-work.client_lr)
        return loss.detach()

    def differentiate(self, batch: Batch) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Compute the loss of a batch and its gradient by layer."""
        loss = self.task.loss(self.model, move(self.task, batch, self.device))
        found = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        return loss, [
            torch.zeros_like(parameter) if gradient is None else gradient
            for gradient, parameter in zip(found, self.parameters, strict=True)
        ]

    def direction(self, gradients: list[torch.Tensor], work: LocalWork) -> list[torch.Tensor]:
        """Add FedProx, clip the gradient, add weight decay.

        Reference: FedProx, Li et al. 2020 (arXiv 1812.06127), equation 2: mu/2 |w - w_t|^2.
        """
        with torch.no_grad():
            if work.proximal:
                received = torch.split(self.received, self.sizes)
                for gradient, parameter, start in zip(
                    gradients, self.parameters, received, strict=True
                ):
                    gradient.add_(parameter - start.view_as(parameter), alpha=work.proximal)
            if work.gradient_clip:
                clip_gradients_in_place(gradients, work.gradient_clip)
            if work.weight_decay:
                torch._foreach_add_(gradients, self.parameters, alpha=work.weight_decay)
        return gradients


def with_momentum(
    gradients: list[torch.Tensor], momenta: list[torch.Tensor], momentum: float
) -> list[torch.Tensor]:
    """Add gradients into the momenta, which the first step fills, and give these.

    Reference: Sutskever et al. 2013, as torch.optim.SGD has it, without dampening.
    """
    if momenta:
        torch._foreach_mul_(momenta, momentum)
        torch._foreach_add_(momenta, gradients)
    else:
        momenta.extend(gradient.clone() for gradient in gradients)
    return momenta


def clip_gradients_in_place(gradients: Sequence[torch.Tensor], bound: float) -> None:
    """Clip the global norm as torch.nn.utils.clip_grad_norm_ does.

    Not covered: this steadies local training; no guarantee rests on it.
    """
    norms = torch._foreach_norm(list(gradients))
    total = torch.linalg.vector_norm(torch.stack(norms))
    torch._foreach_mul_(list(gradients), torch.clamp(bound / (total + 1e-6), max=1.0))


def local_batches(
    data: UserData, work: LocalWork, generator: np.random.Generator
) -> Iterator[Batch]:
    """Yield `local_steps` batches, epoch after epoch; or `local_epochs` epochs where steps is 0."""
    if not work.local_steps:
        for _ in range(work.local_epochs):
            yield from data.batches(generator)
        return
    taken = 0
    while taken < work.local_steps:
        before = taken
        for batch in data.batches(generator):
            yield batch
            taken += 1
            if taken == work.local_steps:
                return
        if taken == before:
            return


def trainable(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """List the parameters that are trained, by name, in the model's order; tied ones once."""
    return {
        name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }


def count_trainable(model: torch.nn.Module) -> int:
    """Count the parameters that are trained."""
    return sum(parameter.numel() for parameter in trainable(model).values())


def refuse_batch_norm(model: torch.nn.Module) -> None:
    """Refuse running statistics: they would leave the user unclipped and without noise."""
    from torch.nn.modules.batchnorm import _NormBase

    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, _NormBase) and module.track_running_stats
    ]
    if found:
        raise SettingsError(
            f"the model must have no batch norm with running statistics, got {', '.join(found)}; "
            "use group norm or layer norm"
        )


def move(task: Task, batch: Batch, device: torch.device) -> Batch:
    """Put a batch on the device, by the task's own `move` where it has one."""
    own = getattr(task, "move", None)
    if own is not None:
        return own(batch, device)
    if device.type == "cpu":
        return batch
    return mapped(batch, lambda tensor: tensor.to(device, non_blocking=True))
