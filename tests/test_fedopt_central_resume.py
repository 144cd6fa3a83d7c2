"""Interrupt central trainings anywhere and go on: the bytes of one that was never stopped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from central_runs import RANDOM, Stopped, central_settings, killed, left_behind, stop_at
from engine_runs import engine_settings, run

from fedopt import cli_central, run_directory
from fedopt.central import train
from fedopt.cli import main
from fedopt.config import Settings
from privacy.errors import CheckpointError, SettingsError

PLACES = [
    ("after settings", 1),
    ("between steps", 1),
    ("inside state", 1),
    ("after state", 1),
    ("after publish", 1),
    ("after model", 1),
    ("after row", 1),
    ("between steps", 4),
    ("in evaluation", 3),
    ("inside state", 5),
    ("after publish", 2),
    ("after model", 3),
    ("after row", 4),
    ("in evaluation", 5),
    ("before report", 2),
]
"""From before the first report to the test split's evaluation and just before the end."""

LAYERWISE = [
    (optimizer, *place)
    for optimizer in ("fedlars", "fedlamb")
    for place in (("between steps", 4), ("after publish", 2), ("after row", 3))
]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Any:
    """Give what the training of an optimizer leaves that nobody interrupts."""
    known: dict[str, Any] = {}

    def give(optimizer: str) -> Any:
        if optimizer not in known:
            folder = tmp_path_factory.mktemp(optimizer) / "run"
            train(central_settings(cache, optimizer, **RANDOM), folder)
            known[optimizer] = left_behind(folder)
        return known[optimizer]

    return give


def stopped(
    settings: Settings, folder: Path, place: str, number: int, resume: bool = False
) -> None:
    with pytest.MonkeyPatch.context() as patched:
        stop_at(patched, place, number)
        with pytest.raises(Stopped):
            train(settings, folder, resume=resume)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != run_directory.LOCK
    }


@pytest.mark.parametrize(
    ("optimizer", "place", "number"), [*(("adam", *place) for place in PLACES), *LAYERWISE]
)
def test_an_interrupted_training_goes_on_bit_for_bit(
    optimizer: str, place: str, number: int, tmp_path: Path, cache: Path, unbroken: Any
) -> None:
    settings, folder = central_settings(cache, optimizer, **RANDOM), tmp_path / "run"
    stopped(settings, folder, place, number)
    train(settings, folder, resume=True)
    assert left_behind(folder) == unbroken(optimizer)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adam", "fedlars", "fedlamb"])
@pytest.mark.parametrize(("place", "number"), PLACES)
def test_a_killed_training_goes_on_bit_for_bit(
    optimizer: str, place: str, number: int, tmp_path: Path, cache: Path, unbroken: Any
) -> None:
    settings, folder = central_settings(cache, optimizer, **RANDOM), tmp_path / "run"
    killed(settings, folder, place, number)
    train(settings, folder, resume=True)
    assert left_behind(folder) == unbroken(optimizer)


def test_a_training_may_be_interrupted_again_and_again(
    tmp_path: Path, cache: Path, unbroken: Any
) -> None:
    settings, folder = central_settings(cache, **RANDOM), tmp_path / "run"
    stopped(settings, folder, "between steps", 1)
    stopped(settings, folder, "after row", 1, resume=True)
    stopped(settings, folder, "after publish", 1, resume=True)
    stopped(settings, folder, "between steps", 1, resume=True)
    report = train(settings, folder, resume=True)
    assert left_behind(folder) == unbroken("adam")
    assert report["times_resumed"] == 2  # the first came from no report, the third to none
    assert [row["step"] for row in report["history"]] == [2, 4, 6, 7]


def test_reports_at_other_steps_change_no_byte_of_the_model(
    tmp_path: Path, cache: Path, unbroken: Any
) -> None:
    settings, folder = central_settings(cache, **RANDOM), tmp_path / "run"
    stopped(settings, folder, "after row", 2)
    others = central_settings(cache, changes={"run.eval_every": 5}, **RANDOM)
    report = train(others, folder, resume=True)
    assert [row["step"] for row in report["history"]] == [2, 4, 5, 7]
    assert left_behind(folder)[0] == unbroken("adam")[0]
    assert run_directory.load_settings(folder).run.eval_every == 5


def test_one_command_goes_on_with_the_settings_of_the_training(
    tmp_path: Path,
    cache: Path,
    unbroken: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line_of, folder = cli_central.line_of, tmp_path / "run"

    def stop(row: dict[str, Any]) -> str:
        if row["step"] == 4:
            raise KeyboardInterrupt
        return line_of(row)

    tables = tmp_path / "settings.toml"
    settings = central_settings(cache, **RANDOM).model_dump(exclude_unset=True)
    settings["engine"]["device"] = "auto"
    run_directory.write_tables(tables, settings)
    start = ["run", "--config", str(tables), "--device", "cpu", "--output", str(folder)]
    with monkeypatch.context() as patched:
        patched.setattr(cli_central, "line_of", stop)
        assert main(start) == 130
    told = capsys.readouterr().err.splitlines()[-1]
    assert told == f"fedopt: interrupted; go on with: fedopt run --resume --output {folder}"
    shutil.copytree(folder, tmp_path / "again")
    assert main(["run", "--resume", "--output", str(folder)]) == 0
    assert [line.split()[1] for line in capsys.readouterr().err.splitlines()] == ["6", "7"]
    assert left_behind(folder) == unbroken("adam")
    again = ["--strategy", "central", "--config", str(tables), "--output", str(tmp_path / "again")]
    assert main(["run", "--resume", "--quiet", *again]) == 0
    assert left_behind(tmp_path / "again") == unbroken("adam")


@pytest.fixture(scope="session")
def interrupted(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """Give the directory of a training that was stopped after its second report."""
    folder = tmp_path_factory.mktemp("interrupted") / "run"
    stopped(central_settings(cache), folder, "after row", 2)
    return folder


def newest(folder: Path) -> Path:
    return max((folder / "checkpoints").glob("round-*"))


def tear(folder: Path) -> None:
    newest(folder).write_bytes(newest(folder).read_bytes()[:-7])


def replace_by_weights(folder: Path) -> None:
    shutil.copy(folder / "model.safetensors", newest(folder))


def remove_states(folder: Path) -> None:
    shutil.rmtree(folder / "checkpoints")


def take_anothers(folder: Path) -> None:
    settings = run_directory.load_settings(folder)
    other = settings.model_copy(update={"run": settings.run.model_copy(update={"seed": 4})})
    stopped(other, folder.parent / "other", "after row", 2)
    shutil.copy(newest(folder.parent / "other"), newest(folder))


def take_a_private_runs(folder: Path) -> None:
    run(engine_settings({"privacy.rounds": 4}), folder.parent / "private")
    shutil.copy(newest(folder.parent / "private"), newest(folder))


def lose_a_row(folder: Path) -> None:
    steps = folder / "steps.jsonl"
    steps.write_text("".join(steps.read_text().splitlines(keepends=True)[1:]))


def finish(folder: Path) -> None:
    train(run_directory.load_settings(folder), folder, resume=True)


@pytest.mark.parametrize(
    ("harm", "more", "text"),
    [
        (None, ["--seed", "4"], "got changes in seed 3 -> 4"),
        (None, ["--rounds", "9"], "got changes in rounds 7 -> 9"),
        (None, ["--server-lr", "0.1"], "got changes in server-lr None -> 0.1"),
        (None, ["--set", "task.options.speed=0.3"], "got changes in options"),
        (None, ["--strategy", "fedavg"], "provenance.json of 'run' must be readable"),
        (None, ["--cohort", "9"], "strategy central trains without users"),
        (tear, [], "must be a whole safetensors file of fedopt"),
        (replace_by_weights, [], "must be a whole safetensors file of fedopt"),
        (take_anothers, [], "checkpoint of step 4 belongs to another training"),
        (take_a_private_runs, [], "checkpoint of step 4 belongs to another training"),
        (remove_states, [], "resume needs the state of a report in checkpoints, got none"),
        (lose_a_row, [], "steps.jsonl must hold the 1 reports before step 4, got 0"),
        (finish, [], "which is finished; its results are in central-report.json"),
    ],
)
def test_what_a_training_cannot_go_on_with_ends_with_2_a_sentence_and_everything_as_it_was(
    harm: Callable[[Path], None] | None,
    more: list[str],
    text: str,
    interrupted: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(interrupted, folder)
    if harm is not None:
        harm(folder)
    before = contents(folder)
    capsys.readouterr()
    assert main(["run", "--resume", "--output", str(folder), "--quiet", *more]) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert text in told
    assert contents(folder) == before


def test_a_torn_state_is_removed_to_fall_back_to_the_one_before(
    interrupted: Path, tmp_path: Path
) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "run"
    for each in (whole, folder):
        shutil.copytree(interrupted, each)
    newest(folder).unlink()
    assert newest(folder).name == "round-0000002.safetensors"
    finish(folder)
    finish(whole)
    assert left_behind(folder) == left_behind(whole)


def test_other_utterances_of_the_same_speakers_are_refused_and_everything_is_as_it_was(
    interrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from experiments.asr.speech_task import SpeechTask

    folder = tmp_path / "run"
    shutil.copytree(interrupted, folder)
    before, fits = contents(folder), SpeechTask._fits
    monkeypatch.setattr(
        SpeechTask, "_fits", lambda self, item: fits(self, item) and item.key[-1] != "1"
    )
    with pytest.raises(SettingsError, match="resume needs the training utterances"):
        finish(folder)
    assert contents(folder) == before


def test_a_private_run_is_no_central_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    run(engine_settings({"privacy.rounds": 1}), folder)
    before = contents(folder)
    command = ["run", "--strategy", "central", "--resume", "--output", str(folder), "--quiet"]
    assert main(command) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert "needs the directory of a central training, got" in told
    assert contents(folder) == before


def test_an_interrupted_training_is_not_written_over(
    interrupted: Path, tmp_path: Path, cache: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(interrupted, folder)
    before = contents(folder)
    with pytest.raises(SettingsError, match="give --resume to go on with it"):
        train(central_settings(cache), folder)
    assert contents(folder) == before


def test_a_state_that_cannot_be_written_loses_nothing_that_was_kept(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from strategies import checkpoint

    written = checkpoint.write_file

    def full(path: Path, kept: checkpoint.Checkpoint) -> None:
        if kept.round == 4:
            raise OSError("No space left on device")
        written(path, kept)

    folder = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "write_file", full)
        with pytest.raises(CheckpointError, match="make room and run again with --resume"):
            train(central_settings(cache), folder)
    rows = [json.loads(line)["step"] for line in (folder / "steps.jsonl").read_text().splitlines()]
    assert rows == [2]
    train(central_settings(cache), folder, resume=True)
    train(central_settings(cache), tmp_path / "unbroken")
    assert left_behind(folder) == left_behind(tmp_path / "unbroken")
