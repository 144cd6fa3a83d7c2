"""Describe a finished round in numbers, in an order that does not depend on the workers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from clients.protocol import NORM_SPACING, PartialSum, UserOutcome

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class RoundRecord:
    """Hold what is known of a round once it is released.

    cohort: users drawn. replies: users that contributed an update. epsilon: claimed, so far;
    None where infinite. train_loss, update_norm (mean L2 norm before clipping), clipped_fraction,
    layer_clipped (share of users by layer), layer_norms and layer_norms_clipped (mean L2 norm by
    layer, before and after clipping): not private. noise_std: on the mean, per coordinate.
    step_norm: L2 norm of the change of the weights. faults: reason by user number. amounts: what
    was trained on, as the task counts it.
    """

    round: int
    attempt: int
    cohort: int
    replies: int
    epsilon: float | None
    train_loss: float | None
    update_norm: float | None
    clipped_fraction: float | None
    noise_std: float
    step_norm: float
    faults: Mapping[str, str] = field(default_factory=dict)
    layer_clipped: Sequence[float] = ()
    layer_norms: Sequence[float] = ()
    layer_norms_clipped: Sequence[float] = ()
    seconds: float = 0.0
    seconds_by_phase: Mapping[str, float] = field(default_factory=dict)
    peak_memory_megabytes: float = 0.0
    amounts: Mapping[str, int] = field(default_factory=dict)


def outcome_numbers(
    outcomes: Mapping[int, UserOutcome], partials: Sequence[PartialSum]
) -> dict[str, Any]:
    """Sum up the users' outcomes, in user order with exact sums."""
    ordered = [outcomes[user] for user in sorted(outcomes)]
    trained = [outcome for outcome in ordered if not outcome.fault]
    count = max(len(trained), 1)
    return {
        "cohort": len(ordered),
        "replies": len(trained),
        "train_loss": _mean([outcome.loss for outcome in trained]),
        "update_norm": _mean([outcome.norm for outcome in trained]),
        "clipped_fraction": _mean([float(outcome.clipped) for outcome in trained]),
        "layer_clipped": [n / count for n in _sums([p.layer_clipped for p in partials])],
        "layer_norms": _norms([p.layer_norms for p in partials], count),
        "layer_norms_clipped": _norms([p.layer_norms_clipped for p in partials], count),
        "faults": {str(outcome.user): outcome.fault for outcome in ordered if outcome.fault},
        "peak_memory_megabytes": max((partial.peak_megabytes for partial in partials), default=0.0),
        "seconds_by_phase": added_up(partial.phases for partial in partials),
        "amounts": added_up(partial.amounts for partial in partials),
    }


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _sums(columns: Sequence[Sequence[int]]) -> list[int]:
    return [sum(column) for column in zip(*columns, strict=True)]


def _norms(columns: Sequence[Sequence[int]], count: int) -> list[float]:
    """Average norms over users, to the six digits that anybody reads."""
    return [float(f"{total * NORM_SPACING / count:.6g}") for total in _sums(columns)]


def added_up(tables: Iterable[Mapping[str, Number]]) -> dict[str, Number]:
    """Add up numbers by name."""
    totals: dict[str, Number] = {}
    for table in tables:
        for name, value in table.items():
            totals[name] = totals[name] + value if name in totals else value
    return totals
