"""Check `fedopt report` as it is typed: forms, files, exit codes, one sentence per mistake."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from report_runs import write_run

from experiments.classification.task import task as build_task
from fedopt import run_directory
from fedopt.cli import main
from fedopt.report_reading import check_report
from fedopt.simulation import simulate
from privacy.accounting import epsilon_spent
from privacy.event import AccountingEvent


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_run(tmp_path_factory.mktemp("runs") / "plain", rounds=3)
    assert main(["report", str(folder)]) == 0
    return folder


def test_the_page_and_its_json_go_into_the_run(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (run_directory.REPORT_HTML, run_directory.REPORT_JSON):
        (run / name).unlink()
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"{run / run_directory.REPORT_HTML}\n"
    check_report(json.loads((run / run_directory.REPORT_JSON).read_text()))
    assert "<!DOCTYPE html>" in (run / run_directory.REPORT_HTML).read_text()


def test_json_goes_to_stdout(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run), "--format", "json"]) == 0
    printed = check_report(json.loads(capsys.readouterr().out))
    assert printed == json.loads((run / run_directory.REPORT_JSON).read_text())


def test_markdown_is_short_and_says_what_is_not_covered(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(run), "--format", "md"]) == 0
    text = capsys.readouterr().out
    report = json.loads((run / run_directory.REPORT_JSON).read_text())
    assert len(text.splitlines()) < 80
    assert "> Simulated guarantee: the sequence of all 3 released models" in text
    assert "| Population | 100,000 | 100 |" in text
    for line in report["not_covered"]:
        assert f"- {line}" in text


@pytest.mark.parametrize("form", ["html", "json", "md"])
def test_a_file_is_written_where_asked(
    run: Path, tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / f"report.{form}"
    assert main(["report", str(run), "--format", form, "--output", str(target)]) == 0
    assert capsys.readouterr().out == f"{target}\n"
    assert target.stat().st_size > 1000
    assert list(tmp_path.iterdir()) == [target]


def test_hostile_names_stay_text_in_markdown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(tmp_path / "run", rounds=2)
    facts = run_directory.read_provenance(folder)
    hostile = "<img src=x onerror=alert(1)> | [a](b) `c`\n# d"
    run_directory.write_provenance(folder, facts | {"commit": hostile, "data": {"x": hostile}})
    config = folder / run_directory.CONFIG
    config.write_text(config.read_text().replace("experiments.classification.task:task", "<b>|"))
    assert main(["report", str(folder), "--format", "md"]) == 0
    text = capsys.readouterr().out
    assert "<" not in text.replace("&lt;", "")
    assert all(line.count(" | ") in (0, 1, 2) for line in text.splitlines())


def test_a_good_run_is_verified(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run), "--verify"]) == 0
    assert capsys.readouterr().out.endswith("verified\n")


def test_a_difference_ends_with_one(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    path = folder / run_directory.REPORT_JSON
    path.write_text(path.read_text().replace('"clip_norm": 1.0', '"clip_norm": 0.5'))
    before = path.read_bytes()
    assert main(["report", str(folder), "--verify"]) == 1
    said = capsys.readouterr().out
    assert "difference: mechanism.clip_norm: the report says 0.5, computed again it is 1.0" in said
    assert said.endswith("2 differences found\n")
    assert path.read_bytes() == before
    assert main(["report", str(folder), "--verify", "--format", "json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["verified"] is False
    assert len(found["differences"]) == 2


BAD: list[tuple[list[str], list[str]]] = [
    ([], ["report needs either RUN or --ledger FILE, got neither"]),
    (["RUN", "--ledger", "x"], ["got both"]),
    (["RUN", "--format", "pdf"], ["format must be one of html, json, md, got 'pdf'"]),
    (["RUN", "--verify", "--output", "x"], ["output does not go with --verify"]),
    (["RUN", "--output", "/no/such/folder/x"], ["output must lie in an existing folder"]),
    (["--format", "x", "--verify", "--output", "/"], ["neither", "format", "verify", "folder"]),
    (["--ledger", "no-such-file"], ["ledger must be a ledger file"]),
    (["no-such-run"], ["run must be a run directory"]),
    (["RUN", "--colour"], ["'--colour' is not a flag of fedopt report"]),
]


@pytest.mark.parametrize(("flags", "said"), BAD)
def test_mistakes_end_with_two_and_are_all_named(
    run: Path, flags: list[str], said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(run) if word == "RUN" else word for word in flags]
    assert main(["report", *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == len(said)
    for part in said:
        assert part in captured.err


def test_a_newer_report_is_neither_verified_nor_replaced(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "run"))
    path = folder / run_directory.REPORT_JSON
    path.write_text('{"schema_version": 7}')
    for flags in ([], ["--verify"], ["--format", "md"]):
        assert main(["report", str(folder), *flags]) == 2
        assert "schema version 1, got 7" in capsys.readouterr().err
    assert path.read_text() == '{"schema_version": 7}'


def test_a_page_needs_the_extra_and_says_how_to_get_it(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fedopt.report_page.missing_packages", lambda: ["jinja2"])
    assert main(["report", str(run)]) == 2
    assert 'pip install "fedopt[report]"' in capsys.readouterr().err
    assert main(["report", str(run), "--format", "md"]) == 0


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    for seed in (1, 2):
        write_run(folder / f"run-{seed}", rounds=3, seed=seed, ledger=str(folder / "all.sqlite"))
    return folder / "all.sqlite"


def test_runs_on_one_ledger_add_up(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--ledger", str(shared), "--format", "json"]) == 0
    report = json.loads(capsys.readouterr().out)
    event = AccountingEvent("poisson", 100_000, 2_000, 0.8)
    assert report["epsilon"]["value"] == epsilon_spent([(event, 6)], 1e-7).epsilon
    alone = [one["epsilon"]["value"] for one in report["runs"]]
    assert alone == [epsilon_spent([(event, 3)], 1e-7).epsilon] * 2
    assert "All 6 releases of 2 runs on this ledger together" in report["statement"]


@pytest.mark.parametrize("form", ["html", "md"])
def test_a_ledger_is_reported_as_page_and_as_markdown(
    shared: Path, tmp_path: Path, form: str
) -> None:
    target = tmp_path / "ledger"
    flags = ["--ledger", str(shared), "--format", form, "--output", str(target)]
    assert main(["report", *flags]) == 0
    text = target.read_text()
    assert "All 6 releases of 2 runs on this ledger together" in text
    assert "http" not in text


def test_a_page_of_a_ledger_goes_beside_it(
    shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", "--ledger", str(shared)]) == 0
    assert capsys.readouterr().out == f"{shared}.html\n"
    assert main(["report", "--ledger", str(shared), "--verify"]) == 0


def settings(rounds: int) -> dict[str, Any]:
    """Give settings of a quick real training."""
    return {
        "privacy": {"rounds": rounds, "noise_multiplier": 0.7},
        "task": {"task": "experiments.classification.task:task"},
        "engine": {"engine": "local", "device": "cpu"},
    }


def test_a_real_run_is_reported_while_interrupted_and_after_it_is_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"

    def stop(row: dict[str, Any]) -> None:
        if row["round"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(settings(4), task=build_task(), callbacks=[stop], output=folder)
    assert main(["report", str(folder), "--format", "json"]) == 0
    halted = check_report(json.loads(capsys.readouterr().out))
    assert halted["release"]["rounds_released"] == 2
    assert main(["report", str(folder)]) == 0
    assert main(["report", str(folder), "--verify"]) == 0

    simulate(settings(4), task=build_task(), output=folder, resume=True)
    report = json.loads((folder / run_directory.REPORT_JSON).read_text())
    assert check_report(report)["release"]["rounds_released"] == 4
    assert report["provenance"]["times_resumed"] == 1
    assert report["provenance"]["model_sha256"] == run_directory.file_digest(
        folder / run_directory.MODEL
    )
    capsys.readouterr()
    assert main(["report", str(folder), "--verify"]) == 0, capsys.readouterr().out
