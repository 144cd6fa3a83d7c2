"""Complete the noise of a round's sum and divide: the one place where a release is made."""

from __future__ import annotations

import torch

from privacy.noise import add_noise, to_real
from privacy.plan import PrivacyPlan
from privacy.seeds import Streams


def released_mean(
    plan: PrivacyPlan,
    streams: Streams,
    total: torch.Tensor,
    *,
    number: int,
    attempt: int,
    drawn: int,
    noised: int,
) -> torch.Tensor:
    """Turn the sum of a round into the released mean update, float64 (coordinates,).

    total: int64 (coordinates,), clipped updates and the noise shares of `noised` users; it is
    overwritten. drawn: users of the cohort; the server adds the shares of all others, and the
    whole noise where nobody was drawn.

    Reference: McMahan et al. 2018 (arXiv 1710.06963), Algorithm 1, fixed-denominator estimator.
    Guarantee: the noise on the sum has variance (z_s C)^2 whatever was lost, and the divisor is
    fixed beforehand, so the release is the mechanism that the plan's event describes.
    Not covered: the sum itself, which only the trusted server sees.
    """
    missing, whole = (drawn - noised, drawn) if drawn else (1, 1)
    if missing and plan.noise_multiplier:
        source = streams.source("completion", number, attempt)
        add_noise(total, source, plan.share_deviation(missing, whole), plan.grid_spacing)
    return to_real(total, plan.grid_spacing).div_(plan.denominator)
