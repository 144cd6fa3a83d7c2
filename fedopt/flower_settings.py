"""Read settings from a Flower run config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedopt import config
from privacy.errors import SettingsError


def flower_settings(values: Mapping[str, Any]) -> config.Settings:
    """Read settings from a Flower run config: flat keys with the words of the flags.

    Raises: SettingsError with every unknown key and bad value; Flower itself checks no types.
    """
    tables: dict[str, dict[str, Any]] = {}
    problems = []
    for key, value in values.items():
        name = key.replace("-", "_")
        section = config.section_of(name)
        if section is None:
            problems.append(f"{key} is not a setting; {config.suggestion(name)}")
        elif value != "":
            tables.setdefault(section, {})[name] = value
    if problems:
        raise SettingsError(problems)
    return config.build_settings(tables)
