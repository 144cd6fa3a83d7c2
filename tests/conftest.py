"""Keep every test off the network, on one thread, and with an identity for Flower's messages."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True, scope="session")
def quiet_machine() -> None:
    from fedopt.cli import quiet_libraries

    quiet_libraries()
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def flower_identity() -> None:
    """Let a test create Flower messages outside a Flower run."""
    from fedopt.local_grid import claim_flower_identity

    claim_flower_identity()
