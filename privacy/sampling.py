"""Draw the cohort of a round: a function of a random source and public numbers only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from privacy.event import Sampling
from privacy.seeds import Source


def poisson_cohort(source: Source, users: int, rate: float) -> NDArray[np.int64]:
    """Draw each of `users` ids independently with probability `rate`; ids ascend.

    The gaps between drawn ids of independent coin flips are geometric, so the cost is the size
    of the cohort, not of the population: 10^9 users cost what their cohort costs.

    Returns: int64 array of distinct ids in [0, users); it may be empty.

    >>> from privacy.seeds import SystemSource
    >>> ids = poisson_cohort(SystemSource(), 10**9, 1e-5)
    >>> 9_000 < len(ids) < 11_000
    True

    Reference: Devroye, Non-Uniform Random Variate Generation (1986), X.2 (geometric by inversion).
    Guarantee: with a secret source, inclusion is exactly the independent sampling that the
    Poisson-subsampled Gaussian event describes.
    Not covered: a repeatable source, whose draws are known to whoever knows the seed.
    """
    if rate >= 1.0:
        return np.arange(users, dtype=np.int64)
    expected = users * rate
    chunk = int(expected + 6.0 * np.sqrt(expected) + 16.0)
    parts: list[NDArray[np.int64]] = []
    position = -1
    while position < users:
        gaps = np.floor(np.log(source.uniform(chunk)) / np.log1p(-rate))
        # A gap beyond the population ends the draw; the bound keeps the sum inside int64.
        ids = position + np.cumsum(np.minimum(gaps, users).astype(np.int64) + 1)
        parts.append(ids[ids < users])
        position = int(ids[-1])
    return np.concatenate(parts)


def fixed_cohort(source: Source, users: int, size: int) -> NDArray[np.int64]:
    """Draw a uniformly random subset of exactly `size` ids out of `users`; ids ascend.

    >>> from privacy.seeds import SystemSource
    >>> len(set(fixed_cohort(SystemSource(), 1000, 17).tolist()))
    17

    Guarantee: simple random sampling without replacement, accounted under replace-one.
    Not covered: the Poisson guarantee, which a fixed-size draw does not have.
    """
    if size == users:
        return np.arange(users, dtype=np.int64)
    if size > users // 2:
        left_out = fixed_cohort(source, users, users - size)
        return np.setdiff1d(np.arange(users, dtype=np.int64), left_out)
    drawn = np.empty(0, dtype=np.int64)
    while len(drawn) < size:
        # Keeping first occurrences of uniform draws is drawing without replacement.
        more = np.concatenate([drawn, source.integers(users, size - len(drawn))])
        _, first = np.unique(more, return_index=True)
        drawn = more[np.sort(first)]
    return np.sort(drawn)


def draw_cohort(
    source: Source, sampling: Sampling, users: int, cohort: int, cap: int | None = None
) -> NDArray[np.int64]:
    """Draw the ids of one round, ascending and distinct.

    users: how many ids there are. cohort: expected size (exact where sampling is "fixed").
    cap: a larger Poisson cohort is cut to a uniformly random subset of this size.

    >>> from privacy.seeds import SystemSource
    >>> draw_cohort(SystemSource(), "everyone", 4, 4).tolist()
    [0, 1, 2, 3]

    Guarantee, Not covered: as poisson_cohort, fixed_cohort and cut_to_cap.
    """
    if sampling == "everyone":
        return np.arange(users, dtype=np.int64)
    if sampling == "fixed":
        return fixed_cohort(source, users, cohort)
    return cut_to_cap(source, poisson_cohort(source, users, cohort / users), cap)


def cut_to_cap(source: Source, drawn: NDArray[np.int64], cap: int | None) -> NDArray[np.int64]:
    """Cut a cohort larger than `cap` to a uniformly random subset of that size.

    >>> from privacy.seeds import SystemSource
    >>> len(cut_to_cap(SystemSource(), np.arange(50), 20))
    20

    Reference: arXiv 2508.15089 (truncated Poisson subsampling), accounted by PLD alone.
    Guarantee: with a secret source, each subset of that size is equally likely.
    Not covered: the plain Poisson event, which is not what a cut cohort follows.
    """
    if cap is None or len(drawn) <= cap:
        return drawn
    return drawn[fixed_cohort(source, len(drawn), cap)]
