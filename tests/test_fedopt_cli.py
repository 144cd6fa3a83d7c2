"""Show that a command line is answered with a result or a sentence, never with a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedopt import cli_run
from fedopt.cli import COMMANDS, main

FLAGS = {
    "--help", "--preset", "--config", "--population", "--cohort", "--simulated-cohort",
    "--virtual-users", "--rounds", "--epsilon", "--noise-multiplier", "--delta", "--clip-norm",
    "--clipping", "--sampling", "--noise-placement", "--randomness", "--accountant", "--ledger",
    "--strategy", "--server-lr", "--client-lr", "--local-steps", "--local-epochs", "--task",
    "--dataset", "--data-root", "--model", "--init-from", "--engine", "--workers",
    "--ray-address", "--device", "--timeout", "--eval-every", "--seed", "--output", "--resume",
    "--dry-run", "--set", "--quiet", "--verbose", "--json",
}  # fmt: skip


def test_the_flags_of_run_are_frozen() -> None:
    known = {
        flag
        for action in cli_run.build_parser()._actions
        for flag in action.option_strings
        if flag.startswith("--")
    }
    assert known >= FLAGS
    assert known - FLAGS <= {"--audit"}


def test_every_flag_of_run_has_a_help_text(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["run", "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert all(flag in shown for flag in FLAGS)
    parser = cli_run.build_parser()
    assert [
        action.dest for action in parser._actions if not action.help and action.dest != "assign"
    ] == []


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"]])
def test_help_comes_within_a_second_of_work(arguments: list[str]) -> None:
    program = f"from fedopt.cli import main; main({arguments!r})"
    before = os.times()
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    after = os.times()
    assert b"usage: fedopt" in done.stdout
    spent = after.children_user + after.children_system
    assert spent - before.children_user - before.children_system < 1.0


def test_help_imports_no_heavy_library() -> None:
    program = (
        "import sys\nfrom fedopt.cli import main\n"
        "try:\n    main(['run', '--help'])\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('torch', 'flwr', 'ray', 'opacus', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """Give the sentences on stderr of a command line that must be refused."""
    assert main(list(arguments)) == 2
    told = capsys.readouterr()
    assert told.out == ""
    lines = told.err.splitlines()
    assert all(line.startswith("fedopt: ") for line in lines)
    return [line.removeprefix("fedopt: ") for line in lines]


def test_all_mistakes_of_a_command_line_are_told_at_once(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    lines = refused(
        capsys,
        "run",
        "--polulation", "5",
        "--cohort", "many",
        "--delta", "3",
        "--set", "client.momentun=0.9",
        "--set", "nonsense",
        "--preset", "no-such-preset",
        "--strategy", "sgd",
        "--data-root", "/no/such/folder",
        "--output", str(tmp_path / "run"),
    )  # fmt: skip
    for part in (
        "did you mean --population?",
        "cohort must be a whole number, got 'many'",
        "delta must be < 1",
        "momentun is not a setting; did you mean momentum?",
        "set must be section.key=value, got 'nonsense'",
        "preset must be one of",
        "strategy must be one of",
        "data-root must exist",
    ):
        assert sum(part in line for line in lines) == 1, part
    assert len(lines) == 8
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--epsilon", "nan"], "epsilon must be"),
        (["--epsilon", "0"], "epsilon must be > 0"),
        (["--population", "10", "--cohort", "20"], "cohort must be at most the population 10"),
        (["--simulated-cohort", "9", "--cohort", "8"], "simulated-cohort must be at most"),
        (["--dataset", "librispeech"], "needs --data-root"),
        (["--data-root", "/no/such/folder"], "data-root must exist"),
        (["--init-from", "/no/such/file"], "init-from must exist"),
        (["--config", "/no/such/file.toml"], "must be a readable TOML file"),
        (["--preset", "an4", "--config", "x.toml"], "exclude each other"),
        (["--resume"], "resume needs --output"),
        (["--device", "cuda:99"], "choose --device cpu"),
        (["--device", "toaster"], "device must be"),
        (["--set", "task.options=3"], "options must be"),
        (["--set", "privacy=3"], "section.key=value"),
        (["--rounds"], "expected one argument"),
        (["extra"], "'extra' is not a flag"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_in_a_sentence(
    arguments: list[str], part: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    given = [] if "--resume" in arguments else ["--output", str(tmp_path / "run")]
    lines = refused(capsys, "run", *arguments, *given)
    assert any(part in line for line in lines), lines
    assert list(tmp_path.iterdir()) == []


def test_a_task_that_is_not_there_is_told_and_nothing_is_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in ("no.such:task", "os:no_such", "os", "experiments.classification.task:FEATURES"):
        lines = refused(capsys, "run", "--task", name, "--output", str(tmp_path / "run"))
        assert len(lines) == 1
        assert name in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_command_is_told_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = refused(capsys, "rum")
    assert all(command in line for command in COMMANDS)


def test_no_command_at_all_shows_the_overview_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "train privately" in capsys.readouterr().out


def test_the_version_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("fedopt ")


WORDS = st.sampled_from(
    [*sorted(FLAGS - {"--help"}), "--", "-x", "=", "--set=", "a.b=c", "-1", "nan"]
)
LINES = st.lists(WORDS | st.text(max_size=6).filter(lambda word: "-h" not in word), max_size=5)


@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(words=LINES)
def test_any_malformed_line_ends_in_sentences_and_exit_code_2(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    # The last flag is always wrong, so nothing is ever trained here.
    lines = refused(capsys, "run", *words, "--no-such-flag=1")
    assert lines


def test_a_full_disk_ends_in_a_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(arguments: list[str]) -> int:
        raise OSError(28, "No space left on device", "somewhere/rounds.jsonl")

    monkeypatch.setattr("fedopt.cli_run.run", full)
    (line,) = refused(capsys, "run")
    assert "rounds.jsonl" in line
    assert "No space left" in line
