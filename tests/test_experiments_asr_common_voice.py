"""Check the reading of Common Voice releases, broken lines and clips above all."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import soundfile

from experiments.asr.common_voice import common_voice_corpus
from experiments.asr.corpora import Corpus, SpeechBank
from experiments.asr.task import task
from experiments.asr.tokens import FRENCH, Tokens
from privacy.errors import SettingsError

HEAD = "client_id\tpath\tsentence\tup_votes\n"


def _tone(seconds: float, rate: int = 48000) -> np.ndarray:
    return 0.3 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * rate)) / rate)


def add(
    root: Path, split: str, speaker: str, clip: str, text: str, *, seconds: float = 1.0
) -> Path:
    """Add one line to a list, and its clip; give the path of the clip."""
    (root / "clips").mkdir(parents=True, exist_ok=True)
    listed = root / f"{split}.tsv"
    lines = listed.read_text() if listed.exists() else HEAD
    listed.write_text(f"{lines}{speaker}\t{clip}\t{text}\t2\n")
    path = root / "clips" / clip
    if path.name == clip and clip:
        soundfile.write(str(path), _tone(1.0), 48000)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    add(tmp_path, "train", "anna", "a1.mp3", "Hello there!")
    add(tmp_path, "train", "anna", "a2.mp3", "It\u2019s late")
    add(tmp_path, "train", "bert", "b1.wav", "Good night.")
    add(tmp_path, "dev", "cleo", "c1.mp3", "Yes")
    return tmp_path


def _read(root: Path, tokens: Tokens | None = None, **options: object) -> Corpus:
    return common_voice_corpus(root, tokens or Tokens(), **options)  # type: ignore[arg-type]


def test_users_splits_and_texts_come_from_the_lists(root: Path) -> None:
    corpus = _read(root)
    assert [(item.speaker, item.split, item.text) for item in corpus.utterances] == [
        ("anna", "train", "hello there"),
        ("anna", "train", "it's late"),
        ("bert", "train", "good night"),
        ("cleo", "dev", "yes"),
    ]
    assert all(item.seconds == pytest.approx(1.0, abs=0.1) for item in corpus.utterances)


def test_mp3_of_48_kilohertz_is_read_as_mono_of_16_kilohertz_and_counted(root: Path) -> None:
    corpus = _read(root)
    samples = corpus.read_samples(corpus.utterances[0])
    assert samples.dtype == np.float32
    assert abs(len(samples) - 16000) < 1600
    spectrum = np.abs(np.fft.rfft(samples[2000:14000]))
    assert np.argmax(spectrum) * 16000 / 12000 == pytest.approx(440, abs=3)
    assert corpus.notes["other sample rate, resampled"] == 4


def test_stereo_is_mixed_down_and_counted(root: Path) -> None:
    path = add(root, "train", "dora", "d1.wav", "Loud")
    soundfile.write(str(path), np.stack([_tone(1.0), -_tone(1.0)], axis=1), 48000)
    corpus = _read(root)
    assert corpus.notes["several channels, mixed down"] == 1
    item = next(each for each in corpus.utterances if each.speaker == "dora")
    assert np.abs(corpus.read_samples(item)).max() < 1e-4


def test_a_language_folder_is_found(root: Path, tmp_path: Path) -> None:
    outer = tmp_path / "corpus"
    outer.mkdir()
    inner = outer / "fr"
    inner.mkdir()
    for name in ("train.tsv", "dev.tsv", "clips"):
        (root / name).rename(inner / name)
    assert len(_read(outer, language="fr").utterances) == 4


def test_what_cannot_be_used_is_named_counted_and_left_out(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    add(root, "train", "", "nobody.mp3", "No speaker")
    add(root, "train", "emil", "e1.mp3", "...")
    add(root, "train", "emil", "e2.mp3", "\u00c0 bient\u00f4t")
    add(root, "train", "emil", "e3.mp3", "Broken").write_bytes(b"no audio at all")
    add(root, "train", "emil", "e4.mp3", "Gone").unlink()
    add(root, "train", "emil", "../outside.mp3", "Outside")
    with (root / "train.tsv").open("a") as lines:
        lines.write("half a line\n")
    with caplog.at_level(logging.WARNING):
        corpus = _read(root)
    assert len(corpus.utterances) == 4
    wanted = {
        "no speaker id": 1,
        "empty text": 1,
        "characters without a label": 1,
        "missing or unreadable audio": 2,
        "damaged line": 2,
    }
    assert {reason: corpus.notes[reason] for reason in wanted} == wanted
    for named in ("nobody.mp3", "e1.mp3", "e2.mp3", "e3.mp3", "e4.mp3", "outside.mp3", "line 11"):
        assert named in caplog.text


def test_zero_length_and_not_finite_audio_is_skipped_and_the_task_goes_on(root: Path) -> None:
    soundfile.write(str(add(root, "train", "anna", "zero.wav", "Zero")), np.zeros(0), 16000)
    bad = np.full(16000, np.nan, dtype=np.float32)
    broken = add(root, "train", "anna", "nan.wav", "Nan")
    soundfile.write(str(broken), bad, 16000, subtype="FLOAT")
    built = task(dataset="common-voice", data_root=root, cache_dir=root / "cache", batch_size=8)
    batches = list(built.user_data("anna").batches(np.random.default_rng(0)))
    assert [len(batch.feature_lengths) for batch in batches] == [2]
    facts = built.describe()
    assert facts["corpus: shorter than one 25 ms window"] == 1
    assert facts["corpus: unreadable when read"] == 1


def test_letters_are_kept_or_transliterated_only_when_asked(root: Path) -> None:
    add(root, "train", "fleur", "f1.mp3", "L\u2019\u0153uvre d\u00e9j\u00e0 vue")
    plain, accented, written = (
        {item.text for item in _read(root, tokens).utterances}
        for tokens in (Tokens(), Tokens(FRENCH), Tokens(transliterate=True))
    )
    assert len(plain) == 4
    assert "l'\u0153uvre d\u00e9j\u00e0 vue" in accented
    assert "l'oeuvre deja vue" in written


def test_published_rules_of_text_hold_for_what_people_wrote(root: Path) -> None:
    add(
        root,
        "train",
        "gus",
        "g1.mp3",
        "\u201cThe boys\u2019 caf\u00e9, e.g. a well-known one \u2013 don\u2019t!\u201d",
    )
    add(root, "train", "gus", "g2.mp3", "5 euros")
    texts = [item.text for item in _read(root, Tokens(transliterate=True)).utterances]
    assert "the boys' cafe eg a well-known one don't" in texts
    assert "euros" in texts
    assert len(_read(root).utterances) == len(texts) - 2  # accents and digits have no label


def test_published_lengths_are_taken_without_opening_the_clips(root: Path) -> None:
    for path in (root / "clips").iterdir():
        path.unlink()
    lengths = "".join(f"{name}\t2500\n" for name in ("a1.mp3", "a2.mp3", "b1.wav", "c1.mp3"))
    (root / "clip_durations.tsv").write_text("clip\tduration[ms]\n" + lengths)
    corpus = _read(root)
    assert {item.seconds for item in corpus.utterances} == {2.5}
    bank = SpeechBank(corpus)
    assert bank.speech(corpus.utterances[0]) is None
    assert bank.notes.unreadable == 1


def test_with_published_lengths_what_is_mended_is_counted_when_it_is_read(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stereo = add(root, "train", "bert", "b2.wav", "Loud")
    soundfile.write(str(stereo), np.stack([_tone(1.0), _tone(1.0)], axis=1), 48000)
    soundfile.write(str(add(root, "train", "bert", "b3.wav", "Plain")), _tone(1.0, 16000), 16000)
    clips = [path.name for path in (root / "clips").iterdir()]
    (root / "clip_durations.tsv").write_text("".join(f"{name}\t1000\n" for name in clips))
    built = task(dataset="common-voice", data_root=root, cache_dir=root / "cache")
    assert not built.corpus.notes
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            assert list(built.user_data("bert").batches(np.random.default_rng(0)))
    facts = built.describe()
    assert facts["corpus: other sample rate, resampled when read"] == 2
    assert facts["corpus: several channels, mixed down when read"] == 1
    assert sum("b2.wav" in message for message in caplog.messages) == 2
    assert "b3.wav" not in caplog.text
    assert not built.corpus.mended


def test_every_drop_is_listed_beside_the_cached_index_and_the_log_says_where(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(60):
        add(root, "train", "anna", f"x{number}.wav", "...")
    for _ in ("built", "loaded from the cache"):
        caplog.clear()
        assert _read(root, cache_dir=tmp_path / "cache").notes["empty text"] == 60
        (listed,) = (tmp_path / "cache").glob("dropped-*.jsonl")
        assert str(listed) in caplog.text
    rows = [json.loads(line) for line in listed.read_text().splitlines()]
    assert [row["what"] for row in rows] == [f"x{number}.wav" for number in range(60)]
    assert {row["reason"] for row in rows} == {"empty text"}
    assert {row["where"] for row in rows} == {str(root / "train.tsv")}


def test_the_index_is_built_once_and_again_when_the_lists_change(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "cache"
    first = _read(root, cache_dir=cache)
    with monkeypatch.context() as patch:
        patch.setattr("experiments.asr.common_voice._build", lambda *given: pytest.fail("built"))
        again = _read(root, cache_dir=cache)
    assert again.utterances == first.utterances
    assert again.notes == first.notes
    (kept,) = cache.iterdir()
    kept.write_text(kept.read_text()[:-40])
    assert _read(root, cache_dir=cache).utterances == first.utterances
    assert "damaged" in caplog.text
    add(root, "train", "gert", "g1.mp3", "New")
    assert len(_read(root, cache_dir=cache).utterances) == 5
    assert len(_read(root, Tokens(FRENCH), cache_dir=cache).utterances) == 5
    assert len(list(cache.iterdir())) == 3


def test_a_corpus_without_speaker_ids_is_a_settings_error(root: Path) -> None:
    for name in ("train", "dev"):
        listed = root / f"{name}.tsv"
        listed.write_text(listed.read_text().replace("client_id", "somebody"))
    with pytest.raises(SettingsError, match="client_id") as caught:
        _read(root)
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize("missing", ["train.tsv", "dev.tsv", "clips"])
def test_a_missing_part_is_a_settings_error(root: Path, missing: str) -> None:
    (root / missing).rename(root / "elsewhere")
    with pytest.raises(SettingsError, match=f"data_root must hold .*{missing}"):
        _read(root)


def test_a_folder_that_is_not_there_is_a_settings_error() -> None:
    for given in (None, "/no/such/folder"):
        with pytest.raises(SettingsError, match="data_root must be"):
            common_voice_corpus(given, Tokens())


_CHILD = """
import resource, sys
from pathlib import Path
from experiments.asr.common_voice import common_voice_corpus
from experiments.asr.tokens import Tokens

root = Path(sys.argv[1])
corpus = common_voice_corpus(root, Tokens(), cache_dir=root / "cache")
print(len(corpus.utterances), len({item.speaker for item in corpus.utterances}))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_a_million_and_a_half_utterances_are_indexed_within_a_gigabyte(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    speakers = [f"{number:0128x}" for number in range(35_000)]
    text = "the quick brown fox jumps over the lazy dog and runs away again"
    with (
        (tmp_path / "train.tsv").open("w") as lines,
        (tmp_path / "clip_durations.tsv").open("w") as lengths,
    ):
        lines.write(HEAD)
        for number in range(1_500_000):
            clip = f"common_voice_en_{number:08d}.mp3"
            lines.write(f"{speakers[number % 35_000]}\t{clip}\t{text} {number % 7 * 'a'}\t2\n")
            lengths.write(f"{clip}\t{4000 + number % 999}\n")
    add(tmp_path, "dev", "zoe", "z1.wav", "Yes")
    program = [sys.executable, "-c", textwrap.dedent(_CHILD), str(tmp_path)]
    for _ in ("built", "loaded from the cache"):
        out = subprocess.run(program, capture_output=True, text=True, check=True).stdout
        count, people, kilobytes = map(int, out.split())
        assert (count, people) == (1_500_001, 35_001)
        assert kilobytes < 1_000_000
