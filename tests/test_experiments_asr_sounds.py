"""Check features computed on the device against those computed utterance by utterance."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clients.local_training import LocalTrainer
from experiments.asr.augmentation import Augmentation, Variation
from experiments.asr.batching import SpeechBatch
from experiments.asr.features import MEL_BINS, frame_count, utterance_features
from experiments.asr.sounds import SoundBatch, collate_sounds, features_on
from experiments.asr.speaker import put_together
from experiments.asr.task import SpeechTask, task

EVERYTHING = Augmentation(speed=0.2, tract=0.2, frequency_masks=2, time_masks=10)
FLOAT16 = 2e-3
"""Features ahead are kept as float16; near 4 standard deviations that is 2e-3."""

SIZES = {"speakers": 3, "utterances": 5, "held_out_speakers": 2, "progress": False}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def _recording(samples: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    loudness = generator.uniform(0.01, 0.3) * (1 + np.sin(np.arange(samples) / 900.0))
    return (loudness * generator.normal(size=samples)).astype(np.float32)


def _both(
    recordings: list[np.ndarray], variations: list[Variation], pad: int
) -> tuple[SpeechBatch, SpeechBatch]:
    labels = [[1, 2]] * len(recordings)
    ahead = put_together([utterance_features(r) for r in recordings], variations, labels, pad)
    sounds = collate_sounds(recordings, variations, labels, pad)
    assert isinstance(ahead, SpeechBatch)
    return ahead, features_on(sounds, "cpu")


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(400, 20_000), min_size=1, max_size=4),
    st.integers(0, 2**32),
    st.sampled_from([1, 50]),
    st.sampled_from([Augmentation(), EVERYTHING, Augmentation(speed=0.1), Augmentation(tract=0.1)]),
)
def test_the_device_computes_what_the_readers_do(
    lengths: list[int], seed: int, pad: int, augmentation: Augmentation
) -> None:
    generator = np.random.default_rng(seed)
    recordings = [_recording(samples, seed + k) for k, samples in enumerate(lengths)]
    variations = [
        augmentation.draw(frame_count(samples), MEL_BINS, generator) for samples in lengths
    ]
    ahead, there = _both(recordings, variations, pad)
    assert there.features.shape == ahead.features.shape
    assert torch.equal(there.feature_lengths, ahead.feature_lengths)
    assert torch.equal(there.targets, ahead.targets)
    assert torch.equal(there.target_lengths, ahead.target_lengths)
    largest = float(ahead.features.abs().max())
    assert float((there.features - ahead.features).abs().max()) <= FLOAT16 * max(1.0, largest / 4)
    for features, length in zip(there.features, there.feature_lengths, strict=True):
        assert not features[length:].any()


@pytest.mark.parametrize(
    "other",
    [
        Variation(60, bin_masks=((10, 12),), frame_masks=((3, 5),)),
        Variation(66, speed=1.1, tract=1.02),
    ],
)
def test_another_variation_gives_other_features(other: Variation) -> None:
    recordings = [_recording(400 + 160 * 59, 1)]
    _, plain = _both(recordings, [Variation(60)], 1)
    ahead, varied = _both(recordings, [other], 1)
    assert float((varied.features - ahead.features).abs().max()) < FLOAT16
    assert varied.features.shape != plain.features.shape or not torch.allclose(
        varied.features, plain.features, atol=10 * FLOAT16
    )


def test_silence_has_finite_features() -> None:
    silent = features_on(collate_sounds([np.zeros(400, np.float32)], [Variation(1)], [[1]]), "cpu")
    assert torch.isfinite(silent.features).all()


def _built(cache: Path, features: str) -> SpeechTask:
    return task(
        cache_dir=cache, features=features, spec_augment=True, speed=0.1, tract=0.1, **SIZES
    )


def test_a_task_draws_the_same_batches_either_way(cache: Path) -> None:
    ahead, device = _built(cache, "ahead"), _built(cache, "device")
    user = ahead.user_ids()[0]
    ready = list(ahead.user_data(user).batches(np.random.default_rng(5)))
    raw = list(device.user_data(user).batches(np.random.default_rng(5)))
    assert len(ready) == len(raw) == 3
    for one, two in zip(ready, raw, strict=True):
        assert isinstance(two, SoundBatch)
        there = device.move(pickle.loads(pickle.dumps(two)), "cpu")
        torch.testing.assert_close(there.features, one.features, atol=2 * FLOAT16, rtol=0)
        assert torch.equal(there.targets, one.targets)


def test_training_and_evaluation_come_to_the_same(cache: Path) -> None:
    from clients.protocol import LocalWork

    updates, metrics = [], []
    for features in ("ahead", "device"):
        built = _built(cache, features)
        torch.manual_seed(0)
        trainer = LocalTrainer(built)
        torch.manual_seed(1)
        work = LocalWork(client_lr=0.1, local_steps=3, gradient_clip=1.0)
        trainer.train(built.user_data(built.user_ids()[0]), work, np.random.default_rng(2))
        updates.append(trainer.update.clone())
        metrics.append(built.evaluate(trainer.model, "dev"))
    assert float((updates[0] - updates[1]).norm()) < 0.02 * float(updates[0].norm())
    assert metrics[0]["loss"] == pytest.approx(metrics[1]["loss"], rel=1e-2)


def test_only_where_a_gpu_trains_features_are_computed_there(cache: Path) -> None:
    def kind(features: str, device: str) -> type:
        built = _built(cache, features)
        built.prepare(device)
        user = built.user_data(built.user_ids()[0])
        return type(next(user.batches(np.random.default_rng(0))))

    assert kind("auto", "cuda") is kind("auto", "cuda:1") is SoundBatch
    assert kind("auto", "cpu") is SpeechBatch
    assert kind("device", "cpu") is SoundBatch
    assert kind("ahead", "cuda") is SpeechBatch


def test_a_batch_of_sounds_that_memory_does_not_hold_has_the_same_loss_in_halves(
    cache: Path,
) -> None:
    built = _built(cache, "device")
    batches = built.user_data(built.user_ids()[0]).batches(np.random.default_rng(1))
    batch = max(batches, key=lambda one: len(one.target_lengths))
    model = built.model().eval()
    halves = built.halve(batch)
    assert [len(half.target_lengths) for _, half in halves] == [1, 1]
    with torch.inference_mode():
        whole = float(built.loss(model, built.move(batch, "cpu")))
        parts = sum(w * float(built.loss(model, built.move(half, "cpu"))) for w, half in halves)
    assert parts == pytest.approx(whole, rel=1e-4)
    assert built.halve(halves[0][1]) == [(1.0, halves[0][1])]
