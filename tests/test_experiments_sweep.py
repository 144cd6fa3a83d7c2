"""Show that a grid runs every cell once, each alone, and goes on where it stopped."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from experiments.sweep import main, read_sweep
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
    sweep = read_sweep(written(tmp_path, GRID + '"privacy.clip_norm" = [1.0, 2.0, 3.0]\n'))
    assert [cell.label for cell in sweep.cells][:2] == [
        "client_lr=0.1, clip_norm=1.0",
        "client_lr=0.1, clip_norm=2.0",
    ]
    assert len(sweep.cells) == 6
    assert len({cell.folder(tmp_path, 1) for cell in sweep.cells}) == 6
    assert sweep.cells[5].tables["privacy"]["clip_norm"] == 3.0
    assert sweep.cells[5].tables["privacy"]["cohort"] == 10


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("seeds = []\n", ["seeds must be"]),
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
        read_sweep(path)
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
    found = json.loads((out / "sweep.json").read_text())
    assert [cell["count"] for cell in found["cells"]] == [2, 2]
    for cell in found["cells"]:
        values = [run["value"] for run in cell["runs"]]
        assert cell["mean"] == pytest.approx(sum(values) / 2)
        assert cell["deviation"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    assert (out / "sweep.svg").read_text().startswith("<?xml")
    ages = {path: path.stat().st_mtime_ns for path in out.rglob("model.safetensors")}
    first = out / found["cells"][0]["runs"][0]["path"]
    (first / "privacy-report.json").unlink()
    wider = GRID.replace("[0.1, 0.2]", "[0.1, 0.2, 0.0001]").replace("[1, 2]", "[1]")
    assert main([str(written(tmp_path, wider)), "--output", str(out)]) == 0
    again = json.loads((out / "sweep.json").read_text())
    assert [cell["count"] for cell in again["cells"]] == [1, 1, 1]
    assert again["cells"][0]["runs"][0]["value"] == found["cells"][0]["runs"][0]["value"]
    untouched = [path for path in ages if path.parent != first]
    assert all(path.stat().st_mtime_ns == ages[path] for path in untouched)
