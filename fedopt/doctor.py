"""Tell what is installed, what this machine offers, and what stands in the way of a run."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fedopt import machine

KNOWN_FLOWER = "1.41."
NEEDED = ("flwr", "torch", "numpy", "opacus", "dp-accounting", "safetensors")
SMALL_SHARED_MEGABYTES = 200.0
PACKAGES = (
    "fedopt",
    "flwr",
    "torch",
    "torchaudio",
    "flashlight-text",
    "numpy",
    "opacus",
    "dp-accounting",
    "ray",
    "safetensors",
)


def versions() -> dict[str, str]:
    """List the versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """Give the git commit of the source tree this module lies in; None outside one."""
    folder = Path(__file__).resolve().parent.parent
    if not (folder / ".git").exists():
        return None
    asked = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=False
    )
    return asked.stdout.strip() or None


def findings() -> tuple[list[tuple[str, str]], list[str], list[str]]:
    """Examine the installation: rows to show, problems that stop a run, and hints."""
    from fedopt.planning import engine_choice

    found = versions()
    engine, why = engine_choice()
    rows = list(found.items())
    rows += [
        ("cores", str(machine.cores())),
        ("memory", f"{machine.available_megabytes():,.0f} MB free"),
        ("shared memory", f"{shared_megabytes():,.0f} MB free for Ray's object store"),
    ]
    problems = installation_problems(found)
    gpus = [] if problems else machine.gpu_names()
    rows += [("GPU", name) for name in gpus] or [("GPU", "none that torch can use; device cpu")]
    rows.append(("engine", f"{engine}: {why}"))
    return rows, problems, hints(found, gpus)


def installation_problems(found: Mapping[str, str]) -> list[str]:
    """List what is missing or does not fit together, one sentence each."""
    missing = [name for name in NEEDED if name not in found]
    problems = [f"{name} is missing; run pip install fedopt" for name in missing]
    if "flwr" in found and not found["flwr"].startswith(KNOWN_FLOWER):
        problems.append(
            f"flwr must be {KNOWN_FLOWER}x, got {found['flwr']}; "
            f"run pip install 'flwr>={KNOWN_FLOWER}0,<1.42'"
        )
    pair = [found.get(name, "").split(".")[:2] for name in ("torch", "torchaudio")]
    if "torchaudio" in found and pair[0] != pair[1]:
        problems.append(
            f"torchaudio {found['torchaudio']} does not import with torch {found['torch']}; "
            "install both in one version"
        )
    return problems


def hints(found: Mapping[str, str], gpus: Sequence[str]) -> list[str]:
    """Say what would make runs possible or faster here."""
    told = []
    if "ray" not in found:
        told.append('several processes need Ray: pip install "fedopt[ray]"')
    elif shared_megabytes() < SMALL_SHARED_MEGABYTES:
        told.append(
            f"/dev/shm has {shared_megabytes():,.0f} MB free; Ray will use slower files in /tmp"
        )
    if "torchaudio" not in found:
        told.append('the speech task needs torchaudio: pip install "fedopt[speech]"')
    if "ray" in found and not gpus:
        most = min(machine.cores(), int(machine.available_megabytes() // 1000) or 1)
        told.append(f"this machine has room for --workers {most}")
    if len(gpus) > 1:
        told.append(f"{len(gpus)} GPUs are shared out among --workers; try one worker for each")
    return told


def shared_megabytes() -> float:
    """Measure what is free in the memory that processes share."""
    try:
        return shutil.disk_usage("/dev/shm").free / 1e6
    except OSError:
        return 0.0


def run() -> int:
    """Print what is installed, what the machine offers, and which engine would be chosen."""
    rows, problems, told = findings()
    for name, value in rows:
        print(f"{name:<16} {value}")
    for hint in told:
        print(f"{'hint':<16} {hint}")
    for problem in problems:
        print(f"{'problem':<16} {problem}")
    return 2 if problems else 0
