"""Turn settings into effective settings and a privacy plan: solve the noise, choose the engine."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedopt import machine
from fedopt.config import (
    DEFAULT_EPSILON,
    SPEECH_TASK,
    PrivacySettings,
    ServerSettings,
    Settings,
)
from privacy.audit_canaries import FEWEST_CANARIES, canary_problems
from privacy.errors import SettingsError
from privacy.plan import PrivacyPlan, SimulatedCohort, plan_problems

if TYPE_CHECKING:
    import torch

SERVER_DEFAULTS: dict[str, tuple[float, dict[str, float | bool | str]]] = {
    "fedavg": (2.0, {}),
    "fedavgm": (0.5, {"momentum": 0.9}),
    "fedadagrad": (0.02, {"tau": 1e-4}),
    "fedadam": (4e-3, {"tau": 1e-4}),
    "fedyogi": (4e-3, {"tau": 1e-4}),
    "fednovograd": (0.02, {"scale": "sqrt_d"}),
    "fedlamb": (0.04, {}),
    "fedlars": (1.0, {}),
}
"""Server rate and further settings that train the default speech task, by strategy."""

TRIAL_COHORT = 8
"""Users trained per round where --simulated-cohort is not given."""


def settings_problems(settings: Settings, *, data_needed: bool = True) -> list[str]:
    """List what can be wrong with settings before any data are read, one sentence each.

    data_needed: False for a dry run, which does without the corpus where none is named.
    """
    privacy, task = settings.privacy, settings.task
    values = privacy.model_dump() | {"simulated": None}
    values["noise_multiplier"] = privacy.noise_multiplier or 0.0
    problems = plan_problems(values)
    if (privacy.simulated_cohort or 0) > privacy.cohort:
        problems.append(
            f"simulated-cohort must be at most the claimed cohort {privacy.cohort}, "
            f"got {privacy.simulated_cohort}; raise the cohort"
        )
    if privacy.noise_multiplier == 0.0 and privacy.epsilon is not None:
        problems.append(
            f"epsilon must be left out where noise-multiplier is 0, got {privacy.epsilon}; "
            "a run without noise has no budget"
        )
    problems += _audit_problems(privacy)
    if (settings.client.users_at_once or 1) > 1 and settings.client.user_seconds:
        problems.append(
            "users-at-once must be 1 where user-seconds sets a deadline for each user, got "
            f"{settings.client.users_at_once}; leave one of them out"
        )
    for name, path in (("data-root", task.data_root), ("init-from", task.init_from)):
        if path is not None and not Path(path).exists():
            problems.append(f"{name} must exist, got {path!r}; correct the path")
    if data_needed and lacks_data(settings):
        problems.append(f"dataset {task.dataset} needs --data-root, got none; name its folder")
    return problems + _engine_problems(settings)


def lacks_data(settings: Settings) -> bool:
    """Say whether the speech task is asked for a corpus on disk without being told where it is."""
    task = settings.task
    real = task.task == SPEECH_TASK and task.dataset not in (None, "synthetic")
    return real and not task.data_root


def _audit_problems(privacy: PrivacySettings) -> list[str]:
    problems = []
    if 0 < privacy.audit < FEWEST_CANARIES:
        problems.append(
            f"audit must be 0 or at least {FEWEST_CANARIES} canary users, got {privacy.audit}; "
            "fewer show nothing, so try 200"
        )
    if privacy.audit and privacy.virtual_users:
        problems.append(
            f"audit is held against what the run gives to its data users, got {privacy.audit} with "
            "--virtual-users, where nothing is said of them; leave one of them out"
        )
    return problems


def _engine_problems(settings: Settings) -> list[str]:
    engine = settings.engine
    problems = []
    if engine.engine == "flower":
        problems.append("engine flower is chosen by flwr run, got it here; use auto, local or ray")
    if settings.server.strategy == "own":
        problems.append("strategy own is for strategies built in Python; name one of fedopt's")
    if engine.engine == "ray" and importlib.util.find_spec("ray") is None:
        problems.append('engine ray needs the package ray; pip install "fedopt[ray]" or use local')
    if engine.device not in ("auto", "cpu"):
        import torch

        try:
            device = torch.device(engine.device)
        except RuntimeError:
            return [*problems, f"device must be auto, cpu or cuda, got {engine.device!r}"]
        if device.type != "cuda" or (device.index or 0) >= torch.cuda.device_count():
            problems.append(
                f"device must be one of the {torch.cuda.device_count()} GPUs that torch finds, "
                f"got {engine.device!r}; choose --device cpu"
            )
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
        "simulated_cohort": _simulated_cohort(settings, users + privacy.audit),
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
        update={
            "engine": _engine(settings),
            "device": device_of(settings),
            "worker_megabytes": _worker_megabytes(settings),
        }
    )
    return settings.model_copy(
        update={
            "privacy": privacy.model_copy(update=changes),
            "server": _server(settings),
            "engine": engine,
        }
    )


def _server(settings: Settings) -> ServerSettings:
    """Fill in the server's rate and the settings of its optimizer where they are not given."""
    server = settings.server
    rate, further = SERVER_DEFAULTS[server.strategy]
    return server.model_copy(
        update={
            "server_lr": server.server_lr or rate,
            "hyperparameters": further | server.hyperparameters,
        }
    )


def _simulated_cohort(settings: Settings, users: int) -> int:
    """Choose how many users are trained per round; everyone where everyone takes part."""
    privacy = settings.privacy
    if privacy.sampling == "everyone":
        return users
    return privacy.simulated_cohort or min(TRIAL_COHORT, users, privacy.cohort)


def engine_choice() -> tuple[str, str]:
    """Choose the engine of this machine, and say why."""
    if importlib.util.find_spec("ray") is None:
        return "local", "Ray is not installed, so one process trains all users"
    return "ray", "Ray is installed, so several processes train at once"


def _engine(settings: Settings) -> str:
    return engine_choice()[0] if settings.engine.engine == "auto" else settings.engine.engine


def _worker_megabytes(settings: Settings) -> float:
    """Share the free memory among the workers; a GPU's driver maps more than it uses, so none."""
    engine = settings.engine
    if engine.worker_megabytes is not None:
        return engine.worker_megabytes
    if engine.ray_address is not None or device_of(settings) != "cpu":
        return 0.0
    workers = engine.workers if _engine(settings) == "ray" else 1
    return float(round(machine.worker_share_megabytes(workers)))


def memory_problems(settings: Settings, model: torch.nn.Module) -> list[str]:
    """Refuse more workers than this machine's memory holds."""
    from clients.local_training import count_trainable

    engine = settings.engine
    if engine.engine != "ray" or engine.ray_address is not None:
        return []
    parameters = count_trainable(model)
    each = machine.WORKER_BASE_MEGABYTES + machine.worker_buffers_megabytes(parameters)
    free = machine.available_megabytes()
    if each * engine.workers <= free:
        return []
    return [
        f"workers must fit into the free memory of {free:,.0f} MB at about {each:,.0f} MB each, "
        f"got {engine.workers}; choose --workers {max(1, int(free // each))}"
    ]


def audit_problems(settings: Settings, model: torch.nn.Module) -> list[str]:
    """Refuse more canary users than the model has room for."""
    from clients.local_training import trainable

    return canary_problems(settings.privacy.audit, [p.numel() for p in trainable(model).values()])


def device_of(settings: Settings) -> str:
    """Name the device: the one that is asked for, or a GPU where torch finds one."""
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
        simulated=_simulated(privacy, users + privacy.audit),  # canaries are users
    )


def _simulated(privacy: PrivacySettings, users: int) -> SimulatedCohort | None:
    """Say what is drawn in place of the claim; None where the claim itself is drawn."""
    assert privacy.simulated_cohort is not None
    same = (users, privacy.simulated_cohort) == (privacy.population, privacy.cohort)
    if same and not privacy.virtual_users:
        return None
    return SimulatedCohort(users, privacy.simulated_cohort, privacy.virtual_users)
