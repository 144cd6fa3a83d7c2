"""Simulate private federated learning at population scale.

Public names are imported when they are first used, so `import fedopt` costs nothing and the
accounting works where Flower is not installed.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

HOMES = {
    "FedAvg": "strategies.strategies",
    "FedAvgM": "strategies.strategies",
    "FedAdagrad": "strategies.strategies",
    "FedAdam": "strategies.strategies",
    "FedYogi": "strategies.strategies",
    "FedNovoGrad": "strategies.layerwise_strategies",
    "FedLAMB": "strategies.layerwise_strategies",
    "FedLARS": "strategies.layerwise_strategies",
    "FedOptimizer": "strategies.fed_optimizer",
    "build_optimizer": "strategies.optimizers",
    "PrivacyPlan": "privacy.plan",
    "clip_update": "privacy.clipping",
    "per_layer_clip_mod": "clients.mods",
    "noise_share_mod": "clients.mods",
    "private": "strategies.private",
    "Task": "clients.task",
    "simulate": "fedopt.simulation",
}

FLOORS = ("strategies", "clients", "privacy")
NEEDS = {"strategies.optimizers": ("strategies", "privacy")}
"""Homes that need fewer packages than their own floor and all below it."""

__all__ = sorted(HOMES)


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module 'fedopt' has no attribute {name!r}")
    for package in packages_of(name):
        _refuse_foreign(package)
    return getattr(import_module(HOMES[name]), name)


def packages_of(name: str) -> tuple[str, ...]:
    """List the packages beside `fedopt` that a public name needs, when it is used too."""
    home = HOMES[name]
    floor = home.partition(".")[0]
    below = FLOORS[FLOORS.index(floor) :] if floor in FLOORS else FLOORS
    return NEEDS.get(home, below)


def __dir__() -> list[str]:
    return [*globals(), *__all__]


def _refuse_foreign(package: str) -> None:
    """Say so where another package or module of the same name hides one of ours.

    Raises: ImportError naming the package, where it lies, and the cure.
    """
    from importlib.util import find_spec
    from pathlib import Path

    found = find_spec(package)
    folders = list(found.submodule_search_locations or []) if found else []
    ours = Path(__file__).resolve().parent.parent / package
    if ours in [Path(folder).resolve() for folder in folders]:
        return
    where = ", ".join(folders) or (found.origin if found else None)
    if where is None:
        raise ImportError(f"fedopt needs its own package {package!r}, which is not installed")
    raise ImportError(
        f"fedopt needs its own package {package!r}, but {where} comes first on the path; "
        "rename that one, or move the folder that holds it off the path"
    )
