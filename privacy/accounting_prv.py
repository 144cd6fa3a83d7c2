"""Bound epsilon by privacy random variables: Opacus' transform, with its errors added on top.

It is a third opinion beside RDP and PLD: another discretisation, another code. Its error in epsilon
is absolute, so it is made smaller where epsilon is small; its transform rounds like any other, so
it is refused where delta is as small as the rounding.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from privacy.errors import SettingsError
from privacy.event import AccountingEvent

Releases = Sequence[tuple[AccountingEvent, int]]

LARGEST_EPSILON = 100.0
"""Above it the grid takes minutes, and the bound says nothing to anybody."""
# The library's own choices, and how far below epsilon its error is pushed.
_ERROR, _SHARE_OF_DELTA, _ENOUGH, _WANTED = 0.01, 1e-3, 0.05, 0.02
# The rounding of a transform per round (see privacy.accounting_pld), at most this share of delta.
_ROUNDING_PER_ROUND, _ROUNDING_SHARE = 2e-16, 0.005
_MOST_POINTS, _MOST_LOOKS = 4_000_000, 3


@dataclass(frozen=True)
class VariableBound:
    """Hold epsilon and how much of it is the error that was added."""

    epsilon: float
    error: float


def describes(event: AccountingEvent) -> bool:
    """Tell whether PRV can describe a release: Poisson sampling of less than everyone, no cap.

    >>> describes(AccountingEvent("poisson", 1000, 10, 1.0))
    True
    >>> describes(AccountingEvent("everyone", 1000, 1000, 1.0))
    False
    """
    return event.sampling == "poisson" and event.sample_rate < 1.0 and event.cohort_cap is None


def variable_bound(releases: Releases, delta: float, guess: float) -> VariableBound:
    """Bound epsilon of all releases together, its own error at most a twentieth where that fits.

    releases: merged and checked, all of them such as `describes` says, each noise multiplier > 0.
    guess: an upper bound of epsilon.

    >>> found = variable_bound([(AccountingEvent("poisson", 1000, 10, 1.0), 100)], 1e-5, 1.22)
    >>> round(found.epsilon, 3), found.error
    (0.728, 0.01)

    Raises: SettingsError where epsilon is too large, delta too small for the rounding, or the
    library itself gives up.
    Reference: Gopi, Lee and Wutschitz 2021 (arXiv 2106.02848), Theorem 5.5; Opacus' port of it.
    Guarantee: (epsilon, delta)-DP of all releases together for a user who leaves, Poisson sampling;
    the errors in epsilon and in delta are added.
    Not covered: a user who joins, whose curve was lower wherever it was tried; fixed-size cohorts,
    cohorts with a cap; the size of the library's domain follows the theorem only nearly.
    """
    rounding = _ROUNDING_PER_ROUND * sum(rounds for _, rounds in releases)
    if guess > LARGEST_EPSILON:
        raise _refusal(f"stops at epsilon {LARGEST_EPSILON:g}, got about {guess:.3g}", "rdp")
    if rounding > _ROUNDING_SHARE * delta:
        raise _refusal(
            f"rounds by up to {rounding:.1g} here, which is not small beside delta {delta:g}", "pld"
        )
    found = _look(releases, delta - rounding, _ERROR)
    if isinstance(found, str):
        raise _refusal(f"gives up ({found})", "pld")
    best = VariableBound(max(found, 0.0), _ERROR)
    for _ in range(_MOST_LOOKS - 1):
        error = best.epsilon * _WANTED
        if best.error <= _ENOUGH * best.epsilon or error <= 0.0:
            break
        finer = _look(releases, delta - rounding, error)
        if isinstance(finer, str):
            break
        best = VariableBound(min(max(finer, 0.0), best.epsilon), error)
    return best


def _look(releases: Releases, delta: float, error: float) -> float | str:
    """Ask the library once; a string says why it cannot answer with so small an error."""
    from opacus.accountants import PRVAccountant

    accountant: Any = PRVAccountant()
    accountant.history = [
        (event.noise_multiplier, event.sample_rate, rounds) for event, rounds in releases
    ]
    delta_error = delta * _SHARE_OF_DELTA
    try:
        with warnings.catch_warnings():
            # It warns of the orders of an RDP bound that only sizes its grid.
            warnings.simplefilter("ignore")
            points = _points(accountant.history, delta_error, error)
            if points > _MOST_POINTS:
                return f"a grid of {points:.1g} points"
            epsilon = accountant.get_epsilon(delta, eps_error=error, delta_error=delta_error)
    except (RuntimeError, ValueError, ArithmeticError) as problem:
        return str(problem).strip(". ") or type(problem).__name__
    return float(epsilon) if math.isfinite(epsilon) else "no finite answer"


def _points(history: Sequence[tuple[float, float, int]], delta_error: float, error: float) -> float:
    """Count the points of the library's grid before it is built."""
    from opacus.accountants.analysis.prv import (
        PoissonSubsampledGaussianPRV,
        compute_safe_domain_size,
    )

    rounds = [steps for _, _, steps in history]
    variables = [PoissonSubsampledGaussianPRV(rate, noise) for noise, rate, _ in history]
    reach = compute_safe_domain_size(
        prvs=variables, max_self_compositions=rounds, eps_error=error, delta_error=delta_error
    )
    mesh = error / math.sqrt(sum(rounds) * math.log(12 / delta_error) / 2)
    return 2 * float(reach) / mesh


def _refusal(why: str, instead: str) -> SettingsError:
    return SettingsError(f"accountant prv cannot answer: it {why}; choose accountant {instead}")
