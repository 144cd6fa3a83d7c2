"""Speak to a node of somebody's own Flower app: how to clip, and what its reply claims to be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flwr.app import Message, MetricRecord, RecordDict

from clients.arrays import arrays_of
from clients.protocol import METRICS

if TYPE_CHECKING:
    from numpy.typing import NDArray

LAYERS, BOUNDS = "fedopt.layers", "fedopt.bounds"
CLIPPING, NOISE_SHARE = "fedopt.clipping", "fedopt.noise-share"
IS_UPDATE, HAS_SHARE = "fedopt.is-update", "fedopt.has-noise-share"


@dataclass(frozen=True)
class ClipOrder:
    """Carry what a node of plug-in mode is told of clipping and noise, beside the app's own config.

    layers: names of the trained arrays. noise_share: standard deviation of one node's share.
    """

    layers: tuple[str, ...]
    bounds: tuple[float, ...]
    clipping: str
    noise_share: float

    def entries(self) -> dict[str, Any]:
        """Give the entries that are added to the app's config record."""
        return {
            LAYERS: list(self.layers),
            BOUNDS: list(self.bounds),
            CLIPPING: self.clipping,
            NOISE_SHARE: self.noise_share,
        }


def clip_order(message: Message) -> ClipOrder | None:
    """Find the clip order in a message to a node; None where the server runs without a plan."""
    for record in message.content.config_records.values():
        if LAYERS in record:
            found: dict[str, Any] = dict(record.items())
            return ClipOrder(
                tuple(found[LAYERS]), tuple(found[BOUNDS]), found[CLIPPING], found[NOISE_SHARE]
            )
    return None


def only_arrays(content: RecordDict) -> tuple[str, dict[str, NDArray[Any]]]:
    """Give the key and arrays of a content's single array record; raises ValueError otherwise."""
    if len(content.array_records) != 1:
        raise ValueError(f"holds {len(content.array_records)} array records, one is wanted")
    ((key, record),) = content.array_records.items()
    return key, arrays_of(record)


def marks(content: RecordDict) -> tuple[bool, bool]:
    """Tell whether a reply claims to be a clipped update, and to hold a noise share."""
    metrics = list(content.metric_records.values())
    return (
        any(bool(record.get(IS_UPDATE, 0)) for record in metrics),
        any(bool(record.get(HAS_SHARE, 0)) for record in metrics),
    )


def mark(content: RecordDict, key: str) -> None:
    """Set a mark in a reply's metric record; one is added where there is none."""
    if not content.metric_records:
        content[METRICS] = MetricRecord()
    next(iter(content.metric_records.values()))[key] = 1
