"""Keep a run's files together: settings, provenance, model, and the lock on the folder."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedopt.config import Settings, build_settings
from fedopt.weights import model_metadata
from privacy.errors import FedOptError, SettingsError

if TYPE_CHECKING:
    import torch

CONFIG, PROVENANCE, ROUNDS, LEDGER, MODEL = (
    "config.toml",
    "provenance.json",
    "rounds.jsonl",
    "ledger.sqlite",
    "model.safetensors",
)
CHECKPOINTS = "checkpoints"
LOCK, PARTIAL = ".lock", ".partial"
AUDIT = "audit.json"
FINDINGS = "data-findings.jsonl"
REPORT_JSON, REPORT_HTML = "privacy-report.json", "privacy-report.html"
STEPS, CENTRAL_REPORT = "steps.jsonl", "central-report.json"
"""Of a central training, in place of rounds and privacy report."""


def write_text(path: Path, text: str) -> None:
    """Write a file beside and rename it, so that nobody ever reads half of it."""
    partial = path.with_name(path.name + PARTIAL)
    with partial.open("w", encoding="utf-8") as opened:
        opened.write(text)
        opened.flush()
        os.fsync(opened.fileno())
    os.replace(partial, path)


def write_config(folder: Path, settings: Settings) -> None:
    """Write the effective settings as TOML; settings that are not set are left out."""
    write_tables(folder / CONFIG, settings.model_dump(mode="json", exclude_none=True))


def write_tables(path: Path, tables: Mapping[str, Any]) -> None:
    """Write tables of settings as TOML."""
    import tomli_w

    write_text(path, tomli_w.dumps(tables))


def read_config(path: Path) -> dict[str, dict[str, Any]]:
    """Read settings from a TOML file; raises SettingsError where it is missing or malformed."""
    try:
        with path.open("rb") as opened:
            return tomllib.load(opened)
    except OSError as problem:
        raise SettingsError(
            f"config {str(path)!r} must be a readable TOML file, got {problem.strerror}"
        ) from problem
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise SettingsError(
            f"config {str(path)!r} must be TOML, got an error: {problem}"
        ) from problem


def load_settings(folder: Path) -> Settings:
    """Read the effective settings of a run directory."""
    return build_settings(read_config(folder / CONFIG))


def write_provenance(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write who ran what, when, with which versions."""
    write_text(folder / PROVENANCE, json.dumps(facts, indent=2) + "\n")


def read_provenance(folder: Path) -> dict[str, Any]:
    """Read the provenance of a run directory; raises SettingsError where it is damaged."""
    try:
        facts: dict[str, Any] = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise SettingsError(
            f"{PROVENANCE} of {folder.name!r} must be readable JSON, got {problem}; "
            "is this a run directory?"
        ) from problem
    return facts


def write_model(
    folder: Path,
    weights: Mapping[str, torch.Tensor],
    signature: Mapping[str, str] | None = None,
) -> None:
    """Write the final weights as safetensors, and the signature of their task where it has one."""
    from safetensors.torch import save_file

    partial = folder / (MODEL + PARTIAL)
    tensors = {name: tensor.contiguous() for name, tensor in weights.items()}
    save_file(tensors, partial, metadata=model_metadata(signature or {}))
    os.replace(partial, folder / MODEL)


def file_digest(path: Path) -> str | None:
    """Hash a file with SHA-256; None where there is none."""
    if not path.is_file():
        return None
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def is_run(folder: Path) -> bool:
    """Tell whether a folder holds a run."""
    return (folder / CONFIG).is_file()


def foreign_files(folder: Path) -> list[str]:
    """List what a folder holds besides the beginning of a run that never was one."""
    if not folder.exists():
        return []
    begun = {LOCK, PROVENANCE, PROVENANCE + PARTIAL, CONFIG + PARTIAL}
    return sorted({found.name for found in folder.iterdir()} - begun)


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[None]:
    """Make and hold the run directory; a new one is removed again where its run is refused.

    A run is refused by an error of ours before its first row is written.
    Raises: SettingsError where the folder cannot be made, or a living run holds it.
    """
    fresh = not is_run(folder)
    made = [place for place in (folder, *folder.absolute().parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise SettingsError(
            f"output {str(folder)!r} cannot be made ({problem.strerror}); choose another --output"
        ) from problem
    with locked(folder):
        try:
            yield
        except FedOptError:
            if fresh and not _has_rows(folder):
                _clear(folder, made)
            raise


def _has_rows(folder: Path) -> bool:
    logs = (folder / ROUNDS, folder / STEPS)
    return any(log.exists() and log.stat().st_size for log in logs)


def _clear(folder: Path, made: Sequence[Path]) -> None:
    """Remove the beginning of a run, and the folders that were made for it and are empty."""
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    for name in (CONFIG, PROVENANCE, ROUNDS, STEPS, LEDGER, FINDINGS, LOCK):
        (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        for place in made:
            place.rmdir()


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run directory alone; raises SettingsError while a living run holds it."""
    with (folder / LOCK).open("w") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as problem:
            raise SettingsError(
                f"output {str(folder)!r} is in use by a running training; "
                "wait for it or choose another --output"
            ) from problem
        yield
