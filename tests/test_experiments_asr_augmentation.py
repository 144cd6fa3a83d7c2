"""Check how features are varied."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.asr.augmentation import PAPER_SPEC_AUGMENT, Augmentation, stretch, warp_bins


def _features(frames: int = 60, bins: int = 80) -> np.ndarray:
    return np.random.default_rng(3).uniform(1.0, 2.0, (frames, bins)).astype(np.float32)


def test_the_default_leaves_features_alone() -> None:
    features = _features()
    assert Augmentation()(features, np.random.default_rng(0)) is features


def test_the_same_generator_gives_the_same_variation() -> None:
    vary = Augmentation(speed=0.1, tract=0.1, frequency_masks=2, time_masks=2)
    first = vary(_features(), np.random.default_rng(1))
    second = vary(_features(), np.random.default_rng(1))
    third = vary(_features(), np.random.default_rng(2))
    assert np.array_equal(first, second)
    assert not (first.shape == third.shape and np.array_equal(first, third))


@given(st.integers(0, 2**32), st.integers(1, 120))
def test_masks_stay_below_their_exclusive_bounds(seed: int, frames: int) -> None:
    one_each = Augmentation(frequency_masks=1, time_masks=1)
    features = _features(frames)
    masked = one_each(features, np.random.default_rng(seed))
    zero_bins = (masked == 0).all(axis=0).sum()
    zero_frames = (masked == 0).all(axis=1).sum()
    untouched = masked[masked != 0]
    assert zero_bins < 30 or zero_frames == frames
    assert zero_frames < max(1, min(50, int(0.1 * frames)))
    assert np.isin(untouched, features).all()


def test_the_widest_mask_is_one_less_than_its_bound() -> None:
    vary = Augmentation(frequency_masks=1, frequency_width=4)
    generator = np.random.default_rng(0)
    widths = {int((vary(_features(5), generator) == 0).all(axis=0).sum()) for _ in range(200)}
    assert widths == {0, 1, 2, 3}


def test_masking_does_not_write_into_the_original() -> None:
    features = _features()
    before = features.copy()
    PAPER_SPEC_AUGMENT(features, np.random.default_rng(0))
    assert np.array_equal(features, before)


def test_the_paper_masks_twice_in_frequency_and_ten_times_in_time() -> None:
    assert PAPER_SPEC_AUGMENT.frequency_masks == 2
    assert PAPER_SPEC_AUGMENT.time_masks == 10
    assert (PAPER_SPEC_AUGMENT.frequency_width, PAPER_SPEC_AUGMENT.time_width) == (30, 50)


@pytest.mark.parametrize(("factor", "frames"), [(0.9, 90), (1.0, 100), (1.1, 110)])
def test_a_stretch_in_time_changes_the_length_and_keeps_the_ends(
    factor: float, frames: int
) -> None:
    ramp = np.linspace(0.0, 1.0, 100, dtype=np.float32)[:, None].repeat(3, axis=1)
    result = stretch(ramp, factor, axis=0)
    expected = np.linspace(0.0, 1.0, frames)[:, None].repeat(3, axis=1)
    np.testing.assert_allclose(result, expected, atol=1e-6)


def test_a_warp_moves_a_bin_by_its_factor() -> None:
    features = np.zeros((2, 80), dtype=np.float32)
    features[:, 20] = 1.0
    assert warp_bins(features, 1.2).argmax(axis=1).tolist() == [24, 24]
    assert warp_bins(features, 0.8).argmax(axis=1).tolist() == [16, 16]
    assert warp_bins(features, 1.2).shape == (2, 80)
