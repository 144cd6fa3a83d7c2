"""Run both Flower Apps under Flower's own runtime: simulated, and deployed with a node killed.

Each test has a Flower home of its own. Whatever runs with that home is ours, and is ended by its
own process id.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from privacy.ledger import Ledger
from strategies.checkpoint import read_file

APP = Path(__file__).parent.parent / "experiments" / "flower_app"
BIN = Path(sys.executable).parent
PATIENCE = 900.0
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
}


class Flower:
    """Start Flower's commands under one home, and end what they leave."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.started: list[subprocess.Popen[bytes]] = []
        self.port = free_port()
        self.environment = os.environ | QUIET | {
            "FLWR_HOME": str(home),
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        }  # fmt: skip
        home.mkdir()
        link = f'address = "127.0.0.1:{self.port}"\ninsecure = true\n'
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "test"\n\n[superlink.test]\n{link}'
        )

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """Start a process that stays; its output goes to a file in the home."""
        with (self.home / "log.txt").open("ab") as log:
            process = subprocess.Popen(
                [str(BIN / command[0]), *command[1:]],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.started.append(process)
        return process

    def superlink(self, *more: str) -> None:
        """Start the SuperLink and wait until it listens."""
        where = ("--insecure", "--host", "127.0.0.1", "--port", str(self.port))
        process = self.start("flower-superlink", *where, *more)
        wait_for(lambda: process.poll() is not None or listening(self.port), "the SuperLink")
        assert process.poll() is None, self.log()

    def supernode(self, number: int, of: int) -> subprocess.Popen[bytes]:
        """Start one SuperNode with a partition of its own."""
        return self.start(
            "flower-supernode",
            "--insecure",
            *("--superlink", f"127.0.0.1:{self.port}", "--port", str(free_port())),
            *("--node-config", f"partition-id={number} num-partitions={of}"),
        )

    def run(self, app: Path, config: dict[str, object], nodes: int | None = None) -> None:
        """Submit an app; it runs on after the command has ended."""
        pairs = " ".join(f"{key}={json.dumps(value)}" for key, value in config.items())
        command = [str(BIN / "flwr"), "run", str(app), "test", "-c", pairs]
        if nodes is not None:
            sizes = f"num-supernodes={nodes} client-resources-num-cpus=1"
            command += ["--federation-config", sizes]
        subprocess.run(command, env=self.environment, check=True, capture_output=True, timeout=300)

    def status(self) -> str:
        """Tell the status of the newest run; exit codes of `flwr run` do not tell it."""
        command = [str(BIN / "flwr"), "ls", "test", "--format", "json"]
        listed = subprocess.run(
            command, env=self.environment, check=True, capture_output=True, timeout=300
        )
        return str(json.loads(listed.stdout)["runs"][0]["status"])

    def connected(self) -> int:
        """Count the SuperNodes that are online."""
        command = [str(BIN / "flwr"), "supernode", "list", "test", "--format", "json"]
        listed = subprocess.run(
            command, env=self.environment, check=True, capture_output=True, timeout=300
        )
        return sum(node["status"] == "online" for node in json.loads(listed.stdout)["nodes"])

    def finish(self) -> None:
        """Wait until the run has ended, and insist that it ended well."""
        wait_for(lambda: self.status().startswith("finished"), "the run to finish", every=8.0)
        assert self.status() == "finished:completed", self.log()

    def log(self) -> str:
        """Give the end of what the processes printed."""
        return (self.home / "log.txt").read_text(errors="replace")[-6000:]

    def end(self) -> None:
        """End every process that has our home in its environment, each by its id."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in self.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            deadline = time.monotonic() + 10
            while self.processes() and time.monotonic() < deadline:
                time.sleep(0.2)

    def processes(self) -> list[int]:
        """List the processes of this home that have not ended."""
        for process in self.started:
            process.poll()
        mark = f"FLWR_HOME={self.home}".encode()
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
        return found


def free_port() -> int:
    """Find a port on the loopback that nobody uses."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def listening(port: int) -> bool:
    """Tell whether somebody listens on the loopback."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(condition: Callable[[], bool], what: str, every: float = 0.5) -> None:
    """Wait until the condition holds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited too long for {what}"
        time.sleep(every)


@pytest.fixture
def flower(tmp_path: Path) -> Iterator[Flower]:
    """Give a Flower home, and leave no process behind."""
    started = Flower(tmp_path / "home")
    try:
        yield started
    finally:
        started.end()
        assert started.processes() == []


def rows(folder: Path) -> list[dict[str, object]]:
    """Read the rounds that are visible so far."""
    path = folder / "rounds.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def assert_verified(folder: Path) -> None:
    """Let the command check the report of a run directory."""
    command = [str(BIN / "fedopt"), "report", str(folder), "--verify"]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "verified" in checked.stdout


@pytest.mark.slow
def test_flowers_runtime_gives_the_bytes_of_the_local_engine(
    flower: Flower, tmp_path: Path
) -> None:
    task = "experiments.classification.task:task"
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    flower.superlink("--simulation")
    flower.run(APP, {"task": task, "rounds": 3, "output": str(theirs)}, nodes=2)
    same = (
        "--population 1000000 --cohort 5000 --rounds 3 --epsilon 8 --delta 1e-8 "
        f"--strategy fedadam --workers 2 --seed 1 --device cpu --engine local --task {task}"
    )
    command = [str(BIN / "fedopt"), "run", *same.split(), "--output", str(ours)]
    subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE)
    flower.finish()
    model = "model.safetensors"
    assert (theirs / model).read_bytes() == (ours / model).read_bytes()
    digests = {Ledger.read(folder / "ledger.sqlite").digest() for folder in (theirs, ours)}
    assert len(digests) == 1
    assert_verified(theirs)


@pytest.mark.slow
def test_the_plug_in_app_runs_in_flowers_simulation(flower: Flower, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    flower.superlink("--simulation")
    flower.run(APP / "plug_in", {"rounds": 2, "output": str(folder)}, nodes=5)
    flower.finish()
    assert [row["round"] for row in rows(folder)] == [0, 1, 2]
    assert_verified(folder)


@pytest.mark.slow
def test_a_killed_supernode_costs_neither_round_nor_noise_nor_charge(
    flower: Flower, tmp_path: Path
) -> None:
    folder, rounds = tmp_path / "run", 5
    flower.superlink()
    nodes = [flower.supernode(number, of=3) for number in range(3)]
    # All three nodes are drawn every round, and nobody moves the model: a release is noise alone.
    config = {"rounds": rounds, "population": 3, "cohort": 3, "learning-rate": 0.0}
    wait_for(lambda: flower.connected() == 3, "three nodes", every=2.0)
    flower.run(APP / "plug_in", config | {"output": str(folder)})
    wait_for(lambda: bool(rows(folder)) and rows(folder)[-1]["round"] == 2, "round 2", every=0.1)
    os.kill(nodes[0].pid, signal.SIGKILL)
    nodes[0].wait()
    flower.finish()

    visible = rows(folder)
    assert [row["round"] for row in visible] == list(range(rounds + 1))
    assert any(row["replies"] < row["cohort"] for row in visible[3:])  # type: ignore[operator]
    assert all(row["replies"] == 2 for row in visible[4:])
    charges = Ledger.read(folder / "ledger.sqlite").rows()
    assert [(row.round, row.attempt, row.state) for row in charges] == [
        (number, 0, "committed") for number in range(1, rounds + 1)
    ]
    measured = noise_of_the_last_round(folder, beta_2=0.98)
    # 740 coordinates: the standard error is 2.6 %; without the lost third it would be 18 % less.
    assert measured == pytest.approx(float(visible[-1]["noise_std"]), rel=0.12)  # type: ignore[arg-type]
    assert_verified(folder)


def noise_of_the_last_round(folder: Path, beta_2: float) -> float:
    """Solve v = beta_2 v_before + (1 - beta_2) |update|^2 for the deviation of a pure-noise update.

    NovoGrad keeps one v for each layer, and the last two checkpoints are there.
    """
    before, last = (
        read_file(path) for path in sorted((folder / "checkpoints").glob("round-*.safetensors"))
    )
    assert last.round == before.round + 1
    energy = sum(
        (state["v"] - beta_2 * before.optimizer["state"][index]["v"]) / (1 - beta_2)
        for index, state in last.optimizer["state"].items()
    )
    return math.sqrt(energy / sum(weight.numel() for weight in last.weights.values()))
