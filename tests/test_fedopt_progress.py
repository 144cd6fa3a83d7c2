"""Show what a person or a program sees while a run goes."""

from __future__ import annotations

import io
import json
import logging
from typing import Any

import pytest
from engine_runs import engine_settings

from fedopt.progress import Progress, time_by_phase

FACTS = {
    "strategy": "fedadam",
    "engine": "local",
    "workers": 1,
    "device": "cpu",
    "population": 1000,
    "cohort": 10,
    "noise_multiplier": 1.0,
    "epsilon": 8.0,
    "users": 24,
    "simulated_cohort": 6,
    "users_at_once": 1,
    "note": "",
    "parameters": 19,
    "metric": "wer",
}
ROW = {"round": 2, "cohort": 6, "seconds": 0.5, "epsilon": 1.25, "train_loss": 0.5, "wer": 0.25}


def started(**more: Any) -> Progress:
    progress = Progress(engine_settings(), **({"quiet": False, "json_events": False} | more))
    progress.start(FACTS)
    return progress


def test_one_line_shows_round_loss_metric_budget_speed_and_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([100.0, 200.0, 206.0, 206.0])
    monkeypatch.setattr("fedopt.progress.time.monotonic", lambda: next(clock))
    progress = started()
    progress.round({"round": 0, "cohort": 0, "epsilon": 0.0, "wer": 1.0})
    progress.round(ROW)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines()[-1] == (
        "round 2/4  loss 0.500  wer 0.250  epsilon 1.25 spent, 6.75 left  12.0 users/s  0:06 left"
    )


def test_the_chosen_engine_is_told_at_the_start(capsys: pytest.CaptureFixture[str]) -> None:
    started()
    assert "fedadam on the local engine (1 workers, cpu)" in capsys.readouterr().err


def test_without_a_terminal_only_evaluated_rounds_are_lines(
    capsys: pytest.CaptureFixture[str],
) -> None:
    progress = started()
    for number in range(1, 5):
        progress.round(
            {**ROW, "round": number} if number % 2 == 0 else {"round": number, "cohort": 1}
        )
    lines = capsys.readouterr().err.splitlines()[1:]
    assert [line.split()[1] for line in lines] == ["2/4", "4/4"]
    assert not any("\r" in line or "\x1b" in line for line in lines)


def test_on_a_terminal_one_line_is_written_over(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    progress = started()
    with progress.shown(verbose=False):
        progress.round({"round": 1, "cohort": 2})
        progress.round(ROW)
    assert screen.getvalue().count("\r") == 2
    assert screen.getvalue().count("\n") == 2, "the start, and the end of the line"


def test_json_events_are_one_object_a_line_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    progress = started(quiet=True, json_events=True)
    progress.round(ROW)
    shown = capsys.readouterr()
    events = [json.loads(line) for line in shown.out.splitlines()]
    assert [event["event"] for event in events] == ["started", "round"]
    assert events[1]["wer"] == 0.25
    assert shown.err == ""


def test_quiet_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    progress = started(quiet=True)
    progress.round(ROW)
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "")


def test_a_run_without_noise_is_called_not_private(capsys: pytest.CaptureFixture[str]) -> None:
    progress = started()
    progress.round({"round": 2, "cohort": 0, "epsilon": None, "wer": 1.0})
    assert "not private" in capsys.readouterr().err


def test_stacks_and_what_there_is_to_say_of_them_are_told_at_the_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(FACTS, "users_at_once", 50)
    monkeypatch.setitem(FACTS, "note", "so it is 50")
    started()
    first, note = capsys.readouterr().err.splitlines()
    assert "trained 6 of 24, 50 at once;" in first
    assert note == "note: so it is 50"


def test_flowers_logger_is_left_as_it_was() -> None:
    flower = logging.getLogger("flwr")
    before = flower.level
    with started(quiet=True).shown(verbose=False):
        assert flower.level == logging.ERROR
    assert flower.level == before


def test_the_time_outside_training_is_told_by_phase() -> None:
    rows = [
        {"round": 0, "seconds_by_phase": {"evaluation": 0.5}},
        {
            "round": 1,
            "seconds": 4.0,
            "seconds_by_phase": {
                "training": 6.0, "data": 1.0, "clipping": 0.5, "noise": 0.5, "configure": 0.25,
                "exchange": 3.5,
            },
        },
    ]  # fmt: skip
    assert time_by_phase(rows) == (
        "time: rounds 4.0 s (configure 0.2 s, evaluation 0.5 s); "
        "the workers' share: training 75.0%, data 12.5%, clipping 6.2%, noise 6.2%"
    )
