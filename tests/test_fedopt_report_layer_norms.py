"""Show that the norms by layer reach the report marked as not private, and only where logged."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from report_runs import write_run

from fedopt.report import build_report, read_run, to_json
from fedopt.report_layer_norms import MOST_ROUNDS, evenly, layer_norms, layer_norms_by_round
from fedopt.report_page import html_page
from fedopt.report_reading import check_report


def run_with_norms(folder: Path, layers: int = 2, rounds: int = 20, **privacy: Any) -> Path:
    """Write a run whose rows hold norms by layer, as the strategy logs them from round 1 on."""
    sizes = [[f"block.{number}.weight", 10 + number] for number in range(layers)]
    write_run(folder, layers=sizes, rounds=rounds, **privacy)
    path = folder / "rounds.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows[1:]:
        row["layer_norms"] = [0.01 * row["round"] * (place + 1) for place in range(layers)]
        row["layer_norms_clipped"] = [0.001 * (place + 1) for place in range(layers)]
        row["layer_clipped"] = [0.5] * layers
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def report_of(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(to_json(build_report(read_run(folder))))
    return report


def test_the_first_and_the_last_round_are_among_those_kept(tmp_path: Path) -> None:
    report = report_of(run_with_norms(tmp_path / "run"))
    curve = check_report(report)["curves"]["layer_norms_not_private"]
    assert curve["rounds"] == [1, 5, 9, 12, 16, 20]
    assert curve["before_clipping"][-1] == pytest.approx([0.2, 0.4])
    assert curve["after_clipping"][0] == pytest.approx([0.001, 0.002])


@pytest.mark.parametrize("count", [1, 2, MOST_ROUNDS, 7, 2000])
def test_rounds_are_chosen_once_each_and_reach_both_ends(count: int) -> None:
    places = evenly(count, MOST_ROUNDS)
    assert places[0] == 0
    assert places[-1] == count - 1
    assert len(places) == len(set(places)) == min(count, MOST_ROUNDS)


def test_rows_of_older_runs_give_no_curve_and_no_chart(tmp_path: Path) -> None:
    report = report_of(write_run(tmp_path / "run"))
    assert "layer_norms_not_private" not in report["curves"]
    assert layer_norms_by_round(report) is None
    assert layer_norms([{"round": 1, "layer_norms": [], "layer_norms_clipped": []}]) == {}


def test_the_page_marks_the_norms_as_not_private(tmp_path: Path) -> None:
    page = html_page(report_of(run_with_norms(tmp_path / "run")))
    assert page is not None
    assert re.search(r'id="layer-norms-title">[^<]*<span class="tag">not private</span>', page)


def test_bounds_are_drawn_where_each_layer_has_one_of_its_own(tmp_path: Path) -> None:
    for clipping, drawn in (("per-layer-uniform", True), ("global", False)):
        report = report_of(run_with_norms(tmp_path / clipping, clipping=clipping))
        chart = layer_norms_by_round(report)
        assert chart is not None
        assert (">bound</text>" in chart.svg) == drawn


def test_a_layer_that_never_moves_leaves_a_gap_and_no_warning(tmp_path: Path) -> None:
    report = report_of(run_with_norms(tmp_path / "run"))
    curve = report["curves"]["layer_norms_not_private"]
    for line in [*curve["before_clipping"], *curve["after_clipping"]]:
        line[0] = 0.0
    chart = layer_norms_by_round(report)
    assert chart is not None
    assert "from 0.4 (block.1.weight) to 0.4 (block.1.weight)" in chart.alt


def test_three_hundred_layers_stay_a_small_picture(tmp_path: Path) -> None:
    chart = layer_norms_by_round(report_of(run_with_norms(tmp_path / "run", layers=296)))
    assert chart is not None
    assert len(chart.svg) < 300_000
    assert "largest norm of the last round first" in chart.svg
    assert "from 59.2 (block.295.weight) to 0.2 (block.0.weight)" in chart.alt
