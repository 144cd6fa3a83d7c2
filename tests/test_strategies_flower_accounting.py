"""Hold our epsilons against those of Flower's own accountant, fed from the same plan."""

from __future__ import annotations

import pytest

from privacy.errors import SettingsError
from privacy.plan import PrivacyPlan
from strategies.flower_accounting import (
    flower_accountant,
    flower_event,
    flower_privacy_config,
)

SETTINGS = {
    "population": 1000,
    "cohort": 100,
    "rounds": 50,
    "delta": 1e-6,
    "noise_multiplier": 20.0,
    "clip_norm": 1.0,
}


def plan(**changes: object) -> PrivacyPlan:
    return PrivacyPlan(**(SETTINGS | changes))  # type: ignore[arg-type]


def test_without_amplification_both_accountants_agree() -> None:
    everyone = plan(sampling="everyone", cohort=1000)
    theirs = flower_accountant(everyone).get_epsilon(everyone.delta)
    # Theirs knows fewer orders, so ours may only be smaller, and here by less than 1 %.
    assert everyone.epsilon() <= theirs * (1 + 1e-9)
    assert everyone.epsilon() == pytest.approx(theirs, rel=0.01)


@pytest.mark.parametrize("noise_multiplier", [0.8, 2.0, 20.0])
def test_under_poisson_sampling_ours_is_never_above_flowers(noise_multiplier: float) -> None:
    chosen = plan(noise_multiplier=noise_multiplier)
    theirs = flower_accountant(chosen).get_epsilon(chosen.delta)
    assert chosen.epsilon() <= theirs * (1 + 1e-6)
    assert chosen.epsilon() >= 0.5 * theirs


def test_fixed_cohorts_are_accounted_with_doubled_sensitivity() -> None:
    fixed = plan(sampling="fixed")
    assert flower_event(fixed).noise_multiplier == fixed.noise_multiplier / 2
    theirs = flower_accountant(fixed).get_epsilon(fixed.delta)
    assert fixed.epsilon() == pytest.approx(theirs, rel=0.05)


def test_the_config_names_population_relation_and_sampling() -> None:
    config = flower_privacy_config(plan(), max_epsilon=3.0)
    assert config.population_size == 1000
    assert config.sampling_method.value == "poisson"
    assert config.neighboring_relation.value == "add-or-remove-one"
    assert config.max_epsilon == 3.0


def test_a_capped_cohort_is_refused() -> None:
    with pytest.raises(SettingsError, match="truncated cohort"):
        flower_privacy_config(plan(cohort_cap=200))
