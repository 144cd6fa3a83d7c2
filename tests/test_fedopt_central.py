"""Show central training from the command line to the first weights of a private run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from engine_tasks import task as engine_task

from fedopt import cli_central
from fedopt.central import TrainsCentrally
from fedopt.central_reports import NO_GUARANTEE
from fedopt.central_settings import unused_settings
from fedopt.cli import main
from privacy.errors import SettingsError

CLASSES = ["--task", "experiments.classification.task:task"]
CENTRAL = ["run", "--strategy", "central", *CLASSES]


def test_a_central_run_learns_says_no_guarantee_and_starts_a_private_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "central"
    assert main([*CENTRAL, "--rounds", "200", "--eval-every", "50", "--output", str(folder)]) == 0
    shown = capsys.readouterr()
    assert NO_GUARANTEE in shown.out
    assert [line.split()[1] for line in shown.err.splitlines()] == ["50", "100", "150", "200"]
    report = json.loads((folder / "central-report.json").read_text())
    assert report["statement"] == NO_GUARANTEE
    assert report["development"] == report["history"][-1]["accuracy"]
    assert report["test"] == report["test_metrics"]["accuracy"]
    assert report["test"] > 0.6  # ten classes: 0.1 by chance
    assert report["steps"] == 200
    weights = ["--init-from", str(folder / "model.safetensors")]
    private = ["run", *CLASSES, *weights, "--engine", "local", "--device", "cpu", "--rounds", "1"]
    assert main([*private, "--output", str(tmp_path / "private"), "--quiet"]) == 0
    first = json.loads((tmp_path / "private" / "rounds.jsonl").read_text().splitlines()[0])
    assert first["accuracy"] == report["development"]


def test_what_means_nothing_there_is_refused_in_one_sentence_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--cohort", "9", "--clipping", "global", "--workers", "3", "--dry-run"]
    more += ["--set", "client.momentum=0.5"]
    assert main([*CENTRAL, *more, "--output", str(tmp_path / "run")]) == 2
    told = capsys.readouterr().err.splitlines()
    assert "got cohort, clipping, workers, momentum; leave them out" in told[0]
    assert [line.split()[1] for line in told[1:]] == ["dry-run"]
    assert not (tmp_path / "run").exists()


def test_settings_that_mean_something_there_are_taken() -> None:
    used = {"privacy": {"rounds": 3}, "server": {"server_lr": 0.1}, "run": {"seed": 2}}
    assert unused_settings(used | {"task": {"model": "tiny"}, "engine": {"device": "cpu"}}) == []


def test_a_presets_federated_server_is_left_behind(tmp_path: Path) -> None:
    preset = tmp_path / "preset.toml"
    preset.write_text(
        '[privacy]\ncohort = 50\nrounds = 3\n[server]\nstrategy = "fedadam"\nserver_lr = 9.0\n'
        '[server.hyperparameters]\ntau = 0.1\n[task]\ntask = "experiments.classification.task:task"'
    )
    folder = tmp_path / "run"
    command = ["run", "--config", str(preset), "--strategy", "central", "--output", str(folder)]
    assert main([*command, "--quiet"]) == 0
    written = (folder / "config.toml").read_text()
    assert "tau" not in written
    assert "cohort" not in written
    assert "rounds = 3" in written
    assert "eval_every" not in written  # the task chose


def test_a_task_without_central_training_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not isinstance(engine_task(), TrainsCentrally)
    command = ["run", "--strategy", "central", "--task", "engine_tasks:task"]
    assert main([*command, "--output", str(tmp_path / "run")]) == 2
    assert "with a method train_centrally, got engine_tasks:task" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_simulate_names_what_trains_centrally(tmp_path: Path) -> None:
    from fedopt import simulate

    with pytest.raises(SettingsError, match=r"call fedopt\.central\.train"):
        simulate({"server": {"strategy": "central"}}, output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_wrong_options_leave_no_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = ["--set", "server.hyperparameters.colour=1", "--output", str(tmp_path / "run")]
    assert main([*CENTRAL, *wrong]) == 2
    assert "no hyperparameters, got colour" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_report_and_its_check_refuse_a_central_run_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert main([*CENTRAL, "--rounds", "1", "--quiet", "--output", str(folder)]) == 0
    for name in ("central-report.json", "steps.jsonl"):
        for more in ([], ["--verify"]):
            capsys.readouterr()
            assert main(["report", str(folder), *more]) == 2
            (told,) = capsys.readouterr().err.splitlines()
            assert f"trained centrally and has no guarantee; its results are in {name}" in told
        (folder / name).unlink()  # as of one that was interrupted


def test_a_task_that_keeps_no_state_leaves_the_weights_of_its_last_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line_of = cli_central.line_of

    def stop(row: dict[str, object]) -> str:
        if row["step"] == 40:
            raise KeyboardInterrupt
        return line_of(row)

    monkeypatch.setattr(cli_central, "line_of", stop)
    folder = tmp_path / "run"
    command = [*CENTRAL, "--rounds", "200", "--eval-every", "20", "--output", str(folder)]
    assert main(command) == 130
    model = folder / "model.safetensors"
    told = capsys.readouterr().err
    assert f"kept for --init-from {model}; a central training of this task starts anew" in told
    rows = (folder / "steps.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [20, 40]
    monkeypatch.undo()
    more = ["--init-from", str(model), "--rounds", "1", "--output", str(tmp_path / "next")]
    assert main([*CENTRAL, *more, "--quiet"]) == 0
    capsys.readouterr()
    assert main([*command, "--resume"]) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert "resume needs a task that keeps the state of its training, got experiments.cl" in told
    assert "with --init-from the model.safetensors of its last report" in told


def test_json_events_end_with_the_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--rounds", "2", "--eval-every", "1", "--json", "--output", str(tmp_path / "run")]
    assert main([*CENTRAL, *more]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events] == ["step", "step", "finished"]
    assert events[-1]["development"] == events[1]["accuracy"]
