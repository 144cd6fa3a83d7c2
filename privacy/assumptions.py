"""List what a guarantee rests on, and for each whether the code enforces it or one must trust."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from privacy.plan import PrivacyPlan

State = Literal["enforced", "trusted", "not enforced"]


@dataclass(frozen=True)
class Assumption:
    """State one assumption; "not enforced" means that the run itself did not meet it."""

    name: str
    state: State
    detail: str


def extrapolates(plan: PrivacyPlan) -> bool:
    """Tell whether other cohorts are drawn than the claimed ones.

    >>> plan = PrivacyPlan(population=100, cohort=10, rounds=1, delta=1e-5,
    ...                    noise_multiplier=1.0, clip_norm=1.0)
    >>> extrapolates(plan), extrapolates(plan.simulate(users=100, cohort=10))
    (False, False)
    >>> extrapolates(plan.simulate(users=50, cohort=10))
    True
    """
    drawn = plan.simulation
    return drawn.virtual or (drawn.users, drawn.cohort) != (plan.population, plan.cohort)


def assumptions(
    plan: PrivacyPlan, randomness: str, plug_in: bool = False, noised_replies: int = 0
) -> list[Assumption]:
    """List the assumptions behind the claimed guarantee, those of the code first.

    noised_replies: updates that came with noise inside, so that the server could not clip them.

    Guarantee: what is called enforced is done by the same plan that is accounted.
    Not covered: "trusted" lines, which no code can check.
    """
    return [
        Assumption(
            "Cohorts are drawn as accounted",
            "enforced",
            f"sampler ({plan.sampling}) and accountant read the same plan",
        ),
        _secrecy(randomness),
        _population(plan),
        _bound(plan, noised_replies),
        _noise(plan),
        Assumption(
            "Nothing is released that is not charged",
            "enforced",
            "a round is on the ledger before it is trained, and visible after it is committed",
        ),
        Assumption(
            "One user is one person",
            "trusted",
            "that one node is one person is the operator's duty"
            if plug_in
            else "the list of users comes with the data; nobody else can know who is who",
        ),
        Assumption(
            "The server is honest",
            "trusted",
            "it sees sums before they are complete, and who was drawn",
        ),
        Assumption(
            "Nothing was chosen by looking at these people's data before",
            "trusted",
            "tuning runs count only where they are on the same ledger",
        ),
    ]


def _secrecy(randomness: str) -> Assumption:
    name = "Noise and cohorts stay secret"
    if randomness == "secure":
        return Assumption(name, "enforced", "both are drawn from the operating system")
    return Assumption(
        name, "not enforced", "both come from the seed; who knows it can take the noise away"
    )


def _population(plan: PrivacyPlan) -> Assumption:
    name = "The claimed population and cohort are the real ones"
    drawn = plan.simulation
    if drawn.virtual:
        detail = f"virtual users share the data of {drawn.users:,} people: a load test"
        return Assumption(name, "not enforced", detail)
    if extrapolates(plan):
        detail = (
            f"the run drew {drawn.cohort:,} of {drawn.users:,} users in place of "
            f"{plan.cohort:,} of {plan.population:,}"
        )
        return Assumption(name, "not enforced", detail)
    return Assumption(name, "enforced", f"cohorts come from {drawn.users:,} users")


def _bound(plan: PrivacyPlan, noised_replies: int) -> Assumption:
    name = "One user changes a sum by at most the clip norm"
    if noised_replies:
        detail = (
            f"{noised_replies:,} replies came with noise inside, which the server cannot clip "
            "again: their nodes are trusted to have clipped"
        )
        return Assumption(name, "trusted", detail)
    detail = f"every update is clipped to {plan.clip_norm:.4g} ({plan.clipping}) before it is added"
    return Assumption(name, "enforced", detail)


def _noise(plan: PrivacyPlan) -> Assumption:
    name = "Noise is added before anything is visible"
    if plan.noise_multiplier == 0.0:
        return Assumption(name, "not enforced", "the noise multiplier is 0: no noise is added")
    detail = f"by the {plan.noise_placement}, completed by the server"
    return Assumption(
        name, "enforced", "by the server" if plan.noise_placement == "server" else detail
    )
