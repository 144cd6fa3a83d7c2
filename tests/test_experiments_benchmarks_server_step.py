"""The server step benchmark runs on a small model; what was kept of a large one meets the goal."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from experiments.benchmarks import server_step
from strategies.optimizers import OWN

RESULTS = Path(server_step.__file__).parent.parent / "results"


def run(monkeypatch, tmp_path, *flags):
    path = tmp_path / "step.json"
    monkeypatch.setattr(sys, "argv", ["server_step", *flags, "--output", str(path)])
    threads = torch.get_num_threads()
    try:
        server_step.main()
    finally:
        torch.set_num_threads(threads)
    return json.loads(path.read_text())


def test_small_run_writes_every_optimizer_beside_adam(monkeypatch, tmp_path, capsys):
    found = run(monkeypatch, tmp_path, "--parameters", "20000", "--repeats", "2")
    assert json.loads(capsys.readouterr().out) == found
    assert found["parameters"] >= 20000
    assert [result["optimizer"] for result in found["results"]] == list(OWN)
    states = {r["optimizer"]: r["state_values_per_parameter"] for r in found["results"]}
    wanted = {"fedavg": 0, "fedavgm": 1, "fedadagrad": 1, "fedadam": 2, "fednovograd": 1}
    assert {name: states[name] for name in wanted} == wanted
    for result in found["results"]:
        assert result["within_target"] == (result["ratio"] <= found["target_ratio"])


def test_in_the_kept_result_every_large_step_costs_at_most_one_and_a_half_adam_steps():
    found = json.loads((RESULTS / "server_step.json").read_text())
    assert found["parameters"] >= 64_000_000
    assert [result["optimizer"] for result in found["results"]] == list(OWN)
    assert {r["optimizer"]: r["ratio"] for r in found["results"] if not r["within_target"]} == {}
