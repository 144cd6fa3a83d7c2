"""Take the replies of one private round in plug-in mode: each node is one user.

Any fault of a node is a zero contribution of that node alone: an error, a missing key, another
shape or dtype, NaN, a second reply, a reply that nobody asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from flwr.app import Message

from clients.node_protocol import ClipOrder, marks, only_arrays
from clients.protocol import PartialSum, UserOutcome
from privacy.clipped_sum import ClippedSum
from privacy.plan import PrivacyPlan
from privacy.seeds import Streams
from strategies.release import released_mean


class NodeFault(Exception):
    """Say why one node contributes nothing this round."""


@dataclass
class NodeRound:
    """Hold a plug-in round in flight.

    weights: the trained arrays that were sent. nodes: the drawn nodes; a node's place in this
    list is its number. clipped_by_nodes, trusted: replies that came clipped, and with noise.
    """

    plan: PrivacyPlan
    streams: Streams
    number: int
    attempt: int
    weights: Mapping[str, torch.Tensor]
    nodes: list[int]
    connected: int
    total: torch.Tensor = field(init=False)
    outcomes: dict[int, UserOutcome] = field(default_factory=dict)
    partials: list[PartialSum] = field(default_factory=list)
    noised: int = 0
    trusted: int = 0
    clipped_by_nodes: int = 0
    clipped_by_server: int = 0

    def __post_init__(self) -> None:
        sizes = [tensor.numel() for tensor in self.weights.values()]
        self.bounds = tuple(self.plan.bounds(sizes))
        self.sum = ClippedSum(sizes)
        self.sum.start(self.plan.clipping, self.bounds, self.plan.grid_spacing)
        self.total = self.sum.total

    def order(self) -> ClipOrder:
        """Tell nodes the bounds and their share of the noise."""
        share = self.plan.share_deviation(1, len(self.nodes)) if self.nodes else 0.0
        return ClipOrder(tuple(self.weights), self.bounds, self.plan.clipping, share)

    def take(self, replies: Iterable[Message]) -> None:
        """Add each drawn node's first reply; what cannot be used counts as zeros."""
        numbers = {node: number for number, node in enumerate(self.nodes)}
        for reply in replies:
            number = numbers.get(reply.metadata.src_node_id)
            if number is None or number in self.outcomes:
                continue
            try:
                self.outcomes[number] = self._add(number, reply)
            except Exception as problem:
                # Whatever a node sends, it may neither end the round nor change what others add.
                why = str(problem) if isinstance(problem, NodeFault) else repr(problem)
                self.outcomes[number] = UserOutcome(number, 0.0, 0.0, False, 0.0, why[:500])

    def _add(self, number: int, reply: Message) -> UserOutcome:
        if reply.has_error():
            raise NodeFault(f"replied with error {reply.error.code}")
        is_update, has_share = marks(reply.content)
        update = self._update(reply, is_update)
        if has_share and self.plan.noise_multiplier > 0.0:
            return self._add_noised(number, update)
        found = self.sum.add(torch.cat([part.reshape(-1) for part in update]))
        if not found.finite:
            raise NodeFault("its update holds NaN or infinity")
        self.clipped_by_nodes += is_update
        # What a node clipped in float32 may miss the server's bound by a rounding.
        self.clipped_by_server += any(scale < 1.0 - 2.0**-20 for scale in found.scales)
        return UserOutcome(number, 0.0, found.whole_norm, found.was_clipped, 0.0)

    def _add_noised(self, number: int, update: list[torch.Tensor]) -> UserOutcome:
        """Add an update that holds a noise share: it cannot be clipped again, so it is trusted."""
        flat = torch.cat([part.reshape(-1) for part in update]).double()
        if not bool(torch.isfinite(flat).all()):
            raise NodeFault("its update holds NaN or infinity")
        reach = 2.0 * (self.plan.clip_norm + 64.0 * self.plan.noise_std_on_sum)
        if float(flat.abs().max()) > reach:
            raise NodeFault(f"its update has a coordinate beyond {reach:.3g}")
        self.total += (flat / self.plan.grid_spacing).round_().to(torch.int64)
        self.noised += 1
        self.trusted += 1
        self.clipped_by_nodes += 1
        return UserOutcome(number, 0.0, 0.0, False, 0.0)

    def _update(self, reply: Message, is_update: bool) -> list[torch.Tensor]:
        """Read the update of every trained array, float32, or say what is wrong with it."""
        _, arrays = only_arrays(reply.content)
        update = []
        for name, sent in self.weights.items():
            if name not in arrays:
                raise NodeFault(f"misses the array {name!r}")
            found = arrays[name]
            if not np.issubdtype(found.dtype, np.floating):
                raise NodeFault(f"array {name!r} has dtype {found.dtype}")
            if found.shape != tuple(sent.shape):
                raise NodeFault(f"array {name!r} has shape {found.shape}")
            wide = torch.from_numpy(np.array(found, dtype=np.float64))
            update.append((wide if is_update else wide - sent.double()).float())
        return update

    def finish(self) -> torch.Tensor:
        """Complete the noise and divide by the fixed cohort size; float64 (coordinates,)."""
        for number in range(len(self.nodes)):
            if number not in self.outcomes:
                missing = UserOutcome(number, 0.0, 0.0, False, 0.0, "did not reply")
                self.outcomes[number] = missing
        return released_mean(
            self.plan,
            self.streams,
            self.total,
            number=self.number,
            attempt=self.attempt,
            drawn=len(self.nodes),
            noised=self.noised,
        )
