"""Check that the embedded corpus is the same everywhere, is kept, and survives damage."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from experiments.asr.corpora import Corpus
from experiments.asr.features import utterance_features
from experiments.asr.synthetic_corpus import (
    SyntheticSettings,
    default_cache_dir,
    speaker_utterances,
    synthetic_corpus,
)
from privacy.errors import SettingsError

SMALL = SyntheticSettings(
    speakers=3, utterances=4, held_out_speakers=2, held_out_utterances=2, seed=7
)


def _never(done: int, total: int) -> None:
    raise AssertionError("the corpus was made again although it is in the cache")


def _bytes(corpus: Corpus) -> list[bytes]:
    return [corpus.read_samples(utterance).tobytes() for utterance in corpus.utterances]


def test_the_corpus_has_the_promised_speakers_apart_by_split(tmp_path: Path) -> None:
    corpus = synthetic_corpus(SMALL, tmp_path)
    speakers = {name: {item.speaker for item in corpus.split(name)} for name in ("train", "dev")}
    assert len(corpus.split("train")) == 12
    assert len(corpus.split("dev")) == len(corpus.split("test")) == 4
    assert len(speakers["train"]) == 3
    assert not speakers["train"] & speakers["dev"]
    assert len({item.key for item in corpus.utterances}) == len(corpus.utterances)
    assert all(2 <= len(item.text.split()) <= 5 for item in corpus.utterances)


def test_two_builds_are_equal_to_the_byte(tmp_path: Path) -> None:
    first = synthetic_corpus(SMALL, tmp_path / "one")
    second = synthetic_corpus(SMALL, tmp_path / "two")
    assert first.utterances == second.utterances
    assert _bytes(first) == _bytes(second)


def test_another_seed_gives_other_speech(tmp_path: Path) -> None:
    texts = [item.text for item in synthetic_corpus(SMALL, tmp_path).utterances]
    other = SyntheticSettings(3, 4, 2, 2, seed=8)
    assert [item.text for item in synthetic_corpus(other, tmp_path).utterances] != texts


def test_a_voice_does_not_depend_on_how_many_others_there_are(tmp_path: Path) -> None:
    few = synthetic_corpus(SMALL, tmp_path)
    more = synthetic_corpus(SyntheticSettings(5, 4, 2, 2, seed=7), tmp_path)
    by_key = {item.key: item for item in more.utterances}
    for item in few.utterances:
        assert by_key[item.key] == item
        assert np.array_equal(more.read_samples(by_key[item.key]), few.read_samples(item))


def test_what_is_kept_is_what_was_spoken(tmp_path: Path) -> None:
    corpus = synthetic_corpus(SMALL, tmp_path)
    spoken = list(speaker_utterances(7, "train", 1, 4))
    kept = [item for item in corpus.utterances if item.speaker == "train-0001"]
    assert corpus.stored_features is not None
    for item, (text, samples) in zip(kept, spoken, strict=True):
        assert item.text == text
        assert item.seconds == len(samples) / 16000
        expected = (samples / 32768).astype(np.float32)
        assert np.array_equal(corpus.read_samples(item), expected)
        assert np.array_equal(corpus.stored_features(item), utterance_features(expected))


def test_the_second_load_makes_nothing(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    first = synthetic_corpus(SMALL, tmp_path, lambda done, total: told.append((done, total)))
    assert told == [(done, 7) for done in range(1, 8)]
    again = synthetic_corpus(SMALL, tmp_path, _never)
    assert again.utterances == first.utterances
    assert _bytes(again) == _bytes(first)


def _cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def _flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _other_version(path: Path) -> None:
    index = json.loads(path.read_text())
    path.write_text(json.dumps(index | {"schema_version": 99}))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("samples.int16", _cut_short),
        ("samples.int16", _flip_a_bit),
        ("features.float16", _flip_a_bit),
        ("features.float16", Path.unlink),
        ("index.json", _cut_short),
        ("index.json", _other_version),
    ],
)
def test_a_damaged_cache_is_made_again(
    tmp_path: Path, name: str, damage: object, caplog: pytest.LogCaptureFixture
) -> None:
    before = _bytes(synthetic_corpus(SMALL, tmp_path))
    damage(tmp_path / SMALL.folder_name() / name)  # type: ignore[operator]
    assert _bytes(synthetic_corpus(SMALL, tmp_path)) == before
    assert "damaged" in caplog.text
    assert _bytes(synthetic_corpus(SMALL, tmp_path, _never)) == before
    assert [path.name for path in tmp_path.iterdir()] == [SMALL.folder_name()]


def test_an_interrupted_build_leaves_nothing_behind(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthetic_corpus(SMALL, tmp_path, interrupt)
    assert list(tmp_path.iterdir()) == []


def test_a_copy_made_meanwhile_by_another_process_is_used(tmp_path: Path) -> None:
    def make_it_first(done: int, total: int) -> None:
        if done == total:
            synthetic_corpus(SMALL, tmp_path / "elsewhere")
            made = tmp_path / "elsewhere" / SMALL.folder_name()
            made.rename(tmp_path / SMALL.folder_name())

    corpus = synthetic_corpus(SMALL, tmp_path, make_it_first)
    assert len(corpus.utterances) == 20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", SMALL.folder_name()]


def test_a_cache_folder_that_cannot_be_made_is_a_settings_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingsError, match="cache_dir must be a folder that can be written"):
        synthetic_corpus(SMALL, tmp_path / "file")


def test_all_wrong_sizes_are_reported_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        SyntheticSettings(speakers=0, utterances=-1, seed=-3)
    assert len(caught.value.problems) == 3
    assert "speakers must be a whole number of at least 1, got 0" in caught.value.problems[0]


def test_the_cache_lies_where_the_user_keeps_caches(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "fedopt"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_cache_dir() == tmp_path / "home" / ".cache" / "fedopt"
    assert os.environ.get("XDG_CACHE_HOME") is None
