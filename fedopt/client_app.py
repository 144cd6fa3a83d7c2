"""Offer workers as a Flower ClientApp: a message names users, the reply is one partial sum."""

from __future__ import annotations

import functools
from collections.abc import Callable

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from clients.protocol import decode_request, encode_reply
from clients.task import Task, load_task
from clients.worker import Worker


def cohort_client_app(build_task: Callable[[], Task], device: str = "cpu") -> ClientApp:
    """Build the ClientApp of population mode around one worker, which is made here and kept."""
    worker = Worker(build_task(), device)
    app = ClientApp()

    @app.train("cohort")
    def train_cohort(message: Message, context: Context) -> Message:
        return encode_reply(worker.train(decode_request(message)), message)

    return app


app = ClientApp()


@app.train("cohort")
def train_cohort(message: Message, context: Context) -> Message:
    """Answer a cohort message under Flower's own runtime."""
    worker = resident_worker(tuple(sorted(context.run_config.items())))
    return encode_reply(worker.train(decode_request(message)), message)


@functools.lru_cache(maxsize=1)
def resident_worker(run_config: tuple[tuple[str, str | int | float | bool], ...]) -> Worker:
    """Build this process's worker once; Flower enters the app anew for each message."""
    from fedopt.planning import task_options
    from fedopt.server_app import flower_settings

    values = {key: value for key, value in run_config if key != "output"}
    settings = flower_settings(values)
    return Worker(load_task(settings.task.task, task_options(settings)))
