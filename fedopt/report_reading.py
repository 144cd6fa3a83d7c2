"""Read a report and its schema, and refuse what is damaged or newer."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fedopt.report_schema import PrivacyReport
from privacy.errors import SettingsError

SCHEMA_FILE = "privacy-report.schema.json"
SCHEMA_VERSION = 1


def read_report(path: Path) -> dict[str, Any]:
    """Read privacy-report.json; raises SettingsError where it is missing, damaged or newer."""
    return check_report(read_json(path), path.name)


def read_json(path: Path) -> Any:
    """Read a JSON file of a run; raises SettingsError where it is missing or no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise SettingsError(
            f"run must hold a readable {path.name}, got {problem.strerror}; "
            "make it with fedopt report RUN"
        ) from problem
    except ValueError as problem:
        raise SettingsError(
            f"{path.name} must be JSON, got an error: {problem}; "
            "make it again with fedopt report RUN"
        ) from problem


def check_report(report: Any, name: str = "privacy-report.json") -> dict[str, Any]:
    """Check a report that was read from JSON, and give it back.

    Raises: SettingsError with every key that is missing, unknown or of the wrong kind, or with
    one sentence where the schema is newer.
    """
    if not isinstance(report, dict):
        raise SettingsError(f"{name} must be a JSON object, got {type(report).__name__}")
    refuse_newer(report, name)
    try:
        PrivacyReport.model_validate(report)
    except ValidationError as problem:
        raise SettingsError(
            [
                f"{name}: {'.'.join(map(str, error['loc']))} does not fit the schema: "
                f"{error['msg'].lower()}; the file was changed or damaged"
                for error in problem.errors()
            ]
        ) from None
    return report


def refuse_newer(report: Any, name: str) -> None:
    """Raise SettingsError where a report has a newer schema than this program knows."""
    version = report.get("schema_version") if isinstance(report, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise SettingsError(
            f"{name} must have schema version {SCHEMA_VERSION}, got {version}; "
            "it was written by a newer fedopt, so use that one"
        )


def refuse_newer_file(path: Path) -> None:
    """Raise SettingsError where a file holds a report of a newer schema; others may be replaced."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    refuse_newer(found, path.name)


def json_schema() -> str:
    """Write the JSON Schema of the report, as it is shipped."""
    return json.dumps(PrivacyReport.model_json_schema(), indent=1) + "\n"


def shipped_schema() -> dict[str, Any]:
    """Read the JSON Schema that the package ships."""
    text = resources.files("fedopt").joinpath(SCHEMA_FILE).read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema
