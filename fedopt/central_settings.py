"""Say which settings mean something in central training, keep them, and compare two trainings'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedopt import run_directory
from fedopt.config import (
    Settings,
    Tables,
    changed_tables,
    refuse_changes,
    tables_hash,
    users_hash,
)
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
    return tables_hash(used_tables(settings), users_hash(users))


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
    refuse_changes(changed_tables(used_tables(before), used_tables(settings)))
