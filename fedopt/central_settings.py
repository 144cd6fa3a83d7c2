"""Say which settings mean something in central training, keep them, and compare two trainings'."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedopt import run_directory
from fedopt.config import BYTES_UNCHANGED, Settings, users_hash
from privacy.errors import SettingsError

CENTRAL = "central"
USED = {
    "privacy": {"rounds"},
    "server": {"strategy", "server_lr", "hyperparameters"},
    "client": set[str](),
    "engine": {"device"},
}
"""Settings that mean something here; those of the tables task and run all do."""

_CHOSEN_BY_TASK = {"privacy": "rounds", "run": "eval_every"}
"""Kept only where they were set: their defaults say nothing of central steps."""

Tables = dict[str, dict[str, Any]]


def unused_settings(given: Mapping[str, Any]) -> list[str]:
    """Refuse settings that mean nothing in central training, all in one sentence.

    given: tables of what somebody wrote on the command line.
    """
    named = [
        f"{section}.{key}" if key == "hyperparameters" else key.replace("_", "-")
        for section, table in given.items()
        if section in USED and isinstance(table, dict)
        for key in table
        if key not in USED[section]
    ]
    if not named:
        return []
    return [
        f"strategy central trains without users and without privacy, got {', '.join(named)}; "
        "leave them out (rounds means optimizer steps there)"
    ]


def used_tables(settings: Settings) -> Tables:
    """Give the settings that meant something, so that nobody reads a plan into the others."""
    tables = settings.model_dump(mode="json", exclude_none=True)
    for section, name in _CHOSEN_BY_TASK.items():
        if name not in getattr(settings, section).model_fields_set:
            del tables[section][name]
    kept = {
        section: {
            key: value for key, value in table.items() if key in USED.get(section, set(table))
        }
        for section, table in tables.items()
    }
    return {section: table for section, table in kept.items() if table}


def training_hash(settings: Settings, users: Sequence[str]) -> str:
    """Hash the settings that change bytes, and the data users, to tell trainings apart."""
    text = json.dumps([_that_change_bytes(settings), users_hash(users)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def refuse_to_go_on(folder: Path, settings: Settings) -> None:
    """Refuse a run directory that is no interrupted central training of these settings.

    Raises: SettingsError naming the settings that differ, or what the directory is instead.
    """
    before = run_directory.load_settings(folder)
    if before.server.strategy != CENTRAL:
        raise SettingsError(
            f"resume with strategy central needs the directory of a central training, got "
            f"{str(folder)!r} of strategy {before.server.strategy}; correct --output"
        )
    if (folder / run_directory.CENTRAL_REPORT).exists():
        raise SettingsError(
            f"resume needs a training that was interrupted, got {str(folder)!r}, which is "
            f"finished; its results are in {run_directory.CENTRAL_REPORT}"
        )
    if changes := _changes(_that_change_bytes(before), _that_change_bytes(settings)):
        raise SettingsError(
            "resume needs the settings of the interrupted run, got changes in "
            f"{'; '.join(changes)}; leave them out or start a new run"
        )


def _that_change_bytes(settings: Settings) -> Tables:
    return {
        section: {
            key: value
            for key, value in table.items()
            if key not in BYTES_UNCHANGED.get(section, set())
        }
        for section, table in used_tables(settings).items()
    }


def _changes(before: Tables, after: Tables) -> list[str]:
    """Name what differs, old and new value; None where it is not set."""
    found = []
    for section in sorted(before.keys() | after.keys()):
        old, new = before.get(section, {}), after.get(section, {})
        found += [
            f"{key.replace('_', '-')} {old.get(key)!r} -> {new.get(key)!r}"
            for key in sorted(old.keys() | new.keys())
            if old.get(key) != new.get(key)
        ]
    return found
