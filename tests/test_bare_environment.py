"""Run fedopt in an environment that holds its core dependencies and nothing else.

The environment is a new venv into which only what the declared core requirements lead to is
linked from this one, so a dependency that is used and not declared is missed here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

EXTRAS = (
    "ray",
    "torchaudio",
    "soundfile",
    "jiwer",
    "flashlight",
    "matplotlib",
    "pytorch_optimizer",
)

TRAIN = """
import importlib.util, logging, sys
absent = [name for name in sys.argv[2:] if importlib.util.find_spec(name) is None]
assert absent == sys.argv[2:], f"only {absent} are absent"
sys.path.append(sys.argv[1])
from flower_nodes import NodeGrid, adding_app, weights
import fedopt
logging.getLogger("flwr").setLevel("ERROR")
for name in fedopt.__all__:
    getattr(fedopt, name)
plan = fedopt.PrivacyPlan(population=100, cohort=20, rounds=2, delta=1e-5,
                          noise_multiplier=1.0, clip_norm=2.0)
app = adding_app(mods=[fedopt.noise_share_mod, fedopt.per_layer_clip_mod])
strategy = fedopt.FedNovoGrad(privacy=plan, output_dir="plug-in")
strategy.start(NodeGrid(app, 20), weights(2), num_rounds=2)
"""
CLASSIFICATION = (
    "--task experiments.classification.task:task --population 1000 --cohort 20 --rounds 2 "
    "--simulated-cohort 10 --noise-multiplier 1 --delta 1e-5 --quiet"
)


def core_distributions() -> dict[str, Distribution]:
    """Follow the requirements of fedopt, without its extras, to every distribution they need."""
    found: dict[str, Distribution] = {}
    waiting: list[tuple[str, frozenset[str]]] = [("fedopt", frozenset())]
    seen = set(waiting)
    while waiting:
        name, extras = waiting.pop()
        found[name] = distribution(name)
        for line in found[name].requires or []:
            wanted = Requirement(line)
            cases = [{"extra": extra} for extra in ("", *extras)]
            if wanted.marker is not None and not any(map(wanted.marker.evaluate, cases)):
                continue
            step = (canonicalize_name(wanted.name), frozenset(wanted.extras))
            if step not in seen:
                seen.add(step)
                waiting.append(step)
    return found


def link(found: Distribution, site: Path) -> None:
    """Link what a distribution has put into site-packages."""
    origin = Path(str(found.locate_file("")))
    for top in {file.parts[0] for file in found.files or []} - {"..", "__pycache__"}:
        if not (site / top).exists():
            (site / top).symlink_to(origin / top)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the interpreter of an environment without any extra."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for found in core_distributions().values():
        link(found, folder / "lib" / version / "site-packages")
    return folder / "bin" / "python"


def run(bare: Path, folder: Path, *arguments: str) -> str:
    """Run the bare interpreter on its own; returns what it prints."""
    quiet = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_HOME": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(bare), *arguments],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(folder)} | quiet,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def command(bare: Path, folder: Path, line: str) -> str:
    """Run a command of fedopt."""
    return run(bare, folder, "-c", "from fedopt.cli import console; console()", *line.split())


@pytest.mark.slow
def test_a_plug_in_training_writes_its_report_without_any_extra(bare: Path, tmp_path: Path) -> None:
    run(bare, tmp_path, "-c", TRAIN, str(Path(__file__).parent), *EXTRAS)
    report = json.loads((tmp_path / "plug-in" / "privacy-report.json").read_text())
    assert report["accounting"]["rounds_charged"] == 2
    assert "verified" in command(bare, tmp_path, "report plug-in --verify")


@pytest.mark.slow
def test_the_command_trains_in_one_process_where_ray_is_absent(bare: Path, tmp_path: Path) -> None:
    command(bare, tmp_path, f"run {CLASSIFICATION} --output run")
    lines = (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == [0, 1, 2]
    assert 'engine = "local"' in (tmp_path / "run" / "config.toml").read_text()


@pytest.mark.slow
def test_the_budget_is_answered_without_any_extra(bare: Path, tmp_path: Path) -> None:
    line = "budget --population 1000 --cohort 100 --rounds 10 --delta 1e-5 --noise-multiplier 1"
    assert json.loads(command(bare, tmp_path, f"{line} --json"))["epsilon"] > 0
