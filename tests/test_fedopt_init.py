"""Check the public names, what they import, and what happens where other packages hide ours."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import fedopt
from privacy.ledger import Ledger

PUBLIC = [
    "FedAdagrad",
    "FedAdam",
    "FedAvg",
    "FedAvgM",
    "FedLAMB",
    "FedLARS",
    "FedNovoGrad",
    "FedOptimizer",
    "FedYogi",
    "PrivacyPlan",
    "Task",
    "build_optimizer",
    "clip_update",
    "noise_share_mod",
    "per_layer_clip_mod",
    "private",
    "simulate",
]
OURS = ("clients", "experiments", "fedopt", "privacy", "strategies")
EXTRAS = ("ray", "torchaudio", "soundfile", "jiwer", "matplotlib", "jinja2", "pytorch_optimizer")

HIDE = """
import sys
class Hiding:
    def __init__(self, finder, hidden):
        self.finder, self.hidden = finder, hidden
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.hidden:
            return None
        return self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)
def hide(*names):
    sys.meta_path[:] = [Hiding(f, names) if hasattr(f, "find_spec") else f for f in sys.meta_path]
"""


def python(code: str, folder: Path) -> str:
    """Run code in a fresh interpreter whose own folder comes first on the path."""
    done = subprocess.run(
        [sys.executable, "-c", HIDE + code],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def package(folder: Path, name: str, **modules: str) -> Path:
    """Write a package of that name; returns where it lies."""
    place = folder / name
    place.mkdir()
    (place / "__init__.py").write_text("")
    for module, text in modules.items():
        (place / f"{module}.py").write_text(text)
    return place


def test_the_public_names_are_these() -> None:
    assert fedopt.__all__ == PUBLIC
    assert set(PUBLIC) <= set(dir(fedopt))
    for name in PUBLIC:
        assert getattr(fedopt, name).__name__ == name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'fedopt' has no attribute 'FedMagic'"):
        fedopt.FedMagic  # noqa: B018
    with pytest.raises(ImportError, match="FedMagic"):
        exec("from fedopt import FedMagic")


def test_importing_fedopt_imports_nothing_else(tmp_path: Path) -> None:
    code = f"import fedopt; print([n for n in {('torch', 'flwr', *OURS)!r} if n in sys.modules])"
    assert python(code, tmp_path).strip() == "['fedopt']"


def test_the_packages_that_a_name_needs_are_those_that_it_imports(tmp_path: Path) -> None:
    code = """
import json, fedopt
found = {}
for name in fedopt.__all__:
    for module in [m for m in sys.modules if m.partition(".")[0] in fedopt.FLOORS]:
        del sys.modules[module]
    getattr(fedopt, name)
    found[name] = [package for package in fedopt.FLOORS if package in sys.modules]
print(json.dumps(found))
"""
    found = json.loads(python(code, tmp_path))
    found["simulate"] = ["strategies", "clients", "privacy"]  # it imports the rest when called
    assert found == {name: list(fedopt.packages_of(name)) for name in PUBLIC}


def test_private_training_needs_no_extra_and_leaves_an_apps_experiments_alone(
    tmp_path: Path,
) -> None:
    package(tmp_path, "experiments", mine="value = 7")
    code = f"""
hide(*{EXTRAS!r})
sys.path.append({str(Path(__file__).parent)!r})
from flower_nodes import NodeGrid, adding_app, weights
import fedopt, experiments.mine, logging
logging.getLogger("flwr").setLevel("ERROR")
for name in fedopt.__all__:
    getattr(fedopt, name)
plan = fedopt.PrivacyPlan(population=100, cohort=20, rounds=2, delta=1e-5,
                          noise_multiplier=1.0, clip_norm=2.0)
app = adding_app(mods=[fedopt.noise_share_mod, fedopt.per_layer_clip_mod])
strategy = fedopt.FedNovoGrad(privacy=plan, checkpoint_dir="kept")
strategy.start(NodeGrid(app, 20), weights(2), num_rounds=2)
assert experiments.mine.value == 7
assert not [name for name in {EXTRAS!r} if name in sys.modules]
"""
    python(code, tmp_path)
    rows = Ledger.read(tmp_path / "kept" / "ledger.sqlite").rows()
    assert [(row.round, row.state) for row in rows] == [(1, "committed"), (2, "committed")]


def test_accounting_and_its_command_work_where_flower_is_absent(tmp_path: Path) -> None:
    code = """
hide("flwr", "ray", "matplotlib")
from fedopt import PrivacyPlan
plan = PrivacyPlan(population=1000, cohort=100, rounds=10, delta=1e-5,
                   noise_multiplier=1.0, clip_norm=1.0)
from fedopt.cli import main
print(plan.epsilon())
sys.exit(main(["budget", "--population", "1000", "--cohort", "100", "--rounds", "10",
               "--delta", "1e-5", "--noise-multiplier", "1", "--json"]))
"""
    epsilon, _, answer = python(code, tmp_path).partition("\n")
    plan = fedopt.PrivacyPlan(
        population=1000, cohort=100, rounds=10, delta=1e-5, noise_multiplier=1.0, clip_norm=1.0
    )
    assert float(epsilon) == plan.epsilon()
    assert json.loads(answer)["epsilon"] == plan.epsilon()


@pytest.mark.parametrize("foreign", fedopt.FLOORS)
def test_a_package_that_hides_ours_is_named_with_its_place_and_the_cure(
    foreign: str, tmp_path: Path
) -> None:
    place = package(tmp_path, foreign)
    needing = [name for name in PUBLIC if foreign in fedopt.packages_of(name)]
    code = f"""
import json, fedopt
said = {{}}
for name in {needing!r}:
    try:
        getattr(fedopt, name)
    except ImportError as problem:
        said[name] = str(problem)
print(json.dumps(said))
"""
    said = json.loads(python(code, tmp_path))
    assert list(said) == needing
    for sentence in said.values():
        assert sentence == (
            f"fedopt needs its own package {foreign!r}, but {place} comes first on the path; "
            "rename that one, or move the folder that holds it off the path"
        )


@pytest.mark.parametrize(
    ("foreign", "names"),
    [
        ("strategies", ["PrivacyPlan", "clip_update", "Task"]),
        ("clients", ["PrivacyPlan", "clip_update", "build_optimizer"]),
    ],
)
def test_names_that_do_not_need_the_hidden_package_still_work(
    foreign: str, names: list[str], tmp_path: Path
) -> None:
    package(tmp_path, foreign)
    python(f"from fedopt import {', '.join(names)}", tmp_path)


def test_a_module_that_hides_our_package_is_named_by_its_file(tmp_path: Path) -> None:
    (tmp_path / "clients.py").write_text("")
    code = """
try:
    from fedopt import Task
except ImportError as problem:
    print(problem)
"""
    assert f"{tmp_path / 'clients.py'} comes first on the path" in python(code, tmp_path)
