"""Put a privacy plan around somebody else's Flower strategy, where that is sound."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from flwr.serverapp.strategy import FedProx as FlowerFedProx
from flwr.serverapp.strategy import Strategy

from privacy.errors import SettingsError
from privacy.plan import PrivacyPlan
from strategies.fed_optimizer import FedOptimizer, Folder
from strategies.plug_in import refuse_with_plan
from strategies.strategies import FedAvg

OWN_OPTIMIZER = "it steps its own optimizer inside aggregate_train, on the mean without noise"
ORDER = "its result depends on single updates by order or distance, which no clip norm bounds"
REASONS = {
    "FedAdam": f"{OWN_OPTIMIZER}; use fedopt.FedAdam(privacy=plan)",
    "FedYogi": f"{OWN_OPTIMIZER}; use fedopt.FedYogi(privacy=plan)",
    "FedAdagrad": f"{OWN_OPTIMIZER}; use fedopt.FedAdagrad(privacy=plan)",
    "FedAvgM": f"{OWN_OPTIMIZER}; use fedopt.FedAvgM(privacy=plan)",
    "FedOpt": f"{OWN_OPTIMIZER}; use fedopt.FedOptimizer(privacy=plan)",
    "FedMedian": ORDER,
    "FedTrimmedAvg": ORDER,
    "Krum": ORDER,
    "MultiKrum": ORDER,
    "Bulyan": ORDER,
    "QFedAvg": "it weights updates by their losses, which are private",
    "FedXgbBagging": "it releases trees, not a sum of clipped updates",
    "FedXgbCyclic": "it releases one client's model as it is",
}
WRAPPER = "it is a privacy wrapper itself, and two mechanisms would be accounted as one"

COPIED = (
    "fraction_train",
    "fraction_evaluate",
    "min_train_nodes",
    "min_evaluate_nodes",
    "min_available_nodes",
    "weighted_by_key",
    "arrayrecord_key",
    "configrecord_key",
    "evaluate_metrics_aggr_fn",
)


class PrivateFedProx(FedAvg):
    """Average privately and send the proximal term to the nodes, as Flower's FedProx does.

    Reference: Li et al. 2020 (arXiv 1812.06127).
    """

    proximal_mu: float = 0.0

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Draw the round's nodes and tell them mu."""
        told = ConfigRecord(dict(config.items()) | {"proximal-mu": self.proximal_mu})
        return super().configure_train(server_round, arrays, told, grid)


def private(
    strategy: Strategy,
    plan: PrivacyPlan,
    *,
    seed: int | None = None,
    checkpoint_dir: Folder | None = None,
    output_dir: Folder | None = None,
) -> FedOptimizer:
    """Return a strategy that does what the given one does, under the plan.

    strategy: Flower's FedAvg or FedProx, or one of ours without a plan; it is not changed.

    Raises: SettingsError with the reason for any other strategy, and for a subclass, whose
    changes could release what the plan does not cover.
    Guarantee: the plan's, for each node as one user.
    Not covered: client metrics and evaluation.
    """
    kept: dict[str, Any] = {
        "seed": seed,
        "checkpoint_dir": checkpoint_dir,
        "output_dir": output_dir,
    }
    if isinstance(strategy, FedOptimizer):
        return _with_plan(strategy, plan, kept)
    if type(strategy) is FlowerFedAvg:
        return FedAvg(**_copied(strategy), privacy=plan, **kept)
    if type(strategy) is FlowerFedProx:
        wrapped = PrivateFedProx(**_copied(strategy), privacy=plan, **kept)
        wrapped.proximal_mu = strategy.proximal_mu
        return wrapped
    raise SettingsError(
        f"strategy {type(strategy).__name__} cannot be made private from outside: "
        f"{_reason(strategy)}"
    )


def _copied(strategy: FlowerFedAvg) -> dict[str, Any]:
    return {name: getattr(strategy, name) for name in COPIED}


def _with_plan(strategy: FedOptimizer, plan: PrivacyPlan, kept: dict[str, Any]) -> FedOptimizer:
    if strategy.privacy is not None:
        raise SettingsError("strategy has a plan already; make it private once")
    refuse_with_plan(
        plan, None, kept["output_dir"], strategy.fraction_train, strategy.min_train_nodes
    )
    wrapped = copy.copy(strategy)
    wrapped.privacy = plan
    wrapped.observers = list(strategy.observers)
    wrapped.place(**kept)
    return wrapped


def _reason(strategy: Strategy) -> str:
    name = type(strategy).__name__
    if name.startswith("DifferentialPrivacy"):
        return WRAPPER
    return REASONS.get(name, "its aggregate_train is not known to be a plain mean of the replies")
