"""Hold every setting of a run, validated once, all mistakes at once.

Settings come from defaults, a preset or a TOML file, the run directory on resume, flags and
--set, each later one winning. A flag, its field here and its row in the report share one word.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from privacy.errors import SettingsError

Tables = dict[str, dict[str, Any]]
"""Settings as plain values: by section, then by name."""

SPEECH_TASK = "experiments.asr.task:task"
Strategy = Literal[
    "fedavg",
    "fedavgm",
    "fedadagrad",
    "fedadam",
    "fedyogi",
    "fednovograd",
    "fedlamb",
    "fedlars",
    "central",
    "own",
]
DEFAULT_EPSILON = 8.0


class Section(BaseModel):
    """Hold one table of the settings; frozen, unknown keys refused, NaN and infinity refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _read_number(cls, value: Any) -> Any:
        """Read 1e6 and 1_000_000 as whole numbers, wherever they are written as text."""
        if not isinstance(value, str):
            return value
        try:
            number = float(value.replace("_", ""))
        except ValueError:
            return value
        # Whole text stays text for fields of words; pydantic turns it into a number where due.
        whole = number.is_integer() and abs(number) < 2**63
        return str(int(number)) if whole else value.replace("_", "")


class PrivacySettings(Section):
    """State what is claimed, what is simulated, and how it is accounted."""

    population: int = Field(1_000_000, ge=1, description="claimed number of users N")
    cohort: int = Field(5_000, ge=1, description="claimed expected users per round m")
    simulated_cohort: int | None = Field(
        None,
        ge=1,
        description="expected users really trained per round (default: min(8, data users))",
    )
    virtual_users: bool = Field(
        False, description="draw ids from the whole population; several ids share one user's data"
    )
    rounds: int = Field(70, ge=1, le=10**7, description="rounds to train; each is one release")
    epsilon: float | None = Field(
        None,
        gt=0,
        description="alone: solve the noise for it (default 8); with --noise-multiplier: a ceiling",
    )
    noise_multiplier: float | None = Field(
        None, ge=0, description="noise std on the sum / clip norm; 0: not private"
    )
    delta: float = Field(1e-8, gt=0, lt=1, description="delta of the guarantee")
    clip_norm: float = Field(1.0, ge=1e-20, le=1e20, description="bound C on a user's update")
    clipping: Literal[
        "global", "per-layer-uniform", "per-layer-dim", "normalise-uniform", "normalise-dim"
    ] = Field("per-layer-dim", description="how the bound is shared among layers")
    sampling: Literal["poisson", "fixed", "everyone"] = Field(
        "poisson", description="how a cohort is drawn"
    )
    cohort_cap: int | None = Field(None, ge=1, description="largest Poisson cohort that is trained")
    noise_placement: Literal["clients", "server"] = Field(
        "clients", description="who adds the noise"
    )
    randomness: Literal["reproducible", "secure"] = Field(
        "reproducible", description="noise and cohorts from the seed, or from the system in secret"
    )
    accountant: Literal["rdp", "pld"] = Field("rdp", description="accountant that is quoted")
    ledger: str | None = Field(
        None, description="ledger file shared by several runs (default: one in the output)"
    )
    audit: int = Field(
        0,
        ge=0,
        le=10**6,
        description="canary users added to measure a lower bound of epsilon; 0: none",
    )


class ServerSettings(Section):
    """State what the server does with a round."""

    strategy: Strategy = Field(
        "fedadam", description="server strategy; central: no users, rounds are steps"
    )
    server_lr: float | None = Field(
        None, gt=0, description="server learning rate (default: the strategy's)"
    )
    schedule: Literal["constant", "exponential", "step", "cosine", "linear"] = Field(
        "constant", description="how the server rate changes over the rounds"
    )
    schedule_options: dict[str, float] = Field(default_factory=dict, description="of the schedule")
    warmup_rounds: int = Field(0, ge=0, description="rounds of linear warmup of the server rate")
    hyperparameters: dict[str, float | bool | str] = Field(
        default_factory=dict, description="further settings of the server optimizer"
    )


class ClientSettings(Section):
    """State how one user is trained."""

    client_lr: float = Field(0.5, gt=0, description="SGD rate of local training")
    local_steps: int = Field(7, ge=0, description="batches per user and round; 0: whole epochs")
    local_epochs: int = Field(1, ge=1, description="epochs per user where local steps is 0")
    gradient_clip: float = Field(1.0, ge=0, description="bound on a local gradient's norm; 0: none")
    momentum: float = Field(0.0, ge=0, lt=1, description="of local SGD")
    weight_decay: float = Field(0.0, ge=0, description="of local SGD")
    proximal: float = Field(0.0, ge=0, description="FedProx mu")
    user_seconds: float = Field(
        0.0, ge=0, description="deadline of one user; 0: the engine's timeout alone"
    )
    users_at_once: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="users of a small model trained together in a stack; 1: one by one "
        "(default: measured before the run)",
    )


class TaskSettings(Section):
    """State what is learned, from which data."""

    task: str = Field(SPEECH_TASK, description="MODULE:NAME that builds the task")
    dataset: str | None = Field(None, description="synthetic, librispeech, common-voice (speech)")
    data_root: str | None = Field(None, description="folder that holds the corpus")
    model: str | None = Field(None, description="name of the model (speech task: tiny, ...)")
    init_from: str | None = Field(None, description="safetensors file with the first weights")
    options: dict[str, Any] = Field(default_factory=dict, description="further options of the task")


class EngineSettings(Section):
    """State where the work is done."""

    engine: Literal["auto", "local", "ray", "flower"] = Field(
        "auto", description="ray: several processes (default where installed); local: this one"
    )
    workers: int = Field(2, ge=1, le=1024, description="worker processes of the ray engine")
    ray_address: str | None = Field(None, description="existing Ray cluster to join")
    device: str = Field("auto", description="auto, cpu, cuda")
    worker_megabytes: float | None = Field(
        None,
        ge=0,
        description="memory a worker's users may take; 0: no limit (default: its share of what is "
        "free)",
    )
    timeout: float = Field(3600.0, gt=0, description="seconds a worker may take for a message")


class RunSettings(Section):
    """State what the run reports and where."""

    eval_every: int = Field(5, ge=1, description="rounds between evaluations")
    seed: int = Field(1, ge=0, lt=2**63, description="seed of everything that is repeatable")


class Settings(Section):
    """Hold all settings of a run."""

    privacy: PrivacySettings = Field(default_factory=PrivacySettings)
    server: ServerSettings = Field(default_factory=ServerSettings)
    client: ClientSettings = Field(default_factory=ClientSettings)
    task: TaskSettings = Field(default_factory=TaskSettings)
    engine: EngineSettings = Field(default_factory=EngineSettings)
    run: RunSettings = Field(default_factory=RunSettings)


def sections() -> dict[str, type[Section]]:
    """List the tables of the settings by name."""
    return {name: field.annotation for name, field in Settings.model_fields.items()}  # type: ignore[misc]


def section_of(name: str) -> str | None:
    """Find the table that holds a field; field names are unique over all tables."""
    return next((s for s, kind in sections().items() if name in kind.model_fields), None)


def build_settings(values: dict[str, dict[str, Any]]) -> Settings:
    """Validate settings given as tables; raises SettingsError with every mistake."""
    try:
        return Settings.model_validate(values)
    except ValidationError as problem:
        raise SettingsError([sentence(error) for error in problem.errors()]) from None


def without_mistakes(values: dict[str, dict[str, Any]]) -> tuple[Settings, set[str]]:
    """Build settings from what is right in the tables, so that the rest can be checked too.

    Returns: the settings, and the flags of the fields that were left out.
    """
    try:
        return Settings.model_validate(values), set()
    except ValidationError as problem:
        wrong = {error["loc"][:2] for error in problem.errors()}
    kept = {
        section: {key: value for key, value in table.items() if (section, key) not in wrong}
        for section, table in values.items()
        if (section,) not in wrong and section in Settings.model_fields
    }
    flags = {str(place[-1]).replace("_", "-") for place in wrong}
    return Settings.model_validate(kept), flags


def sentence(error: Any) -> str:
    """Turn one of pydantic's errors into: what must be what, what was got, what to do."""
    name = str(error["loc"][-1] if error["loc"] else "settings")
    if len(error["loc"]) > 2 and str(error["loc"][1]) != name:
        name = f"{error['loc'][1]}.{name}"
    flag = name.replace("_", "-")
    if error["type"] == "extra_forbidden":
        return f"{flag} is not a setting; {suggestion(name)}"
    context = error.get("ctx", {})
    wanted = {
        "int_parsing": "a whole number",
        "int_from_float": "a whole number",
        "int_type": "a whole number",
        "float_parsing": "a number",
        "float_type": "a number",
        "finite_number": "a finite number",
        "bool_parsing": "true or false",
        "literal_error": f"one of {context.get('expected', '')}",
        "greater_than": f"> {context.get('gt')}",
        "greater_than_equal": f">= {context.get('ge')}",
        "less_than": f"< {context.get('lt')}",
        "less_than_equal": f"<= {context.get('le')}",
    }.get(error["type"], error["msg"])
    return f"{flag} must be {wanted}, got {error['input']!r}; see fedopt run --help"


def suggestion(name: str) -> str:
    """Name the setting that a mistyped one resembles most."""
    import difflib

    known = [field for kind in sections().values() for field in kind.model_fields]
    near = difflib.get_close_matches(name.replace("-", "_"), known, n=1)
    return f"did you mean {near[0].replace('_', '-')}?" if near else "see fedopt run --help"


def choices(name: str) -> tuple[str, ...]:
    """List the words a field allows; empty where it is free."""
    section = section_of(name)
    annotation = sections()[section].model_fields[name].annotation if section else None
    return tuple(str(word) for word in get_args(annotation) if isinstance(word, str))


BYTES_UNCHANGED = {
    "privacy": {"epsilon", "accountant", "ledger"},
    "task": {"data_root"},
    "engine": {"engine", "workers", "ray_address", "timeout", "worker_megabytes"},
    "run": {"eval_every"},
}
"""Settings that leave every byte of the model as it is; all others key the random streams."""


def users_hash(users: Sequence[str]) -> str:
    """Hash the list of data users, so that it can be compared without being kept."""
    return hashlib.sha256(json.dumps(list(users)).encode()).hexdigest()


def settings_hash(settings: Settings, users: str) -> str:
    """Hash the settings that change bytes, and the list of data users.

    users: their `users_hash`. Two runs share random streams only where their hashes and seeds are
    equal, so this is what keeps two different runs from sharing noise; it also tells whether a run
    may be resumed.
    """
    return tables_hash(settings.model_dump(mode="json"), users)


def tables_hash(tables: Tables, users: str) -> str:
    """Hash what changes bytes of settings as tables by section, and the data users' hash."""
    text = json.dumps([_that_change_bytes(tables), users], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _that_change_bytes(tables: Tables) -> Tables:
    return {
        section: {
            key: value
            for key, value in table.items()
            if key not in BYTES_UNCHANGED.get(section, set())
        }
        for section, table in tables.items()
    }


def changed_settings(old: Settings, new: Settings) -> list[str]:
    """Name the settings that change bytes and differ between two runs, old and new value."""
    return changed_tables(old.model_dump(mode="json"), new.model_dump(mode="json"))


def changed_tables(old: Tables, new: Tables) -> list[str]:
    """Name what changes bytes and differs between tables by section; None where it is not set."""
    before, after = _that_change_bytes(old), _that_change_bytes(new)
    found = []
    for section in before | after:
        was, now = before.get(section, {}), after.get(section, {})
        found += [
            f"{key.replace('_', '-')} {was.get(key)!r} -> {now.get(key)!r}"
            for key in was | now
            if was.get(key) != now.get(key)
        ]
    return found


def refuse_changes(changes: Sequence[str]) -> None:
    """Refuse to go on with a run under other settings; raises SettingsError where there are any."""
    if changes:
        raise SettingsError(
            "resume needs the settings of the interrupted run, got changes in "
            f"{'; '.join(changes)}; leave them out or start a new run"
        )
