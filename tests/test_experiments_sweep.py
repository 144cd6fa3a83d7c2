"""Show that a grid runs every cell once, each alone, and goes on where it stopped."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from experiments.grid import read_grid
from experiments.study import main as study
from experiments.sweep import first_weights, main, portable
from experiments.sweep_figure import across, draw, lines_of
from privacy.errors import SettingsError

GRID = """
seeds = [1, 2]
[settings.privacy]
population = 1000
cohort = 10
simulated_cohort = 4
rounds = 2
noise_multiplier = 1.0
delta = 1e-5
[settings.task]
task = "engine_tasks:task"
[settings.engine]
engine = "local"
[grid]
"client.client_lr" = [0.1, 0.2]
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "grid.toml"
    path.write_text(text)
    return path


def test_a_grid_is_the_product_of_its_axes(tmp_path: Path) -> None:
    grid = read_grid(written(tmp_path, GRID + '"privacy.clip_norm" = [1.0, 2.0, 3.0]\n'))
    assert [cell.label for cell in grid.cells][:2] == [
        "client_lr=0.1, clip_norm=1.0",
        "client_lr=0.1, clip_norm=2.0",
    ]
    assert len(grid.cells) == 6
    assert len({cell.folder(tmp_path, 1) for cell in grid.cells}) == 6
    assert grid.cells[5].tables["privacy"]["clip_norm"] == 3.0
    assert grid.cells[5].tables["privacy"]["cohort"] == 10


CASES = """
[cases.plain.server]
strategy = "fedavg"
server_lr = 2.0
[cases.adaptive.server]
strategy = "fedadam"
"""


def test_cases_hold_settings_that_go_together_at_every_point_of_the_grid(tmp_path: Path) -> None:
    grid = read_grid(written(tmp_path, GRID + CASES))
    assert grid.axes == ("case", "client.client_lr")
    assert [cell.label for cell in grid.cells] == [
        "plain, client_lr=0.1",
        "plain, client_lr=0.2",
        "adaptive, client_lr=0.1",
        "adaptive, client_lr=0.2",
    ]
    assert grid.cells[1].tables["server"] == {"strategy": "fedavg", "server_lr": 2.0}
    assert grid.cells[2].tables["server"] == {"strategy": "fedadam"}


def test_what_is_set_on_the_command_line_goes_over_the_fixed_settings(tmp_path: Path) -> None:
    path = written(tmp_path, GRID)
    grid = read_grid(path, {"task": {"data_root": "corpus"}, "privacy": {"rounds": 5}})
    assert all(cell.tables["task"]["data_root"] == "corpus" for cell in grid.cells)
    assert all(cell.tables["privacy"]["rounds"] == 5 for cell in grid.cells)


def test_what_is_kept_names_no_folder_of_this_machine() -> None:
    task = {"data_root": "/home/someone/corpus", "init_from": "/tmp/seed.safetensors", "model": "x"}
    assert portable({"task": task}) == {"task": {"init_from": "seed.safetensors", "model": "x"}}
    assert "data_root" in task


def test_first_weights_are_known_by_their_tensors_whatever_the_file_says_beside_them(
    tmp_path: Path,
) -> None:
    path = tmp_path / "seed.safetensors"
    tables = {"task": {"init_from": str(path)}}
    assert first_weights(tables) is None
    tensors = {"b": np.ones(3, np.float32), "a": np.zeros(2, np.float32)}
    hashes = set()
    for about in ({"steps": "1"}, {"steps": "2"}):
        save_file(tensors, path, metadata=about)
        hashes.add(first_weights(tables))
    assert len(hashes) == 1
    save_file(tensors | {"a": np.ones(2, np.float32)}, path)
    assert first_weights(tables) not in hashes


@pytest.mark.parametrize(
    "more", [["--jobs", "0"], ["--set", "rounds=3"], ["--set", "privacy.rounds=-3"]]
)
def test_a_wrong_flag_of_a_sweep_runs_nothing(
    more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main([str(written(tmp_path, GRID)), "--output", str(out), *more]) == 2
    assert not out.exists()
    assert capsys.readouterr().err.startswith("sweep: ")


def cell(values: dict[str, Any], mean: float | None, epsilon: float | str = 1.0) -> dict[str, Any]:
    run = {"metric": "wer", "split": "test", "failure": "", "epsilon": epsilon, "seed": 1}
    run |= {"value": mean, "development": mean, "history": []}
    return {
        "label": str(values), "values": values, "mean": mean, "deviation": 0.1, "count": 2,
        "epsilon": epsilon, "runs": [run],
    }  # fmt: skip


NOISES = {
    "schema_version": 2,
    "grid": "noises",
    "seeds": [1, 2],
    "axes": ["case", "privacy.noise_multiplier"],
    "cells": [
        cell({"case": name, "privacy.noise_multiplier": noise}, 0.2 + noise, epsilon)
        for name in ("fedavg", "fedadam")
        for noise, epsilon in ((2.0, 0.501), (0.0, "inf"))
    ],
}


def test_a_figure_has_a_line_for_each_case_across_the_noise(tmp_path: Path) -> None:
    assert across(NOISES) == "privacy.noise_multiplier"
    lines = lines_of(NOISES, "privacy.noise_multiplier")
    assert {name: len(cells) for name, cells in lines.items()} == {"fedavg": 2, "fedadam": 2}
    draw([NOISES], tmp_path / "a.svg")
    drawn = (tmp_path / "a.svg").read_text()
    for words in ("fedavg", "fedadam", "epsilon 0.51", "not private", "noise multiplier"):
        assert f">{words}</" in drawn
    draw([NOISES], tmp_path / "a.svg")
    assert (tmp_path / "a.svg").read_text() == drawn


def test_a_study_joins_sweeps_and_refuses_what_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, failed, none = (tmp_path / name for name in ("good.json", "failed.json", "none.json"))
    good.write_text(json.dumps(NOISES))
    bad = json.loads(json.dumps(NOISES))
    bad["cells"][0]["runs"][0]["failure"] = "out of memory"
    failed.write_text(json.dumps(bad))
    none.write_text("[1]")
    output = tmp_path / "result"
    assert study([str(good), str(failed), str(none), "--output", str(output)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2
    assert not output.with_suffix(".json").exists()
    assert study([str(good), "--output", str(output)]) == 0
    assert "| 0.200 | 0.100 | 2 |" in capsys.readouterr().out
    joined = json.loads(output.with_suffix(".json").read_text())
    assert joined["grids"][0]["cells"][0]["mean"] == 2.2
    assert output.with_suffix(".svg").exists()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("seeds = []\n", ["seeds must be"]),
        ("cases = 3\n", ["cases must be tables"]),
        ("[cases.a.client]\nclient_lr = -1.0\n", ["a: client-lr must be"]),
        ("colour = 3\nseeds = 1\n", ["colour is not part", "seeds must be"]),
        ('[grid]\n"clip_norm" = [1]\n"a.b" = 3\n', ["'clip_norm' must be", "'a.b' must be"]),
        ("[grid]\n'client.client_lr' = [0.1, -1.0]\n[settings.run]\nsead = 2\n",
         ["client_lr=0.1: sead is not", "client_lr=-1.0: client-lr must be"]),
        ("[grid\n", ["must be TOML"]),
    ],
)  # fmt: skip
def test_every_mistake_of_a_grid_is_told_before_anything_runs(
    text: str, parts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, text)
    with pytest.raises(SettingsError) as refused:
        read_grid(path)
    assert all(any(part in told for told in refused.value.problems) for part in parts)
    assert main([str(path), "--output", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.slow
def test_a_sweep_sums_up_its_runs_and_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.getcwd()]))
    out = tmp_path / "out"
    assert main([str(written(tmp_path, GRID)), "--output", str(out)]) == 0
    found = json.loads((out / "grid.json").read_text())
    assert [cell["count"] for cell in found["cells"]] == [2, 2]
    for cell in found["cells"]:
        values = [run["value"] for run in cell["runs"]]
        assert cell["mean"] == pytest.approx(sum(values) / 2)
        assert cell["deviation"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    assert (out / "grid.svg").read_text().startswith("<?xml")
    ages = {path: path.stat().st_mtime_ns for path in out.rglob("model.safetensors")}
    first = out / found["cells"][0]["runs"][0]["path"]
    (first / "privacy-report.json").unlink()
    wider = GRID.replace("[0.1, 0.2]", "[0.1, 0.2, 0.0001]").replace("[1, 2]", "[1]")
    assert main([str(written(tmp_path, wider)), "--output", str(out)]) == 0
    again = json.loads((out / "grid.json").read_text())
    assert [cell["count"] for cell in again["cells"]] == [1, 1, 1]
    assert again["cells"][0]["runs"][0]["value"] == found["cells"][0]["runs"][0]["value"]
    untouched = [path for path in ages if path.parent != first]
    assert all(path.stat().st_mtime_ns == ages[path] for path in untouched)


STUDIES = sorted((Path(__file__).parent.parent / "experiments" / "studies").glob("*.toml"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_the_grids_that_ship_can_be_run_and_are_described(path: Path) -> None:
    grid = read_grid(path)
    fewest = 1 if "rates" in path.stem else 3
    assert len(set(grid.seeds)) >= fewest
    assert path.stem in (path.parent / "README.md").read_text(encoding="utf-8")
