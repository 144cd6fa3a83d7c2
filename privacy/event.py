"""Describe one release as neutral data: what was sampled and how it was noised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Sampling = Literal["poisson", "fixed", "everyone"]
Adjacency = Literal["add-or-remove-one", "replace-one"]

SAMPLINGS: tuple[Sampling, ...] = ("poisson", "fixed", "everyone")


@dataclass(frozen=True)
class AccountingEvent:
    """State one round's release in the terms that every accountant understands.

    population: number N of users from whom the cohort is drawn.
    cohort: expected cohort size m (exact size where sampling is "fixed"; N where "everyone").
    noise_multiplier: noise standard deviation on the SUM of clipped updates / clip norm C.
    cohort_cap: a Poisson cohort larger than this is truncated; None where there is no cap.

    >>> event = AccountingEvent("fixed", 1000, 10, 1.0)
    >>> event.sample_rate, event.adjacency
    (0.01, 'replace-one')
    """

    sampling: Sampling
    population: int
    cohort: int
    noise_multiplier: float
    cohort_cap: int | None = None

    @property
    def sample_rate(self) -> float:
        """Give the probability q = m/N that one user is in the cohort."""
        return 1.0 if self.sampling == "everyone" else self.cohort / self.population

    @property
    def adjacency(self) -> Adjacency:
        """Name the neighbouring relation under which the event is accounted.

        A fixed-size cohort draws a substitute for a missing user, so only replace-one
        (sensitivity 2C) describes it.
        """
        return "replace-one" if self.sampling == "fixed" else "add-or-remove-one"
