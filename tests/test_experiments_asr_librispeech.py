"""Check the reading of LibriSpeech folders, broken ones above all."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from experiments.asr.corpora import SpeechBank, UnreadableAudio, checked_samples
from experiments.asr.librispeech import librispeech_corpus
from experiments.asr.tokens import Tokens
from privacy.errors import SettingsError

Add = Callable[..., Path]


def _tone(seconds: float = 0.5, rate: int = 16000, hertz: float = 440.0) -> np.ndarray:
    return 0.3 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)


def add(
    root: Path,
    subset: str,
    speaker: str,
    text: str,
    *,
    sound: np.ndarray | None = None,
    rate: int = 16000,
    suffix: str = ".flac",
) -> Path:
    """Add one utterance to a corpus folder; give the path of its audio."""
    chapter = root / subset / speaker / "1"
    chapter.mkdir(parents=True, exist_ok=True)
    transcript = chapter / f"{speaker}-1.trans.txt"
    lines = transcript.read_text().splitlines() if transcript.exists() else []
    key = f"{speaker}-1-{len(lines):04d}"
    transcript.write_text("\n".join([*lines, f"{key} {text}"]) + "\n")
    path = chapter / f"{key}{suffix}"
    soundfile.write(str(path), _tone() if sound is None else sound, rate)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    add(tmp_path, "train-clean-100", "19", "STOP HERE")
    add(tmp_path, "train-clean-100", "26", "IT'S A WELL-KNOWN WORD", suffix=".wav")
    add(tmp_path, "dev-clean", "84", "GO")
    return tmp_path


def test_speakers_splits_texts_and_lengths_are_read_from_the_folders(root: Path) -> None:
    corpus = librispeech_corpus(root, Tokens())
    assert [(item.speaker, item.split, item.text) for item in corpus.utterances] == [
        ("84", "dev", "go"),
        ("19", "train", "stop here"),
        ("26", "train", "it's a well-known word"),
    ]
    assert all(item.seconds == 0.5 for item in corpus.utterances)
    assert not any(corpus.notes.values())


def test_flac_and_wav_give_the_samples_that_were_written(root: Path) -> None:
    corpus = librispeech_corpus(root, Tokens())
    for item in corpus.utterances:
        samples = corpus.read_samples(item)
        assert samples.dtype == np.float32
        np.testing.assert_allclose(samples, _tone(), atol=1e-4)


def test_a_folder_that_holds_librispeech_is_taken_as_well(root: Path, tmp_path: Path) -> None:
    outer = tmp_path / "outer"
    outer.mkdir()
    inner = outer / "LibriSpeech"
    inner.mkdir()
    for subset in ("train-clean-100", "dev-clean"):
        (root / subset).rename(inner / subset)
    assert len(librispeech_corpus(outer, Tokens()).utterances) == 3


def test_other_rates_and_channels_are_mended_and_counted(root: Path) -> None:
    stereo = np.stack([_tone(rate=48000), np.zeros(24000)], axis=1)
    add(root, "train-clean-100", "30", "LOUD", sound=stereo, rate=48000)
    corpus = librispeech_corpus(root, Tokens())
    samples = corpus.read_samples(next(i for i in corpus.utterances if i.speaker == "30"))
    assert len(samples) == 8000
    np.testing.assert_allclose(samples[200:-200], 0.5 * _tone()[200:-200], atol=2e-3)
    assert corpus.notes["other sample rate, resampled"] == 1
    assert corpus.notes["several channels, mixed down"] == 1


def test_what_cannot_be_used_is_named_counted_and_left_out(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    add(root, "train-clean-100", "40", "BROKEN").write_bytes(b"this is no audio")
    add(root, "train-clean-100", "41", "GONE").unlink()
    add(root, "train-clean-100", "42", "?!")
    add(root, "train-clean-100", "43", "NAÏVE")
    with caplog.at_level(logging.WARNING):
        corpus = librispeech_corpus(root, Tokens())
    assert len(corpus.utterances) == 3
    for reason in (
        "unreadable audio",
        "missing audio",
        "empty text",
        "characters without a label",
    ):
        assert corpus.notes[reason] == 1
    for speaker in ("40", "41", "42", "43"):
        assert f"{speaker}-1-0000" in caplog.text


def test_audio_that_breaks_while_it_is_read_is_skipped_from_then_on(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = add(root, "train-clean-100", "50", "HALF", sound=_tone(3.0))
    corpus = librispeech_corpus(root, Tokens())
    item = next(i for i in corpus.utterances if i.speaker == "50")
    path.write_bytes(path.read_bytes()[:60])
    bank = SpeechBank(corpus)
    assert bank.speech(item) is None
    assert bank.speech(item) is None
    assert bank.notes.unreadable == 1
    assert caplog.text.count("50-1-0000") >= 1
    assert bank.speech(corpus.utterances[0]) is not None


@pytest.mark.parametrize("bad", [np.zeros(399), np.full(800, np.nan), np.full(800, np.inf)])
def test_too_short_or_not_finite_samples_are_refused(bad: np.ndarray) -> None:
    with pytest.raises(UnreadableAudio):
        checked_samples(bad.astype(np.float32))


def test_features_are_kept_up_to_the_limit(root: Path) -> None:
    corpus = librispeech_corpus(root, Tokens())
    first = corpus.utterances[0]
    keeping, forgetting = SpeechBank(corpus), SpeechBank(corpus, limit_megabytes=0)
    assert keeping.speech(first) is keeping.speech(first)
    again, once = forgetting.speech(first), forgetting.speech(first)
    assert again is not once
    np.testing.assert_array_equal(again, once)


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_reading_ahead_changes_nothing_but_the_time(root: Path, threads: int) -> None:
    for number in range(5):
        add(root, "train-clean-100", "60", "MORE", sound=_tone(0.2 + number / 10))
    add(root, "train-clean-100", "61", "SILENT", sound=np.zeros(0))
    corpus = librispeech_corpus(root, Tokens())
    items = corpus.utterances
    groups = [items[:2], items[2:5], [], items[5:]]
    plain = SpeechBank(corpus)
    ahead = list(SpeechBank(corpus).read_ahead(groups, threads))
    assert [len(group) for group in ahead] == [len(group) for group in groups]
    for group, read in zip(groups, ahead, strict=True):
        for item, features in zip(group, read, strict=True):
            expected = plain.speech(item)
            assert (features is None) == (expected is None)
            if features is not None:
                np.testing.assert_array_equal(features, expected)


def test_only_the_named_subsets_are_used(root: Path) -> None:
    add(root, "train-other-500", "70", "OTHER")
    add(root, "dev-other", "71", "OTHER")
    names = ("train-other-500", "dev-clean")
    corpus = librispeech_corpus(root, Tokens(), subsets=names)
    assert {item.speaker for item in corpus.utterances} == {"70", "84"}
    with pytest.raises(SettingsError, match="train-960 which are not"):
        librispeech_corpus(root, Tokens(), subsets=("train-960", "dev-clean"))
    with pytest.raises(SettingsError, match=r"named train-\.\.\."):
        librispeech_corpus(root, Tokens(), subsets=("dev-clean",))


def test_the_index_is_built_once_and_again_when_a_file_comes_or_goes(
    root: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path_factory.mktemp("cache")
    broken = add(root, "train-clean-100", "80", "BROKEN")
    broken.write_bytes(b"this is no audio")
    first = librispeech_corpus(root, Tokens(), cache_dir=cache)
    with monkeypatch.context() as patch:
        patch.setattr("experiments.asr.librispeech._build", lambda *given: pytest.fail("built"))
        again = librispeech_corpus(root, Tokens(), cache_dir=cache)
    assert again.utterances == first.utterances
    assert again.notes["unreadable audio"] == 1
    broken.unlink()
    changed = librispeech_corpus(root, Tokens(), cache_dir=cache)
    assert changed.notes["missing audio"] == 1
    assert librispeech_corpus(root, Tokens(transliterate=True), cache_dir=cache).utterances


def test_texts_keep_their_apostrophes_and_are_lower_case(root: Path) -> None:
    add(root, "train-clean-100", "81", "THE BOYS' BOOKS AND 'TIS")
    texts = {item.text for item in librispeech_corpus(root, Tokens()).utterances}
    assert "the boys' books and 'tis" in texts


def test_an_index_made_under_older_text_rules_is_made_again(
    root: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path_factory.mktemp("cache")
    with monkeypatch.context() as patch:
        patch.setattr("experiments.asr.index._SCHEMA_VERSION", 1)
        patch.setattr(Tokens, "normalise", lambda self, text: "stale")
        old = librispeech_corpus(root, Tokens(), cache_dir=cache)
    assert {item.text for item in old.utterances} == {"stale"}
    new = librispeech_corpus(root, Tokens(), cache_dir=cache)
    assert "stale" not in {item.text for item in new.utterances}


def test_a_cache_that_cannot_be_written_is_a_settings_error(root: Path, tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    with pytest.raises(SettingsError, match="cache_dir must be a folder"):
        librispeech_corpus(root, Tokens(), cache_dir=in_the_way / "below")


def test_a_transcript_outside_a_speakers_folder_is_left_out(root: Path) -> None:
    (root / "dev-clean" / "loose.trans.txt").write_text("loose-1 WHO SAID THIS\n")
    corpus = librispeech_corpus(root, Tokens())
    assert corpus.notes["no speaker id"] == 1
    assert len(corpus.utterances) == 3


@pytest.mark.parametrize("given", [None, "/no/such/folder"])
def test_a_missing_folder_is_a_settings_error(given: str | None) -> None:
    with pytest.raises(SettingsError, match="data_root must be"):
        librispeech_corpus(given, Tokens())


def test_a_folder_without_subsets_says_what_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "music").mkdir()
    with pytest.raises(SettingsError, match=r"train-\.\.\. and dev-\.\.\."):
        librispeech_corpus(tmp_path, Tokens())


def test_a_corpus_with_nothing_readable_is_a_settings_error(tmp_path: Path) -> None:
    add(tmp_path, "train-clean-100", "1", "STOP").write_bytes(b"")
    add(tmp_path, "dev-clean", "2", "GO")
    with pytest.raises(SettingsError, match="must hold train speech that can be read"):
        librispeech_corpus(tmp_path, Tokens())


def test_an_empty_file_has_no_length_and_is_left_out(root: Path) -> None:
    add(root, "train-clean-100", "90", "NOTHING").write_bytes(b"")
    add(root, "train-clean-100", "90", "SOMETHING")
    corpus = librispeech_corpus(root, Tokens())
    assert [item.text for item in corpus.utterances if item.speaker == "90"] == ["something"]
    assert corpus.notes["unreadable audio"] == 1


_CHILD = """
import resource, sys
from pathlib import Path
from experiments.asr.librispeech import librispeech_corpus
from experiments.asr.tokens import Tokens

root = Path(sys.argv[1])
corpus = librispeech_corpus(root, Tokens(), cache_dir=root / "cache")
print(len(corpus.utterances), len({item.speaker for item in corpus.utterances}))
print(corpus.notes["unreadable audio"])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def _many_speakers(root: Path, speakers: int, utterances: int) -> None:
    """Write a tree whose audio is one file by many names, and one empty file of each speaker."""
    add(root, "dev-clean", "84", "GO")
    text = "THE QUICK BROWN FOX JUMPS OVER THE LAZY DOG AND RUNS AWAY AGAIN"
    spoken = root / "spoken.flac"
    for number in range(speakers):
        if number % 5_000 == 0:  # a file has at most 65,000 names
            spoken.unlink(missing_ok=True)
            soundfile.write(str(spoken), _tone(), 16000)
        speaker = f"{100_000 + number}"
        chapter = root / "train-clean-100" / speaker / "1"
        chapter.mkdir(parents=True, exist_ok=True)
        names = [f"{speaker}-1-{turn:04d}" for turn in range(utterances + 1)]
        (chapter / f"{speaker}-1.trans.txt").write_text("".join(f"{n} {text}\n" for n in names))
        for name in names[:-1]:
            os.link(spoken, chapter / f"{name}.flac")
        (chapter / f"{names[-1]}.flac").touch()


@pytest.mark.slow
def test_thirty_five_thousand_speakers_are_indexed_within_a_gigabyte(tmp_path: Path) -> None:
    _many_speakers(tmp_path, 35_000, 8)
    program = [sys.executable, "-c", textwrap.dedent(_CHILD), str(tmp_path)]
    for _ in ("built", "loaded from the cache"):
        ended = subprocess.run(program, capture_output=True, text=True, check=True)
        count, people, empty, kilobytes = map(int, ended.stdout.split())
        assert (count, people, empty) == (280_001, 35_001, 35_000)
        assert kilobytes < 1_000_000
        assert ended.stderr.count("Skipped") <= 50  # the others are told to those who ask


def _an4() -> Path:
    beside = Path(__file__).resolve().parents[2] / "shared" / "data" / "an4"
    return Path(os.environ.get("FEDOPT_AN4", beside))


@pytest.mark.skipif(not _an4().is_dir(), reason="the AN4 corpus is not here")
def test_real_speech_is_indexed_whole() -> None:
    corpus = librispeech_corpus(_an4(), Tokens())
    train, dev = corpus.split("train"), corpus.split("dev")
    assert (len(train), len({item.speaker for item in train})) == (817, 64)
    assert (len(dev), len({item.speaker for item in dev})) == (131, 10)
    assert sum(len(item.text.split()) for item in dev) == 780
    assert sum(item.seconds for item in train) / 60 == pytest.approx(36.6, abs=0.1)
    features = SpeechBank(corpus).speech(dev[0])
    assert features is not None
    assert np.isfinite(features).all()
