"""Run client work in Ray actors behind Flower's Grid: several processes, GPUs, a cluster.

Each actor holds one resident worker for the whole run. The model is put into the object store
once per round and mapped by all actors of a machine; one partial sum comes back per message. An
actor has one message at a time; the others wait here, so an actor that dies takes one message
with it. That message is answered with an error, so the strategy can ask again, and a new actor
starts while the others go on.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ArrayRecord, Error, Message, RecordDict

from clients.arrays import weights_of
from clients.protocol import TRAIN_COHORT, WEIGHTS, WORKER_LATE, seconds_allowed
from fedopt.client_app import THREADS_PER_WORKER, WorkerProcess
from fedopt.local_grid import CLIENT_APP_RAISED, WORKER_LOST, ClientCall, WorkerGrid
from fedopt.ray_address import refuse_unreachable
from fedopt.ray_processes import needed_processes
from privacy.errors import FedOptError, SettingsError, WorkersLost

START_SECONDS = 600.0
MOST_STARTS = 3
"""How often in a row a worker may fail to start before its place stays empty."""


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


@dataclass
class Exchange:
    """Hold the messages of one call: waiting, with an actor, and answered."""

    waiting: deque[Message]
    timeout: float
    stored: dict[int, Any] = field(default_factory=dict)
    flights: dict[Any, Flight] = field(default_factory=dict)
    replies: list[Message] = field(default_factory=list)


@dataclass(frozen=True)
class Flight:
    """Hold a message that an actor works on."""

    message: Message
    node: int
    deadline: float


class RayGrid(WorkerGrid):
    """Send messages to actors, one at a time each, and replace actors that die.

    build_app: makes the ClientApp inside each actor; must be importable or picklable.
    """

    def __init__(self, build_app: Callable[[], ClientCall], settings: RaySettings) -> None:
        super().__init__(settings.workers)
        start_ray(settings)
        import ray

        self.ray: Any = ray
        self.settings = settings
        self.build_app = build_app
        self.actor_class = ray.remote(
            num_cpus=1, num_gpus=settings.gpus_per_worker, max_restarts=0
        )(WorkerProcess)
        self.actors: dict[int, Any] = {}
        self.starting: dict[Any, tuple[int, float]] = {}
        self.failed_starts = dict.fromkeys(self.nodes, 0)
        self.pids: dict[int, int] = {}
        self.last_failure = ""
        try:
            self._start_all()
        except BaseException:
            self.close()
            raise

    def _start_all(self) -> None:
        for node in list(self.nodes):
            self._start(node)
        while self.starting:
            self._wait(list(self.starting), min(until for _, until in self.starting.values()))
        if not self.nodes:
            self._refuse_none_left()

    def _start(self, node: int) -> None:
        """Create an actor; its first answer tells that its worker is built."""
        actor = self.actor_class.remote(
            self.build_app, node, self.settings.workers, self.settings.worker_megabytes
        )
        self.actors[node] = actor
        self.starting[actor.ready.remote()] = (node, time.monotonic() + START_SECONDS)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Train on the actors; a lost or late actor answers with an error and is replaced.

        timeout: seconds that one message may take once an actor has it.
        Raises: WorkersLost where no actor is left.
        """
        numbered = deque(self.number(message) for message in messages)
        exchange = Exchange(numbered, math.inf if timeout is None else timeout)
        while exchange.waiting or exchange.flights:
            self._dispatch(exchange)
            until = [flight.deadline for flight in exchange.flights.values()]
            until += [deadline for _, deadline in self.starting.values()]
            for done in self._wait([*exchange.flights, *self.starting], min(until)):
                self._take(exchange, done)
            for reference, flight in list(exchange.flights.items()):
                if time.monotonic() > flight.deadline:
                    del exchange.flights[reference]
                    self._lose(exchange, flight, WORKER_LATE, "was not done in time")
        return exchange.replies

    def _dispatch(self, exchange: Exchange) -> None:
        """Give every idle actor a message: its own, or else one that waits for another.

        Which worker answers changes no byte of a cohort's sum, so nobody waits for a replacement.
        """
        busy = {flight.node for flight in exchange.flights.values()}
        busy |= {node for node, _ in self.starting.values()}
        for node in [node for node in self.nodes if node not in busy]:
            message = next_message(exchange.waiting, node)
            if message is None:
                continue
            bare = self._without_arrays(message, exchange.stored)
            stored = exchange.stored.get(id(message.content.get(WEIGHTS)))
            allowed = exchange.timeout
            if message.metadata.message_type == TRAIN_COHORT:
                allowed = min(allowed, seconds_allowed(message))
            reference = self.actors[node].train.remote(stored, bare)
            flight = Flight(message, node, time.monotonic() + allowed)
            exchange.flights[reference] = flight
        if not self.nodes:
            self._refuse_none_left()

    def _wait(self, references: list[Any], until: float) -> list[Any]:
        """Wait for one of the references, see to actors that start, and give the rest."""
        left = None if math.isinf(until) else max(0.0, until - time.monotonic())
        done, _ = self.ray.wait(references, num_returns=1, timeout=left)
        for reference in done:
            if reference in self.starting:
                node, _ = self.starting.pop(reference)
                self._settle_start(node, reference)
                return []
        for reference, (node, deadline) in list(self.starting.items()):
            if time.monotonic() > deadline:
                del self.starting[reference]
                self._count_failure(node, f"worker {node} did not start in {START_SECONDS:.0f} s")
        return list(done)

    def _settle_start(self, node: int, reference: Any) -> None:
        try:
            self.pids[node] = self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as problem:
            raise engine_error(problem) from problem
        except self.ray.exceptions.RayError as problem:
            self._count_failure(node, f"worker {node} ended at its start ({problem})")
        else:
            self.failed_starts[node] = 0

    def _count_failure(self, node: int, why: str) -> None:
        """Try again to fill a worker's place, or leave it empty after several failures."""
        self.failed_starts[node] += 1
        self.last_failure = why
        self.ray.kill(self.actors[node])
        if self.failed_starts[node] < MOST_STARTS:
            self._start(node)
        else:
            self.nodes.remove(node)

    def _refuse_none_left(self) -> None:
        raise WorkersLost(f"no worker can be started: {self.last_failure.splitlines()[0]}")

    def _take(self, exchange: Exchange, reference: Any) -> None:
        flight = exchange.flights.pop(reference)
        try:
            exchange.replies.append(self.ray.get(reference))
        except self.ray.exceptions.RayTaskError as problem:
            error = Error(CLIENT_APP_RAISED, str(problem))
            exchange.replies.append(Message(error, reply_to=flight.message))
        except self.ray.exceptions.RayError as problem:
            self._lose(exchange, flight, WORKER_LOST, f"was lost ({type(problem).__name__})")

    def _lose(self, exchange: Exchange, flight: Flight, code: int, why: str) -> None:
        """Answer for an actor that is dead or late, and start another in its place."""
        self.ray.kill(self.actors[flight.node])
        self._start(flight.node)
        error = Error(code, f"worker {flight.node} {why}")
        exchange.replies.append(Message(error, reply_to=flight.message))

    def _without_arrays(self, message: Message, stored: dict[int, Any]) -> Message:
        """Put a message's arrays into the object store, once for all that share them."""
        arrays = message.content.get(WEIGHTS)
        if not isinstance(arrays, ArrayRecord):
            return message
        if id(arrays) not in stored:
            stored[id(arrays)] = self.ray.put(weights_of(arrays))
        rest = RecordDict(
            {key: record for key, record in message.content.items() if key != WEIGHTS}
        )
        return Message(content=rest, metadata=message.metadata)  # type: ignore[call-overload,no-any-return]

    def close(self) -> None:
        """End the actors and let go of Ray."""
        self.ray.shutdown()


def next_message(waiting: deque[Message], node: int) -> Message | None:
    """Take the first message to a node out of the queue, or else the first to anyone."""
    if not waiting:
        return None
    own = (message for message in waiting if message.metadata.dst_node_id == node)
    chosen = next(own, waiting[0])
    waiting.remove(chosen)
    return chosen


def engine_error(problem: Any) -> FedOptError:
    """Give the error of ours that a worker raised, or say in a sentence what it raised."""
    cause = getattr(problem, "cause", None)
    if isinstance(cause, FedOptError):
        return cause
    return FedOptError(f"a worker could not be built: {cause!r}")


def worker_environment() -> dict[str, str]:
    """Name the environment variables under which workers run."""
    path = os.pathsep.join([os.getcwd(), *filter(None, sys.path)])
    return {"PYTHONPATH": path, "OMP_NUM_THREADS": str(THREADS_PER_WORKER)}


def early_workers(settings: RaySettings) -> dict[str, str]:
    """Let Ray start its processes, and these import what a worker needs, while it starts itself."""
    return {
        "RAY_enable_worker_prestart": "1",
        "RAY_num_prestart_python_workers": str(settings.workers),
        "RAY_preload_python_modules": WorkerProcess.__module__,
    }


@contextlib.contextmanager
def environment_variables(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for processes that are started meanwhile."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


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
    refuse_unreachable(settings.address)
    own = settings.address is None
    options: dict[str, Any] = {"address": settings.address}
    if own:
        options = {"address": "local", "num_cpus": settings.workers, "include_dashboard": False}
    else:
        options["runtime_env"] = {"env_vars": worker_environment()}
    try:
        with (
            environment_variables(worker_environment() | early_workers(settings) if own else {}),
            needed_processes(ray.__version__, logs=settings.verbose),
        ):
            ray.init(
                **options,
                log_to_driver=settings.verbose,
                logging_level=logging.INFO if settings.verbose else logging.ERROR,
            )
    except (ConnectionError, RuntimeError, ValueError) as problem:
        where = settings.address or "this machine"
        lines = str(problem).splitlines() or [type(problem).__name__]
        raise SettingsError(
            f"ray could not be started or joined at {where}: {lines[0]}; "
            "check --ray-address or choose --engine local"
        ) from problem
