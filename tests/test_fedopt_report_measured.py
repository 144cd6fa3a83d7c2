"""Show that all an evaluation found reaches the report, people's percentiles by split included."""

from __future__ import annotations

import json
from pathlib import Path

from report_runs import write_run

from fedopt.report import build_report, read_run, to_json
from fedopt.report_measured import measured
from fedopt.report_page import html_page
from fedopt.report_verify import differences

ROWS = [
    {"round": 1, "cohort": 8, "train_loss": 2.0, "wer": 0.9, "wer_p90": 1.0, "dev_loss": 1.5},
    {"round": 2, "cohort": 9, "train_loss": 1.0, "faults": {}, "layer_clipped": [0.5]},
    {"round": 3, "cohort": 7, "wer": 0.5, "wer_p90": 0.75, "dev_loss": 1.0, "test_wer": 0.625,
     "test_wer_p90": 0.875},
]  # fmt: skip


def test_the_last_evaluation_of_each_split_is_kept() -> None:
    assert measured(ROWS) == {
        "dev": {"wer": 0.5, "wer_p90": 0.75, "loss": 1.0},
        "test": {"wer": 0.625, "wer_p90": 0.875},
    }
    assert measured(ROWS[:2]) == {"dev": {"wer": 0.9, "wer_p90": 1.0, "loss": 1.5}}
    assert measured([]) == {}


def test_percentiles_over_people_stand_on_the_page_for_both_splits(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", metric="wer", rounds=3)
    path = folder / "rounds.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[-1] |= {"wer_p90": 0.75, "test_wer": 0.625, "test_wer_p90": 0.875}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = html_page(json.loads(to_json(build_report(read_run(folder)))))
    assert page is not None
    for split, value in (("dev", "0.75"), ("test", "0.875")):
        name = f"wer, 90th percentile of people ({split} split, last evaluation)"
        assert f'<th scope="row">{name}</th><td>{value}</td>' in page


def test_a_report_from_before_these_keys_is_no_forgery_but_a_changed_value_is(
    tmp_path: Path,
) -> None:
    now = json.loads(to_json(build_report(read_run(write_run(tmp_path / "run")))))
    before = json.loads(json.dumps(now))
    del before["utility"]["measured"]
    assert list(differences(before, now)) == []
    before["utility"]["measured"] = {"dev": {"accuracy": 9.0}}
    assert "utility.measured.dev.accuracy" in next(differences(before, now))
