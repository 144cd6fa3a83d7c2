"""Compute the exact privacy curve of one Gaussian release, the yardstick for every accountant.

A release of many rounds without sampling is one Gaussian release: its strength is
mu = sensitivity * sqrt(sum over rounds of 1/z^2), and no accountant can do better than this curve.
"""

from __future__ import annotations

import math

_CANCELLED = 4e-15


def gaussian_log_delta(mu: float, epsilon: float) -> float:
    """Give ln delta(epsilon) of a Gaussian release of strength mu, without cancellation at 0.

    mu: sensitivity / noise standard deviation, > 0. Returns -inf where delta underflows.

    >>> round(gaussian_log_delta(1.0, 40.0), 3)
    -788.423

    Reference: Balle and Wang 2018 (arXiv 1805.06530), Theorem 8, with mu = Delta/sigma.
    """
    from scipy.special import log_ndtr

    upper = float(log_ndtr(mu / 2 - epsilon / mu))
    lower = epsilon + float(log_ndtr(-mu / 2 - epsilon / mu))
    if lower >= upper:
        return -math.inf
    return upper + math.log(-math.expm1(lower - upper))


def gaussian_delta(mu: float, epsilon: float) -> float:
    """Give the smallest delta at which a Gaussian release of strength mu is (epsilon, delta)-DP.

    >>> round(gaussian_delta(1.0, 0.0), 6)
    0.382925

    Reference: Balle and Wang 2018 (arXiv 1805.06530), Theorem 8.
    """
    if mu == 0:
        return 0.0
    return 1.0 if math.isinf(mu) else math.exp(gaussian_log_delta(mu, epsilon))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Give the smallest epsilon of a Gaussian release of strength mu at delta, rounded to be safe.

    mu: sensitivity / noise standard deviation, >= 0; inf gives inf. delta: in (0, 1).

    >>> round(gaussian_epsilon(1.0, 1e-5), 4)
    4.3772

    Reference: Balle and Wang 2018 (arXiv 1805.06530), Theorem 8, solved for epsilon.
    Guarantee: (epsilon, delta)-DP of a Gaussian release; above the smallest such epsilon by about
    1e-12 relative and (2e-13 + 4e-15 / mu) (mu^2 / 2 + mu sqrt(2 ln 1/delta)).
    Not covered: sampling; noise that is not Gaussian or not independent of the data.
    """
    from scipy.optimize import brentq

    if mu == 0:
        return 0.0
    # delta <= Phi(mu/2 - epsilon/mu) <= exp(-(epsilon/mu - mu/2)^2 / 2) bounds epsilon from above.
    ceiling = mu * mu / 2 + mu * math.sqrt(-2 * math.log(delta))
    if math.isinf(ceiling):
        return math.inf
    target = math.log(delta)
    if gaussian_log_delta(mu, 0.0) <= target:
        return 0.0
    root = brentq(
        lambda epsilon: gaussian_log_delta(mu, epsilon) - target,
        0.0,
        ceiling,
        xtol=1e-13 * ceiling,
        rtol=1e-13,
    )
    # Where mu is small the two terms of delta nearly cancel, and 1 / mu of the digits are lost.
    rounding = (2e-13 + _CANCELLED / mu) * ceiling
    return min(float(root) * (1 + 1e-12) + rounding, ceiling)


def gaussian_mu(epsilon: float, delta: float) -> float:
    """Give the largest strength mu whose Gaussian release is (epsilon, delta)-DP, on the safe side.

    >>> round(gaussian_mu(4.3772, 1e-5), 4)
    1.0

    Reference: Balle and Wang 2018 (arXiv 1805.06530), Theorem 8, solved for mu.
    """
    from scipy.optimize import brentq

    target = math.log(delta)
    lower = upper = 1.0
    while gaussian_log_delta(upper, epsilon) <= target:
        upper *= 2
    while gaussian_log_delta(lower, epsilon) > target:
        lower /= 2
    root = brentq(
        lambda mu: gaussian_log_delta(mu, epsilon) - target,
        lower,
        upper,
        xtol=1e-14 * lower,
        rtol=1e-13,
    )
    return float(root) * (1 - 1e-12) - _CANCELLED
