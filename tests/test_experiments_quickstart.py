"""Run the quickstart notebook from its first cell to its last, as a reader would."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from fedopt.cli import main

NOTEBOOK = Path(__file__).parents[1] / "experiments" / "quickstart.ipynb"
BUDGET = [
    "budget", "--population", "1e6", "--cohort", "5000", "--rounds", "40", "--delta", "1e-8",
    "--epsilon", "8",
]  # fmt: skip


def cells() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in found if cell["cell_type"] == "code"]


def printed(cell: Any) -> str:
    return "".join(part.get("text", "") for part in cell["outputs"])


def test_the_notebook_is_kept_without_outputs_and_without_places_of_a_machine() -> None:
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells())
    assert not re.search(r"/(home|root|work|tmp|Users)\b", NOTEBOOK.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_the_notebook_runs_and_prints_the_budget_of_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient")
    # The kernel imports the project beside this file, whatever else is installed.
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[1]))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    place = {"metadata": {"path": str(tmp_path)}}
    client.NotebookClient(notebook, timeout=1200, resources=place).execute()
    budget, training, plot, report, files = (
        cell for cell in notebook.cells if cell["cell_type"] == "code"
    )
    assert main(BUDGET) == 0
    told = capsys.readouterr().out
    for line in printed(budget).splitlines():
        assert re.search(r"\s+".join(map(re.escape, line.split())), told), line
    assert [line.split()[1] for line in printed(training).splitlines()] == [
        str(number) for number in range(0, 41, 5)
    ]
    assert "image/png" in plot["outputs"][0]["data"]
    assert "epsilon claimed 8.00" in printed(report)
    assert "Simulated guarantee" in printed(report)
    (folder,) = (tmp_path / "runs").iterdir()
    assert {"privacy-report.html", "privacy-report.json"} <= set(printed(files).split())
    stored = json.loads((folder / "privacy-report.json").read_text(encoding="utf-8"))
    history = stored["utility"]["history"]
    assert history[-1]["value"] < 0.5 * history[0]["value"]
