"""Turn settings into effective settings and a privacy plan: solve the noise, choose the engine."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from fedopt.config import DEFAULT_EPSILON, SPEECH_TASK, Settings
from privacy.errors import SettingsError
from privacy.plan import PrivacyPlan, SimulatedCohort, plan_problems

TRIAL_COHORT = 8
"""Users trained per round where --simulated-cohort is not given."""


def settings_problems(settings: Settings) -> list[str]:
    """List what can be wrong with settings before any data are read, one sentence each."""
    privacy, task = settings.privacy, settings.task
    values = privacy.model_dump() | {"simulated": None}
    values["noise_multiplier"] = privacy.noise_multiplier or 0.0
    problems = plan_problems(values)
    if (privacy.simulated_cohort or 0) > privacy.cohort:
        problems.append(
            f"simulated-cohort must be at most the claimed cohort {privacy.cohort}, "
            f"got {privacy.simulated_cohort}; raise the cohort"
        )
    for name, path in (("data-root", task.data_root), ("init-from", task.init_from)):
        if path is not None and not Path(path).exists():
            problems.append(f"{name} must exist, got {path!r}; correct the path")
    if task.task == SPEECH_TASK and task.dataset not in (None, "synthetic") and not task.data_root:
        problems.append(f"dataset {task.dataset} needs --data-root, got none; name its folder")
    return problems + _engine_problems(settings)


def _engine_problems(settings: Settings) -> list[str]:
    engine = settings.engine
    problems = []
    if engine.engine == "ray" and importlib.util.find_spec("ray") is None:
        problems.append('engine ray needs the package ray; pip install "fedopt[ray]" or use local')
    if engine.device not in ("auto", "cpu"):
        import torch

        try:
            device = torch.device(engine.device)
        except RuntimeError:
            return [*problems, f"device must be auto, cpu or cuda, got {engine.device!r}"]
        if device.type != "cuda" or not torch.cuda.is_available():
            problems.append(f"device {engine.device} is not there; choose --device cpu")
    return problems


def task_options(settings: Settings) -> dict[str, Any]:
    """Collect what is passed to the task's builder."""
    task = settings.task
    named = {"dataset": task.dataset, "data_root": task.data_root, "model": task.model}
    return {**{key: value for key, value in named.items() if value is not None}, **task.options}


def resolve(settings: Settings, users: int) -> Settings:
    """Fill in what depends on the machine and on the number of data users.

    What is chosen here is written to config.toml and never changes on resume.
    Raises: SettingsError when the budget is impossible.
    """
    privacy = settings.privacy
    changes = {
        "simulated_cohort": _simulated_cohort(settings, users),
        "epsilon": privacy.epsilon,
        "noise_multiplier": privacy.noise_multiplier,
    }
    if privacy.noise_multiplier is None:
        target = privacy.epsilon or DEFAULT_EPSILON
        changes["epsilon"] = target
        changes["noise_multiplier"] = PrivacyPlan.for_epsilon(
            epsilon=target,
            population=privacy.population,
            cohort=privacy.cohort,
            rounds=privacy.rounds,
            delta=privacy.delta,
            sampling=privacy.sampling,
            accountant=privacy.accountant,
            clip_norm=privacy.clip_norm,
            cohort_cap=privacy.cohort_cap,
        ).noise_multiplier
    engine = settings.engine.model_copy(
        update={"engine": _engine(settings), "device": _device(settings)}
    )
    return settings.model_copy(
        update={"privacy": privacy.model_copy(update=changes), "engine": engine}
    )


def _simulated_cohort(settings: Settings, users: int) -> int:
    """Choose how many users are trained per round; everyone where everyone takes part."""
    privacy = settings.privacy
    if privacy.sampling == "everyone":
        return users
    return privacy.simulated_cohort or min(TRIAL_COHORT, users, privacy.cohort)


def _engine(settings: Settings) -> str:
    if settings.engine.engine != "auto":
        return settings.engine.engine
    return "ray" if importlib.util.find_spec("ray") is not None else "local"


def _device(settings: Settings) -> str:
    if settings.engine.device != "auto":
        return settings.engine.device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def build_plan(settings: Settings, users: int) -> PrivacyPlan:
    """Build the plan of a run from effective settings; raises SettingsError where it cannot be."""
    privacy = settings.privacy
    assert privacy.noise_multiplier is not None
    assert privacy.simulated_cohort is not None
    if privacy.sampling == "everyone" and privacy.cohort != privacy.population:
        raise SettingsError("cohort must equal the population where sampling is everyone")
    return PrivacyPlan(
        population=privacy.population,
        cohort=privacy.cohort,
        rounds=privacy.rounds,
        delta=privacy.delta,
        noise_multiplier=privacy.noise_multiplier,
        clip_norm=privacy.clip_norm,
        clipping=privacy.clipping,
        sampling=privacy.sampling,
        noise_placement=privacy.noise_placement,
        cohort_cap=privacy.cohort_cap,
        simulated=SimulatedCohort(users, privacy.simulated_cohort, privacy.virtual_users),
    )
