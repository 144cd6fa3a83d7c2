"""Show that a run repeats to the bit, survives its death anywhere, and leaves nothing half."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_runs import engine_settings, left_behind, order, rows, run, start_child
from engine_tasks import EngineTask
from safetensors.numpy import load_file

from fedopt.weights import model_digest
from privacy.errors import (
    BudgetExhausted,
    CheckpointError,
    LedgerError,
    SettingsError,
)
from privacy.ledger import Ledger

CRASHES = [
    ("before reserve", 1),
    ("after reserve", 2),
    ("before checkpoint", 1),
    ("inside checkpoint", 3),
    ("after checkpoint", 2),
    ("after commit", 1),
    ("after commit", 4),
    ("after publish", 2),
    ("before line", 1),
    ("before line", 3),
    ("after line", 5),
]


def test_a_run_writes_its_report_unless_it_is_told_not_to(tmp_path: Path) -> None:
    from fedopt import simulate

    told = simulate(engine_settings(), output=tmp_path / "told", report=False)
    assert told.report == {}
    assert (tmp_path / "told" / "model.safetensors").exists()
    assert not list((tmp_path / "told").glob("privacy-report*"))
    result = simulate(engine_settings(), output=tmp_path / "run")
    assert result.report["accounting"]["rounds_charged"] == 4
    assert (tmp_path / "run" / "privacy-report.html").exists()


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_bytes(tmp_path: Path) -> None:
    runs = {
        name: run(engine_settings({"run.seed": seed}), tmp_path / name)
        for name, seed in {"a": 3, "b": 3, "c": 4}.items()
    }
    first, again, other = (left_behind(tmp_path / name) for name in "abc")
    assert first == again
    assert first[0] != other[0]
    assert model_digest(runs["a"].model) == model_digest(runs["b"].model)


def test_a_rounds_row_holds_what_the_contract_names(tmp_path: Path) -> None:
    result = run(engine_settings(), tmp_path / "run")
    lines = (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()
    assert [row["round"] for row in result.history] == [0, 1, 2, 3, 4]
    assert [json.loads(line)["round"] for line in lines] == [0, 1, 2, 3, 4]
    wanted = {
        "round", "cohort", "replies", "epsilon", "train_loss", "clipped_fraction", "update_norm",
        "noise_std", "seconds", "seconds_by_phase", "peak_memory_megabytes",
    }  # fmt: skip
    assert wanted <= json.loads(lines[-1]).keys()
    assert result.history[4]["noise_std"] == pytest.approx(1.0 * 0.5 / 10)
    assert [("distance" in row) for row in result.history] == [True, False, True, False, True]


@pytest.mark.parametrize("crash", CRASHES, ids=lambda crash: f"{crash[0]} {crash[1]}")
def test_a_run_that_dies_anywhere_goes_on_to_the_same_end(
    crash: tuple[str, int], tmp_path: Path
) -> None:
    settings = engine_settings()
    run(settings, tmp_path / "whole")
    child = start_child(settings, tmp_path / "cut", crash)
    child.join(120)
    assert child.exitcode == -9
    run(settings, tmp_path / "cut", resume=True)
    assert left_behind(tmp_path / "cut") == left_behind(tmp_path / "whole")


def kill_at_random(settings: Any, folder: Path, seconds: float, kills: int, seed: int) -> int:
    """Kill a run at so many random moments and let it finish then; returns the kills that hit."""
    generator, hits = random.Random(seed), 0
    for _ in range(kills):
        child = start_child(settings, folder)
        child.join(generator.uniform(0.0, seconds))
        child.kill()
        child.join(60)
        hits += child.exitcode == -9
    run(settings, folder, resume=True)
    return hits


@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=pytest.mark.slow)])
def test_a_driver_killed_at_random_points_ends_with_the_same_bytes(
    kills: int, tmp_path: Path
) -> None:
    rounds = {"privacy.rounds": 4 * kills}
    settings = engine_settings(rounds, pause=0.002)
    child = start_child(settings, tmp_path / "warm")  # its start also loads the server of forks
    child.join(120)
    started = time.monotonic()
    child = start_child(settings, tmp_path / "whole")
    child.join(120)
    taken = time.monotonic() - started
    assert child.exitcode == 0
    hits = kill_at_random(settings, tmp_path / "cut", taken / 2, kills, seed=kills)
    assert hits >= 2
    assert left_behind(tmp_path / "cut") == left_behind(tmp_path / "whole")


def test_a_resumed_finished_run_adds_nothing(tmp_path: Path) -> None:
    settings = engine_settings()
    run(settings, tmp_path / "run")
    before = left_behind(tmp_path / "run")
    run(settings, tmp_path / "run", resume=True)
    assert left_behind(tmp_path / "run") == before


def test_secure_randomness_takes_a_fresh_attempt_and_keeps_the_old_charge(tmp_path: Path) -> None:
    settings = engine_settings({"privacy.randomness": "secure"})
    child = start_child(settings, tmp_path / "run", ("before checkpoint", 2))
    child.join(120)
    assert child.exitcode == -9
    result = run(settings, tmp_path / "run", resume=True, report=True)
    charges = Ledger.read(tmp_path / "run" / "ledger.sqlite").rows()
    assert [(row.round, row.attempt, row.state) for row in charges] == [
        (1, 0, "committed"),
        (2, 0, "reserved"),
        (2, 1, "committed"),
        (3, 0, "committed"),
        (4, 0, "committed"),
    ]
    assert len({row.key_hash for row in charges}) == 5
    assert result.report["accounting"]["rounds_charged"] == 5


def test_a_run_stops_before_the_round_that_would_pass_the_ceiling_and_keeps_its_model(
    tmp_path: Path,
) -> None:
    free = run(engine_settings(), tmp_path / "free")
    spent = [row["epsilon"] for row in free.history]
    ceiling = (spent[2] + spent[3]) / 2
    settings = engine_settings({"privacy.epsilon": ceiling})
    with pytest.raises(BudgetExhausted):
        run(settings, tmp_path / "run", report=True)
    assert [row["round"] for row in rows(tmp_path / "run")] == [0, 1, 2]
    assert (tmp_path / "run" / "model.safetensors").exists()
    report = json.loads((tmp_path / "run" / "privacy-report.json").read_text())
    assert report["accounting"]["epsilon"]["value"] <= ceiling
    assert report["accounting"]["rounds_charged"] == 2


def test_without_noise_epsilon_is_null(tmp_path: Path) -> None:
    settings = engine_settings({"privacy.noise_multiplier": 0.0})
    result = run(settings, tmp_path / "run")
    assert [row["epsilon"] for row in result.history] == [None] * 5


@pytest.mark.parametrize("placement", ["clients", "server"])
def test_the_released_step_of_zero_updates_has_deviation_z_c_over_m_times_the_rate(
    placement: str, tmp_path: Path
) -> None:
    changes = {
        "server.strategy": "fedavg",
        "server.server_lr": 0.7,
        "privacy.rounds": 1,
        "privacy.noise_placement": placement,
        "privacy.noise_multiplier": 1.3,
    }
    size = 60_000
    result = run(engine_settings(changes, zero=True, size=size), tmp_path / "run")
    steps = np.concatenate(
        [
            result.model.first.detach().numpy(),
            result.model.second.detach().numpy() - 1.0,
        ]
    )
    assert float(steps.std()) == pytest.approx(1.3 * 0.5 / 10 * 0.7, rel=0.03)


EVERYONE = {
    "privacy.sampling": "everyone",
    "privacy.population": 24,
    "privacy.cohort": 24,
    "privacy.simulated_cohort": 24,
}
ONE_STEP = {
    **EVERYONE,
    "server.strategy": "fedavg",
    "server.server_lr": 0.7,
    "privacy.rounds": 1,
    "privacy.noise_multiplier": 1.3,
    "engine.worker_megabytes": 400,
}
"""One round of 24 users whose released step is 0.7 (0 + noise of deviation 1.3 x 0.5 / 24)."""


def step_deviation(folder: Path) -> float:
    weights = load_file(folder / "model.safetensors")
    return float(np.concatenate([weights["first"], weights["second"] - 1.0]).std())


@pytest.mark.parametrize("behaviour", ["raise", "nan", "exit", "greedy", "empty", "slow"])
def test_the_noise_is_that_of_the_plan_after_every_fault_of_a_user(
    behaviour: str, tmp_path: Path
) -> None:
    deadline = {"client.user_seconds": 0.5} if behaviour == "slow" else {}
    options = {"folder": order(tmp_path / "task", {4: behaviour}), "zero": True, "size": 60_000}
    result = run(engine_settings(ONE_STEP | deadline, **options), tmp_path / "run")
    assert result.history[1]["faults"].keys() == {"4"}
    assert step_deviation(tmp_path / "run") == pytest.approx(1.3 * 0.5 / 24 * 0.7, rel=0.03)


@pytest.mark.parametrize("place", ["after reserve", "after checkpoint", "after commit"])
def test_the_noise_is_that_of_the_plan_after_the_death_of_the_driver(
    place: str, tmp_path: Path
) -> None:
    settings = engine_settings(ONE_STEP, zero=True, size=60_000)
    child = start_child(settings, tmp_path / "run", (place, 1))
    child.join(120)
    assert child.exitcode == -9
    run(settings, tmp_path / "run", resume=True)
    assert step_deviation(tmp_path / "run") == pytest.approx(1.3 * 0.5 / 24 * 0.7, rel=0.03)


def test_broken_users_are_named_and_leave_the_rest_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "task"
    settings = engine_settings(EVERYONE, folder=order(folder, {3: "raise", 7: "raise"}))
    wanted = run(settings, tmp_path / "one")
    order(folder, {3: "nan", 7: "exit"})
    found = run(settings, tmp_path / "two")
    assert model_digest(found.model) == model_digest(wanted.model)
    assert found.history[1]["faults"].keys() == {"3", "7"}
    assert (found.history[1]["cohort"], found.history[1]["replies"]) == (24, 22)


def test_virtual_users_are_drawn_from_the_whole_population(tmp_path: Path) -> None:
    drawn = {"privacy.population": 10**9, "privacy.cohort": 200, "privacy.simulated_cohort": 200}
    settings = engine_settings(drawn | {"privacy.virtual_users": True, "privacy.rounds": 2})
    result = run(settings, tmp_path / "run")
    cohorts = [row["cohort"] for row in result.history[1:]]
    assert all(140 < cohort < 260 for cohort in cohorts)
    assert cohorts[0] != cohorts[1]


def test_a_task_object_may_stand_in_for_the_named_one(tmp_path: Path) -> None:
    task = EngineTask(users=24, size=16, zero=False, folder="", pause=0.0)
    named = run(engine_settings(), tmp_path / "named")
    given = run(engine_settings(), tmp_path / "given", task=task)
    assert model_digest(given.model) == model_digest(named.model)


def refuse(settings: Any, folder: Path, kind: type[Exception], text: str, **more: Any) -> None:
    with pytest.raises(kind, match=text) as refused:
        run(settings, folder, **more)
    assert "\n" not in str(refused.value)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"server.hyperparameters": {"beta7": 1.0}}, "beta7"),
        ({"task.init_from": __file__}, "must be safetensors"),
        ({"privacy.epsilon": 3.0, "privacy.noise_multiplier": 0.0}, "epsilon must be left out"),
        ({"privacy.simulated_cohort": 25, "privacy.cohort": 30}, "simulated-cohort must be"),
        ({"task.options": {"folder": "", "colour": 3}}, "does not take these options"),
        ({"engine.engine": "ray", "engine.workers": 1000}, "choose --workers"),
        ({"engine.device": "cuda:31"}, "device must be"),
    ],
)
def test_a_refused_run_leaves_no_directory(
    changes: dict[str, Any], text: str, tmp_path: Path
) -> None:
    refuse(engine_settings(changes), tmp_path / "new" / "run", SettingsError, text)
    assert list(tmp_path.iterdir()) == []


def test_a_ledger_of_another_population_is_refused_and_left_alone(tmp_path: Path) -> None:
    ledger = str(tmp_path / "shared.sqlite")
    run(engine_settings({"privacy.ledger": ledger}), tmp_path / "first")
    before = Path(ledger).read_bytes()
    other = engine_settings({"privacy.ledger": ledger, "privacy.population": 2000})
    refuse(other, tmp_path / "second", LedgerError, "population")
    assert Path(ledger).read_bytes() == before
    assert not (tmp_path / "second").exists()


def test_two_runs_on_one_ledger_add_up(tmp_path: Path) -> None:
    shared = {"privacy.ledger": str(tmp_path / "shared.sqlite")}
    run(engine_settings(shared), tmp_path / "first")
    run(engine_settings(shared | {"run.seed": 8}), tmp_path / "second")
    assert sum(count for _, count in Ledger.read(shared["privacy.ledger"]).releases()) == 8


def test_resume_refuses_other_settings_and_names_them(tmp_path: Path) -> None:
    run(engine_settings(), tmp_path / "run")
    before = contents(tmp_path / "run")
    changed = engine_settings({"client.client_lr": 0.3, "privacy.clip_norm": 0.25})
    refuse(
        changed, tmp_path / "run", SettingsError, r"clip-norm 0\.5 -> 0\.25; client-lr", resume=True
    )
    others = engine_settings(users=25)
    refuse(others, tmp_path / "run", SettingsError, "options", resume=True)
    assert contents(tmp_path / "run") == before


def test_resume_with_settings_that_change_no_byte_goes_on_and_notes_them(tmp_path: Path) -> None:
    run(engine_settings(), tmp_path / "run")
    settings = engine_settings({"run.eval_every": 1, "engine.timeout": 5})
    run(settings, tmp_path / "run", resume=True)
    assert "eval_every = 1" in (tmp_path / "run" / "config.toml").read_text()


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path: Path, resume: bool) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    refuse(engine_settings(), tmp_path, SettingsError, "output", resume=resume)
    assert contents(tmp_path) == {"thesis.txt": b"years of work"}


def test_a_finished_run_is_not_written_over(tmp_path: Path) -> None:
    run(engine_settings(), tmp_path / "run")
    before = contents(tmp_path / "run")
    refuse(engine_settings(), tmp_path / "run", SettingsError, "give --resume")
    assert contents(tmp_path / "run") == before


def test_a_damaged_and_a_foreign_checkpoint_are_refused(tmp_path: Path) -> None:
    run(engine_settings(), tmp_path / "run")
    run(engine_settings({"run.seed": 4}), tmp_path / "other")
    newest = tmp_path / "run" / "checkpoints" / "round-0000004.safetensors"
    newest.write_bytes(newest.read_bytes()[:-7])
    refuse(engine_settings(), tmp_path / "run", CheckpointError, "remove it", resume=True)
    foreign = tmp_path / "other" / "checkpoints" / newest.name
    newest.write_bytes(foreign.read_bytes())
    refuse(engine_settings(), tmp_path / "run", CheckpointError, "other settings", resume=True)


def test_a_damaged_checkpoint_removed_falls_back_to_the_one_before(tmp_path: Path) -> None:
    run(engine_settings(), tmp_path / "run")
    wanted = left_behind(tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "round-0000004.safetensors").unlink()
    run(engine_settings(), tmp_path / "run", resume=True)
    assert left_behind(tmp_path / "run") == wanted


def test_a_run_whose_ledger_is_gone_or_too_short_is_not_gone_on_with(tmp_path: Path) -> None:
    run(engine_settings(), tmp_path / "run")
    ledger = tmp_path / "run" / "ledger.sqlite"
    ledger.unlink()
    refuse(engine_settings(), tmp_path / "run", LedgerError, "ledger", resume=True)
    assert not ledger.exists()
    with pytest.raises(BudgetExhausted):
        run(engine_settings({"privacy.epsilon": 1e-9}), tmp_path / "short")
    assert rows(tmp_path / "short")[-1]["round"] == 0
    ledger.write_bytes((tmp_path / "short" / "ledger.sqlite").read_bytes())
    refuse(engine_settings(), tmp_path / "run", CheckpointError, "ends at round 0", resume=True)


def test_a_directory_in_use_by_a_living_run_is_refused(tmp_path: Path) -> None:
    settings = engine_settings(pause=0.05)
    child = start_child(settings, tmp_path / "run")
    while not (tmp_path / "run" / "rounds.jsonl").exists():
        assert child.is_alive()
        time.sleep(0.02)
    refuse(settings, tmp_path / "run", SettingsError, "in use", resume=True)
    child.join(120)
    assert child.exitcode == 0
