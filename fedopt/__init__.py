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

__all__ = sorted(HOMES)


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module 'fedopt' has no attribute {name!r}")
    home = HOMES[name]
    _refuse_foreign(home.partition(".")[0])
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]


def _refuse_foreign(package: str) -> None:
    """Say so where another package of the same name hides one of ours.

    Raises: ImportError naming the package, where it lies, and the cure.
    """
    from importlib.util import find_spec
    from pathlib import Path

    if package == "fedopt":
        return
    found = find_spec(package)
    ours = Path(__file__).resolve().parent.parent / package
    places = (
        [Path(place).resolve() for place in (found.submodule_search_locations or [])]
        if found
        else []
    )
    if ours not in places:
        where = ", ".join(map(str, places)) or "nowhere"
        raise ImportError(
            f"fedopt needs its own package {package!r}, but {where} comes first on the path; "
            f"rename that package, or move the folder that holds it off the path"
        )
