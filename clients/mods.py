"""Offer Flower mods for other people's ClientApps: clip on the node, add a share of the noise.

Register them with `@app.train(mods=[...])` or app-wide; they act on training messages only, and
only where the server's strategy runs with a privacy plan.
"""

from __future__ import annotations

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable

from clients.node_protocol import (
    HAS_SHARE,
    IS_UPDATE,
    ClipOrder,
    clip_order,
    mark,
    marks,
    only_arrays,
)
from privacy.clipping import clip_tensors_in_place
from privacy.seeds import SystemSource


def per_layer_clip_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Reply with the clipped update in place of the trained weights.

    The bounds come in the message. A mark tells the server, which checks the bound and clips
    again: the mark is a claim.

    Reference: arXiv 2310.00098, Definition 3.
    Guarantee: what leaves the node has an L2 norm of at most the plan's clip norm.
    Not covered: the reply's metrics leave as they are.
    """
    order, received = _before(message)
    reply = call_next(message, context)
    if order is not None and reply.has_content() and not marks(reply.content)[0]:
        _reply_with_update(reply.content, received, order)
    return reply


def noise_share_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Clip, where that is not done yet, and add this node's share of the round's noise.

    The share comes from the operating system's generator. It may be listed before or after
    `per_layer_clip_mod`, or without it.

    Guarantee: the shares of all drawn nodes and what the server completes add up to the plan's
    noise.
    Not covered: one share alone is a noise multiplier of only z / sqrt(m) against the server.
    The server cannot clip again what holds noise: it trusts the node's clip, and says so.
    """
    order, received = _before(message)
    reply = call_next(message, context)
    if order is None or not reply.has_content():
        return reply
    if not marks(reply.content)[0]:
        _reply_with_update(reply.content, received, order)
    _add_share(reply.content, order)
    return reply


def _before(message: Message) -> tuple[ClipOrder | None, dict[str, torch.Tensor]]:
    """Keep the received weights: the app may change the message's own arrays while it trains."""
    if not message.metadata.message_type.startswith("train"):
        return None, {}
    order = clip_order(message)
    if order is None:
        return None, {}
    _, arrays = only_arrays(message.content)
    return order, {name: _wide(arrays[name]) for name in order.layers}


def _wide(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> torch.Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float64))


def _reply_with_update(
    content: RecordDict, received: dict[str, torch.Tensor], order: ClipOrder
) -> None:
    """Turn trained weights into a clipped float32 update of the trained layers alone."""
    key, trained = only_arrays(content)
    updates = [(_wide(trained[name]) - received[name]).float() for name in order.layers]
    clip_tensors_in_place(updates, order.clipping, order.bounds)
    _put(content, key, order, updates)
    mark(content, IS_UPDATE)


def _add_share(content: RecordDict, order: ClipOrder) -> None:
    """Add Gaussian noise of the share's deviation to every coordinate."""
    key, arrays = only_arrays(content)
    source = SystemSource()
    noised = []
    for name in order.layers:
        noise = source.normal(arrays[name].size).reshape(arrays[name].shape)
        noised.append(torch.from_numpy(arrays[name] + order.noise_share * noise).float())
    _put(content, key, order, noised)
    mark(content, HAS_SHARE)


def _put(content: RecordDict, key: str, order: ClipOrder, tensors: list[torch.Tensor]) -> None:
    content[key] = ArrayRecord(
        {name: Array(tensor.numpy()) for name, tensor in zip(order.layers, tensors, strict=True)}
    )
