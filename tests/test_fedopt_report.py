"""Check the JSON of the report: its groups, its epsilons, its warnings, and odd runs."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from report_runs import USERS, write_run

from fedopt import run_directory
from fedopt.report import build_report, plain, read_run, to_json, write_report
from fedopt.report_reading import check_report
from privacy.accounting import epsilon_spent, epsilon_without_amplification
from privacy.errors import LedgerError, SettingsError
from privacy.event import AccountingEvent
from privacy.ledger import Charge, Ledger


def built(folder: Path) -> dict[str, Any]:
    """Build the report of a run as it is read back from JSON, checked against its schema."""
    return check_report(json.loads(to_json(build_report(read_run(folder)))))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "plain")


def test_both_epsilons_come_from_the_ledger(run: Path) -> None:
    report = built(run)
    claimed = [(AccountingEvent("poisson", 100_000, 2_000, 0.8), 5)]
    as_run = [(AccountingEvent("poisson", 100, 8, 0.8 * 8 / 2000), 5)]
    assert report["accounting"]["epsilon"]["value"] == epsilon_spent(claimed, 1e-7).epsilon
    assert report["claimed"]["epsilon"] == report["accounting"]["epsilon"]
    assert report["as_run"]["epsilon"]["value"] == epsilon_spent(as_run, 1e-7).epsilon
    assert report["as_run"]["epsilon"]["value"] > 50 > report["claimed"]["epsilon"]["value"]
    without = report["accounting"]["epsilon_without_amplification"]["value"]
    assert without == epsilon_without_amplification(claimed, 1e-7)


def test_every_epsilon_says_what_it_means(run: Path) -> None:
    report = built(run)
    keys = {"value", "delta", "adjacency", "sampling", "accountant", "version", "upper_bound"}
    accounting = report["accounting"]
    places = [
        accounting["epsilon"],
        accounting["epsilon_at_planned_end"],
        accounting["epsilon_without_amplification"],
        report["claimed"]["epsilon"],
        report["as_run"]["epsilon"],
        report["extrapolation"]["trained"]["epsilon"],
        report["extrapolation"]["claimed"]["epsilon"],
        *accounting["accountants"].values(),
    ]
    assert all(keys <= place.keys() for place in places)
    assert set(accounting["accountants"]) == {"rdp", "pld"}


def test_the_report_names_noise_tuning_and_selection(run: Path) -> None:
    setting = built(run)["setting"]
    assert setting["noise_added_by"] == "clients"
    assert setting["tuning_runs_charged"] is False
    assert setting["metric_chose_anything"] is False


def test_signal_to_noise_of_a_layer_compares_bound_and_noise(run: Path) -> None:
    report = built(run)
    layer = report["mechanism"]["layers"][1]
    # C_h = sqrt(64 / 2112); noise on the mean 0.8 / 2000 per coordinate, 64 coordinates.
    bound = math.sqrt(64 / 2112)
    assert layer["bound"] == pytest.approx(bound)
    assert layer["signal_to_noise_at_most"] == pytest.approx(bound / (0.8 / 2000 * 8))
    assert layer["clipped_fraction_last_round_not_private"] == 0.25


def test_no_path_user_or_machine_name_is_in_the_report(run: Path) -> None:
    text = to_json(build_report(read_run(run)))
    assert str(run.parent) not in text
    assert not any(f'"{user}"' in text for user in USERS)
    assert re.search(r'"/\w', text) is None


def test_an_interrupted_run_says_so_and_projects_the_rest(tmp_path: Path) -> None:
    report = built(write_run(tmp_path / "run", finished=2, model=False))
    assert report["release"]["rounds_released"] == 2
    assert "not-finished" in {warning["code"] for warning in report["warnings"]}
    assert report["provenance"]["model_sha256"] is None
    planned = epsilon_spent([(AccountingEvent("poisson", 100_000, 2_000, 0.8), 5)], 1e-7).epsilon
    end = report["accounting"]["epsilon_at_planned_end"]["value"]
    assert end == pytest.approx(planned, rel=1e-12)
    assert report["accounting"]["epsilon"]["value"] < end


def test_a_repeated_round_stays_charged(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    facts = read_run(folder)
    ledger = Ledger.open(
        folder / run_directory.LEDGER,
        run=facts.provenance["run_id"],
        plan_facts=facts.ledger.facts,
    )
    ledger.reserve(Charge(5, 1, "ab", facts.plan.event, facts.plan.event_as_run, 1.0))
    report = built(folder)
    assert "all 5 released models" in report["statement"]
    assert report["accounting"]["rounds_charged"] == 6
    assert "charged-not-released" in {warning["code"] for warning in report["warnings"]}
    six = epsilon_spent([(AccountingEvent("poisson", 100_000, 2_000, 0.8), 6)], 1e-7).epsilon
    assert report["accounting"]["epsilon"]["value"] == six


def test_a_run_without_noise_has_infinite_epsilon_everywhere(tmp_path: Path) -> None:
    report = built(write_run(tmp_path / "run", noise_multiplier=0.0, epsilon=None))
    assert report["statement"].startswith("No privacy guarantee")
    assert report["accounting"]["epsilon"]["value"] == "inf"
    assert report["as_run"]["epsilon"]["value"] == "inf"
    assert report["accounting"]["epsilon_without_amplification"]["value"] == "inf"
    assert {"not-private", "epsilon-large"} <= {one["code"] for one in report["warnings"]}


def test_a_run_without_a_round_guarantees_nothing_yet(tmp_path: Path) -> None:
    report = built(write_run(tmp_path / "run", finished=0, model=False))
    assert report["statement"] == "No model was released yet, so there is nothing to guarantee."
    assert report["accounting"]["epsilon"]["value"] == 0.0
    assert report["curves"]["privacy_profile"] is None


def test_virtual_users_say_nothing_of_people(tmp_path: Path) -> None:
    report = built(write_run(tmp_path / "run", virtual_users=True))
    assert report["as_run"]["virtual_users"] is True
    assert "nothing is guaranteed" in report["as_run_statement"]


def test_fixed_cohorts_are_replace_one_with_doubled_sensitivity(tmp_path: Path) -> None:
    report = built(write_run(tmp_path / "run", sampling="fixed", noise_multiplier=2.0))
    assert report["adjacency"] == "replace-one"
    assert report["mechanism"]["sensitivity"] == 2.0
    assert set(report["accounting"]["accountants"]) == {"rdp"}
    assert report["accounting"]["gdp_mu"] is None


def test_a_capped_run_with_little_noise_as_run_still_has_a_report(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", cohort_cap=2_300, accountant="pld")
    report = built(folder)
    assert report["accounting"]["epsilon"]["accountant"] == "pld"
    assert report["as_run"]["epsilon"]["value"] == "inf"
    assert "as-run-not-bounded" in {warning["code"] for warning in report["warnings"]}


def test_the_claim_that_is_really_drawn_is_no_extrapolation(tmp_path: Path) -> None:
    folder = write_run(
        tmp_path / "run",
        population=100,
        cohort=8,
        noise_multiplier=1.0,
        delta=1e-4,
        randomness="secure",
    )
    report = built(folder)
    assert report["extrapolation"] is None
    assert report["claimed"]["epsilon"] == report["as_run"]["epsilon"]
    assert report["warnings"] == []
    assert "not enforced" not in {item["state"] for item in report["assumptions"]}


def test_other_runs_on_the_ledger_are_named(tmp_path: Path) -> None:
    shared = str(tmp_path / "shared.sqlite")
    write_run(tmp_path / "first", ledger=shared)
    report = built(write_run(tmp_path / "second", ledger=shared, seed=2))
    assert "ledger-shared" in {warning["code"] for warning in report["warnings"]}
    assert report["accounting"]["rounds_charged"] == 5
    assert report["setting"]["tuning_runs_charged"] is True


def test_infinities_are_written_as_text() -> None:
    values = {"a": [math.inf, -math.inf, math.nan], "b": (1.5, None)}
    assert plain(values) == {"a": ["inf", "-inf", "nan"], "b": [1.5, None]}


def test_numbers_are_not_rounded(run: Path) -> None:
    value = build_report(read_run(run))["accounting"]["epsilon"]["value"]
    assert built(run)["accounting"]["epsilon"]["value"] == value
    assert len(repr(value)) > 12


def test_json_and_page_are_written_together(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    report = write_report(folder)
    assert json.loads((folder / run_directory.REPORT_JSON).read_text()) == plain(report)
    assert (folder / run_directory.REPORT_HTML).read_text().startswith("<!DOCTYPE html>")


def damaged(run: Path, folder: Path, name: str, text: str | None) -> Path:
    """Copy a run and put other text, or nothing, in the place of one of its files."""
    shutil.copytree(run, folder)
    (folder / name).unlink()
    if text is not None:
        (folder / name).write_text(text)
    return folder


FAULTS = [
    (run_directory.CONFIG, None, "run must be a run directory"),
    (run_directory.CONFIG, "population =", "must be TOML"),
    (run_directory.CONFIG, "", "must hold noise_multiplier and simulated_cohort"),
    (run_directory.PROVENANCE, None, "must be readable JSON"),
    (run_directory.PROVENANCE, "{", "must be readable JSON"),
    (run_directory.PROVENANCE, "[]", "got no usable run_id"),
    (run_directory.PROVENANCE, '{"run_id": "a"}', "got no usable settings_hash, data_users"),
    (run_directory.LEDGER, None, "got no file 'ledger.sqlite'; the run was without privacy"),
    (run_directory.ROUNDS, "{}\n", "must hold a round in each line"),
    (run_directory.ROUNDS, "4\n5\n", "must hold a round in each line"),
    (run_directory.ROUNDS, "{\n{}\n", "line 1 must be JSON"),
    (run_directory.ROUNDS, '{"round": 9}\n', "no charge for round 9"),
]


@pytest.mark.parametrize(("name", "text", "said"), FAULTS)
def test_a_missing_or_damaged_file_is_named_in_one_sentence(
    run: Path, tmp_path: Path, name: str, text: str | None, said: str
) -> None:
    with pytest.raises(SettingsError, match=re.escape(said)) as caught:
        read_run(damaged(run, tmp_path / "run", name, text))
    assert len(caught.value.problems) == 1


def test_a_ledger_that_is_none_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="ledger"):
        read_run(damaged(run, tmp_path / "run", run_directory.LEDGER, "no database"))


@pytest.mark.parametrize(
    ("privacy", "said"),
    [
        ({"delta": 1e-8}, "must be of population, delta and adjacency"),
        ({"clip_norm": 3.0}, "no charge for round 1"),
    ],
    ids=["other facts", "same facts"],
)
def test_the_ledger_of_another_run_is_refused(
    run: Path, tmp_path: Path, privacy: dict[str, Any], said: str
) -> None:
    other = write_run(tmp_path / "other", **privacy)
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    shutil.copy(other / run_directory.LEDGER, folder / run_directory.LEDGER)
    with pytest.raises(SettingsError, match=said):
        read_run(folder)
