"""Follow a damaged file from the process that reads it to the report of a private run."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from experiments.asr.reading import SPOKEN, ReadingNotes
from fedopt.config import build_settings

LABEL = "corpus: unreadable when read"


def _speech(folder: Path, subset: str, speaker: int, count: int) -> list[Path]:
    """Write utterances of noise as LibriSpeech lays them out."""
    chapter = folder / subset / str(speaker) / "1"
    chapter.mkdir(parents=True)
    generator = np.random.default_rng(speaker)
    names = [f"{speaker}-1-{number:04d}" for number in range(count)]
    (chapter / f"{speaker}-1.trans.txt").write_text("".join(f"{name} GO ON\n" for name in names))
    for name in names:
        sound = generator.normal(0, 0.1, 16000)
        soundfile.write(str(chapter / f"{name}.flac"), sound, 16000)
    return [chapter / f"{name}.flac" for name in names]


def _damage(path: Path) -> None:
    """Break the body of a file; its head, from which the index is made, stays whole."""
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    training = [_speech(folder, "train-clean", speaker, 3) for speaker in (1, 2, 3, 4)]
    held_out = _speech(folder, "dev-clean", 9, 3)
    for path in (training[1][0], training[3][2], held_out[1]):
        _damage(path)
    return folder


DAMAGED = ("2-1-0000.flac", "4-1-0002.flac", "9-1-0001.flac")


def _settings(corpus: Path, engine: str) -> dict[str, Any]:
    return {
        "privacy": {
            "population": 4, "cohort": 4, "simulated_cohort": 4, "rounds": 2,
            "noise_multiplier": 1.0, "delta": 1e-3, "sampling": "everyone",
        },
        "client": {"local_steps": 3},
        "task": {
            "dataset": "librispeech", "data_root": str(corpus), "model": "tiny",
            "options": {"cache_dir": str(corpus.parent / "cache"), "batch_size": 1},
        },
        "engine": {"engine": engine, "workers": 2, "device": "cpu"},
        "run": {"eval_every": 1},
    }  # fmt: skip


def _check_report(report: dict[str, Any], folder: Path) -> None:
    data = report["utility"]["data"]
    assert data[LABEL] == 3
    assert data["real-time factor of training"] > 0
    assert data["real-time factor of evaluation"] > 0
    assert 0 <= data["padding share of evaluation"] < 0.5
    assert report["utility"]["measured"]["dev"]["evaluated_utterances"] == 2
    # In each round four users take three steps of one utterance of 98 frames.
    rows = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    assert [row["amounts"] for row in rows[1:]] == [{SPOKEN: 4 * 3 * 980}] * 2
    kept = (folder / "data-findings.jsonl").read_text().splitlines()
    assert all(sum(name in line for line in kept) == 1 for name in DAMAGED)


def test_a_private_run_counts_names_and_survives_damaged_files(
    corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from fedopt.simulation import simulate

    settings = build_settings(_settings(corpus, "local"))
    with caplog.at_level(logging.WARNING):
        result = simulate(settings, output=tmp_path / "run")
    _check_report(result.report, tmp_path / "run")
    for name in DAMAGED:
        assert sum(name in message for message in caplog.messages) == 1
    again = simulate(settings, output=tmp_path / "run", resume=True).report["utility"]["data"]
    assert again == result.report["utility"]["data"]


def test_a_run_whose_evaluation_reads_nothing_has_no_error_rate(
    corpus: Path, tmp_path: Path
) -> None:
    from fedopt.cli_run import summary
    from fedopt.simulation import simulate

    for path in (corpus / "dev-clean").rglob("*.flac"):
        _damage(path)
    result = simulate(build_settings(_settings(corpus, "local")), output=tmp_path / "run")
    utility = result.report["utility"]
    assert utility["final"] is None
    assert utility["history"] == []
    assert utility["measured"] == {"dev": {"evaluated_utterances": 0}}
    assert "wer: - -> - on development" in summary(result)


_CHILD = """
import json, sys
from pathlib import Path
from fedopt.config import build_settings
from fedopt.simulation import simulate

simulate(build_settings(json.loads(sys.argv[1])), output=Path(sys.argv[2]))
"""


@pytest.mark.slow
def test_what_rays_workers_find_reaches_log_and_report(corpus: Path, tmp_path: Path) -> None:
    settings = json.dumps(_settings(corpus, "ray"))
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, settings, str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=True,
        env=dict(os.environ),
    )
    report = json.loads((tmp_path / "run" / "privacy-report.json").read_text())
    _check_report(report, tmp_path / "run")
    for name in DAMAGED:
        assert sum(name in line for line in done.stderr.splitlines()) == 1


def test_each_file_is_noted_once(caplog: pytest.LogCaptureFixture) -> None:
    notes = ReadingNotes()
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            notes.note_mended("a", ["several channels, mixed down"])
            notes.note_mended("b", [])
            notes.note_unreadable("c", "it is empty")
    assert notes.counts == {"corpus: several channels, mixed down when read": 1, LABEL: 1}
    assert notes.unreadable == 1
    assert len(caplog.messages) == 2
    notes.frames = 123
    assert notes.amounts == {SPOKEN: 1230}
