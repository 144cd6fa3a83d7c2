"""Tell what is installed and what this machine offers."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = (
    "fedopt",
    "flwr",
    "torch",
    "torchaudio",
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


def run() -> int:
    """Print what is installed, what the machine offers, and which engine would be chosen."""
    import importlib.util
    import os

    for name, found in versions().items():
        print(f"{name:<14} {found}")
    print(f"{'cores':<14} {os.cpu_count()}")
    has_ray = importlib.util.find_spec("ray") is not None
    engine, why = ("ray", "Ray is installed") if has_ray else ("local", "Ray is not installed")
    print(f"{'engine':<14} {engine}: {why}")
    return 0
