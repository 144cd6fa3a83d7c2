"""Train many users on one resident model and hand back one partial sum."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeGuard

import torch

from clients.findings import News
from clients.local_training import LocalTrainer, UserFault
from clients.many_users import LoadedUser, StackTrainer, load_user, stacks_of
from clients.protocol import (
    NORM_SPACING,
    MechanismSettings,
    PartialSum,
    Piece,
    TrainRequest,
    UserOutcome,
)
from clients.stacked_trace import Unstackable
from clients.task import Task, UserData
from privacy.clipped_stack import add_stack
from privacy.clipped_sum import Clipped, ClippedSum
from privacy.noise import add_noise, share_deviation
from privacy.seeds import Streams

LARGEST_NORM = 2.0**20
"""Norms are logged up to here, so that 64-bit sums of a few thousand of them never overflow."""

WINDOW = 4
"""Stacks' worth of users whose batches are held at once, to find those of equal shapes."""


class ReadyUpdate(Protocol):
    """Hold a finished update in place of a user's data: a canary that audits what is released."""

    def write_update(
        self, layers: Sequence[torch.Tensor], mechanism: MechanismSettings, streams: Streams
    ) -> None:
        """Overwrite the layers of the update, not yet clipped."""
        ...


def is_ready(data: UserData | ReadyUpdate) -> TypeGuard[ReadyUpdate]:
    """Tell a canary from data; asking the protocol itself would take longer than a small user."""
    return hasattr(data, "write_update")


class LayerTally:
    """Count by layer what clipping did to the users of a request; not private."""

    def __init__(self, layers: int) -> None:
        self.clipped = [0] * layers
        self.norms = [0] * layers
        self.norms_clipped = [0] * layers

    def count(self, found: Clipped) -> None:
        """Add one user."""
        for layer, (norm, scale) in enumerate(zip(found.norms, found.scales, strict=True)):
            self.clipped[layer] += scale != 1.0
            self.norms[layer] += round(min(norm, LARGEST_NORM) / NORM_SPACING)
            self.norms_clipped[layer] += round(min(norm * scale, LARGEST_NORM) / NORM_SPACING)


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
        self.sum = ClippedSum(self.trainer.sizes, self.trainer.device)
        self.stacks = StackTrainer(self.trainer, 0)
        self.news = News(task)

    def train(self, request: TrainRequest) -> PartialSum:
        """Train every piece of a request and add up clipped updates and noise shares."""
        streams = Streams(
            request.streams.seed, request.streams.settings_hash, request.streams.secure
        )
        self._begin(request)
        outcomes: list[UserOutcome] = []
        with _own_randomness(self.trainer.device):
            for piece in request.pieces:
                outcomes += self._train_piece(piece, request, streams)
                self._add_noise(piece, request, streams)
        return PartialSum(
            total=self.sum.total.cpu().numpy().copy(),
            outcomes=tuple(outcomes),
            noise_shares=sum(piece.noise_shares for piece in request.pieces),
            layer_clipped=tuple(self.tally.clipped),
            layer_norms=tuple(self.tally.norms),
            layer_norms_clipped=tuple(self.tally.norms_clipped),
            peak_megabytes=peak_megabytes(self.trainer.device),
            phases=dict(self.phases),
            findings=self.news.findings(),
            amounts=self.news.amounts(),
        )

    def _begin(self, request: TrainRequest) -> None:
        """Take the round's weights and forget the request before."""
        mechanism = request.mechanism
        self.news.start()
        self.trainer.receive(request.weights)
        self.sum.start(mechanism.clipping, mechanism.bounds, mechanism.grid_spacing)
        self.tally = LayerTally(len(self.trainer.sizes))
        self.phases = {"data": 0.0, "training": 0.0, "clipping": 0.0, "noise": 0.0}
        width = request.work.users_at_once
        if width > 1 and self.stacks.width != width:
            self.stacks = StackTrainer(self.trainer, width)

    def _train_piece(
        self, piece: Piece, request: TrainRequest, streams: Streams
    ) -> list[UserOutcome]:
        """Train a piece's users, in stacks where that was chosen; outcomes in the users' order."""
        width = request.work.users_at_once
        # A stack cannot stop for one of its users, so deadlines are kept one by one.
        if width == 1 or request.work.user_seconds:
            return [self._train_user(user, request, streams) for user in piece.users]
        found: dict[int, UserOutcome] = {}
        for start in range(0, len(piece.users), WINDOW * width):
            loaded: list[LoadedUser] = []
            for user in piece.users[start : start + WINDOW * width]:
                got = self._load_user(user, request, streams)
                if isinstance(got, LoadedUser):
                    loaded.append(got)
                else:
                    found[user] = got
            for stack in stacks_of(loaded, width):
                outcomes = self._train_stack(stack, request, streams)
                found |= {outcome.user: outcome for outcome in outcomes}
        return [found[user] for user in piece.users]

    def _data_of(self, user: int, request: TrainRequest, streams: Streams) -> UserData:
        """Give a user's data, with torch's generators set to that user's stream."""
        seed = streams.torch_seed("training", request.streams.round, user)
        # torch.manual_seed would also note the call for GPUs that are never used, with its stack.
        torch.default_generator.manual_seed(seed)
        if self.trainer.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        return self.task.user_data(self.users[user % len(self.users)])

    def _load_user(
        self, user: int, request: TrainRequest, streams: Streams
    ) -> LoadedUser | UserOutcome:
        """Read a user's batches for a stack; where that cannot be, train the user at once."""
        started = time.perf_counter()
        try:
            data = self._data_of(user, request, streams)
            if is_ready(data):
                return self._add_canary(user, data, request, streams)
            generator = streams.generator("training", request.streams.round, user)
            loaded = load_user(user, data, request.work, generator, self.trainer)
        except Unstackable:
            return self._train_user(user, request, streams)
        except (Exception, SystemExit) as problem:
            return faulty(user, problem, started)
        self.phases["data"] += time.perf_counter() - started
        return loaded

    def _train_stack(
        self, stack: Sequence[LoadedUser], request: TrainRequest, streams: Streams
    ) -> list[UserOutcome]:
        """Train users together; where one of them breaks the step, each in a stack of its own."""
        started = time.perf_counter()
        try:
            losses = self.stacks.train(stack, request.work)
        except (Exception, SystemExit) as problem:
            if len(stack) == 1 and isinstance(problem, Unstackable):
                return [self._train_user(stack[0].user, request, streams)]
            if len(stack) == 1:
                return [faulty(stack[0].user, problem, started)]
            # Whatever it is, one user's data may be the cause, so the others are tried without.
            alone = [self._train_stack([member], request, streams) for member in stack]
            return [outcome for outcomes in alone for outcome in outcomes]
        trained = time.perf_counter()
        found = add_stack(self.sum, self._updates(losses))
        finished = time.perf_counter()
        self.phases["training"] += trained - started
        self.phases["clipping"] += finished - trained
        each = (finished - started) / len(stack)
        return [
            self._count_member(member.user, loss, clipped, each)
            for member, loss, clipped in zip(stack, losses, found, strict=True)
        ]

    def _updates(self, losses: Sequence[float]) -> list[torch.Tensor]:
        """Take the updates out of the stack; a user whose loss is not finite has zeros."""
        updates = self.stacks.updates(len(losses))
        broken = [place for place, loss in enumerate(losses) if not math.isfinite(loss)]
        for layer in updates if broken else []:
            layer[broken] = 0.0
        return updates

    def _count_member(
        self, user: int, loss: float, clipped: Clipped, seconds: float
    ) -> UserOutcome:
        """Say what came of one user of a stack."""
        try:
            if not math.isfinite(loss):
                raise UserFault(f"its loss is {loss}")
            norm, was_clipped = self._counted(clipped)
        except UserFault as problem:
            return UserOutcome(user, 0.0, 0.0, False, seconds, str(problem))
        return UserOutcome(user, loss, norm, was_clipped, seconds)

    def _train_user(self, user: int, request: TrainRequest, streams: Streams) -> UserOutcome:
        """Add one user's clipped update to the sum; any fault of the user adds zeros."""
        started = time.perf_counter()
        deadline = time.monotonic() + (request.work.user_seconds or math.inf)
        self.trainer.data_seconds = 0.0
        try:
            data = self._data_of(user, request, streams)
            if is_ready(data):
                return self._add_canary(user, data, request, streams)
            generator = streams.generator("training", request.streams.round, user)
            loaded = time.perf_counter()
            loss = self.trainer.train(data, request.work, generator, deadline)
            trained = time.perf_counter()
            norm, clipped = self._add_update()
        except (Exception, SystemExit) as problem:
            return faulty(user, problem, started)
        finished = time.perf_counter()
        waited = self.trainer.data_seconds
        self.phases["data"] += loaded - started + waited
        self.phases["training"] += trained - loaded - waited
        self.phases["clipping"] += finished - trained
        return UserOutcome(user, loss, norm, clipped, finished - started)

    def _add_canary(
        self, user: int, data: ReadyUpdate, request: TrainRequest, streams: Streams
    ) -> UserOutcome:
        """Add a canary as any user; it reports zeros, so that means over users can leave it out."""
        data.write_update(self.trainer.layers, request.mechanism, streams)
        self.sum.add(self.trainer.update)
        return UserOutcome(user, 0.0, 0.0, False, 0.0)

    def _add_update(self) -> tuple[float, bool]:
        """Clip and add what the trainer holds; returns the norm before and whether it shrank."""
        return self._counted(self.sum.add(self.trainer.update))

    def _counted(self, found: Clipped) -> tuple[float, bool]:
        """Count what clipping did to a user; returns the norm before and whether it shrank."""
        if not found.finite:
            raise UserFault("its update holds NaN or infinity")
        self.tally.count(found)
        return found.whole_norm, found.was_clipped

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
        add_noise(self.sum.total, source, deviation, mechanism.grid_spacing)
        self.phases["noise"] += time.perf_counter() - started


def faulty(user: int, problem: BaseException, started: float) -> UserOutcome:
    """Report a user that contributes nothing, and why."""
    fault = str(problem) if isinstance(problem, UserFault) else repr(problem)
    return UserOutcome(user, 0.0, 0.0, False, time.perf_counter() - started, fault[:500])


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
    # The system's own count for a process begins with that of the process it was started from.
    status = Path("/proc/self/status")
    if status.exists():
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(peak.split()[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
