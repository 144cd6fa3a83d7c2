"""Cut cohorts into fixed groups and deal them to workers by expected seconds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from clients.protocol import UserOutcome

MOST_GROUPS = 32


class DealtPopulation:
    """Know the data users' costs and share out the work of a round.

    shards: number of data users; a virtual id stands on the data of id modulo shards.
    users_at_once: width of a worker's stacks; a group holds about a whole stack at least.
    The groups depend on the cohort alone, so results do not depend on the number of workers.
    """

    def __init__(self, shards: int, most_groups: int = MOST_GROUPS, users_at_once: int = 1) -> None:
        self.most_groups = most_groups
        self.users_at_once = users_at_once
        self.seconds = np.zeros(shards)
        self.seen = np.zeros(shards, dtype=np.int64)

    def groups(self, users: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Cut a cohort, in user order, into at most 32 groups of nearly equal size."""
        if not len(users):
            return []
        stacks = math.ceil(len(users) / self.users_at_once)
        return np.array_split(users, min(self.most_groups, stacks))

    def deal(self, groups: Sequence[NDArray[np.int64]], workers: int) -> list[list[int]]:
        """Deal groups to workers, the longest first, each to the worker with least to do.

        Reference: Graham 1969, longest processing time first.
        """
        hands: list[list[int]] = [[] for _ in range(workers)]
        loads = [0.0] * workers
        costs = [self.expected_seconds(group) for group in groups]
        for group in sorted(range(len(groups)), key=lambda index: (-costs[index], index)):
            worker = min(range(workers), key=lambda index: (loads[index], index))
            hands[worker].append(group)
            loads[worker] += costs[group]
        return [sorted(hand) for hand in hands]

    def expected_seconds(self, users: NDArray[np.int64]) -> float:
        """Expect a user's mean time so far; the mean of all users where it is not yet known."""
        shards = users % len(self.seconds)
        known = self.seen > 0
        typical = float(self.seconds[known].mean()) if known.any() else 1.0
        return float(np.where(self.seen[shards] > 0, self.seconds[shards], typical).sum())

    def learn(self, outcomes: Iterable[UserOutcome]) -> None:
        """Average measured seconds into each user's expectation."""
        for outcome in outcomes:
            if not outcome.seconds:  # ended its worker, so its time is not known
                continue
            shard = outcome.user % len(self.seconds)
            self.seen[shard] += 1
            self.seconds[shard] += (outcome.seconds - self.seconds[shard]) / self.seen[shard]
