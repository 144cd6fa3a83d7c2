"""Check that the shipped JSON Schema describes the reports that are written."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from report_runs import write_run

from fedopt.report import build_report, read_run, to_json
from fedopt.report_reading import (
    check_report,
    json_schema,
    read_report,
    refuse_newer_file,
    shipped_schema,
)
from fedopt.report_schema import PrivacyReport
from privacy.errors import SettingsError

RUNS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no noise": {"noise_multiplier": 0.0, "epsilon": None},
    "no rounds": {"finished": 0, "model": False},
    "fixed": {"sampling": "fixed", "noise_multiplier": 2.0},
}


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("runs")
    written = {name: write_run(folder / name, **changes) for name, changes in RUNS.items()}
    return {
        name: json.loads(to_json(build_report(read_run(path)))) for name, path in written.items()
    }


def test_the_shipped_schema_is_the_one_of_the_models() -> None:
    assert shipped_schema() == json.loads(json_schema())


@pytest.mark.parametrize("name", RUNS)
def test_every_report_meets_the_shipped_schema(
    reports: dict[str, dict[str, Any]], name: str
) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator(shipped_schema()).validate(reports[name])
    assert check_report(reports[name]) == reports[name]


def test_every_group_is_described_and_required(reports: dict[str, dict[str, Any]]) -> None:
    assert set(shipped_schema()["required"]) == set(PrivacyReport.model_fields)
    assert set(reports["plain"]) == set(PrivacyReport.model_fields)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda report: report.pop("trust"), "trust does not fit"),
        (lambda report: report.update(more=1), "more does not fit"),
        (lambda report: report["unit"].update(name=3), "unit.name does not fit"),
        (lambda report: report["claimed"]["epsilon"].update(value="x"), "claimed.epsilon.value"),
        (lambda report: report.update(schema_version=0), "schema_version"),
    ],
    ids=["missing", "unknown", "wrong kind", "not a number", "older"],
)
def test_a_damaged_report_is_refused_with_its_key(
    reports: dict[str, dict[str, Any]], change: Any, said: str
) -> None:
    report = copy.deepcopy(reports["plain"])
    change(report)
    with pytest.raises(SettingsError, match=said):
        check_report(report)


def test_all_damages_are_named_at_once(reports: dict[str, dict[str, Any]]) -> None:
    report = copy.deepcopy(reports["plain"])
    del report["trust"], report["covered"]
    with pytest.raises(SettingsError) as caught:
        check_report(report)
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize("refuse", [read_report, refuse_newer_file])
def test_a_newer_report_is_refused_in_one_sentence(tmp_path: Path, refuse: Any) -> None:
    path = tmp_path / "privacy-report.json"
    path.write_text('{"schema_version": 2, "unheard": true}')
    with pytest.raises(SettingsError, match="schema version 1, got 2") as caught:
        refuse(path)
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize("text", [None, "{", "[1]"])
def test_a_report_that_is_missing_or_no_json_is_refused(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "privacy-report.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SettingsError):
        read_report(path)
    refuse_newer_file(path)  # it may be replaced


def test_an_audit_has_its_place(reports: dict[str, dict[str, Any]]) -> None:
    report = copy.deepcopy(reports["plain"])
    report["audit"] = {
        "method": "canary users",
        "canaries": 100,
        "confidence": 0.95,
        "bounds": [{"name": "all rounds", "epsilon": 1.5}],
        "more": {"of": "the method"},
    }
    check_report(report)
