"""Check the summary of finished runs."""

from __future__ import annotations

import json
from pathlib import Path

from experiments.benchmarks.runs import main
from fedopt import simulate


def test_a_summary_holds_time_metric_and_epsilons_but_no_path(tmp_path: Path) -> None:
    settings = {
        "privacy": {"rounds": 2},
        "task": {
            "task": "experiments.classification.task:task",
            "options": {"users": 10},
            "data_root": str(tmp_path),
        },
        "engine": {"engine": "local"},
    }
    from experiments.classification.task import task

    simulate(settings, task=task(users=10), output=tmp_path / "run")
    main(["--output", str(tmp_path / "out.json"), str(tmp_path / "run")])
    text = (tmp_path / "out.json").read_text()
    found = json.loads(text)["runs"]["run"]
    assert str(tmp_path) not in text
    assert found["metric"] == "accuracy"
    assert found["history"][-1]["round"] == 2
    assert 0.0 < found["epsilon_claimed"]["value"] <= 8.0
    assert found["seconds"] >= 0.0
