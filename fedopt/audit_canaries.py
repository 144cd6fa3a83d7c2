"""Put canaries among a task's users, and see what the server sees of them in each round.

The task is wrapped for the workers alone: whatever counts, evaluates or describes data keeps the
task itself. A worker clips, noises and sums a canary's update as any user's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedopt.population import DealtPopulation
from privacy.audit_canaries import Canaries
from privacy.errors import SettingsError

if TYPE_CHECKING:
    import torch

    from clients.protocol import MechanismSettings
    from clients.task import Task
    from privacy.seeds import Streams

NAME = "fedopt canary {}"


@dataclass(frozen=True)
class CanaryUser:
    """Be a user whose update is known; see clients.worker.ReadyUpdate."""

    index: int
    count: int

    def write_update(
        self, layers: Sequence[torch.Tensor], mechanism: MechanismSettings, streams: Streams
    ) -> None:
        """Write the canary's update, longer than any bound, for the real clip to shorten."""
        import torch

        sizes = tuple(layer.numel() for layer in layers)
        known = Canaries(self.count, streams, sizes, mechanism.clipping, mechanism.bounds)
        for layer, part in zip(layers, known.update(self.index), strict=True):
            layer.zero_()
            if part is not None:
                layer.copy_(torch.from_numpy(part))


class WithCanaries:
    """Be a task with canary users after its own; everything else is the task's."""

    def __init__(self, task: Task, count: int) -> None:
        self.task = task
        self.count = count
        self.canaries = {NAME.format(index): index for index in range(count)}
        if taken := set(self.canaries) & set(task.user_ids()):
            raise SettingsError(
                f"with --audit no data user may be called {min(taken)!r}, which is the name of a "
                "canary user; rename the data user"
            )

    def user_ids(self) -> Sequence[str]:
        """List the task's users and then the canaries."""
        return [*self.task.user_ids(), *self.canaries]

    def user_data(self, user_id: str) -> Any:
        """Give a user's data, or the canary itself."""
        if user_id in self.canaries:
            return CanaryUser(self.canaries[user_id], self.count)
        return self.task.user_data(user_id)

    def __getattr__(self, name: str) -> Any:
        """Give whatever else the task has; only called for names that are not found here."""
        return getattr(self.__dict__["task"], name)


def with_canaries(task: Task, count: int) -> Any:
    """Put canaries among a task's users; the task itself where there are none."""
    return WithCanaries(task, count) if count else task


def build_with_canaries(build_task: Callable[[], Task], count: int) -> Any:
    """Build a task in a worker, with the canaries of its run."""
    return with_canaries(build_task(), count)


class WatchedPopulation(DealtPopulation):
    """Be a population that remembers which canaries the last cohort holds.

    data_users: number of users before the first canary.
    """

    def __init__(self, data_users: int, canaries: int) -> None:
        super().__init__(data_users + canaries)
        self.data_users = data_users
        self.canaries: NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def groups(self, users: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Cut a cohort as ever, and note its canaries by their index."""
        self.canaries = users[users >= self.data_users] - self.data_users
        return super().groups(users)
