"""Show with real Ray processes, ended by their own ids, that no fault changes other bytes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_runs import (
    engine_settings,
    left_behind,
    order,
    rows,
    run,
    run_in_child,
    session_of,
    start_child,
    still_alive,
)
from safetensors.numpy import load_file

from fedopt import ray_address
from privacy.errors import SettingsError
from strategies.cohort_round import LATE, LOST

pytest.importorskip("ray")

EVERYONE = {
    "privacy.sampling": "everyone",
    "privacy.population": 24,
    "privacy.cohort": 24,
    "privacy.simulated_cohort": 24,
}


def ray(workers: int = 2) -> dict[str, Any]:
    return {"engine.engine": "ray", "engine.workers": workers}


def model_bytes(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def finished_rounds(folder: Path) -> int:
    lines = folder / "rounds.jsonl"
    return len(lines.read_text().splitlines()) if lines.exists() else 0


def kill_a_worker_in_every_round(child: Any, folder: Path, task: Path) -> list[int]:
    """Kill the first worker seen at work after each new line of rounds.jsonl; returns the ids."""
    killed: list[int] = []
    seen = 0
    while child.is_alive():
        time.sleep(0.003)
        if finished_rounds(folder) == seen:
            continue
        seen = finished_rounds(folder)
        for visit in task.glob("visit-*"):
            visit.unlink()
        while child.is_alive() and not (found := list(task.glob("visit-*"))):
            time.sleep(0.003)
        if child.is_alive():
            killed.append(int(found[0].name.partition("-")[2]))
            os.kill(killed[-1], signal.SIGKILL)
    return killed


def processes_of(task: Path) -> set[int]:
    """List the other processes that still live of those that trained a user of this folder."""
    ids = {int(visit.name.partition("-")[2]) for visit in task.glob("visit-*")}
    return {pid for pid in ids - {os.getpid()} if Path(f"/proc/{pid}").exists()}


def test_ray_gives_the_bytes_of_the_local_engine_while_users_fail_and_workers_are_killed(
    tmp_path: Path,
) -> None:
    """Two workers; in every round one is killed from outside, and three users are broken."""
    task = tmp_path / "task"
    changes = {**EVERYONE, "privacy.rounds": 2, "engine.worker_megabytes": 400}
    options = {"folder": order(task, dict.fromkeys((9, 15, 21), "raise")), "pause": 0.02}
    run(engine_settings(changes, **options), tmp_path / "local")
    order(task, {9: "raise", 15: "nan", 21: "greedy"})
    child = start_child(engine_settings(changes | ray(), **options), tmp_path / "ray")
    killed = kill_a_worker_in_every_round(child, tmp_path / "ray", task)
    child.join(60)
    assert child.exitcode == 0
    assert len(killed) == 2
    assert model_bytes(tmp_path / "ray") == model_bytes(tmp_path / "local")
    for row in rows(tmp_path / "ray")[1:]:
        faults = row["faults"]
        assert faults.keys() == {"9", "15", "21"}
        assert "this user is broken" in faults["9"]
        assert "nan" in faults["15"]
        assert "MemoryError" in faults["21"]
    assert not processes_of(task)


@pytest.mark.slow
def test_a_user_that_kills_its_worker_each_time_adds_zeros_and_is_named(tmp_path: Path) -> None:
    task = tmp_path / "task"
    changes = {**EVERYONE, "privacy.rounds": 2}
    options = {"folder": order(task, {2: "raise"})}
    run(engine_settings(changes, **options), tmp_path / "local")
    order(task, {2: "kill"})
    found = run_in_child(engine_settings(changes | ray(), **options), tmp_path / "ray")
    assert model_bytes(tmp_path / "ray") == model_bytes(tmp_path / "local")
    assert [row["faults"] for row in found[1:]] == [{"2": LOST}] * 2
    assert not processes_of(task)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_any_number_of_workers_gives_the_same_bytes(workers: int, tmp_path: Path) -> None:
    run(engine_settings(), tmp_path / "local")
    run_in_child(engine_settings(ray(workers)), tmp_path / "ray")
    assert left_behind(tmp_path / "ray") == left_behind(tmp_path / "local")


@pytest.mark.slow
def test_a_user_that_hangs_is_ended_with_its_worker_and_named(tmp_path: Path) -> None:
    task = tmp_path / "task"
    changes = {**EVERYONE, "privacy.rounds": 1, "client.user_seconds": 1.0}
    options = {"folder": order(task, {5: "raise"})}
    run(engine_settings(changes, **options), tmp_path / "local")
    order(task, {5: "hang"})
    found = run_in_child(engine_settings(changes | ray(), **options), tmp_path / "ray")
    assert model_bytes(tmp_path / "ray") == model_bytes(tmp_path / "local")
    assert found[1]["faults"] == {"5": LATE}
    assert not processes_of(task)


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["clients", "server"])
def test_the_noise_is_that_of_the_plan_when_workers_are_killed(
    placement: str, tmp_path: Path
) -> None:
    task = tmp_path / "task"
    changes = {
        **EVERYONE,
        **ray(),
        "server.strategy": "fedavg",
        "server.server_lr": 1.0,
        "privacy.rounds": 1,
        "privacy.noise_placement": placement,
    }
    options = {"folder": order(task, {4: "kill"}), "zero": True, "size": 60_000}
    found = run_in_child(engine_settings(changes, **options), tmp_path / "run")
    step = load_file(tmp_path / "run" / "model.safetensors")["first"]
    assert float(np.std(step)) == pytest.approx(1.0 * 0.5 / 24, rel=0.03)
    assert found[1]["faults"] == {"4": LOST}


@pytest.mark.slow
@pytest.mark.parametrize("crash", [("after commit", 2), ("before line", 3)], ids=lambda c: c[0])
def test_a_ray_run_whose_driver_was_killed_leaves_no_process_and_goes_on(
    crash: tuple[str, int], tmp_path: Path
) -> None:
    task = tmp_path / "task"
    options = {"folder": order(task, {})}
    run(engine_settings(**options), tmp_path / "whole")
    child = start_child(engine_settings(ray(), **options), tmp_path / "cut", crash)
    child.join(300)
    assert child.exitcode == -9
    assert not still_alive(processes_of(task), 60)
    run_in_child(engine_settings(ray(3), **options), tmp_path / "cut")
    assert left_behind(tmp_path / "cut") == left_behind(tmp_path / "whole")


@pytest.mark.slow
def test_users_that_all_end_their_workers_leave_a_release_of_noise_alone(tmp_path: Path) -> None:
    task = tmp_path / "task"
    few = {**EVERYONE, "privacy.population": 3, "privacy.cohort": 3, "privacy.simulated_cohort": 3}
    options = {"folder": order(task, dict.fromkeys(range(3), "kill")), "users": 3}
    changes = {**few, **ray(), "privacy.rounds": 1}
    found = run_in_child(engine_settings(changes, **options), tmp_path / "run")
    assert (found[1]["cohort"], found[1]["replies"]) == (3, 0)


@pytest.mark.slow
def test_the_noise_is_that_of_the_plan_when_a_worker_is_killed_from_outside(tmp_path: Path) -> None:
    task = tmp_path / "task"
    changes = {
        **EVERYONE,
        "server.strategy": "fedavg",
        "server.server_lr": 0.7,
        "privacy.rounds": 1,
    }
    options = {"folder": order(task, {}), "zero": True, "size": 60_000, "pause": 0.02}
    run(engine_settings(changes, **options), tmp_path / "local")
    child = start_child(engine_settings(changes | ray(), **options), tmp_path / "ray")
    killed = kill_a_worker_in_every_round(child, tmp_path / "ray", task)
    child.join(60)
    assert (child.exitcode, len(killed)) == (0, 1)
    step = load_file(tmp_path / "ray" / "model.safetensors")["first"]
    assert float(np.std(step)) == pytest.approx(1.0 * 0.5 / 24 * 0.7, rel=0.03)
    assert model_bytes(tmp_path / "ray") == model_bytes(tmp_path / "local")


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


def answers(port: int) -> bool:
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port), 1.0).close()
        return True
    return False


@contextlib.contextmanager
def cluster() -> Iterator[int]:
    """Start a Ray cluster of its own and give its port; all its processes are ended after."""
    port = free_port()
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # Ray's sockets need short paths
        command = [
            sys.executable, "-c", "from ray.scripts.scripts import main; main()",
            "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}",
            f"--ray-client-server-port={free_port()}", "--num-cpus=2", f"--temp-dir={folder}",
            "--include-dashboard=false", "--disable-usage-stats",
        ]  # fmt: skip
        log = Path(folder) / "head.log"
        with (
            log.open("w") as opened,
            subprocess.Popen(command, stdout=opened, stderr=opened, start_new_session=True) as head,
        ):
            try:
                deadline = time.monotonic() + 120
                while not answers(port):
                    assert head.poll() is None, log.read_text()
                    assert time.monotonic() < deadline, log.read_text()
                    time.sleep(0.1)
                yield port
            finally:
                for pid in session_of(head.pid) - {head.pid}:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                head.kill()


@pytest.mark.slow
def test_a_cluster_that_is_joined_gives_the_same_bytes_and_outlives_the_run_and_a_killed_worker(
    tmp_path: Path,
) -> None:
    task = tmp_path / "task"
    changes = {**EVERYONE, "privacy.rounds": 2}
    options = {"folder": order(task, {}), "pause": 0.02}
    run(engine_settings(changes, **options), tmp_path / "local")
    with cluster() as port:
        joined = ray() | {"engine.ray_address": f"127.0.0.1:{port}"}
        child = start_child(engine_settings(changes | joined, **options), tmp_path / "ray")
        killed = kill_a_worker_in_every_round(child, tmp_path / "ray", task)
        child.join(60)
        assert (child.exitcode, len(killed)) == (0, 2)
        assert not still_alive(processes_of(task), 60)
        assert answers(port), "the cluster is not ours to end"
    assert model_bytes(tmp_path / "ray") == model_bytes(tmp_path / "local")


def refused(tmp_path: Path, settings: Any) -> str:
    """Run in a child that writes down why it was refused."""
    from engine_runs import children

    child = children().Process(
        target=note_refusal, args=(settings.model_dump(), str(tmp_path / "run"), str(tmp_path))
    )
    child.start()
    child.join(300)
    kind, text = json.loads((tmp_path / "refusal.json").read_text())
    assert kind == "SettingsError"
    assert not (tmp_path / "run").exists()
    return str(text)


def note_refusal(settings: dict[str, Any], folder: str, place: str) -> None:
    from fedopt.config import build_settings
    from privacy.errors import FedOptError

    with contextlib.suppress(SystemExit):
        try:
            run(build_settings(settings), Path(folder))
        except FedOptError as problem:
            said = json.dumps([type(problem).__name__, str(problem)])
            (Path(place) / "refusal.json").write_text(said)


@pytest.mark.slow
def test_an_address_where_no_cluster_answers_is_refused_in_a_sentence(tmp_path: Path) -> None:
    said = refused(tmp_path, engine_settings(ray() | {"engine.ray_address": "127.0.0.1:9"}))
    assert "127.0.0.1:9" in said
    assert "check --ray-address" in said
    assert "\n" not in said


@pytest.mark.parametrize("answer", [None, b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_a_listener_that_is_no_cluster_is_refused_in_a_sentence(
    answer: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says nothing, or hangs up, or is a web server; Ray would ask each for minutes."""
    monkeypatch.setattr(ray_address, "CONNECT_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        done = threading.Event()

        def serve() -> None:
            with listening.accept()[0] as opened:
                if answer is not None:
                    opened.recv(1024)
                    opened.sendall(answer)
                else:
                    done.wait(10)

        server = threading.Thread(target=serve)
        server.start()
        with pytest.raises(SettingsError, match=f"got '{address}'.*check --ray-address") as said:
            ray_address.refuse_unreachable(address)
        done.set()
        server.join(10)
    assert "\n" not in str(said.value)


@pytest.mark.slow
def test_a_worker_that_cannot_build_its_task_says_why(tmp_path: Path) -> None:
    options = {"folder": order(tmp_path / "task", {}), "builds": 1}
    said = refused(tmp_path, engine_settings(ray(), **options))
    assert "cannot be built here" in said
