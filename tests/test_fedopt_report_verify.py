"""Check that a changed number in report, ledger, settings, log, model or page is noticed."""

from __future__ import annotations

import copy
import json
import math
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some
from report_runs import write_run

from fedopt import run_directory
from fedopt.report import build_report, read_run, to_json, write_report
from fedopt.report_verify import Findings, differences, verify_ledger, verify_run
from privacy import ledger_file
from privacy.errors import SettingsError


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_run(tmp_path_factory.mktemp("runs") / "plain", rounds=3)
    write_report(folder)
    return folder


@pytest.fixture
def whole(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "whole"))


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Path:
    """Copy the run without its page, which takes longest to check."""
    copy_of_run = Path(shutil.copytree(run, tmp_path / "run"))
    (copy_of_run / run_directory.REPORT_HTML).unlink()
    return copy_of_run


def write_json(folder: Path) -> None:
    """Write the report of a run without its page."""
    text = to_json(build_report(read_run(folder)))
    run_directory.write_text(folder / run_directory.REPORT_JSON, text)


@pytest.fixture(scope="module")
def stored(run: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((run / run_directory.REPORT_JSON).read_text())
    return report


def test_an_untouched_run_is_verified(run: Path) -> None:
    found = verify_run(run)
    assert found.differences == []
    assert found.checked == [
        "ledger is whole and belongs to the run",
        "settings hash",
        "keys of the releases",
        "model hash",
        "every number of the report, computed again from ledger, settings and log",
        "page",
        "quoted epsilon against PLD of dp-accounting",
    ]
    assert found.warnings == []


def only(found: Findings, *parts: str) -> None:
    """Check that there is a difference for each part, and that it is named."""
    for part in parts:
        assert any(part in line for line in found.differences), (part, found.differences)


def replace_text(path: Path, old: str, new: str) -> None:
    """Replace the first of some text that must be there."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_a_changed_epsilon_in_the_report_is_noticed(copied: Path, stored: dict[str, Any]) -> None:
    value = stored["accounting"]["epsilon"]["value"]
    changed = copy.deepcopy(stored)
    changed["accounting"]["epsilon"]["value"] = value * (1 - 3e-9)
    (copied / run_directory.REPORT_JSON).write_text(json.dumps(changed))
    found = verify_run(copied)
    only(found, "accounting.epsilon.value: the report says")
    assert len(found.differences) == 1


def test_a_changed_row_of_the_ledger_is_noticed(copied: Path) -> None:
    with sqlite3.connect(copied / run_directory.LEDGER) as opened:
        opened.execute("UPDATE charge SET noise_multiplier = 0.9 WHERE round = 2")
    opened.close()
    only(verify_run(copied), "row")


def test_a_row_that_is_forged_with_its_seal_is_noticed(copied: Path) -> None:
    path = copied / run_directory.LEDGER
    with ledger_file.connection(path, 1.0) as opened:
        (record, *_) = ledger_file.records(opened, None)
        ledger_file.replace(opened, record | {"noise_multiplier": 1.6})
    only(
        verify_run(copied),
        "accounting.epsilon.value",
        "claimed.epsilon.value",
        "provenance.ledger_digest",
    )


def test_a_removed_row_is_noticed(copied: Path) -> None:
    with sqlite3.connect(copied / run_directory.LEDGER) as opened:
        opened.execute("DELETE FROM charge WHERE round = 3")
    opened.close()
    with pytest.raises(SettingsError, match="no charge for round 3"):
        verify_run(copied)


def test_a_ledger_of_other_randomness_is_noticed(copied: Path) -> None:
    path = copied / run_directory.LEDGER
    with ledger_file.connection(path, 1.0) as opened:
        (record, *_) = ledger_file.records(opened, None)
        ledger_file.replace(opened, record | {"key_hash": "0" * 64})
    only(verify_run(copied), "the key of round 1, attempt 0")


def test_a_changed_weight_of_the_model_is_noticed(copied: Path) -> None:
    path = copied / run_directory.MODEL
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    only(verify_run(copied), "model.safetensors: its SHA-256 is", "provenance.model_sha256")


def test_a_removed_model_is_noticed(copied: Path) -> None:
    (copied / run_directory.MODEL).unlink()
    only(verify_run(copied), "model.safetensors: its SHA-256 is None")


def test_a_changed_setting_is_noticed(copied: Path) -> None:
    replace_text(copied / run_directory.CONFIG, "client_lr = 0.5", "client_lr = 0.25")
    only(verify_run(copied), "config.toml: its hash is")


def test_a_changed_ceiling_is_noticed(copied: Path) -> None:
    replace_text(copied / run_directory.CONFIG, "epsilon = 8.0", "epsilon = 9.0")
    only(verify_run(copied), "accounting.ceiling: the report says 8.0, computed again it is 9.0")


def test_a_changed_line_of_the_log_is_noticed(copied: Path) -> None:
    replace_text(copied / run_directory.ROUNDS, '"accuracy": 0.1,', '"accuracy": 0.9,')
    only(verify_run(copied), "utility.history[1].value")


def test_a_changed_page_is_noticed(whole: Path) -> None:
    replace_text(whole / run_directory.REPORT_HTML, "epsilon &lt;= ", "epsilon &lt;= 0.")
    assert verify_run(whole).differences == [
        "privacy-report.html: it is not the page of this privacy-report.json"
    ]


def test_a_page_of_other_versions_is_a_warning(whole: Path) -> None:
    replace_text(whole / run_directory.REPORT_HTML, 'content="fedopt 0.1.0', 'content="fedopt 9')
    found = verify_run(whole)
    assert found.differences == []
    assert any("not drawn by" in line for line in found.warnings)


def test_a_round_after_the_report_is_noticed(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", finished=2)
    write_json(folder)
    later = write_run(tmp_path / "later", finished=3)
    for name in (run_directory.LEDGER, run_directory.ROUNDS):
        shutil.copy(later / name, folder / name)
    only(verify_run(folder), "release.rounds_released: the report says 2, computed again it is 3")


def test_an_epsilon_below_the_other_librarys_is_noticed(copied: Path) -> None:
    folder = copied / run_directory.REPORT_JSON
    report = json.loads(folder.read_text())
    report["accounting"]["epsilon"]["value"] = 0.9 * min(
        answer["epsilon"] for answer in report["accounting"]["accountants"].values()
    )
    folder.write_text(json.dumps(report))
    only(verify_run(copied), "PLD of dp-accounting gives")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sampling": "fixed", "noise_multiplier": 2.0}, "cannot answer"),
        ({"noise_multiplier": 0.0, "epsilon": None}, "cannot answer for epsilon inf"),
        ({"randomness": "secure"}, "so no key is compared"),
        ({"finished": 1, "model": False}, "has not written one"),
        ({"accountant": "pld"}, "cannot be a second opinion"),
    ],
    ids=["fixed", "no noise", "secure", "no model", "pld"],
)
def test_what_cannot_be_checked_is_a_warning(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    folder = write_run(tmp_path / "run", **({"rounds": 2} | changes))
    write_json(folder)
    found = verify_run(folder)
    assert found.differences == []
    assert any(said in line for line in found.warnings), found.warnings


def test_a_ledger_alone_is_verified(run: Path, copied: Path) -> None:
    assert verify_ledger(run / run_directory.LEDGER).differences == []
    with sqlite3.connect(copied / run_directory.LEDGER) as opened:
        opened.execute("UPDATE charge SET cohort = 3 WHERE round = 2")
    opened.close()
    only(verify_ledger(copied / run_directory.LEDGER), "row")


def numbers(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Find the place of every number in a JSON value."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from numbers(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from numbers(item, (*path, index))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path


@given(some.data(), some.sampled_from([1e-5, 0.01, 0.5, 1.0]))
def test_any_number_that_is_changed_is_named(
    stored: dict[str, Any], data: some.DataObject, share: float
) -> None:
    place = data.draw(some.sampled_from(list(numbers(stored))))
    changed = copy.deepcopy(stored)
    holder = changed
    for key in place[:-1]:
        holder = holder[key]
    old = holder[place[-1]]
    holder[place[-1]] = old + 1 if isinstance(old, int) else old * (1 + share) + (old == 0.0)
    (found,) = differences(changed, stored)
    named = "".join(f"[{k}]" if isinstance(k, int) else f".{k}" for k in place).lstrip(".")
    assert found.startswith(f"{named}: the report says")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ({"a": 1}, {}, ["a: the report has it, computed again it is not there"]),
        ({}, {"a": 1}, ["a: missing in the report"]),
        ({"a": [1]}, {"a": [1, 2]}, ["a: the report has 1 entries, computed again 2"]),
        ({"a": True}, {"a": 1}, ["a: the report says True, computed again it is 1"]),
        ({"a": "1.0"}, {"a": 1.0}, ["a: the report says '1.0', computed again it is 1.0"]),
        ({"a": "inf"}, {"a": "inf"}, []),
        ({"a": 1.0}, {"a": 1.0 + 1e-12}, []),
        ({"curves": {"a": 1.0}}, {"curves": {"a": 1.0 + 1e-7}}, []),
        ({"b": 1.0}, {"b": 1.0 + 1e-7}, ["b: the report says 1.0, computed again it is 1.0000001"]),
    ],
)
def test_differences_are_named_leaf_by_leaf(old: Any, new: Any, expected: list[str]) -> None:
    assert list(differences(old, new)) == expected


def test_a_number_next_to_nothing_is_not_the_same_as_nothing() -> None:
    assert list(differences({"a": 1e-12}, {"a": 0.0})) != []
    assert math.isclose(1e-16, 0.0, abs_tol=1e-15)
