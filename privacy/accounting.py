"""Answer what epsilon the releases so far have spent: by RDP, PLD, PRV or the exact curve.

Everything the accountants of Opacus and dp-accounting cannot do, do wrongly, or do with a silent
loss is caught here: the answer names the library that gave it and carries its warnings.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from privacy.accounting_pld import LARGEST_EPSILON, LossBound, delta_of, loss_bound
from privacy.accounting_prv import describes, variable_bound
from privacy.accounting_rdp import RenyiBound, renyi_bound
from privacy.accounting_values import (
    choice_problems,
    delta_problems,
    epsilon_problems,
    merge_releases,
)
from privacy.accounting_warnings import (
    NO_NOISE,
    delta_warnings,
    library_log,
    log_warnings,
    loss_looser,
    loss_skipped,
    loss_warnings,
    renyi_warnings,
    variable_warnings,
)
from privacy.errors import PrivacyWarning, SettingsError
from privacy.event import AccountingEvent, Adjacency
from privacy.gaussian import gaussian_epsilon

Accountant = Literal["rdp", "pld", "exact", "prv"]
Releases = Sequence[tuple[AccountingEvent, int]]

_LIBRARIES = {"rdp": "opacus", "pld": "dp-accounting", "exact": "scipy", "prv": "opacus"}
ACCOUNTANTS: tuple[Accountant, ...] = ("rdp", "pld", "exact", "prv")


@dataclass(frozen=True)
class PrivacySpent:
    """Hold one epsilon with everything needed to quote it.

    epsilon: not rounded; inf where a round has no noise, 0 where nothing was released.
    accountant: who answered; differs from the one asked for only together with a warning.
    order: Renyi order that gave epsilon, for rdp only.
    sampling: the samplings that were added up, joined by "+".
    upper_bound: True where the true epsilon is at most this one.
    """

    epsilon: float
    delta: float
    accountant: Accountant
    order: float | None
    library: str
    adjacency: Adjacency
    sampling: str
    upper_bound: bool = True
    warnings: tuple[PrivacyWarning, ...] = ()


def epsilon_spent(releases: Releases, delta: float, accountant: Accountant = "rdp") -> PrivacySpent:
    """Bound the epsilon of all releases together at delta.

    releases: pairs of event and number of rounds; equal events are added up.
    Renyi divergences are remembered per event and order: the second call is about 100 times faster.

    >>> event = AccountingEvent("poisson", 69_506_000, 204_800, 0.6144)
    >>> round(epsilon_spent([(event, 2034)], 1e-9).epsilon, 2)
    7.22

    Raises: SettingsError when a value is out of range, samplings cannot be added up, or the
    accountant cannot describe the sampling.
    Reference: see privacy.accounting_rdp, accounting_pld, accounting_prv and privacy.gaussian.
    Guarantee: the sequence of all releases is (epsilon, delta)-DP for one user, under `adjacency`.
    Not covered: any other output (losses, norms, evaluation), and a sampler, clip or noise that
    differs from the events.
    """
    merged = merge_releases(releases)
    problems = [*delta_problems(delta), *_accountant_problems(accountant, merged)]
    if problems:
        raise SettingsError(problems)
    blank = _blank(merged, delta, accountant)
    if not merged:
        return blank
    if any(event.noise_multiplier == 0 for event, _ in merged):
        return replace(blank, epsilon=math.inf, warnings=(NO_NOISE, *blank.warnings))
    if accountant == "exact":
        return replace(blank, epsilon=gaussian_epsilon(_gaussian_strength(merged), delta))
    renyi = _by_renyi(replace(blank, accountant="rdp"), merged)
    if accountant == "prv":
        return _by_variables(blank, merged, renyi)
    return renyi if accountant == "rdp" else _by_loss(blank, merged, renyi)


def available_accountants(event: AccountingEvent) -> tuple[Accountant, ...]:
    """List the accountants that are shown for this event, best known first.

    PRV is not among them: it is a third opinion for who asks, at the cost of a second or more.

    >>> available_accountants(AccountingEvent("fixed", 1000, 10, 1.0))
    ('rdp',)
    """
    if event.cohort_cap is not None:
        return ("pld",)
    if event.sampling == "fixed":
        return ("rdp",)
    return ("rdp", "pld", "exact") if event.sample_rate == 1.0 else ("rdp", "pld")


def epsilon_without_amplification(releases: Releases, delta: float) -> float:
    """Give the epsilon that holds even where everybody knows who was in which cohort.

    It is exact for a user who is in every cohort; under replace-one the sensitivity is 2C.

    >>> event = AccountingEvent("poisson", 1000, 10, 2.0)
    >>> round(epsilon_without_amplification([(event, 4)], 1e-5), 4)  # one Gaussian of mu 1
    4.3772

    Reference: Balle and Wang 2018 (arXiv 1805.06530), Theorem 8.
    Guarantee: (epsilon, delta)-DP under the adjacency of the events, with no secret sampling.
    Not covered: anything beside the released sums.
    """
    merged = merge_releases(releases)
    problems = tuple(delta_problems(delta))
    if problems:
        raise SettingsError(problems)
    return gaussian_epsilon(_gaussian_strength(merged), delta)


def gdp_mu(releases: Releases) -> float | None:
    """Describe the releases by one number mu of Gaussian DP, by the central limit theorem.

    mu^2 = sum over rounds of q^2 (e^(1/z^2) - 1), and 1/z^2 where q = 1 (exact there).
    None for fixed-size cohorts, where no such formula holds under replace-one; inf where z is tiny.

    >>> gdp_mu([(AccountingEvent("everyone", 10, 10, 2.0), 4)])
    1.0

    Reference: Bu, Dong, Long and Su 2020 (arXiv 1911.11607), Corollary 4 (Poisson sampling).
    Not covered: this is a description in the limit of many rounds, it can be too small and is never
    used as a guarantee.
    """
    merged = merge_releases(releases)
    if any(event.sampling == "fixed" for event, _ in merged):
        return None
    return math.sqrt(sum(rounds * _central_limit_variance(event) for event, rounds in merged))


def delta_at(releases: Releases, epsilon: float) -> float:
    """Bound delta at epsilon by PLD, one point of the privacy profile.

    >>> event = AccountingEvent("everyone", 10, 10, 2.0)
    >>> f"{delta_at([(event, 4)], 4.3772):.1e}"
    '1.0e-05'

    Raises: SettingsError when a value is out of range or PLD cannot describe the sampling.
    """
    merged = merge_releases(releases)
    problems = [*epsilon_problems(epsilon), *_accountant_problems("pld", merged)]
    if problems:
        raise SettingsError(problems)
    if not merged:
        return 0.0
    if any(event.noise_multiplier == 0 for event, _ in merged):
        return 1.0
    with library_log():
        renyi = _uncapped_bound(merged, 1e-9)
        grid = loss_bound(merged, 1e-9, min(renyi.epsilon, LARGEST_EPSILON), renyi.order).interval
        return min(delta_of(merged, epsilon, grid, renyi.order), 1.0)


def _accountant_problems(accountant: str, merged: Releases) -> Iterator[str]:
    unknown = tuple(choice_problems("accountant", accountant, ACCOUNTANTS))
    yield from unknown
    for event in {} if unknown else dict(merged):
        able = _able(event)
        if accountant not in able:
            sampling = "poisson sampling with a cohort cap" if event.cohort_cap else event.sampling
            yield (
                f"accountant {accountant} cannot describe sampling {sampling}, only "
                f"{' and '.join(able)} can; choose accountant {able[0]}"
            )
            return


def _able(event: AccountingEvent) -> tuple[Accountant, ...]:
    return (*available_accountants(event), *(("prv",) if describes(event) else ()))


def _blank(merged: Releases, delta: float, accountant: Accountant) -> PrivacySpent:
    events = [event for event, _ in merged]
    named = dict.fromkeys(event.sampling for event in events)
    return PrivacySpent(
        epsilon=0.0,
        delta=delta,
        accountant=accountant,
        order=None,
        library=library_version(_LIBRARIES[accountant]),
        adjacency=events[0].adjacency if events else "add-or-remove-one",
        sampling="+".join(named) or "none",
        warnings=delta_warnings(events, delta),
    )


def _by_renyi(blank: PrivacySpent, merged: Releases) -> PrivacySpent:
    with library_log() as messages:
        bound = _uncapped_bound(merged, blank.delta)
    found = (*log_warnings(messages), *renyi_warnings(bound, blank.sampling))
    return replace(
        blank,
        epsilon=bound.epsilon,
        order=bound.order,
        library=library_version(bound.distribution),
        warnings=(*blank.warnings, *found),
    )


def _by_loss(blank: PrivacySpent, merged: Releases, renyi: PrivacySpent) -> PrivacySpent:
    with library_log() as messages:
        bound = _loss_bound(merged, blank.delta, renyi)
    if _capped(merged) and bound is None:
        raise SettingsError(
            f"epsilon with a cohort cap can only be bounded by pld, which stops at "
            f"{LARGEST_EPSILON:g}, got about {renyi.epsilon:.3g}; raise the noise multiplier"
        )
    if bound is None:
        return replace(renyi, warnings=(*renyi.warnings, loss_skipped(renyi.epsilon)))
    if bound.epsilon > renyi.epsilon and not _capped(merged):
        return replace(renyi, warnings=(*renyi.warnings, loss_looser(bound.epsilon)))
    found = (*log_warnings(messages), *loss_warnings(bound.distribution))
    return replace(
        blank,
        epsilon=bound.epsilon,
        library=library_version(bound.distribution),
        warnings=(*blank.warnings, *found),
    )


def _by_variables(blank: PrivacySpent, merged: Releases, renyi: PrivacySpent) -> PrivacySpent:
    bound = variable_bound(merged, blank.delta, renyi.epsilon)
    found = variable_warnings(bound.epsilon, bound.error)
    return replace(blank, epsilon=bound.epsilon, warnings=(*blank.warnings, *found))


def _loss_bound(merged: Releases, delta: float, renyi: PrivacySpent) -> LossBound | None:
    """Bound epsilon by PLD; None where it is too large for floats or the grid for memory."""
    if renyi.epsilon > LARGEST_EPSILON:
        return None
    try:
        return loss_bound(merged, delta, renyi.epsilon, renyi.order or 2.0)
    except MemoryError:
        return None


def _capped(merged: Releases) -> bool:
    return any(event.cohort_cap is not None for event, _ in merged)


def _uncapped_bound(merged: Releases, delta: float) -> RenyiBound:
    """Bound epsilon by RDP, for sizes only where a cohort is capped: RDP knows no cap."""
    plain = tuple((replace(event, cohort_cap=None), rounds) for event, rounds in merged)
    return renyi_bound(plain, delta)


def _gaussian_strength(merged: Releases) -> float:
    """Give mu of the unsampled composition: sensitivity in units of C over the noise."""
    total = 0.0
    for event, rounds in merged:
        if event.noise_multiplier == 0:
            return math.inf
        sensitivity = 2.0 if event.adjacency == "replace-one" else 1.0
        total += rounds * (sensitivity / event.noise_multiplier) ** 2
    return math.sqrt(total)


def _central_limit_variance(event: AccountingEvent) -> float:
    if event.noise_multiplier == 0:
        return math.inf
    exponent = 1 / event.noise_multiplier / event.noise_multiplier
    if event.sample_rate == 1.0:
        return exponent
    return event.sample_rate**2 * math.expm1(exponent) if exponent < 700 else math.inf


@lru_cache(maxsize=8)
def library_version(distribution: str) -> str:
    """Name an installed library with its version, for example "opacus 1.6.0"."""
    from importlib.metadata import version

    return f"{distribution} {version(distribution)}"
