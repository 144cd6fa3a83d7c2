"""Show that noise has the scale that is due, from whatever shares, and that sums lose nothing."""

from __future__ import annotations

import math
import resource
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from privacy.errors import SettingsError
from privacy.noise import (
    add_noise,
    fraction_bits,
    grid_spacing,
    share_deviation,
    to_real,
)
from privacy.seeds import KeyedSource, Source, Streams, SystemSource

SPACING = grid_spacing(1.0)
SURPRISE = 1e-6  # a right answer is rejected once in a million runs


def noise(source: Source, deviation: float, count: int) -> np.ndarray:
    total = torch.zeros(count, dtype=torch.int64)
    add_noise(total, source, deviation, SPACING)
    return to_real(total, SPACING).numpy()


def scale_is(values: np.ndarray, deviation: float) -> bool:
    """Test the variance of Gaussian values by chi-square, on both sides."""
    statistic = float(np.sum(np.square(values / deviation)))
    below = stats.chi2.cdf(statistic, len(values))
    return bool(SURPRISE < below < 1.0 - SURPRISE)


def is_gaussian(values: np.ndarray, deviation: float) -> bool:
    return bool(stats.kstest(values, "norm", args=(0.0, deviation)).pvalue > SURPRISE)


def test_a_key_is_the_key_of_philox_as_it_is() -> None:
    key = bytes(range(16))
    plain = np.random.Generator(np.random.Philox(key=np.frombuffer(key, "<u8")))
    assert KeyedSource(key).normal(1000).tobytes() == plain.standard_normal(1000).tobytes()


@pytest.mark.parametrize(
    "source", [KeyedSource(b"k" * 16), SystemSource()], ids=["keyed", "system"]
)
def test_noise_has_the_scale_asked_for_and_not_one_5_percent_off(source: Source) -> None:
    values = noise(source, 3.0, 200_000)
    assert scale_is(values, 3.0)
    assert is_gaussian(values, 3.0)
    for wrong in (3.0 * 1.05, 3.0 / 1.05):
        assert not scale_is(values, wrong)
        assert not is_gaussian(values, wrong)


def sum_of_groups(streams: Streams, groups: list[int], whole: int, count: int) -> np.ndarray:
    """Let each group add its share, as workers do; lost groups' shares are completed."""
    total = torch.zeros(count, dtype=torch.int64)
    for number, users in enumerate(groups):
        source = streams.source("noise", 1, 0, number)
        add_noise(total, source, share_deviation(2.0, users, whole), SPACING)
    missing = whole - sum(groups)
    if missing:
        source = streams.source("completion", 1)
        add_noise(total, source, share_deviation(2.0, missing, whole), SPACING)
    return to_real(total, SPACING).numpy()


@pytest.mark.parametrize("groups", [[50, 50], [32, 32, 32, 4], [1] * 20, [7], []])
def test_shares_of_clients_and_noise_of_the_server_are_equal_in_distribution(
    groups: list[int],
) -> None:
    streams = Streams(seed=3, settings_hash="noise")
    clients = sum_of_groups(streams, groups, 100, 100_000)
    server = noise(streams.source("completion", 2), 2.0, 100_000)
    assert scale_is(clients, 2.0)
    assert is_gaussian(clients, 2.0)
    assert stats.ks_2samp(clients, server).pvalue > SURPRISE
    assert not scale_is(clients * 1.05, 2.0)
    assert stats.ks_2samp(clients * 1.05, server).pvalue < SURPRISE


def test_shares_that_nobody_completes_have_too_small_a_scale() -> None:
    streams = Streams(seed=3, settings_hash="noise")
    total = torch.zeros(100_000, dtype=torch.int64)
    add_noise(total, streams.source("noise", 1), share_deviation(2.0, 90, 100), SPACING)
    assert not scale_is(to_real(total, SPACING).numpy(), 2.0)


@given(
    groups=st.lists(st.integers(0, 10_000), min_size=1, max_size=50).filter(any),
    deviation=st.floats(1e-9, 1e9),
)
def test_shares_of_any_split_complete_to_exactly_the_variance_due(
    groups: list[int], deviation: float
) -> None:
    shares = [share_deviation(deviation, group, sum(groups)) for group in groups]
    assert math.hypot(*shares) == pytest.approx(deviation, rel=1e-12)


def test_groups_rounds_attempts_and_runs_have_uncorrelated_noise() -> None:
    first = Streams(seed=1, settings_hash="aa")
    drawn = np.stack(
        [
            noise(source, 1.0, 50_000)
            for source in (
                first.source("noise", 1, 0, 0),
                first.source("noise", 1, 0, 1),
                first.source("noise", 2, 0, 0),
                first.source("noise", 1, 1, 0),
                first.source("completion", 1, 0, 0),
                Streams(seed=2, settings_hash="aa").source("noise", 1, 0, 0),
                Streams(seed=1, settings_hash="ab").source("noise", 1, 0, 0),
            )
        ]
    )
    correlations = np.corrcoef(drawn)[np.triu_indices(len(drawn), 1)]
    assert np.abs(correlations).max() < 5.0 / math.sqrt(50_000)
    again = noise(first.source("noise", 1, 0, 0), 1.0, 50_000)
    assert np.corrcoef(drawn[0], again)[0, 1] == pytest.approx(1.0)


def test_neighbouring_coordinates_have_uncorrelated_noise() -> None:
    values = noise(KeyedSource(b"x" * 16), 1.0, 1 << 21)  # two chunks
    for lag in (1, 2, 1 << 20):
        correlation = np.corrcoef(values[:-lag], values[lag:])[0, 1]
        assert abs(correlation) < 5.0 / math.sqrt(len(values) - lag)


def test_noise_has_tails_beyond_five_deviations() -> None:
    for source in (KeyedSource(b"t" * 16), SystemSource()):
        values = np.abs(noise(source, 1.0, 1 << 22))
        expected = 2 * stats.norm.sf(4.5) * len(values)  # about 28
        assert 5 <= np.count_nonzero(values > 4.5) <= 3 * expected


def test_no_noise_leaves_the_sum_as_it_was() -> None:
    total = torch.arange(5)
    add_noise(total, KeyedSource(b"k" * 16), 0.0, SPACING)
    assert total.tolist() == [0, 1, 2, 3, 4]


@given(clip_norm=st.floats(1e-20, 1e20))
def test_the_grid_is_a_power_of_two_just_below_the_clip_norm_over_2_to_the_40(
    clip_norm: float,
) -> None:
    spacing = grid_spacing(clip_norm)
    assert math.frexp(spacing)[0] == 0.5
    assert spacing <= clip_norm * 2.0**-40 < 2.0 * spacing


@given(cohort=st.integers(1, 10**7), noise_multiplier=st.floats(0, 1e8))
def test_a_cohort_that_passes_the_check_cannot_leave_64_bits(
    cohort: int, noise_multiplier: float
) -> None:
    for clip_norm in (1.0, 1.999999, 0.01):
        units = clip_norm / grid_spacing(clip_norm, cohort, noise_multiplier)
        assert (cohort + 10.0 * noise_multiplier) * units < 2**63


def test_cohorts_of_the_papers_size_keep_the_finest_grid() -> None:
    assert fraction_bits(204_800, 2.048) == 40
    assert 30 < fraction_bits(10**7, 1.0) < 40
    with pytest.raises(SettingsError, match="64-bit"):
        fraction_bits(10**14, 1.0)


def test_noise_is_drawn_in_chunks_in_place() -> None:
    total = torch.zeros(1 << 23, dtype=torch.int64)
    pointer = total.data_ptr()
    add_noise(total, KeyedSource(b"m" * 16), 1.0, SPACING)
    assert total.data_ptr() == pointer
    chunks = total.reshape(8, -1)
    assert len({chunk.sum().item() for chunk in chunks}) == 8


@pytest.mark.slow
def test_256_million_coordinates_are_noised_within_little_extra_memory() -> None:
    total = torch.zeros(256_000_000, dtype=torch.int64)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    add_noise(total, KeyedSource(b"m" * 16), 1.0, SPACING)
    extra = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3
    assert extra < 200.0 + 8e-6 * len(total)  # zeros take no memory before they are touched
    assert scale_is(to_real(total[-1_000_000:].clone(), SPACING).numpy(), 1.0)
    assert time.process_time() - started < 120.0


def test_no_share_of_nobody_is_no_noise() -> None:
    assert share_deviation(3.0, 0, 0) == 0.0
    assert share_deviation(3.0, 0, 7) == 0.0
