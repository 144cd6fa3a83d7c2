"""Show that a run directory is written whole or not at all, and held by one run at a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fedopt.config import Settings, build_settings
from fedopt.run_directory import (
    foreign_files,
    is_run,
    load_settings,
    locked,
    opened,
    read_provenance,
    write_config,
    write_provenance,
    write_text,
)
from privacy.errors import LedgerError, SettingsError


def test_settings_come_back_as_they_went_in(tmp_path: Path) -> None:
    settings = build_settings(
        {
            "privacy": {"epsilon": 3.5, "noise_multiplier": 0.7},
            "server": {"hyperparameters": {"beta1": 0.8}},
            "task": {"options": {"users": 5, "name": "x", "nested": {"deep": [1, 2]}}},
        }
    )
    write_config(tmp_path, settings)
    assert load_settings(tmp_path) == settings


def test_a_text_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "notes.txt"
    write_text(path, "old")

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fedopt.run_directory.os.fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "new")
    assert path.read_text() == "old"


def test_a_second_run_is_kept_out_while_the_first_lives(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(SettingsError, match="in use"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_a_lock_goes_with_its_process(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from fedopt.run_directory import locked\n"
        f"with locked(Path({str(tmp_path)!r})): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(SettingsError, match="in use"), locked(tmp_path):
            pass
        holder.kill()
        holder.wait()
    with locked(tmp_path):
        pass


def begin(folder: Path, stops: str = "", beside: Path | None = None) -> None:
    """Begin a run that is refused; `stops`: only after its first row, in the log of that name."""
    with opened(folder):
        write_config(folder, Settings())
        write_provenance(folder, {"run_id": "x"})
        if stops:
            (folder / stops).write_text('{"round": 0}\n')
        if beside is not None:
            beside.mkdir()
        raise LedgerError("refused")


def test_a_refused_run_takes_back_what_it_wrote_and_the_folders_it_made(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    with pytest.raises(LedgerError):
        begin(folder)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_that_was_there_stays(tmp_path: Path) -> None:
    with pytest.raises(LedgerError):
        begin(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("log", ["rounds.jsonl", "steps.jsonl"])
def test_a_run_with_a_row_is_kept_when_it_stops(log: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(LedgerError):
        begin(folder, stops=log)
    assert is_run(folder)
    with pytest.raises(LedgerError):
        begin(folder)
    assert is_run(folder)


def test_the_folder_of_another_run_is_not_removed_with_ours(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "ours"
    with pytest.raises(LedgerError):
        begin(folder, beside=tmp_path / "runs" / "theirs")
    assert (tmp_path / "runs" / "theirs").is_dir()
    assert not folder.exists()


def test_a_folder_that_cannot_be_made_is_a_settings_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(SettingsError, match="choose another --output"),
        opened(tmp_path / "file" / "run"),
    ):
        pass


def test_only_files_of_others_count_as_foreign(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / "provenance.json").touch()
    assert foreign_files(tmp_path) == []
    (tmp_path / "thesis.txt").touch()
    assert foreign_files(tmp_path) == ["thesis.txt"]
    assert foreign_files(tmp_path / "none") == []


@pytest.mark.parametrize("text", ["", "{", "[privacy\n", "\x00"])
def test_damaged_files_are_refused_by_name(text: str, tmp_path: Path) -> None:
    (tmp_path / "provenance.json").write_text(text)
    with pytest.raises(SettingsError, match=r"provenance\.json"):
        read_provenance(tmp_path)
    (tmp_path / "config.toml").write_text(text or "[x")
    with pytest.raises(SettingsError, match=r"config\.toml"):
        load_settings(tmp_path)
