"""State a plan in Flower's own accounting types, for apps and reviewers that use those."""

from __future__ import annotations

from flwr.serverapp import NeighboringRelation, PrivacyConfig, RdpAccountant, SamplingMethod
from flwr.supercore.privacy_accounting import GaussianPrivacyEvent

from privacy.errors import SettingsError
from privacy.plan import PrivacyPlan

SAMPLING = {
    "poisson": SamplingMethod.POISSON,
    "fixed": SamplingMethod.WITHOUT_REPLACEMENT,
    "everyone": SamplingMethod.NO_AMPLIFICATION,
}
RELATION = {
    "add-or-remove-one": NeighboringRelation.ADD_OR_REMOVE_ONE,
    "replace-one": NeighboringRelation.REPLACE_ONE,
}


def flower_privacy_config(plan: PrivacyPlan, max_epsilon: float | None = None) -> PrivacyConfig:
    """Describe a plan by Flower's PrivacyConfig.

    max_epsilon: Flower's own budget limit; None for none.
    Raises: SettingsError for a capped cohort, which Flower's types cannot state.
    """
    if plan.cohort_cap is not None:
        raise SettingsError(
            f"cohort-cap must be None for Flower's accounting types, got {plan.cohort_cap}; "
            "a truncated cohort has an event of its own that they lack"
        )
    return PrivacyConfig(
        target_delta=plan.delta,
        population_size=plan.population,
        neighboring_relation=RELATION[plan.event.adjacency],
        sampling_method=SAMPLING[plan.sampling],
        max_epsilon=max_epsilon,
    )


def flower_event(plan: PrivacyPlan) -> GaussianPrivacyEvent:
    """Describe one round as claimed by Flower's event.

    Under replace-one one user moves the sum by 2 C, and Flower's accountant forwards the noise
    multiplier unchanged to a library that does not double the sensitivity; so it is halved here.
    """
    halves = 2.0 if plan.event.adjacency == "replace-one" else 1.0
    return GaussianPrivacyEvent(
        noise_multiplier=plan.noise_multiplier / halves,
        sample_size=plan.cohort,
        population_size=plan.population,
    )


def flower_accountant(plan: PrivacyPlan, rounds: int | None = None) -> RdpAccountant:
    """Feed Flower's RDP accountant with a plan's rounds (default: all planned).

    Guarantee: an upper bound on epsilon, as loose as Flower's short list of orders makes it.
    Not covered: what the plan's own statement does not cover.
    """
    accountant = RdpAccountant(flower_privacy_config(plan))
    accountant.compose(flower_event(plan), plan.rounds if rounds is None else rounds)
    return accountant
