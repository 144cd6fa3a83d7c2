"""Check that the model learns to recognise speakers it never heard."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from experiments.asr import central
from experiments.asr.central import rate_factor, train_centrally
from experiments.asr.task import task


def test_the_rate_rises_stays_and_falls() -> None:
    factors = [rate_factor(step, 400) for step in range(1, 401)]
    assert factors[0] == 0.01
    assert factors[99] == factors[199] == 1.0
    assert factors[300] == pytest.approx(0.5)
    assert factors[-1] == pytest.approx(2 / 400)
    assert rate_factor(1, 1) == 1.0


def test_seconds_of_training_are_enough_to_read_unseen_synthetic_speakers(
    tmp_path: Path,
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        speech = task(
            speakers=30, held_out_speakers=6, batch_size=8, cache_dir=tmp_path, progress=False
        )
        seen: list[tuple[int, float]] = []
        metrics = train_centrally(
            speech,
            steps=160,
            learning_rate=3e-3,
            report_every=80,
            report=lambda step, loss, now: seen.append((step, now["wer"])),
        )
    finally:
        torch.set_num_threads(threads)
    assert [step for step, _ in seen] == [80, 160]
    assert metrics["wer"] < 0.35
    assert metrics["cer"] < metrics["wer"]


def test_the_same_seed_trains_the_same_model(tmp_path: Path) -> None:
    speech = task(speakers=2, held_out_speakers=1, cache_dir=tmp_path, progress=False)
    first, again, other = (
        train_centrally(speech, steps=3, seed=seed)["loss"] for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_the_command_line_prints_the_result_and_refuses_bad_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert central.main(["--dataset", "librispeech", "--data-root", str(tmp_path / "no")]) == 2
    refused = capsys.readouterr()
    assert refused.out == ""
    assert "data_root must be an existing folder" in refused.err
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    small = {"speakers": 2, "held_out_speakers": 1, "progress": False}
    monkeypatch.setattr(central, "task", lambda **options: task(**{**options, **small}))
    assert central.main(["--steps", "2", "--report-every", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[1].startswith("step 2 ")
    assert "WER" in lines[1]
