"""Knock at the address of a Ray cluster before Ray does, so that a wrong one is refused at once."""

from __future__ import annotations

import os
import socket

from privacy.errors import SettingsError

CONNECT_SECONDS = 5.0
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
EMPTY_SETTINGS = b"\0\0\0\4\0\0\0\0\0"
"""Header of an HTTP/2 frame: its length in three bytes, its type, flags, and stream."""


def refuse_unreachable(address: str | None) -> None:
    """Knock at a cluster's address first: Ray itself would try for minutes and print the while.

    Raises: SettingsError where nobody listens, or something that is no Ray cluster.
    """
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if not colon:  # "auto", or a cluster of this machine
        return
    try:
        with socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS) as opened:
            opened.settimeout(CONNECT_SECONDS)
            encrypted = os.environ.get("RAY_USE_TLS") == "1"  # then only Ray can ask further
            if not (encrypted or speaks_grpc(opened)):
                raise ConnectionError("what listens there does not answer as Ray does")
    except (OSError, ValueError, OverflowError) as problem:
        raise SettingsError(
            f"ray-address must be where a Ray cluster listens, got {address!r} ({problem}); "
            "check --ray-address or choose --engine local"
        ) from problem


def speaks_grpc(opened: socket.socket) -> bool:
    """Tell whether the other side greets as every gRPC server does, Ray's included.

    Reference: RFC 9113 (HTTP/2), sections 3.4 and 6.5: both sides begin with a SETTINGS frame.
    """
    opened.sendall(HTTP2_PREFACE + EMPTY_SETTINGS)
    frame = b""
    while len(frame) < len(EMPTY_SETTINGS) and (more := opened.recv(1024)):
        frame += more
    return frame[3:4] == EMPTY_SETTINGS[3:4]
