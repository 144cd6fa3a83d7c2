"""Show how settings become a plan, and which settings are refused before any work."""

from __future__ import annotations

import pytest
import torch
from engine_runs import engine_settings

from fedopt import machine, planning
from fedopt.config import build_settings
from fedopt.planning import build_plan, memory_problems, resolve, settings_problems


def test_epsilon_alone_solves_the_noise_and_becomes_the_ceiling() -> None:
    settings = build_settings(
        {"privacy": {"epsilon": 4.0, "population": 10**5, "cohort": 100, "delta": 1e-6}}
    )
    effective = resolve(settings, users=50)
    plan = build_plan(effective, users=50)
    assert effective.privacy.epsilon == 4.0
    assert 3.9 < plan.epsilon() <= 4.0


def test_noise_alone_has_no_ceiling_and_both_leave_the_noise_as_given() -> None:
    alone = resolve(build_settings({"privacy": {"noise_multiplier": 0.7}}), users=50)
    both = resolve(build_settings({"privacy": {"noise_multiplier": 0.7, "epsilon": 2.0}}), users=50)
    assert (alone.privacy.noise_multiplier, alone.privacy.epsilon) == (0.7, None)
    assert (both.privacy.noise_multiplier, both.privacy.epsilon) == (0.7, 2.0)


def test_resolving_twice_changes_nothing() -> None:
    once = resolve(engine_settings({"privacy.simulated_cohort": None}), users=24)
    assert resolve(once, users=24) == once
    assert once.privacy.simulated_cohort == 8


def test_a_trial_cohort_is_never_larger_than_the_users_or_the_cohort() -> None:
    few = {"privacy.simulated_cohort": None}
    assert resolve(engine_settings(few), users=3).privacy.simulated_cohort == 3
    assert (
        resolve(engine_settings(few | {"privacy.cohort": 2}), users=30).privacy.simulated_cohort
        == 2
    )


def test_workers_share_the_free_memory_once_and_a_given_share_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "available_megabytes", lambda: 10_000.0)
    four = {"engine.engine": "ray", "engine.workers": 4, "engine.worker_megabytes": None}
    effective = resolve(engine_settings(four), users=24)
    assert effective.engine.worker_megabytes == 10_000.0 * machine.SHARE / 4
    monkeypatch.setattr(machine, "available_megabytes", lambda: 1.0)
    assert resolve(effective, users=24) == effective


def test_more_workers_than_memory_holds_are_refused_with_how_many_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "available_megabytes", lambda: 2_000.0)
    model = torch.nn.Linear(1000, 10_000)  # 240 MB of buffers
    (told,) = memory_problems(engine_settings({"engine.engine": "ray", "engine.workers": 4}), model)
    assert "got 4; choose --workers 3" in told
    assert (
        memory_problems(engine_settings({"engine.engine": "ray", "engine.workers": 3}), model) == []
    )
    assert memory_problems(engine_settings({"engine.workers": 400}), model) == []


def test_ray_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning.importlib.util, "find_spec", lambda name: None)
    (told,) = settings_problems(engine_settings({"engine.engine": "ray"}))
    assert "needs the package ray" in told
    assert planning.engine_choice()[0] == "local"


def test_everyone_needs_a_cohort_of_the_whole_population() -> None:
    told = settings_problems(engine_settings({"privacy.sampling": "everyone"}))
    assert any("everyone" in sentence for sentence in told)
