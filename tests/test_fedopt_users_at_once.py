"""Show when users are trained at once, that it is said why not, and that a run keeps its choice."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_runs import run_in_child
from torch import nn

from experiments.classification.task import ClassificationTask
from fedopt import run_directory
from fedopt.config import Settings, build_settings
from fedopt.planning import build_plan, resolve, settings_problems
from fedopt.simulation import simulate
from fedopt.users_at_once import Choice, choose, with_users_at_once
from privacy.errors import SettingsError

TABLES: dict[str, dict[str, Any]] = {
    "privacy": {
        "population": 5000,
        "cohort": 100,
        "simulated_cohort": 30,
        "rounds": 3,
        "noise_multiplier": 1.0,
        "delta": 1e-6,
    },
    "server": {"strategy": "fedavg"},
    "task": {"task": "experiments.classification.task:task", "options": {"users": 60}},
    "engine": {"engine": "local", "device": "cpu"},
}


def settings_with(**client: Any) -> Settings:
    return resolve(build_settings({**TABLES, "client": client}), 60)


def chosen_by(settings: Settings, task: ClassificationTask) -> Choice:
    return choose(settings, build_plan(settings, 60), task)


class TossingTask(ClassificationTask):
    """Scale its loss by a coin that no tensor operation tosses."""

    def loss(self, model: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Compute a loss that is another each time."""
        return super().loss(model, batch) * random.Random().choice([0.1, 1.0, 3.0, 9.0])


class BranchingTask(ClassificationTask):
    """Decide by the data."""

    def loss(self, model: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Compute a loss in a way that depends on what is seen."""
        loss = super().loss(model, batch)
        return loss * 2.0 if float(loss.detach()) > 1.0 else loss


class TextTask(ClassificationTask):
    """Put words into batches."""

    def user_data(self, user_id: str) -> Any:
        """Give batches with a word beside the tensors."""
        found = super().user_data(user_id)

        class Worded:
            def batches(self, generator: Any) -> Any:
                """Yield the batches."""
                return ((*batch, "word") for batch in found.batches(generator))

        return Worded()

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        """Compute the loss of what is not a word."""
        return super().loss(model, batch[:2])


def test_a_wish_that_can_be_met_is_met_without_a_word() -> None:
    chosen = chosen_by(settings_with(users_at_once=12), ClassificationTask(users=60))
    assert (chosen.users, chosen.reason) == (12, "")


@pytest.mark.parametrize(
    ("task", "why"),
    [
        (BranchingTask, "cannot be mapped over users"),
        (TextTask, "the batches hold a str"),
        (TossingTask, "stacks give other updates"),
    ],
)
def test_a_task_that_cannot_be_stacked_is_named_in_one_line(
    task: type[ClassificationTask], why: str
) -> None:
    chosen = chosen_by(settings_with(users_at_once=12), task(users=60))
    assert chosen.users == 1
    assert why in chosen.reason
    assert "\n" not in chosen.reason


def test_a_stack_that_memory_does_not_hold_shrinks_and_says_so() -> None:
    settings = settings_with(users_at_once=500)
    engine = settings.engine.model_copy(update={"worker_megabytes": 1.0})
    small = settings.model_copy(update={"engine": engine})
    chosen = chosen_by(small, ClassificationTask(users=60))
    assert 2 <= chosen.users < 500
    assert "users-at-once 500 needs about" in chosen.reason
    assert f"so it is {chosen.users}" in chosen.reason


def test_nothing_is_tried_where_one_at_a_time_is_asked_for_or_due() -> None:
    class Untouched(ClassificationTask):
        def user_data(self, user_id: str) -> Any:
            """Nobody asks."""
            raise AssertionError

    assert chosen_by(settings_with(users_at_once=1), Untouched()).users == 1
    assert chosen_by(settings_with(user_seconds=3.0), Untouched()).users == 1
    wide = Untouched(hidden=60_000)  # two copies are more weights than a stack should have
    assert chosen_by(settings_with(), wide).users == 1


def test_a_deadline_and_stacks_exclude_each_other() -> None:
    (problem,) = settings_problems(
        build_settings({**TABLES, "client": {"users_at_once": 4, "user_seconds": 1.0}})
    )
    assert "users-at-once must be 1" in problem


def test_the_choice_is_measured_and_never_wider_than_half_the_cohort() -> None:
    assert chosen_by(settings_with(), ClassificationTask(users=60, hidden=16)).users in (1, 15)


def test_a_run_keeps_its_choice_on_resume(tmp_path: Path) -> None:
    tables = {**TABLES, "client": {"users_at_once": 7}}
    first = simulate(tables, output=tmp_path / "run", report=False)
    settings = run_directory.load_settings(first.path)
    assert settings.client.users_at_once == 7
    unsaid = resolve(build_settings(TABLES), 60)
    kept, note = with_users_at_once(
        unsaid, build_plan(unsaid, 60), ClassificationTask(users=60), first.path
    )
    assert (kept.client.users_at_once, note) == (7, "")
    with pytest.raises(SettingsError, match="users-at-once 7 -> 8"):
        simulate({**TABLES, "client": {"users_at_once": 8}}, output=first.path, resume=True)


def model_of(folder: Path, **changes: Mapping[str, Any]) -> bytes:
    tables: dict[str, Any] = {**TABLES, "client": {"users_at_once": 7}}
    for section, values in changes.items():
        tables[section] = {**tables.get(section, {}), **values}
    return (simulate(tables, output=folder, report=False).path / run_directory.MODEL).read_bytes()


def test_stacks_give_the_same_bytes_again_and_others_than_single_users(tmp_path: Path) -> None:
    first = model_of(tmp_path / "first")
    assert first == model_of(tmp_path / "second")
    assert first != model_of(tmp_path / "third", client={"users_at_once": 1})


@pytest.mark.slow
def test_stacks_give_the_same_bytes_on_two_ray_workers(tmp_path: Path) -> None:
    tables = {**TABLES, "client": {"users_at_once": 7}}
    tables["engine"] = {"engine": "ray", "workers": 2, "device": "cpu"}
    run_in_child(build_settings(tables), tmp_path / "ray")
    assert model_of(tmp_path / "local") == (tmp_path / "ray" / run_directory.MODEL).read_bytes()
