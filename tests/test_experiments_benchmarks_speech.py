"""The speech benchmark: it runs on a CPU, and its figures fit each other."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.asr.layers import ModelSettings
from experiments.asr.model import SpeechTransformer
from experiments.benchmarks import speech
from privacy.noise import grid_spacing


def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *flags: str) -> dict[str, Any]:
    path = tmp_path / "speech.json"
    monkeypatch.setattr(sys, "argv", ["speech", *flags, "--output", str(path)])
    threads = torch.get_num_threads()
    try:
        speech.main()
    finally:
        torch.set_num_threads(threads)
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_a_small_run_writes_figures_that_fit_each_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["--seconds", "4", "--utterance-seconds", "2", "--steps", "2", "--users", "2"]
    found = run(monkeypatch, tmp_path, "--threads", "1", *small)
    assert json.loads(capsys.readouterr().out) == found
    assert found["parameters"] == 292_830
    assert found["speech_seconds_per_step"] == 4.0
    phases = found["milliseconds_by_phase"]
    assert {"features", "forward", "loss", "backward", "clip and add", "noise"} <= set(phases)
    assert sum(phases.values()) <= found["milliseconds_per_user"] * 1.5
    per_second = found["flops_per_step"] / found["milliseconds_per_local_step"] * 1e3
    assert found["flops_per_second"] == pytest.approx(per_second)
    assert found["share_of_bfloat16_peak"] is None
    assert found["update_is_finite"]
    assert len(found["profile"]) == 10


def test_a_user_adds_a_clipped_update_and_noise() -> None:
    torch.manual_seed(0)
    settings = ModelSettings(1, 16, dropout=0.0, layer_drop=0.0)
    user = speech.User(SpeechTransformer(settings, speech.LABELS), half_precision=False)
    user.train(speech.make_speech(2.0, 1.0, "cpu"), 2)
    assert user.update.norm().item() > speech.CLIP_NORM
    spread = (user.summed.total.double() * grid_spacing(speech.CLIP_NORM)).std().item()
    assert spread == pytest.approx(speech.CLIP_NORM, rel=0.05)


def test_the_benchmark_needs_neither_flower_nor_ray() -> None:
    program = (
        "import sys; sys.modules['flwr'] = None; sys.modules['ray'] = None; "
        "import experiments.benchmarks.speech"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
