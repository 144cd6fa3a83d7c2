"""Put the guarantee of a plan into words: what holds, for whom, on what trust."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from privacy.assumptions import extrapolates
from privacy.errors import PrivacyWarning
from privacy.plan import PrivacyPlan

ACCOUNTANT_WORDS = {
    "rdp": "RDP",
    "pld": "PLD",
    "prv": "PRV",
    "exact": "the exact Gaussian curve",
}

ADJACENCY_WORDS = {
    "add-or-remove-one": "adding or removing all data of one user",
    "replace-one": "replacing all data of one user by another's",
}

COVERED = ("every released model, each round's and the last", "anything computed from them alone")

NOT_COVERED = (
    "training losses, update norms, word error rates and other evaluation metrics",
    "choices made by looking at them: settings, stopping, the best checkpoint",
    "earlier runs on the same people that are not on this ledger, and the data of a seed model",
    "one person who is several users, and several persons who are one user",
    "side channels: timing, logs, drop-out patterns, floating-point sampling of noise",
)


@dataclass(frozen=True)
class Epsilon:
    """Carry one epsilon with all that it needs to mean something; infinity: no guarantee."""

    value: float
    delta: float
    adjacency: str
    sampling: str
    accountant: str
    version: str
    upper_bound: bool = True


def round_up(value: float, digits: int = 2) -> str:
    """Print a number rounded up, so that a printed epsilon never promises too much.

    >>> round_up(7.2201), round_up(0.00123), round_up(math.inf)
    ('7.23', '0.0013', 'infinity')
    """
    if math.isinf(value):
        return "infinity"
    if value <= 0.0:
        return "0"
    places = max(digits, digits - 1 - math.floor(math.log10(value)))
    scaled = value * 10**places
    # A value that is the decimal itself but for binary rounding is not pushed up a digit.
    up = math.ceil(scaled * (1.0 - 1e-15))
    return f"{up / 10**places:,.{places}f}"


def tier(epsilon: float) -> str:
    """Name the tier of an epsilon.

    >>> tier(7.2)
    'tier 2: reasonable guarantee'

    Reference: Ponomareva et al. 2023 (arXiv 2303.00654), section 5.2.1.
    """
    if epsilon <= 1.0:
        return "tier 1: strong formal guarantee"
    if epsilon <= 10.0:
        return "tier 2: reasonable guarantee"
    return "tier 3: weak or no formal guarantee"


def strength(epsilon: float) -> str:
    """Say in plain words how little a large epsilon guarantees; empty where it is at most 10.

    >>> strength(51.0)
    'no meaningful guarantee'
    """
    if epsilon > 50.0:
        return "no meaningful guarantee"
    if epsilon > 10.0:
        return "the formal guarantee alone does not bound attacks meaningfully"
    return ""


def sampling_words(plan: PrivacyPlan) -> str:
    """Describe the claimed sampling in one clause."""
    if plan.sampling == "everyone":
        return f"all N = {plan.population:,} users take part in every round"
    if plan.sampling == "fixed":
        return (
            f"exactly {plan.cohort:,} of N = {plan.population:,} users are drawn "
            "uniformly without replacement in each round"
        )
    cap = f", cut to at most {plan.cohort_cap:,}" if plan.cohort_cap else ""
    return (
        f"each of N = {plan.population:,} users is drawn independently with probability "
        f"q = {plan.sample_rate:.4g} in each round{cap}"
    )


def guarantee_sentence(plan: PrivacyPlan, spent: Epsilon, rounds: int, randomness: str) -> str:
    """State the claimed guarantee in one sentence that can be quoted by itself.

    rounds: released models. It is "simulated" where the randomness can be repeated or other
    cohorts were drawn than those claimed.

    >>> plan = PrivacyPlan(population=1000, cohort=10, rounds=5, delta=1e-5,
    ...                    noise_multiplier=1.0, clip_norm=2.0)
    >>> spent = Epsilon(2.345, 1e-5, "add-or-remove-one", "poisson", "rdp", "opacus 1.6.0")
    >>> guarantee_sentence(plan, spent, 5, "secure")[:72]
    'The sequence of all 5 released models is (epsilon <= 2.35, delta = 1e-05'

    Reference: privacy budget reports after Ponomareva et al. 2023 (arXiv 2303.00654), section 5.3.
    Guarantee: the sentence names delta, unit, adjacency, sampling, releases and accountant.
    Not covered: it holds for the deployment described, not for the people of a simulation.
    """
    if plan.noise_multiplier == 0.0:
        return (
            "No privacy guarantee: no noise was added, so epsilon is infinite whatever the "
            "sampling and the clipping."
        )
    if math.isinf(spent.value):
        return "No privacy guarantee: the noise is so small that epsilon is infinite."
    if rounds == 0:
        return "No model was released yet, so there is nothing to guarantee."
    simulated = randomness == "reproducible" or extrapolates(plan)
    head = "Simulated guarantee: the" if simulated else "The"
    models = "one released model" if rounds == 1 else f"sequence of all {rounds:,} released models"
    weak = strength(spent.value)
    return (
        f"{head} {models} is (epsilon <= "
        f"{round_up(spent.value)}, delta = {spent.delta:g})-differentially private at the level "
        f"of one user ({ADJACENCY_WORDS[spent.adjacency]}), provided that {sampling_words(plan)}; "
        f"computed with {ACCOUNTANT_WORDS[spent.accountant]} by {spent.version}"
        + (f"; {weak}." if weak else ".")
    )


def as_run_sentence(plan: PrivacyPlan, spent: Epsilon, rounds: int, randomness: str) -> str:
    """State what the simulation itself gives to the people in its data set."""
    drawn = plan.simulation
    if drawn.virtual:
        return (
            "As run: virtual users share the data of fewer people, so nothing is guaranteed to "
            "the people in this data set."
        )
    if math.isinf(spent.value):
        why = "no noise" if plan.noise_multiplier == 0.0 else "too little noise"
        return f"As run: {why}, hence no guarantee for the people in this data set."
    if rounds == 0:
        return "As run: no model was released yet."
    secret = " (what secret randomness would give)" if randomness == "reproducible" else ""
    if not extrapolates(plan):
        return f"As run{secret}: the claimed cohorts themselves were drawn, so both are the same."
    weak = strength(spent.value)
    return (
        f"As run{secret}: {drawn.cohort:,} of {drawn.users:,} people a round with noise "
        f"multiplier {plan.simulated_noise_multiplier:.4g} for {rounds:,} rounds give epsilon "
        f"{round_up(spent.value)} at delta = {spent.delta:g}"
        + (f": {weak} for the people in this data set." if weak else ".")
    )


def trust_sentences(plan: PrivacyPlan, plug_in: bool = False) -> list[str]:
    """Say who is trusted and with what."""
    sees = "single users' updates" if plug_in else "partial sums of clipped updates"
    reach = (
        "There is no guarantee against anybody."
        if plan.noise_multiplier == 0.0
        else "The guarantee holds against whoever sees the released models."
    )
    sentences = [
        reach,
        f"The server is trusted: it sees {sees}, draws the cohorts in secret and completes "
        "the noise.",
    ]
    if plan.noise_placement == "clients" and plan.noise_multiplier > 0.0:
        alone = plan.noise_multiplier / math.sqrt(plan.cohort)
        sentences.append(
            f"Each client adds a share of the noise; one share alone is a noise multiplier of "
            f"only {alone:.3g}, and c colluding clients of m leave z sqrt((m - c) / m)."
        )
    if plug_in:
        sentences.append("That one node is one person is the operator's duty.")
    return sentences


def plan_warnings(plan: PrivacyPlan, randomness: str) -> list[PrivacyWarning]:
    """List what a reader must know before relying on the plan, with stable codes."""
    found: list[PrivacyWarning] = []

    def warn(condition: bool, code: str, text: str) -> None:
        if condition:
            found.append(PrivacyWarning(code, text))

    people = plan.population * plan.delta
    warn(
        people >= 1.0,
        "delta-above-one-over-population",
        f"delta x population is {people:.3g}; a delta of 1 / population or more allows the data "
        f"of whole users to leak; choose delta below {0.1 / plan.population:.1g}",
    )
    warn(
        0.1 < people < 1.0,
        "delta-near-one-over-population",
        f"delta x population is {people:.3g}, not much below 1; choose delta below "
        f"{0.1 / plan.population:.1g}",
    )
    warn(plan.noise_multiplier == 0.0, "not-private", "No noise is added: the run is not private.")
    warn(
        randomness == "reproducible" and plan.noise_multiplier > 0.0,
        "reproducible-randomness",
        "Noise and cohorts come from the seed; who knows it can take the noise away. "
        "Use randomness secure where people's data are to be protected.",
    )
    warn(
        extrapolates(plan),
        "extrapolated",
        f"A cohort of {plan.simulation.cohort:,} from {plan.simulation.users:,} users was trained "
        f"in place of the claimed {plan.cohort:,} from {plan.population:,}; that the metric stays "
        "the same at the claimed size is an assumption.",
    )
    warn(
        plan.simulation.virtual,
        "virtual-users",
        "Virtual users share data: a load test, which says nothing of the people in the data.",
    )
    warn(
        plan.clipping.startswith("normalise"),
        "normalising-clip",
        "Normalising clips lift small layers to their bounds: the sensitivity is C all the same.",
    )
    return found


def not_covered(extra: Sequence[str] = ()) -> list[str]:
    """List what no guarantee of this project covers, with what a run adds."""
    return [*NOT_COVERED, *extra]
