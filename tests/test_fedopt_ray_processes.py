"""Show which processes Ray starts for a run, and that another version starts as it always did."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fedopt.ray_processes import needed_processes

pytest.importorskip("ray")

STARTED = """
import os
import subprocess
import ray
from fedopt.ray_grid import RaySettings, start_ray

start_ray(RaySettings(workers=1))
listing = ["ps", "-ww", "-o", "args=", "--ppid", str(os.getpid())]
print(subprocess.run(listing, capture_output=True, text=True).stdout)

@ray.remote
def answer():
    return 42

print("answer", ray.get(answer.remote()))
ray.shutdown()
"""


@pytest.mark.slow
def test_a_local_ray_answers_without_dashboard_autoscaler_and_log_collector() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STARTED], capture_output=True, text=True, timeout=120, check=True
    )
    assert "answer 42" in done.stdout
    assert "gcs_server" in done.stdout
    assert "raylet" in done.stdout
    for left_out in ("/dashboard.py", "/monitor.py", "/log_monitor.py"):
        assert left_out not in done.stdout


def test_what_is_changed_in_ray_is_changed_back() -> None:
    from ray._private import node, parameter

    before = parameter.RayParams, node.Node.start_api_server
    with needed_processes("2.55.1", logs=False):
        assert parameter.RayParams is not before[0]
        assert node.Node.start_api_server is not before[1]
        made = parameter.RayParams()
        assert made.no_monitor
        assert not made.include_log_monitor
    assert (parameter.RayParams, node.Node.start_api_server) == before


def test_logs_are_collected_where_they_are_wanted() -> None:
    from ray._private import parameter

    with needed_processes("2.55.1", logs=True):
        assert parameter.RayParams().include_log_monitor


def test_an_unknown_version_is_left_alone() -> None:
    from ray._private import node, parameter

    before = parameter.RayParams, node.Node.start_api_server
    with needed_processes("3.0.0", logs=False):
        assert (parameter.RayParams, node.Node.start_api_server) == before
