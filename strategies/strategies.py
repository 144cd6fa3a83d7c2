"""Offer the strategies that Flower has too, with Flower's own keywords and defaults.

An app that uses Flower's FedAvg, FedAvgM, FedAdagrad, FedAdam or FedYogi switches by changing
the import. Every keyword of Flower stands written out, so that editors and type checkers know it;
what the keywords mean is said once, at `FedOptimizer`.
"""

from __future__ import annotations

from privacy.plan import PrivacyPlan
from strategies.cohort_training import Cohorts
from strategies.fed_optimizer import (
    FedOptimizer,
    Folder,
    MetricsFunction,
    RoundObserver,
    Schedule,
)

__all__ = ["FedAdagrad", "FedAdam", "FedAvg", "FedAvgM", "FedYogi"]


class FedAvg(FedOptimizer):
    """Average the replies.

    Reference: McMahan et al. 2017 (arXiv 1602.05629), Algorithm 1.
    """

    def __init__(
        self,
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
        server_learning_rate: float = 1.0,
        *,
        privacy: PrivacyPlan | None = None,
        schedule: Schedule | None = None,
        seed: int | None = None,
        checkpoint_dir: Folder | None = None,
        output_dir: Folder | None = None,
        cohorts: Cohorts | None = None,
        on_round: RoundObserver | None = None,
    ) -> None:
        super().__init__(
            "fedavg",
            {"lr": server_learning_rate},
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


class FedAvgM(FedOptimizer):
    """Average the replies with server momentum.

    Reference: Hsu et al. 2019 (arXiv 1909.06335).
    """

    def __init__(
        self,
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
        server_learning_rate: float = 1.0,
        server_momentum: float = 0.0,
        *,
        privacy: PrivacyPlan | None = None,
        schedule: Schedule | None = None,
        seed: int | None = None,
        checkpoint_dir: Folder | None = None,
        output_dir: Folder | None = None,
        cohorts: Cohorts | None = None,
        on_round: RoundObserver | None = None,
    ) -> None:
        super().__init__(
            "fedavgm",
            {"lr": server_learning_rate, "momentum": server_momentum},
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


class FedAdagrad(FedOptimizer):
    """Step with Adagrad, its accumulator starting at tau^2.

    eta_l is Flower's keyword for the clients' rate, which the app sets; it is not used.
    Reference: Reddi et al. 2021 (arXiv 2003.00295), Algorithm 2.
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
        eta: float = 1e-1,
        eta_l: float = 1e-1,
        tau: float = 1e-3,
        privacy: PrivacyPlan | None = None,
        schedule: Schedule | None = None,
        seed: int | None = None,
        checkpoint_dir: Folder | None = None,
        output_dir: Folder | None = None,
        cohorts: Cohorts | None = None,
        on_round: RoundObserver | None = None,
    ) -> None:
        super().__init__(
            "fedadagrad",
            {"lr": eta, "tau": tau},
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


class FedAdam(FedOptimizer):
    """Step with Adam as published: no bias correction, v starting at tau^2.

    eta_l is Flower's keyword for the clients' rate, which the app sets; it is not used.
    Reference: Reddi et al. 2021 (arXiv 2003.00295), Algorithm 2.
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
        eta: float = 1e-1,
        eta_l: float = 1e-1,
        beta_1: float = 0.9,
        beta_2: float = 0.99,
        tau: float = 1e-3,
        privacy: PrivacyPlan | None = None,
        schedule: Schedule | None = None,
        seed: int | None = None,
        checkpoint_dir: Folder | None = None,
        output_dir: Folder | None = None,
        cohorts: Cohorts | None = None,
        on_round: RoundObserver | None = None,
    ) -> None:
        super().__init__(
            "fedadam",
            {"lr": eta, "beta1": beta_1, "beta2": beta_2, "tau": tau},
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


class FedYogi(FedOptimizer):
    """Step with Yogi, whose second moment moves by at most the squared update.

    eta_l is Flower's keyword for the clients' rate, which the app sets; it is not used.
    Reference: Reddi et al. 2021 (arXiv 2003.00295), Algorithm 2.
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
        eta_l: float = 0.0316,
        beta_1: float = 0.9,
        beta_2: float = 0.99,
        tau: float = 1e-3,
        privacy: PrivacyPlan | None = None,
        schedule: Schedule | None = None,
        seed: int | None = None,
        checkpoint_dir: Folder | None = None,
        output_dir: Folder | None = None,
        cohorts: Cohorts | None = None,
        on_round: RoundObserver | None = None,
    ) -> None:
        super().__init__(
            "fedyogi",
            {"lr": eta, "beta1": beta_1, "beta2": beta_2, "tau": tau},
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
