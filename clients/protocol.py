"""Speak the language of both sides: what the server asks of a worker and what comes back.

Only this file and clients.node_protocol know the keys of Flower records. A request names users to
train, in pieces of the cohort's fixed groups; a reply carries one partial sum of clipped updates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from clients.arrays import unpacked, weights_of
from clients.findings import Finding
from privacy.errors import SettingsError

if TYPE_CHECKING:
    from numpy.typing import NDArray

TRAIN_COHORT = "train.cohort"
"""Message type of population mode: an action of its own beside an app's plain "train"."""

WORKER_LATE = 100
"""Error code of a reply that was not there in time, beside Flower's codes, which are below 10."""

NORM_SPACING = 2.0**-30
"""Unit in which a worker adds up norms for the log, as integers."""

REPLY_SECONDS = 5.0
"""What a message may take besides training: its way out and back, noise, a slow machine."""

WEIGHTS, CONFIG, TOTAL, METRICS, FAULTS = "arrays", "config", "partial-sum", "metrics", "faults"
FINDINGS = "findings"


@dataclass(frozen=True)
class LocalWork:
    """State how one user is trained: the same for all users of a run.

    client_lr: SGD rate. local_steps: batches per user; 0: use local_epochs.
    gradient_clip: bound on each local gradient's L2 norm; 0 for none. proximal: FedProx mu.
    user_seconds: deadline of one user; 0 for none.
    users_at_once: users trained together in a stack, where the task allows it; 1: one by one.
    """

    client_lr: float = 0.1
    local_steps: int = 10
    local_epochs: int = 1
    gradient_clip: float = 0.0
    momentum: float = 0.0
    weight_decay: float = 0.0
    proximal: float = 0.0
    user_seconds: float = 0.0
    users_at_once: int = 1


@dataclass(frozen=True)
class Piece:
    """Name users of one fixed group that are trained by one worker, and noise added with them.

    noise_shares: how many users' noise shares the worker adds, as one draw of the group's stream;
    they may stand for users of the groups that follow.
    """

    group: int
    users: tuple[int, ...]
    noise_shares: int


@dataclass(frozen=True)
class MechanismSettings:
    """Carry what the plan prescribes for clipping and noise, as plain numbers.

    noise_std: standard deviation on the whole sum, shared by the `cohort` drawn users.
    """

    clipping: str
    bounds: tuple[float, ...]
    grid_spacing: float
    noise_std: float
    cohort: int


@dataclass(frozen=True)
class StreamSettings:
    """Carry what opens the streams of a round on a worker."""

    seed: int
    settings_hash: str
    secure: bool
    round: int
    attempt: int


@dataclass(frozen=True)
class TrainRequest:
    """Ask a worker to train users and add up their clipped updates.

    weights: mapping of parameter name to float32 array, in the model's own order.
    """

    weights: Mapping[str, NDArray[np.float32]]
    pieces: tuple[Piece, ...]
    mechanism: MechanismSettings
    streams: StreamSettings
    work: LocalWork


@dataclass(frozen=True)
class UserOutcome:
    """Report on one user, not private: it stays with the trusted server.

    fault: empty, or why the user contributed zeros.
    """

    user: int
    loss: float
    norm: float
    clipped: bool
    seconds: float
    fault: str = ""


@dataclass(frozen=True)
class PartialSum:
    """Hold the integer sum of clipped updates (with noise shares) of the pieces of one request.

    total: int64 (coordinates,), in units of the grid spacing.
    noise_shares: how many users' shares are inside. layer_clipped: users clipped, by layer.
    layer_norms, layer_norms_clipped: sums over users of the layers' norms before and after, in
    units of NORM_SPACING; integers, so that their sums have no order. findings: what was found in
    the data since the worker's reply before. amounts: what was trained on, in whole numbers.
    """

    total: NDArray[np.int64]
    outcomes: tuple[UserOutcome, ...]
    noise_shares: int
    layer_clipped: tuple[int, ...] = ()
    peak_megabytes: float = 0.0
    phases: Mapping[str, float] = field(default_factory=dict)
    layer_norms: tuple[int, ...] = ()
    layer_norms_clipped: tuple[int, ...] = ()
    findings: tuple[Finding, ...] = ()
    amounts: Mapping[str, int] = field(default_factory=dict)


Part = TypeVar("Part", MechanismSettings, StreamSettings, LocalWork)


def encode_request(request: TrainRequest, arrays: ArrayRecord, node: int, label: str) -> Message:
    """Build the message of one request.

    arrays: the weights, shared by all messages, not copied. label: comes back with the reply.
    """
    config: dict[str, Any] = {
        "user-ids": [user for piece in request.pieces for user in piece.users],
        "piece-groups": [piece.group for piece in request.pieces],
        "piece-lengths": [len(piece.users) for piece in request.pieces],
        "piece-noise-shares": [piece.noise_shares for piece in request.pieces],
    }
    for part in (request.mechanism, request.streams, request.work):
        config |= {_key(part, name): _plain(value) for name, value in asdict(part).items()}
    content = RecordDict({WEIGHTS: arrays, CONFIG: ConfigRecord(config)})
    return Message(content, dst_node_id=node, message_type=TRAIN_COHORT, group_id=label)


def decode_request(message: Message) -> TrainRequest:
    """Read a request; raises SettingsError where a key is missing."""
    config = _table(message, CONFIG)
    try:
        return TrainRequest(
            weights=weights_of(message.content.array_records[WEIGHTS]),
            pieces=_pieces(config),
            mechanism=_part(MechanismSettings, config),
            streams=_part(StreamSettings, config),
            work=_part(LocalWork, config),
        )
    except KeyError as missing:
        raise SettingsError(
            f"the train request lacks {missing}; use one version on both sides"
        ) from missing


def encode_reply(partial: PartialSum, message: Message) -> Message:
    """Build the reply that carries a partial sum."""
    outcomes = partial.outcomes
    metrics: dict[str, Any] = {
        "users": [outcome.user for outcome in outcomes],
        "losses": [float(outcome.loss) for outcome in outcomes],
        "norms": [float(outcome.norm) for outcome in outcomes],
        "clipped": [int(outcome.clipped) for outcome in outcomes],
        "seconds": [float(outcome.seconds) for outcome in outcomes],
        "noise-shares": partial.noise_shares,
        "layer-clipped": list(partial.layer_clipped),
        "layer-norms": list(partial.layer_norms),
        "layer-norms-clipped": list(partial.layer_norms_clipped),
        "peak-megabytes": float(partial.peak_megabytes),
        "num-examples": len(outcomes),
    }
    metrics |= {f"seconds-{name}": float(value) for name, value in partial.phases.items()}
    metrics |= {f"amount-{name}": int(value) for name, value in partial.amounts.items()}
    faults: dict[str, Any] = {str(o.user): o.fault for o in outcomes if o.fault}
    content = RecordDict(
        {
            TOTAL: ArrayRecord({TOTAL: Array(partial.total)}),
            METRICS: MetricRecord(metrics),
            FAULTS: ConfigRecord(faults),
        }
    )
    if partial.findings:
        content[FINDINGS] = _findings_record(partial.findings)
    return Message(content, reply_to=message)


def decode_reply(message: Message) -> PartialSum:
    """Read a partial sum."""
    metrics, faults = _table(message, METRICS), _table(message, FAULTS)
    columns = zip(
        metrics["users"],
        metrics["losses"],
        metrics["norms"],
        metrics["clipped"],
        metrics["seconds"],
        strict=True,
    )
    return PartialSum(
        total=unpacked(message.content.array_records[TOTAL][TOTAL]),
        outcomes=tuple(
            UserOutcome(user, loss, norm, bool(clipped), seconds, str(faults.get(str(user), "")))
            for user, loss, norm, clipped, seconds in columns
        ),
        noise_shares=int(metrics["noise-shares"]),
        layer_clipped=tuple(metrics["layer-clipped"]),
        layer_norms=tuple(metrics["layer-norms"]),
        layer_norms_clipped=tuple(metrics["layer-norms-clipped"]),
        peak_megabytes=metrics["peak-megabytes"],
        phases=_named(metrics, "seconds-"),
        findings=_findings(message),
        amounts=_named(metrics, "amount-"),
    )


def _named(metrics: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {
        key.removeprefix(prefix): value for key, value in metrics.items() if key.startswith(prefix)
    }


def _findings_record(found: Sequence[Finding]) -> ConfigRecord:
    """Pack findings by column; file names may hold what is no UTF-8, which a record refuses."""
    columns: dict[str, Any] = {
        name: [_sendable(getattr(each, name)) for each in found] for name in ("what", "name", "why")
    }
    return ConfigRecord(columns)


def _findings(message: Message) -> tuple[Finding, ...]:
    """Read findings; a worker that found nothing, or of an older version, sends none."""
    if FINDINGS not in message.content:
        return ()
    columns = _table(message, FINDINGS)
    rows = zip(columns["what"], columns["name"], columns["why"], strict=True)
    return tuple(Finding(*row) for row in rows)


def _sendable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def seconds_allowed(message: Message) -> float:
    """Give the time after which a worker that has not answered hangs; infinity for no deadline.

    A worker ends a late user itself between two local steps, so it needs this only where a user
    holds it in code that never comes back.
    """
    config = _table(message, CONFIG)
    each = float(config.get(_key(LocalWork(), "user_seconds"), 0.0))
    users = len(config.get("user-ids", ()))
    return REPLY_SECONDS + 2.0 * each * users if each else math.inf


def _table(message: Message, key: str) -> dict[str, Any]:
    """Read a record of plain values; their types are what the other side packed."""
    return dict(message.content[key].items())


def _key(part: object, name: str) -> str:
    return f"{type(part).__name__}.{name}".lower().replace("_", "-")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _part(kind: type[Part], config: Mapping[str, Any]) -> Part:
    values: dict[str, Any] = {}
    for item in fields(kind):
        value = config[f"{kind.__name__}.{item.name}".lower().replace("_", "-")]
        values[item.name] = tuple(value) if isinstance(value, list) else value
    return kind(**values)


def _pieces(config: Mapping[str, Any]) -> tuple[Piece, ...]:
    users: Sequence[int] = config["user-ids"]
    pieces, start = [], 0
    for group, length, shares in zip(
        config["piece-groups"], config["piece-lengths"], config["piece-noise-shares"], strict=True
    ):
        pieces.append(Piece(group, tuple(users[start : start + length]), shares))
        start += length
    return tuple(pieces)
