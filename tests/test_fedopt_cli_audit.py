"""Show what `fedopt audit` prints, what the report takes over, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from audit_runs import audit_settings
from engine_runs import engine_settings, run

from fedopt.audit import read_audit
from fedopt.cli import main
from fedopt.report import build_report, read_run, to_json
from fedopt.report_page import html_page
from fedopt.report_reading import check_report


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audited") / "run"
    run(audit_settings(canaries=20, size=200), folder)
    return folder


def test_the_command_prints_the_bounds_and_their_limits(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", str(finished)]) == 0
    text = capsys.readouterr().out
    assert "20 canary users" in text
    assert "No bound exceeds what the accountant says." in text
    assert main(["audit", str(finished), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in found["bounds"]] == [
        "all rounds", "all rounds, one layer", "final model only", "one run, no assumption",
    ]  # fmt: skip
    assert found == read_audit(finished / "audit.json")["result"]


def test_the_report_holds_the_audit_against_as_run(finished: Path) -> None:
    report = json.loads(to_json(build_report(read_run(finished))))
    check_report(report)
    assert {row["limit"] for row in report["audit"]["bounds"]} == {
        report["as_run"]["epsilon"]["value"]
    }
    assert report["as_run"]["population"] == 24
    page = html_page(report)
    assert page is not None
    assert "20 canary users" in page


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 2
    caught = capsys.readouterr()
    assert caught.out == ""
    assert caught.err.count("\n") == 1
    return caught.err


def test_a_run_without_canaries_is_refused_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(engine_settings(), tmp_path / "run")
    assert not (tmp_path / "run" / "audit.json").exists()
    assert "fedopt run --audit" in refused(capsys, "audit", str(tmp_path / "run"))
    assert "run directory" in refused(capsys, "audit", str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda facts: None, "missing or damaged"),
        (lambda facts: facts | {"schema_version": 2}, "schema version 1, got 2"),
        (lambda facts: facts | {"rounds": facts["rounds"][:1]}, "scores of round 2"),
        (lambda facts: facts | {"rounds": [{"round": 2}]}, "scores of round 2"),
        (lambda facts: facts | {"rounds": 7}, "scores of round 2"),
    ],
    ids=["missing", "newer", "round lost", "cut off", "no rounds"],
)
def test_a_damaged_audit_is_refused_in_one_sentence(
    damage: Any, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(audit_settings(canaries=20, size=200), tmp_path / "run")
    path = tmp_path / "run" / "audit.json"
    changed = damage(read_audit(path))
    path.unlink()
    if changed is not None:
        path.write_text(json.dumps(changed))
    assert said in refused(capsys, "audit", str(tmp_path / "run"))
