"""Start Ray quietly, and be the process that a Ray actor lives in."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flwr.app import Array, ArrayRecord, Message
from numpy.typing import NDArray

from clients.protocol import WEIGHTS
from fedopt.local_grid import ClientCall, answer, claim_flower_identity, worker_context
from fedopt.machine import limit_memory
from privacy.errors import SettingsError

THREADS_PER_WORKER = 1


@dataclass(frozen=True)
class RaySettings:
    """State how Ray is started or joined.

    gpus_per_worker: fraction of a GPU that each actor reserves; 0 on CPU.
    worker_megabytes: memory an actor may take for its users' work; 0 for no limit.
    """

    workers: int
    address: str | None = None
    gpus_per_worker: float = 0.0
    worker_megabytes: float = 0.0
    verbose: bool = False


class SharedArray(Array):
    """Hand out a read-only view into Ray's object store where Flower's Array would copy."""

    def __init__(self, view: NDArray[Any]) -> None:
        super().__init__(
            dtype=str(view.dtype), shape=tuple(view.shape), stype="numpy.ndarray", data=b""
        )
        self.__dict__["_view"] = view

    def numpy(self) -> NDArray[Any]:
        """Give the view itself."""
        view: NDArray[Any] = self.__dict__["_view"]
        return view


class WorkerProcess:
    """Live in a Ray actor: one ClientApp with its resident worker."""

    def __init__(
        self, build_app: Callable[[], ClientCall], node: int, workers: int, megabytes: float
    ) -> None:
        self.build_app = build_app
        self.node, self.workers, self.megabytes = node, workers, megabytes

    def ready(self) -> int:
        """Build the worker, so that no message waits for it; returns the process id."""
        import torch

        torch.set_num_threads(THREADS_PER_WORKER)
        claim_flower_identity()
        self.app = self.build_app()
        self.context = worker_context(self.node, self.workers)
        if self.megabytes:
            limit_memory(self.megabytes)
        return os.getpid()

    def train(self, arrays: dict[str, NDArray[Any]] | None, message: Message) -> Message:
        """Answer one message whose arrays lie in the object store."""
        if arrays is not None:
            shared = ArrayRecord()
            for name, view in arrays.items():
                shared[name] = SharedArray(view)
            message.content[WEIGHTS] = shared
        return answer(self.app, message, self.context)


def start_ray(settings: RaySettings) -> None:
    """Start Ray on this machine, or join the cluster at the given address; quiet by default.

    Raises: SettingsError where Ray is missing or the cluster cannot be reached.
    """
    # Ray reads these when it is imported; nothing is sent anywhere and nothing is printed.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray prints the end of every worker on stdout; skipping every line is how it is kept quiet.
    quiet = {"RAY_DEDUP_LOGS": "0"} if settings.verbose else {"RAY_DEDUP_LOGS_SKIP_REGEX": "."}
    for name, value in quiet.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as problem:
        raise SettingsError(
            "engine ray needs the package ray, which is not installed; "
            'run pip install "fedopt[ray]" or choose --engine local'
        ) from problem
    path = os.pathsep.join([os.getcwd(), *filter(None, sys.path)])
    environment = {"PYTHONPATH": path, "OMP_NUM_THREADS": str(THREADS_PER_WORKER)}
    options: dict[str, Any] = {"address": settings.address}
    if settings.address is None:
        options = {"address": "local", "num_cpus": settings.workers, "include_dashboard": False}
    try:
        ray.init(
            **options,
            log_to_driver=settings.verbose,
            logging_level=logging.INFO if settings.verbose else logging.ERROR,
            runtime_env={"env_vars": environment},
        )
    except (ConnectionError, RuntimeError, ValueError) as problem:
        where = settings.address or "this machine"
        lines = str(problem).splitlines() or [type(problem).__name__]
        raise SettingsError(
            f"ray could not be started or joined at {where}: {lines[0]}; "
            "check --ray-address or choose --engine local"
        ) from problem
