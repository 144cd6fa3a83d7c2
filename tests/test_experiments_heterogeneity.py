"""Show that norms by layer of finished runs are drawn whole, and named as not private."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from report_runs import write_run

from experiments.heterogeneity import main, read_norms, spread


def run_with_norms(folder: Path) -> Path:
    write_run(folder)
    path = folder / "rounds.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows[1:]:
        row["layer_norms"], row["layer_norms_clipped"] = [0.123456, 1.0], [0.1, 0.0]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_every_round_that_was_logged_is_kept(tmp_path: Path) -> None:
    found = read_norms(run_with_norms(tmp_path / "run"))
    assert found["rounds"] == [1, 2, 3, 4, 5]
    assert found["layers"] == ["weight", "bias"]
    assert found["before_clipping"] == [[0.1235, 1.0]] * 5
    assert found["after_clipping"] == [[0.1, 0.0]] * 5


def test_the_spread_is_that_of_the_logarithms() -> None:
    assert spread([1.0, math.e, math.e**2]) == pytest.approx(1.0)
    assert spread([0.5, 0.5, 0.0]) == 0.0
    assert spread([1.0]) == 0.0


def test_runs_make_one_figure_and_one_file_marked_not_private(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [str(run_with_norms(tmp_path / name)) for name in ("one", "two")]
    output = tmp_path / "norms"
    assert main([*folders, "--output", str(output)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    written = json.loads(output.with_suffix(".json").read_text())
    assert written["note"].startswith("not private")
    assert str(tmp_path) not in output.with_suffix(".json").read_text()
    drawn = output.with_suffix(".svg").read_text()
    assert "(not private)" in drawn
    assert drawn.count("<image") == 4 + 1  # two maps for each run, and the colour scale


def test_all_runs_without_norms_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    older = str(write_run(tmp_path / "older"))
    assert main([older, str(tmp_path / "none"), "--output", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err.splitlines()
    assert ["'older'" in told[0], "'none'" in told[1]] == [True, True]
    assert not (tmp_path / "out.json").exists()
