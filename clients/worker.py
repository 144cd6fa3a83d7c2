"""Train many users in turn on one resident model and hand back one partial sum."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import torch

from clients.local_training import LocalTrainer, UserFault
from clients.protocol import MechanismSettings, PartialSum, Piece, TrainRequest, UserOutcome
from clients.task import Task
from privacy.clipping import clip_tensors_in_place
from privacy.noise import add_noise, add_update, share_deviation
from privacy.seeds import Streams


@runtime_checkable
class ReadyUpdate(Protocol):
    """Hold a finished update in place of a user's data: a canary that audits what is released."""

    def write_update(
        self, layers: Sequence[torch.Tensor], mechanism: MechanismSettings, streams: Streams
    ) -> None:
        """Overwrite the layers of the update, not yet clipped."""
        ...


class Worker:
    """Answer train requests; holds one model and flat buffers for its whole life.

    Guarantee: whatever a user's data do, that user adds a vector of norm at most C or zeros,
    and nothing that one user does changes what another adds.
    Not covered: losses, norms and seconds in the outcomes are not private.
    """

    def __init__(self, task: Task, device: str = "cpu") -> None:
        self.task = task
        self.users = list(task.user_ids())
        self.trainer = LocalTrainer(task, device)
        self.total = torch.zeros(
            sum(self.trainer.sizes), dtype=torch.int64, device=self.trainer.device
        )

    def train(self, request: TrainRequest) -> PartialSum:
        """Train every piece of a request and add up clipped updates and noise shares."""
        streams = Streams(
            request.streams.seed, request.streams.settings_hash, request.streams.secure
        )
        self.trainer.receive(request.weights)
        self.total.zero_()
        self.layer_clipped = [0] * len(self.trainer.sizes)
        self.phases = {"training": 0.0, "clipping": 0.0, "noise": 0.0}
        outcomes: list[UserOutcome] = []
        with _own_randomness(self.trainer.device):
            for piece in request.pieces:
                outcomes += [self._train_user(user, request, streams) for user in piece.users]
                self._add_noise(piece, request, streams)
        return PartialSum(
            total=self.total.cpu().numpy().copy(),
            outcomes=tuple(outcomes),
            noise_shares=sum(piece.noise_shares for piece in request.pieces),
            layer_clipped=tuple(self.layer_clipped),
            peak_megabytes=peak_megabytes(self.trainer.device),
            phases=dict(self.phases),
        )

    def _train_user(self, user: int, request: TrainRequest, streams: Streams) -> UserOutcome:
        """Add one user's clipped update to the sum; any fault of the user adds zeros."""
        started = time.perf_counter()
        deadline = time.monotonic() + (request.work.user_seconds or math.inf)
        round_number = request.streams.round
        torch.manual_seed(streams.torch_seed("training", round_number, user))
        try:
            data = self.task.user_data(self.users[user % len(self.users)])
            if isinstance(data, ReadyUpdate):
                return self._add_canary(user, data, request, streams)
            generator = streams.generator("training", round_number, user)
            loss = self.trainer.train(data, request.work, generator, deadline)
            trained = time.perf_counter()
            self.phases["training"] += trained - started
            norm, clipped = self._add_update(request)
        except (Exception, SystemExit) as problem:
            fault = str(problem) if isinstance(problem, UserFault) else repr(problem)
            return UserOutcome(user, 0.0, 0.0, False, time.perf_counter() - started, fault[:500])
        finished = time.perf_counter()
        self.phases["clipping"] += finished - trained
        return UserOutcome(user, loss, norm, clipped, finished - started)

    def _add_canary(
        self, user: int, data: ReadyUpdate, request: TrainRequest, streams: Streams
    ) -> UserOutcome:
        """Add a canary as any user; it reports zeros, so that means over users can leave it out."""
        data.write_update(self.trainer.layers, request.mechanism, streams)
        counted = list(self.layer_clipped)
        self._add_update(request)
        self.layer_clipped = counted
        return UserOutcome(user, 0.0, 0.0, False, 0.0)

    def _add_update(self, request: TrainRequest) -> tuple[float, bool]:
        mechanism = request.mechanism
        norms, scales, finite = clip_tensors_in_place(
            self.trainer.layers, mechanism.clipping, mechanism.bounds
        )
        if not finite:
            raise UserFault("its update holds NaN or infinity")
        add_update(self.total, self.trainer.update, mechanism.grid_spacing)
        for layer, scale in enumerate(scales):
            self.layer_clipped[layer] += scale != 1.0
        whole = sum(norm**2 for norm in norms) ** 0.5
        return whole, any(scale != 1.0 for scale in scales)

    def _add_noise(self, piece: Piece, request: TrainRequest, streams: Streams) -> None:
        """Add the noise shares of a piece as one Gaussian of their summed variance."""
        mechanism = request.mechanism
        if not piece.noise_shares:
            return
        started = time.perf_counter()
        deviation = share_deviation(mechanism.noise_std, piece.noise_shares, mechanism.cohort)
        source = streams.source(
            "noise", request.streams.round, request.streams.attempt, piece.group
        )
        add_noise(self.total, source, deviation, mechanism.grid_spacing)
        self.phases["noise"] += time.perf_counter() - started


@contextmanager
def _own_randomness(device: torch.device) -> Iterator[None]:
    """Keep the per-user seeding of torch's generators from leaking into the caller's process."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield


def peak_megabytes(device: torch.device) -> float:
    """Measure the largest memory this process has held, the device's where it is a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
