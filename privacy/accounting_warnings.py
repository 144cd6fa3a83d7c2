"""Word the warnings of the accountants, and keep their libraries' own chatter off the console."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from privacy.accounting_pld import LARGEST_EPSILON, OWN
from privacy.accounting_rdp import RenyiBound
from privacy.errors import PrivacyWarning
from privacy.event import AccountingEvent

NO_NOISE = PrivacyWarning("no-noise", "A round without noise gives no privacy at all.")


def delta_warnings(events: Sequence[AccountingEvent], delta: float) -> tuple[PrivacyWarning, ...]:
    """Warn of a delta that publishing one user's data outright could meet."""
    population = max((event.population for event in events), default=0)
    if delta * population < 1:
        return ()
    text = (
        f"delta {delta:g} is not below 1 / population = {1 / population:.3g}: a mechanism that "
        "publishes one user's data outright could meet it; choose a smaller delta."
    )
    return (PrivacyWarning("delta-above-one-over-population", text),)


def renyi_warnings(bound: RenyiBound, sampling: str) -> tuple[PrivacyWarning, ...]:
    """Warn where the grid of orders ended, or where Opacus could not answer."""
    if bound.edge:
        text = (
            f"The {bound.edge} Renyi order {bound.order:g} gave epsilon, so RDP cannot show a "
            "smaller one that may hold; PLD can."
        )
        return (PrivacyWarning("rdp-order-limit", text),)
    if bound.distribution == "opacus" or sampling == "fixed":
        return ()
    text = (
        f"The best Renyi order is {bound.order:g}, above 1000 where Opacus overflows; "
        "dp-accounting computed it."
    )
    return (PrivacyWarning("rdp-by-dp-accounting", text),)


def loss_skipped(epsilon: float) -> PrivacyWarning:
    """Say that PLD was not tried, or did not fit, and that RDP answered."""
    reason = "its grid of losses does not fit into memory"
    if epsilon > LARGEST_EPSILON:
        reason = f"epsilon by RDP is {epsilon:.3g}, above {LARGEST_EPSILON:g}, where e^x overflows"
    return PrivacyWarning("pld-skipped", f"PLD was left out because {reason}; RDP answered.")


def loss_looser(epsilon: float) -> PrivacyWarning:
    """Say that the grid left PLD above RDP, and that RDP answered."""
    text = f"PLD shows only {epsilon:.4g} here; RDP answered, it is smaller."
    return PrivacyWarning("pld-looser", text)


def variable_warnings(epsilon: float, error: float) -> tuple[PrivacyWarning, ...]:
    """Say that the error which PRV adds to be safe is a large part of what it shows."""
    if error <= epsilon / 10:
        return ()
    text = (
        f"Of the epsilon {epsilon:.3g} that PRV shows, {error:.3g} is its own error; PLD has less."
    )
    return (PrivacyWarning("prv-error", text),)


def loss_warnings(distribution: str) -> tuple[PrivacyWarning, ...]:
    """Say that the project's own transform answered instead of dp-accounting."""
    if distribution != OWN:
        return ()
    text = (
        "With so many rounds, so small a delta or so fine a grid the rounding or the time of "
        "dp-accounting's transform is no longer small; the project's own computed PLD."
    )
    return (PrivacyWarning("pld-by-fedopt", text),)


def log_warnings(messages: Iterable[str]) -> tuple[PrivacyWarning, ...]:
    """Pass on what a library logged, each sentence once."""
    return tuple(PrivacyWarning("library-log", text) for text in dict.fromkeys(messages))


@contextmanager
def library_log() -> Iterator[list[str]]:
    """Collect what dp-accounting logs through absl, and keep it off the console."""
    collector = _Collector()
    logger = logging.getLogger("absl")
    propagate, handlers = logger.propagate, logger.handlers[:]
    logger.propagate, logger.handlers = False, [collector]
    try:
        yield collector.messages
    finally:
        logger.propagate, logger.handlers = propagate, handlers


class _Collector(logging.Handler):
    """Keep log records as text."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one record."""
        self.messages.append(record.getMessage())
