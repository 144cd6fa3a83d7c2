"""Epsilon by privacy random variables: against golden rows and PLD, and where it is refused."""

import json
import math
from pathlib import Path

import pytest

from fedopt import cli
from privacy import accounting_prv
from privacy.accounting import ACCOUNTANTS, available_accountants, epsilon_spent
from privacy.accounting_prv import variable_bound
from privacy.calibration import noise_multiplier_for, rounds_for
from privacy.errors import SettingsError
from privacy.event import AccountingEvent
from privacy.loss_composition import compose
from privacy.loss_grid import one_round

GOLDEN = json.loads((Path(__file__).parent / "golden" / "epsilon.json").read_text())
ROWS = [
    row
    for row in GOLDEN["cases"] + GOLDEN["paper_rows"]
    if row["sampling"] == "poisson" and row["q"] < 1 and row["reference"]["epsilon"]
]
# The transform's rounding, 2e-16 a round, is small beside delta, and epsilon is within reach.
REFUSED = {
    "rounds": ["g023", "g035", "g037", "g039", "g043", "g045", "g049", "g051", "g053"],
    "stops": ["p009"],
    "grid": ["p033"],
}
ANSWERED = [row for row in ROWS if not any(row["id"] in names for names in REFUSED.values())]
QUICK = ("g001", "g005", "g011", "g021", "g031", "g033", "g047", "p011", "p017", "p019", "p039")
EVENT = AccountingEvent("poisson", 10_000, 100, 1.0)


def event_of(row) -> AccountingEvent:
    return AccountingEvent("poisson", row["population"], row["cohort"], row["sigma"])


def spent(row):
    return epsilon_spent([(event_of(row), row["steps"])], row["delta"], "prv")


def codes(found) -> list[str]:
    return [warning.code for warning in found.warnings]


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, marks=() if row["id"] in QUICK else pytest.mark.slow, id=row["id"])
        for row in ANSWERED
    ],
)
def test_prv_is_above_the_reference_by_its_error_and_as_opacus_answers(row):
    found = spent(row)
    reference, golden = row["reference"]["epsilon"], row["epsilon"]["opacus_prv"]["epsilon"]
    assert (found.accountant, found.library, found.upper_bound) == ("prv", "opacus 1.6.0", True)
    assert reference <= found.epsilon
    if golden is None:
        assert found.epsilon <= reference * 1.01
    elif golden > 0.2:
        # The smaller delta that pays for rounding costs at most half a percent of delta.
        assert golden <= found.epsilon <= golden * 1.001
        assert found.epsilon <= reference + 0.02
    else:
        assert found.epsilon < golden / 1.2


@pytest.mark.parametrize("row", [row for row in ROWS if row not in ANSWERED], ids=lambda r: r["id"])
def test_rows_beyond_its_precision_or_size_are_refused_by_one_sentence(row):
    with pytest.raises(SettingsError) as caught:
        spent(row)
    (problem,) = caught.value.problems
    (why,) = (name for name, rows in REFUSED.items() if row["id"] in rows)
    assert problem.startswith("accountant prv cannot answer: it ")
    assert why in problem
    assert problem.endswith(("choose accountant pld", "choose accountant rdp"))


def test_rounds_of_two_kinds_are_added_up():
    releases = [(EVENT, 300), (AccountingEvent("poisson", 10_000, 300, 2.0), 200)]
    by_loss = epsilon_spent(releases, 1e-7, "pld").epsilon
    by_variables = epsilon_spent(releases, 1e-7, "prv").epsilon
    assert by_loss * 0.998 <= by_variables <= by_loss + 0.021


def test_a_small_epsilon_is_looked_at_with_a_smaller_error():
    # On the first look the error of 0.01 is a hundred times what there is to see.
    small = AccountingEvent("poisson", 10**6, 1000, 10.0)
    by_loss = epsilon_spent([(small, 100)], 1e-8, "pld").epsilon
    bound = variable_bound([(small, 100)], 1e-8, 0.1)
    assert by_loss < 0.01
    assert by_loss * 0.998 <= bound.epsilon <= by_loss * 1.6
    assert bound.error < 0.001


def test_an_error_that_stays_large_is_warned_of(monkeypatch):
    small = AccountingEvent("poisson", 10**6, 1000, 10.0)
    monkeypatch.setattr(accounting_prv, "_MOST_LOOKS", 1)
    found = epsilon_spent([(small, 100)], 1e-8, "prv")
    assert codes(found) == ["prv-error"]
    assert found.epsilon >= 0.01
    assert codes(epsilon_spent([(EVENT, 300)], 1e-8, "prv")) == []


def test_a_finer_look_that_does_not_fit_leaves_the_coarser_answer(monkeypatch):
    small = AccountingEvent("poisson", 10**6, 1000, 10.0)
    monkeypatch.setattr(accounting_prv, "_MOST_POINTS", 40_000)
    assert variable_bound([(small, 100)], 1e-8, 0.1).error == 0.01


def test_nothing_beyond_delta_is_an_epsilon_of_its_error_at_most():
    # Delta covers outright that the user is drawn at all, so the truth is 0.
    bound = variable_bound([(AccountingEvent("poisson", 10**9, 1, 1.0), 1)], 1e-6, 1.0)
    assert 0.0 <= bound.epsilon <= 0.01


@pytest.mark.parametrize(
    "raised", [RuntimeError("Discrete mean differs."), ValueError("x"), OverflowError()]
)
def test_what_the_library_raises_becomes_one_sentence(raised, monkeypatch):
    def fail(*_, **__):
        raise raised

    monkeypatch.setattr("opacus.accountants.PRVAccountant.get_epsilon", fail)
    words = str(raised).strip(".") or "OverflowError"
    with pytest.raises(SettingsError, match=rf"gives up \({words}\); choose accountant pld"):
        epsilon_spent([(EVENT, 1)], 1e-5, "prv")


def test_an_answer_that_is_no_number_is_refused(monkeypatch):
    monkeypatch.setattr("opacus.accountants.PRVAccountant.get_epsilon", lambda *_, **__: math.nan)
    with pytest.raises(SettingsError, match="no finite answer"):
        epsilon_spent([(EVENT, 1)], 1e-5, "prv")


@pytest.mark.parametrize(
    "event",
    [
        AccountingEvent("everyone", 100, 100, 1.0),
        AccountingEvent("poisson", 100, 100, 1.0),
        AccountingEvent("fixed", 100, 10, 1.0),
        AccountingEvent("poisson", 100, 10, 1.0, 40),
    ],
)
def test_other_samplings_are_refused(event):
    with pytest.raises(SettingsError, match="accountant prv cannot describe sampling"):
        epsilon_spent([(event, 1)], 1e-5, "prv")


def test_prv_is_a_third_opinion_for_who_asks_and_solves_nothing():
    assert "prv" in ACCOUNTANTS
    assert "prv" not in available_accountants(EVENT)
    common = {"population": 10_000, "cohort": 100, "delta": 1e-6, "epsilon": 2.0}
    with pytest.raises(SettingsError, match="solves for nothing"):
        noise_multiplier_for(**common, rounds=10, accountant="prv")
    with pytest.raises(SettingsError, match="solves for nothing"):
        rounds_for(**common, noise_multiplier=1.0, accountant="prv")


@pytest.mark.parametrize("row", [ROWS[0], ROWS[2], ROWS[10]], ids=lambda row: row["id"])
def test_a_user_who_joins_is_seen_less_than_one_who_leaves(row):
    # PRV looks at the user who leaves only; here both are looked at by the project's own grid.
    grid, tail = row["reference"]["epsilon"] / 1000, row["delta"] * 1e-6 / row["steps"]
    leaves, joins = (
        compose([(one_round(event_of(row), way, grid, tail, 1e-12), row["steps"])], 1.0)
        for way in ("remove", "add")
    )
    for share in (0.01, 0.1, 0.5, 1.0):
        epsilon = share * row["reference"]["epsilon"]
        assert joins.delta(epsilon) < leaves.delta(epsilon)


def budget(capsys, words: str) -> dict:
    common = "budget --population 1e6 --cohort 1000 --rounds 500 --noise-multiplier 1 --json"
    assert cli.main([*common.split(), *words.split()]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_budget_quotes_prv_where_it_is_asked_for(capsys):
    found = budget(capsys, "--delta 1e-8 --accountant prv")
    assert found["accountant"] == "prv"
    assert found["epsilon"] == found["accountants"]["prv"]["epsilon"]
    assert found["accountants"]["prv"]["library"] == "opacus 1.6.0"
    assert "prv-one-side" in [warning["code"] for warning in found["warnings"]]
    assert found["accountants"]["pld"]["epsilon"] * 0.998 <= found["epsilon"]


def test_the_budget_shows_prv_among_all_and_says_why_where_it_cannot(capsys):
    found = budget(capsys, "--delta 1e-8 --accountant all")
    assert found["accountant"] == "rdp"
    assert set(found["accountants"]) == {"rdp", "pld", "prv"}
    assert found["accountants"]["prv"]["epsilon"] < found["epsilon"]
    refused = budget(capsys, "--delta 1e-13 --accountant all")
    assert refused["accountants"]["prv"]["epsilon"] is None
    assert "choose accountant pld" in refused["accountants"]["prv"]["why"]
    assert "prv-refused" in [warning["code"] for warning in refused["warnings"]]
    assert "prv" not in budget(capsys, "--delta 1e-8")["accountants"]
