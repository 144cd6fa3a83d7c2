"""Check which foreign strategies are made private, and that the others are refused by name."""

from __future__ import annotations

import numpy as np
import pytest
from flower_nodes import NodeGrid, adding_app, weights
from flwr.app import Context, Message
from flwr.serverapp import strategy as flower

import fedopt
from fedopt import PrivacyPlan, private
from privacy.errors import SettingsError

PLAN = PrivacyPlan(
    population=100, cohort=20, rounds=3, delta=1e-5, noise_multiplier=1.0, clip_norm=2.0
)


@pytest.mark.parametrize(
    "strategy", [flower.FedAvg(), flower.FedProx(proximal_mu=0.1), fedopt.FedYogi(eta=0.5)]
)
def test_sound_strategies_release_the_planned_noise(strategy: flower.Strategy) -> None:
    wrapped = private(strategy, PLAN, seed=1)
    result = wrapped.start(NodeGrid(adding_app(step=0.0), 60), weights(), num_rounds=1)
    values = result.arrays["w"].numpy()
    if isinstance(strategy, fedopt.FedYogi):
        # The first step of Yogi from v = tau^2 on a pure-noise mean of deviation 0.1.
        assert values.std() > 0.1
    else:
        assert values.std() == pytest.approx(PLAN.noise_std_on_mean, rel=0.015)


def test_the_proximal_term_still_reaches_the_nodes() -> None:
    seen = []
    app = adding_app()

    def listening(message: Message, context: Context, call_next: object) -> Message:
        if message.metadata.message_type == "train":
            seen.append(message.content["config"]["proximal-mu"])
        return call_next(message, context)  # type: ignore[operator,no-any-return]

    app = adding_app(mods=[listening])
    wrapped = private(flower.FedProx(proximal_mu=0.25), PLAN, seed=1)
    wrapped.start(NodeGrid(app, 60), weights(3), num_rounds=1)
    assert seen
    assert set(seen) == {0.25}


def test_the_given_strategy_is_not_changed() -> None:
    strategy = fedopt.FedAdam()
    wrapped = private(strategy, PLAN)
    assert strategy.privacy is None
    assert wrapped.privacy is PLAN


def _wrapper() -> flower.Strategy:
    return flower.DifferentialPrivacyServerSideFixedClipping(flower.FedAvg(), 1.0, 1.0, 10)


@pytest.mark.parametrize(
    ("strategy", "reason"),
    [
        (flower.FedAdam(), "use fedopt.FedAdam"),
        (flower.FedMedian(), "by order or distance"),
        (flower.Krum(), "by order or distance"),
        (flower.QFedAvg(client_learning_rate=0.1), "losses"),
        (_wrapper(), "privacy wrapper itself"),
        (type("Mine", (flower.FedAvg,), {})(), "not known to be a plain mean"),
    ],
)
def test_unsound_strategies_are_refused_with_the_reason(
    strategy: flower.Strategy, reason: str
) -> None:
    with pytest.raises(SettingsError, match=reason):
        private(strategy, PLAN)


def test_a_strategy_with_a_plan_is_not_wrapped_twice() -> None:
    with pytest.raises(SettingsError, match="once"):
        private(fedopt.FedAvg(privacy=PLAN), PLAN)


def test_a_flower_strategy_with_its_own_fraction_is_refused() -> None:
    with pytest.raises(SettingsError, match="fraction_train"):
        private(flower.FedAvg(fraction_train=0.3), PLAN)


def test_weights_stay_float32() -> None:
    wrapped = private(flower.FedAvg(), PLAN, seed=1)
    result = wrapped.start(NodeGrid(adding_app(), 60), weights(3), num_rounds=1)
    assert result.arrays["w"].numpy().dtype == np.float32
