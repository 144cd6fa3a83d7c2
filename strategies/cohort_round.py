"""Run one round over users: ask workers, retry what was lost, sum, complete the noise.

The cohort is cut, in user order, into fixed groups that do not depend on the workers. Workers
are asked for pieces of groups. A piece whose reply is lost is asked for again, group by group
and at last user by user, so that a user who kills every worker is found and counted as zeros
while all others' updates stay what they were.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from flwr.app import ArrayRecord, Message
from numpy.typing import NDArray

from clients.protocol import (
    WORKER_LATE,
    LocalWork,
    MechanismSettings,
    PartialSum,
    Piece,
    StreamSettings,
    TrainRequest,
    UserOutcome,
    decode_reply,
    encode_request,
)
from privacy.errors import FedOptError, WorkersLost
from privacy.plan import PrivacyPlan
from privacy.seeds import Streams
from strategies.release import released_mean

RETRIES = 4
"""Once as it was asked, then user by user: what ends its worker three times alone is a fault."""
ENGINE_FAULT = 2
"""Flower's error code for a ClientApp that raised: a fault of the program, not of a user."""

NOISE_DRAWS = 2
"""Draws of noise per round: more would let more workers share it and cost more in all."""

LOST, LATE = "ended its worker", "held its worker past its deadline"

AGAIN = "run again with --resume"

Asked = tuple[Piece, ...]


class Population(Protocol):
    """Cut cohorts into groups and deal them to workers."""

    def groups(self, users: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Cut a cohort into fixed groups, in user order."""
        ...

    def deal(self, groups: Sequence[NDArray[np.int64]], workers: int) -> list[list[int]]:
        """Deal group numbers to workers by expected cost."""
        ...

    def learn(self, outcomes: Iterable[UserOutcome]) -> None:
        """Learn users' costs from measured seconds."""
        ...


@dataclass
class CohortRound:
    """Hold a round in flight: who was asked for what, and what has come back.

    total: int64 (coordinates,), the sum so far, noise shares included.
    """

    plan: PrivacyPlan
    streams: Streams
    work: LocalWork
    number: int
    attempt: int
    users: NDArray[np.int64]
    groups: list[NDArray[np.int64]]
    sizes: list[int]
    total: torch.Tensor = field(init=False)
    outcomes: dict[int, UserOutcome] = field(default_factory=dict)
    partials: list[PartialSum] = field(default_factory=list)
    noised: int = 0
    asked: dict[str, Asked] = field(default_factory=dict)
    requests: int = 0
    trials: int = 0
    answered_trial: int = -1

    def __post_init__(self) -> None:
        self.total = torch.zeros(sum(self.sizes), dtype=torch.int64)

    def first_messages(
        self, population: Population, arrays: ArrayRecord, nodes: Sequence[int]
    ) -> list[Message]:
        """Ask each worker once, for the groups dealt to it."""
        shares = self._noise_shares()
        messages = []
        hands = population.deal(self.groups, len(nodes))
        for node, hand in zip(nodes, hands, strict=True):
            pieces = tuple(
                Piece(group, tuple(map(int, self.groups[group])), shares[group]) for group in hand
            )
            if pieces:
                messages.append(self._ask(pieces, arrays, node))
        return messages

    def _noise_shares(self) -> list[int]:
        """Say with which groups how many users' noise is drawn: for several groups at once.

        One draw of the summed variance has the same distribution as a draw for each group, and
        noise is the larger part of the work beside training.
        """
        sizes = [len(group) for group in self.groups]
        shares = [0] * len(sizes)
        if sizes and self.plan.noise_placement == "clients" and self.plan.noise_multiplier > 0.0:
            for block in np.array_split(np.arange(len(sizes)), min(NOISE_DRAWS, len(sizes))):
                shares[block[0]] = sum(sizes[group] for group in block)
        return shares

    def retry_messages(self, arrays: ArrayRecord, nodes: Sequence[int]) -> list[Message]:
        """Ask again for what was lost, in smaller pieces; empty when nothing is left to ask.

        Raises: WorkersLost where there is no worker to ask.
        """
        lost = [piece for asked in self.asked.values() for piece in asked]
        if not lost or self.trials == RETRIES:
            return []
        self.asked.clear()
        if not nodes:
            raise WorkersLost(f"round {self.number}: no worker is left; {AGAIN}")
        self.trials += 1
        smaller = lost if self.trials == 1 else alone(lost)
        # The trial shifts the order, so a user is not asked for at the same worker again.
        return [
            self._ask((piece,), arrays, nodes[(index + self.trials) % len(nodes)])
            for index, piece in enumerate(smaller)
        ]

    def _ask(self, pieces: Asked, arrays: ArrayRecord, node: int) -> Message:
        request = TrainRequest(
            weights={},
            pieces=pieces,
            mechanism=MechanismSettings(
                clipping=self.plan.clipping,
                bounds=tuple(self.plan.bounds(self.sizes)),
                grid_spacing=self.plan.grid_spacing,
                noise_std=self.plan.noise_std_on_sum,
                cohort=len(self.users),
            ),
            streams=StreamSettings(
                seed=self.streams.seed,
                settings_hash=self.streams.settings_hash,
                secure=self.streams.secure,
                round=self.number,
                attempt=self.attempt,
            ),
            work=self.work,
        )
        label = f"{self.number}.{self.attempt}.{self.requests}"
        self.requests += 1
        self.asked[label] = pieces
        return encode_request(request, arrays, node, label)

    def take(self, replies: Iterable[Message]) -> None:
        """Add the replies that answer what was asked; anything else is left aside.

        Raises: FedOptError where the ClientApp itself failed, which no user can cause.
        """
        for reply in replies:
            label = reply.metadata.group_id
            if label not in self.asked:
                continue
            if reply.has_error():
                self._take_error(label, reply.error.code, reply.error.reason)
                continue
            partial = readable(reply)
            if partial is not None:
                self._take_partial(label, partial)

    def _take_error(self, label: str, code: int, reason: str | None) -> None:
        if code == ENGINE_FAULT:
            raise FedOptError(f"a worker's ClientApp failed: {last_line(reason or '')}")
        users = [user for piece in self.asked[label] for user in piece.users]
        if code == WORKER_LATE and len(users) == 1:
            # Alone on its worker and late: no other user can be the cause.
            self.outcomes[users[0]] = UserOutcome(users[0], 0.0, 0.0, False, 0.0, LATE)
            self.answered_trial = self.trials
            pieces = self.asked.pop(label)
            rest = tuple(Piece(p.group, (), p.noise_shares) for p in pieces if p.noise_shares)
            if rest:
                self.asked[label] = rest

    def _take_partial(self, label: str, partial: PartialSum) -> None:
        asked = self.asked[label]
        users = sorted(user for piece in asked for user in piece.users)
        answered = sorted(outcome.user for outcome in partial.outcomes)
        shares = sum(piece.noise_shares for piece in asked)
        layers = (partial.layer_clipped, partial.layer_norms, partial.layer_norms_clipped)
        got = (answered, partial.noise_shares, partial.total.shape, *map(len, layers))
        wanted = (users, shares, tuple(self.total.shape), *[len(self.sizes)] * len(layers))
        if got != wanted or partial.total.dtype != np.int64:
            return
        del self.asked[label]
        self.answered_trial = self.trials
        self.total += torch.from_numpy(np.array(partial.total))
        self.outcomes |= {outcome.user: outcome for outcome in partial.outcomes}
        self.noised += shares
        self.partials.append(partial)

    def finish(self) -> torch.Tensor:
        """Complete the noise to exactly z_s C and divide by the fixed cohort size.

        Users that never answered, asked alone and several times, count as zeros, if others were
        answered meanwhile: then the workers were there and these users ended them.
        Returns: the released mean update, float64 (coordinates,).
        Raises: WorkersLost where users are missing and no worker answered in the last trial.
        Guarantee: the noise on the sum has variance (z_s C)^2 whatever was lost.
        """
        lost = sorted(set(map(int, self.users)) - set(self.outcomes))
        if lost and (self.trials < RETRIES or self.answered_trial < self.trials):
            raise WorkersLost(
                f"round {self.number}: {len(lost)} of {len(self.users)} users are not accounted "
                f"for, because no worker answered any more; {AGAIN}"
            )
        for user in lost:
            self.outcomes[user] = UserOutcome(user, 0.0, 0.0, False, 0.0, LOST)
        return released_mean(
            self.plan,
            self.streams,
            self.total,
            number=self.number,
            attempt=self.attempt,
            drawn=len(self.users),
            noised=self.noised,
        )


def alone(pieces: Sequence[Piece]) -> list[Piece]:
    """Cut pieces into single users; each group's noise goes with a piece of no users.

    The sum is exact, so it has the same bytes however a group is cut. One piece of no users is
    always there: it tells whether any worker answers.
    """
    users = [Piece(piece.group, (user,), 0) for piece in pieces for user in piece.users]
    noise = [Piece(piece.group, (), piece.noise_shares) for piece in pieces if piece.noise_shares]
    return users + (noise or [Piece(0, (), 0)])


def readable(reply: Message) -> PartialSum | None:
    """Read a reply; one that cannot be read is as good as lost."""
    try:
        return decode_reply(reply)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def last_line(text: str) -> str:
    """Take the sentence out of a traceback."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
