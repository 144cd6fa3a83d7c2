"""Check which settings a central training keeps, and what makes two trainings the same."""

from __future__ import annotations

from typing import Any

import pytest

from fedopt.central_settings import training_hash, used_tables
from fedopt.config import build_settings

BASE: dict[str, dict[str, Any]] = {
    "privacy": {"rounds": 70},
    "server": {"strategy": "central"},
    "task": {"data_root": "/here"},
}


def with_changes(name: str, value: Any) -> dict[str, dict[str, Any]]:
    section, _, key = name.partition(".")
    return {**BASE, section: {**BASE.get(section, {}), key: value}}


def test_numbers_that_nobody_set_are_left_to_the_task() -> None:
    tables = used_tables(build_settings({"server": {"strategy": "central"}}))
    assert "privacy" not in tables
    assert "eval_every" not in tables["run"]
    chosen = used_tables(build_settings(BASE | {"run": {"eval_every": 9}}))
    assert (chosen["privacy"], chosen["run"]["eval_every"]) == ({"rounds": 70}, 9)
    assert used_tables(build_settings(chosen)) == chosen


@pytest.mark.parametrize(
    ("name", "value", "same"),
    [
        ("privacy.cohort", 9, True),
        ("task.data_root", "/there", True),
        ("run.eval_every", 9, True),
        ("client.client_lr", 0.1, True),
        ("privacy.rounds", 71, False),
        ("run.seed", 2, False),
        ("engine.device", "cuda", False),
        ("server.server_lr", 0.1, False),
        ("server.hyperparameters", {"recipe": "ls"}, False),
        ("task.options", {"speed": 0.1}, False),
    ],
)
def test_a_training_is_another_where_its_bytes_would_be(name: str, value: Any, same: bool) -> None:
    first = training_hash(build_settings(BASE), ["anna"])
    assert (training_hash(build_settings(with_changes(name, value)), ["anna"]) == first) == same


def test_other_users_or_steps_of_the_tasks_choice_are_another_training() -> None:
    settings = build_settings(BASE)
    assert training_hash(settings, ["anna"]) != training_hash(settings, ["bert"])
    unset = build_settings({name: table for name, table in BASE.items() if name != "privacy"})
    assert unset.privacy.rounds == settings.privacy.rounds
    assert training_hash(settings, ["anna"]) != training_hash(unset, ["anna"])
