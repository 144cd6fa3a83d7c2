"""Offer workers as a Flower ClientApp: a message names users, the reply is one partial sum."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

from flwr.app import Array, ArrayRecord, Context, Message
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from clients.protocol import WEIGHTS, decode_request, encode_reply
from clients.task import Task, load_task
from clients.worker import Worker
from fedopt.local_grid import ClientCall, answer, claim_flower_identity, worker_context
from fedopt.machine import keep_freed_memory, limit_memory

THREADS_PER_WORKER = 1


def cohort_client_app(build_task: Callable[[], Task], device: str = "cpu") -> ClientApp:
    """Build the ClientApp of population mode around one worker, which is made here and kept."""
    keep_freed_memory()
    worker = Worker(build_task(), device)
    app = ClientApp()

    @app.train("cohort")
    def train_cohort(message: Message, context: Context) -> Message:
        return encode_reply(worker.train(decode_request(message)), message)

    return app


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
    """Live in a process of its own, a Ray actor: one ClientApp with its resident worker."""

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


app = ClientApp()


@app.train("cohort")
def train_cohort(message: Message, context: Context) -> Message:
    """Answer a cohort message under Flower's own runtime."""
    worker = resident_worker(tuple(sorted(context.run_config.items())))
    return encode_reply(worker.train(decode_request(message)), message)


@functools.lru_cache(maxsize=1)
def resident_worker(run_config: tuple[tuple[str, str | int | float | bool], ...]) -> Worker:
    """Build this process's worker once; Flower enters the app anew for each message."""
    from fedopt.flower_settings import flower_settings
    from fedopt.planning import task_options

    values = {key: value for key, value in run_config if key != "output"}
    settings = flower_settings(values)
    return Worker(load_task(settings.task.task, task_options(settings)))
