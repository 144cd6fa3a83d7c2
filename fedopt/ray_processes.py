"""Start Ray on this machine with the processes that a run needs, in half of Ray's own time.

Ray's private symbols are touched here and nowhere else, under a version guard; another version of
Ray starts all that it starts by itself.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

KNOWN_RAY = "2.55."
"""Versions of Ray whose start is known."""


@contextlib.contextmanager
def needed_processes(version: str, *, logs: bool) -> Iterator[None]:
    """Let a `ray.init` inside the block leave out the autoscaler and the dashboard's server.

    version: of Ray. logs: whether the processes' output is to be collected for the driver.
    Nothing of a run asks these processes; each is a Python that imports Ray and is waited for.
    """
    if not version.startswith(KNOWN_RAY):
        yield
        return
    from ray._private import node, parameter

    parameters = functools.partial(parameter.RayParams, no_monitor=True, include_log_monitor=logs)
    with (
        _replaced(parameter, "RayParams", parameters),
        _replaced(node.Node, "start_api_server", _no_server),
    ):
        yield


def _no_server(node: Any, **_: object) -> None:
    """Start no dashboard server; a node that has none has no address of one."""
    node._webui_url = None


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
