"""Offer the layer-normalised strategies that Flower lacks, under the same keywords.

Each parameter tensor is a layer with a step length of its own. The step does not shrink with the
update, so a rate that decays over the rounds is advised.
"""

from __future__ import annotations

from collections.abc import Mapping

from privacy.plan import PrivacyPlan
from strategies.cohort_training import Cohorts
from strategies.fed_optimizer import (
    FedOptimizer,
    Folder,
    MetricsFunction,
    RoundObserver,
    Schedule,
)

__all__ = ["FedLAMB", "FedLARS", "FedNovoGrad"]


class FedNovoGrad(FedOptimizer):
    """Step each layer by its update over a running norm of its updates.

    scale: "unit" (as published), "sqrt_d" or "param"; groups: layer name -> group name;
    lr_1d: rate of one-dimensional tensors. See strategies.novograd.
    Reference: Ginsburg et al. 2019 (arXiv 1905.11286), Algorithm 1.
    """

    def __init__(
        self,
        *,
        fraction_train: float = 1.0,
        fraction_evaluate: float = 1.0,
        min_train_nodes: int = 2,
        min_evaluate_nodes: int = 2,
        min_available_nodes: int = 2,
        weighted_by_key: str = "num-examples",
        arrayrecord_key: str = "arrays",
        configrecord_key: str = "config",
        train_metrics_aggr_fn: MetricsFunction | None = None,
        evaluate_metrics_aggr_fn: MetricsFunction | None = None,
        eta: float = 1e-2,
        beta_1: float = 0.9,
        beta_2: float = 0.98,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        scale: str = "unit",
        lr_1d: float | None = None,
        groups: Mapping[str, str] | None = None,
        privacy: PrivacyPlan | None = None,
        schedule: Schedule | None = None,
        seed: int | None = None,
        checkpoint_dir: Folder | None = None,
        output_dir: Folder | None = None,
        cohorts: Cohorts | None = None,
        on_round: RoundObserver | None = None,
    ) -> None:
        super().__init__(
            "fednovograd",
            {
                "lr": eta,
                "beta1": beta_1,
                "beta2": beta_2,
                "eps": eps,
                "weight_decay": weight_decay,
                "scale": scale,
                "lr_1d": lr_1d,
                "groups": groups,
            },
            fraction_train=fraction_train,
            fraction_evaluate=fraction_evaluate,
            min_train_nodes=min_train_nodes,
            min_evaluate_nodes=min_evaluate_nodes,
            min_available_nodes=min_available_nodes,
            weighted_by_key=weighted_by_key,
            arrayrecord_key=arrayrecord_key,
            configrecord_key=configrecord_key,
            train_metrics_aggr_fn=train_metrics_aggr_fn,
            evaluate_metrics_aggr_fn=evaluate_metrics_aggr_fn,
            privacy=privacy,
            schedule=schedule,
            seed=seed,
            checkpoint_dir=checkpoint_dir,
            output_dir=output_dir,
            cohorts=cohorts,
            on_round=on_round,
        )


class FedLAMB(FedOptimizer):
    """Step with LAMB: Adam with a trust ratio for each layer (used in arXiv 2310.00098).

    Reference: You et al. 2020 (arXiv 1904.00962), Algorithm 2.
    """

    def __init__(
        self,
        *,
        fraction_train: float = 1.0,
        fraction_evaluate: float = 1.0,
        min_train_nodes: int = 2,
        min_evaluate_nodes: int = 2,
        min_available_nodes: int = 2,
        weighted_by_key: str = "num-examples",
        arrayrecord_key: str = "arrays",
        configrecord_key: str = "config",
        train_metrics_aggr_fn: MetricsFunction | None = None,
        evaluate_metrics_aggr_fn: MetricsFunction | None = None,
        eta: float = 2e-3,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        privacy: PrivacyPlan | None = None,
        schedule: Schedule | None = None,
        seed: int | None = None,
        checkpoint_dir: Folder | None = None,
        output_dir: Folder | None = None,
        cohorts: Cohorts | None = None,
        on_round: RoundObserver | None = None,
    ) -> None:
        super().__init__(
            "fedlamb",
            {"lr": eta, "beta1": beta_1, "beta2": beta_2, "eps": eps, "weight_decay": weight_decay},
            fraction_train=fraction_train,
            fraction_evaluate=fraction_evaluate,
            min_train_nodes=min_train_nodes,
            min_evaluate_nodes=min_evaluate_nodes,
            min_available_nodes=min_available_nodes,
            weighted_by_key=weighted_by_key,
            arrayrecord_key=arrayrecord_key,
            configrecord_key=configrecord_key,
            train_metrics_aggr_fn=train_metrics_aggr_fn,
            evaluate_metrics_aggr_fn=evaluate_metrics_aggr_fn,
            privacy=privacy,
            schedule=schedule,
            seed=seed,
            checkpoint_dir=checkpoint_dir,
            output_dir=output_dir,
            cohorts=cohorts,
            on_round=on_round,
        )


class FedLARS(FedOptimizer):
    """Step with LARS: momentum with a trust ratio for each layer.

    skip_1d: leave one-dimensional tensors without ratio and decay.
    Reference: You et al. 2017 (arXiv 1708.03888), Algorithm 1.
    """

    def __init__(
        self,
        *,
        fraction_train: float = 1.0,
        fraction_evaluate: float = 1.0,
        min_train_nodes: int = 2,
        min_evaluate_nodes: int = 2,
        min_available_nodes: int = 2,
        weighted_by_key: str = "num-examples",
        arrayrecord_key: str = "arrays",
        configrecord_key: str = "config",
        train_metrics_aggr_fn: MetricsFunction | None = None,
        evaluate_metrics_aggr_fn: MetricsFunction | None = None,
        eta: float = 0.5,
        momentum: float = 0.9,
        trust_coefficient: float = 1e-3,
        weight_decay: float = 0.0,
        skip_1d: bool = False,
        privacy: PrivacyPlan | None = None,
        schedule: Schedule | None = None,
        seed: int | None = None,
        checkpoint_dir: Folder | None = None,
        output_dir: Folder | None = None,
        cohorts: Cohorts | None = None,
        on_round: RoundObserver | None = None,
    ) -> None:
        super().__init__(
            "fedlars",
            {
                "lr": eta,
                "momentum": momentum,
                "trust_coefficient": trust_coefficient,
                "weight_decay": weight_decay,
                "skip_1d": skip_1d,
            },
            fraction_train=fraction_train,
            fraction_evaluate=fraction_evaluate,
            min_train_nodes=min_train_nodes,
            min_evaluate_nodes=min_evaluate_nodes,
            min_available_nodes=min_available_nodes,
            weighted_by_key=weighted_by_key,
            arrayrecord_key=arrayrecord_key,
            configrecord_key=configrecord_key,
            train_metrics_aggr_fn=train_metrics_aggr_fn,
            evaluate_metrics_aggr_fn=evaluate_metrics_aggr_fn,
            privacy=privacy,
            schedule=schedule,
            seed=seed,
            checkpoint_dir=checkpoint_dir,
            output_dir=output_dir,
            cohorts=cohorts,
            on_round=on_round,
        )
