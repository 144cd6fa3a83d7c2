"""Hide each user in Gaussian noise, on the integer grid where sums are exact.

Sums are kept as 64-bit integers on a fixed grid, whose spacing is the largest power of two not
above C 2**-40 (coarser only for cohorts beyond about 10^6). A user's update is rounded toward
zero (its norm can only fall), noise to the nearest grid point. Integer addition has no order, so
the sum has the same bytes whatever worker added what when, and one user moves it by at most C,
rounding included.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from privacy.errors import SettingsError
from privacy.seeds import Source

if TYPE_CHECKING:
    import torch

CHUNK = 1 << 16  # coordinates of noise drawn at a time: small enough to stay in the cache
FRACTION_BITS, FEWEST_BITS, LARGEST_BITS = 40, 16, 62


def grid_spacing(clip_norm: float, cohort: int = 1, noise_multiplier: float = 0.0) -> float:
    """Give the largest power of two not above clip_norm * 2**-40, coarser for huge sums.

    Raises: SettingsError where not even 16 bits of a clip norm would be left.

    >>> grid_spacing(1.0) == 2.0**-40
    True
    """
    bits = fraction_bits(cohort, noise_multiplier)
    return 2.0 ** (math.floor(math.log2(clip_norm)) - bits)


def fraction_bits(cohort: int, noise_multiplier: float) -> int:
    """Count the bits below the clip norm that leave room for the sum in 64-bit integers.

    A cohort may exceed its expectation, so twice its size plus ten deviations of noise must fit.
    """
    largest = 2.0 * cohort + 64.0 + 10.0 * noise_multiplier
    bits = min(FRACTION_BITS, LARGEST_BITS - 1 - math.ceil(math.log2(largest)))
    if bits < FEWEST_BITS:
        raise SettingsError(
            f"cohort {cohort:,} with noise multiplier {noise_multiplier:g} needs sums larger than "
            "64-bit integers hold; lower the cohort or the noise multiplier"
        )
    return bits


def add_noise(total: torch.Tensor, source: Source, deviation: float, spacing: float) -> None:
    """Add Gaussian noise of the given standard deviation to an integer sum in place.

    total: int64 (coordinates,), any device. deviation: in the units of the updates.

    Reference: Dwork and Roth 2014, Appendix A (Gaussian mechanism); Mironov 2012 for what finite
    precision can leak.
    Guarantee: with deviation z C on the sum over all shares, each coordinate of the release has
    independent noise N(0, (z C)^2), rounded to a grid 2**-40 C fine.
    Not covered: the repeatable source, and attacks on floating-point sampling and timing.
    """
    import numpy as np
    import torch

    if deviation == 0.0:
        return
    for chunk in torch.split(total, CHUNK):
        drawn = source.normal(len(chunk))
        drawn *= deviation / spacing
        # NumPy rounds and converts twice as fast as torch does on a CPU.
        whole = np.rint(drawn, out=drawn).astype(np.int64)
        chunk.add_(torch.from_numpy(whole).to(chunk.device))


def share_deviation(deviation: float, share: int, whole: int) -> float:
    """Give the standard deviation of the noise that `share` of `whole` users add together.

    Variances add up, so shares of any split complete to exactly `deviation`.

    >>> share_deviation(2.0, 1, 4)
    1.0
    """
    return deviation * math.sqrt(share / whole) if share else 0.0


def to_real(total: torch.Tensor, spacing: float) -> torch.Tensor:
    """Turn an integer sum into float64 in the units of the updates."""
    import torch

    return total.to(torch.float64).mul_(spacing)
