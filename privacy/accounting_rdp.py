"""Bound epsilon by Renyi differential privacy: Opacus to order 1000, dp-accounting above.

epsilon(order) = rdp(order) - (ln delta + ln order)/(order - 1) + ln(1 - 1/order), and the smallest
over the orders counts. Times (order - 1) this is convex in the order, so epsilon falls and then
rises along the orders: a bisection finds the smallest by looking at a dozen of them. Only those are
computed, once per event.
"""

from __future__ import annotations

import importlib.util
import math
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from privacy.event import AccountingEvent

# privacy.md 0.4: the default orders of Opacus, its gaps filled, and more up to where it overflows.
ORDERS: tuple[float, ...] = (
    *(round(1 + tenth / 10, 1) for tenth in range(1, 100)),
    *(float(order) for order in range(11, 65)),
    *(72.0, 80.0, 96.0, 112.0, 128.0, 160.0, 192.0, 224.0, 256.0),
    *(320.0, 384.0, 448.0, 512.0, 640.0, 768.0, 1000.0),
)
LARGE_ORDERS: tuple[float, ...] = tuple(float(round(1024 * 2 ** (step / 2))) for step in range(13))


@dataclass(frozen=True)
class RenyiBound:
    """Hold the smallest epsilon over the orders, the order that gave it and who computed it.

    edge: "smallest" or "largest" where the order is the last of the grid, else "".
    """

    epsilon: float
    order: float
    distribution: str
    edge: str


def renyi_bound(releases: Sequence[tuple[AccountingEvent, int]], delta: float) -> RenyiBound:
    """Bound epsilon of all releases together, over orders from 1.1 to 65536.

    releases: merged and checked, of one adjacency, each noise multiplier > 0.

    >>> bound = renyi_bound([(AccountingEvent("poisson", 1000, 10, 1.0), 100)], 1e-5)
    >>> round(bound.epsilon, 3), bound.order
    (1.214, 8.8)

    Reference: Mironov, Talwar and Zhang 2019 (arXiv 1908.10530), section 3.3, for Poisson sampling;
    Wang, Balle and Kasiviswanathan 2019 (arXiv 1808.00087), Theorem 27, for fixed-size cohorts;
    Balle et al. 2020 (arXiv 1905.09982), Theorem 21, for the step from orders to epsilon.
    Guarantee: (epsilon, delta)-DP of all releases together, under the adjacency of the events.
    Not covered: what is not released through these events; finite precision of the noise.
    """

    def epsilon_at(order: float) -> float:
        total = sum(rounds * renyi_divergence(event, order) for event, rounds in releases)
        return convert(total, order, delta)

    index = _lowest(epsilon_at, ORDERS)
    order, edge = ORDERS[index], "smallest" if index == 0 else ""
    if index == len(ORDERS) - 1 and math.isfinite(epsilon_at(order)):
        order, edge = _climb(epsilon_at, order)
    epsilon = max(epsilon_at(order), 0.0)
    return RenyiBound(epsilon, order, _computed_by(releases, order), edge)


def renyi_floor(delta: float) -> float:
    """Give the epsilon that RDP shows at delta where nothing at all is released: its largest order.

    >>> round(renyi_floor(1e-9), 6)
    0.000132
    """
    return max(convert(0.0, LARGE_ORDERS[-1], delta), 0.0)


def convert(rdp: float, order: float, delta: float) -> float:
    """Turn a Renyi bound at one order into epsilon at delta; may be negative, never too small.

    Reference: Balle et al. 2020 (arXiv 1905.09982), Theorem 21.
    """
    return rdp - math.log(delta * order) / (order - 1) + math.log1p(-1 / order)


@lru_cache(maxsize=1 << 18)
def renyi_divergence(event: AccountingEvent, order: float) -> float:
    """Bound the Renyi divergence of one round at one order; inf where it overflows."""
    if event.sampling == "fixed":
        return _fixed_size_divergence(event, order)
    if event.sample_rate == 1.0:
        return order / 2 / event.noise_multiplier / event.noise_multiplier
    if order > ORDERS[-1]:
        return _dp_accounting_divergence(event, order)
    return _opacus_divergence(event.sample_rate, event.noise_multiplier, order)


def _opacus_divergence(sample_rate: float, noise_multiplier: float, order: float) -> float:
    compute_rdp = _opacus_analysis().compute_rdp
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            (rdp,) = compute_rdp(
                q=sample_rate, noise_multiplier=noise_multiplier, steps=1, orders=[order]
            )
    except (ZeroDivisionError, OverflowError, ValueError):
        return math.inf
    # Rounding can leave a divergence of about 1e-16 slightly below zero, or make it undefined.
    return math.inf if math.isnan(rdp) else max(float(rdp), 0.0)


@lru_cache(maxsize=1)
def _opacus_analysis() -> Any:
    """Load Opacus' analysis of RDP from its own file, which needs numpy and scipy alone.

    Importing it by name would import all of Opacus' trainers first, and with them torch: seconds.
    """
    name = "opacus.accountants.analysis.rdp"
    package = None if name in sys.modules else importlib.util.find_spec("opacus")
    for folder in (package and package.submodule_search_locations) or ():
        file = Path(folder, *name.split(".")[1:]).with_suffix(".py")
        spec = importlib.util.spec_from_file_location("_opacus_rdp", file)
        if file.exists() and spec and spec.loader:
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module
    return importlib.import_module(name)


def _dp_accounting_divergence(event: AccountingEvent, order: float) -> float:
    import dp_accounting

    gaussian = dp_accounting.GaussianDpEvent(event.noise_multiplier)
    accountant = dp_accounting.rdp.RdpAccountant(orders=[order])
    accountant.compose(dp_accounting.PoissonSampledDpEvent(event.sample_rate, gaussian))
    return max(float(accountant.rdp[0]), 0.0)


def _fixed_size_divergence(event: AccountingEvent, order: float) -> float:
    import dp_accounting

    # This accountant measures noise against the sensitivity, which is 2C under replace-one,
    # and does not double it by itself (its PLD does): see privacy.md 1.4.
    gaussian = dp_accounting.GaussianDpEvent(event.noise_multiplier / 2)
    accountant = dp_accounting.rdp.RdpAccountant(
        orders=[order], neighboring_relation=dp_accounting.NeighboringRelation.REPLACE_ONE
    )
    accountant.compose(
        dp_accounting.SampledWithoutReplacementDpEvent(event.population, event.cohort, gaussian)
    )
    return max(float(accountant.rdp[0]), 0.0)


def _computed_by(releases: Sequence[tuple[AccountingEvent, int]], order: float) -> str:
    if any(event.sampling == "fixed" for event, _ in releases):
        return "dp-accounting"
    sampled = any(event.sample_rate < 1 for event, _ in releases)
    return "dp-accounting" if sampled and order > ORDERS[-1] else "opacus"


def _lowest(value_at: Callable[[float], float], orders: Sequence[float]) -> int:
    """Find the index of the smallest value, which falls and then rises along the orders."""
    low, high = 0, len(orders) - 1
    while low < high:
        middle = (low + high) // 2
        if value_at(orders[middle]) <= value_at(orders[middle + 1]):
            high = middle
        else:
            low = middle + 1
    if math.isfinite(value_at(orders[low])):
        return low
    # An order that overflowed misled the bisection, or all of them did: look at every order.
    return min(range(len(orders)), key=lambda index: value_at(orders[index]))


def _climb(value_at: Callable[[float], float], start: float) -> tuple[float, str]:
    """Walk up the large orders, whose cost grows with the order, while epsilon falls."""
    best = start
    for order in LARGE_ORDERS:
        if value_at(order) >= value_at(best):
            return best, ""
        best = order
    return best, "largest"
