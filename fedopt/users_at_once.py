"""Choose how many users of a small model are trained at once: tried and measured before a run.

A stack is taken only where it gives every user the update that user gets alone, up to rounding,
where it does not matter to one bit who shares it, and where it is clearly faster.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from fedopt import machine, run_directory
from fedopt.config import Settings
from fedopt.dry_run import count_parameters
from privacy.plan import PrivacyPlan

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from clients.protocol import LocalWork, TrainRequest
    from clients.task import Task
    from clients.worker import Worker

STACKED_WEIGHTS = 4_000_000
"""Weights of all users of a stack together: about what processor caches hold."""

WIDEST = 128

COPIES = 6
"""Stacked weights, gradients and intermediate results, in weights' sizes."""

CLEARLY = 1.25
"""How much faster a stack must be, so that the choice does not hang on a busy machine."""

LONGEST_SECONDS = 0.5
"""A user who takes longer keeps the processor busy alone; stacks are not even tried."""


@dataclass(frozen=True)
class Choice:
    """Hold how many users are trained at once, and why."""

    users: int
    reason: str = ""


def with_users_at_once(
    settings: Settings, plan: PrivacyPlan, task: Task, resumed: Path | None
) -> tuple[Settings, str]:
    """Fill in how many users are trained at once; a run that is resumed keeps what it chose.

    resumed: the run directory to go on with; None for a new run.
    Returns: the settings, and what there is to say about the choice.
    """
    if settings.client.users_at_once is None and resumed and run_directory.is_run(resumed):
        chosen = Choice(run_directory.load_settings(resumed).client.users_at_once or 1)
    else:
        chosen = choose(settings, plan, task)
    client = settings.client.model_copy(update={"users_at_once": chosen.users})
    return settings.model_copy(update={"client": client}), chosen.reason


def choose(settings: Settings, plan: PrivacyPlan, task: Task) -> Choice:
    """Choose the width of stacks; it says why where a wish could not be met."""
    import torch

    wish, cohort = settings.client.users_at_once, settings.privacy.simulated_cohort or 1
    # Half a cohort at most, whatever the number of workers, so that two always have work.
    most = min(WIDEST, cohort // 2)
    if wish == 1 or (wish is None and (most < 2 or settings.client.user_seconds)):
        return Choice(1)
    with torch.random.fork_rng(devices=[]):
        parameters = count_parameters(task, on_meta=False)
    most = min(most, STACKED_WEIGHTS // max(parameters, 1))
    if wish is None and most < 2:
        return Choice(1)
    width, note = _within_memory(settings, parameters, wish or most)
    if width < 2:
        return Choice(1, note)
    problem = Trial(settings, plan, task, width).problem(measure=wish is None)
    if problem:
        return Choice(1, f"users are trained one at a time, because {problem}")
    return Choice(width, note)


def _within_memory(settings: Settings, parameters: int, width: int) -> tuple[int, str]:
    """Shrink a stack to what a worker's memory holds."""
    engine = settings.engine
    workers = engine.workers if engine.engine == "ray" else 1
    free = engine.worker_megabytes or machine.worker_share_megabytes(workers)
    each = parameters * 4 * COPIES / 1e6
    fits = int(free / max(each, 1e-9))
    if width <= fits:
        return width, ""
    held = max(1, fits)
    return held, (
        f"users-at-once {width} needs about {width * each:,.0f} MB in a worker that may take "
        f"{free:,.0f} MB, so it is {held}"
    )


class Trial:
    """Train the first users of a task one by one and in stacks, on a worker of its own."""

    def __init__(self, settings: Settings, plan: PrivacyPlan, task: Task, width: int) -> None:
        import torch

        from clients.local_training import trainable
        from clients.worker import Worker

        self.settings, self.width = settings, width
        # Without noise and, in effect, without clipping, so that every difference is seen.
        self.plan = replace(plan, clip_norm=2.0**20, clipping="global", noise_multiplier=0.0)
        with torch.random.fork_rng(devices=[]):
            self.worker: Worker = Worker(task, settings.engine.device)
        # Copied, because the worker trains in the memory of these very parameters.
        self.weights = {
            name: parameter.detach().cpu().numpy().copy()
            for name, parameter in trainable(self.worker.trainer.model).items()
        }
        self.seconds = 0.0

    def problem(self, *, measure: bool) -> str:
        """Say what speaks against stacks of this width; nothing where all is well."""
        from clients.many_users import StackTrainer, load_user
        from clients.stacked_trace import Unstackable

        first = self._train([0], 1)
        if measure and self.seconds > LONGEST_SECONDS:
            return "one user keeps the processor busy"
        try:
            data = self.worker.task.user_data(self.worker.users[0])
            generator = np.random.default_rng(0)
            loaded = load_user(0, data, self._work(2), generator, self.worker.trainer)
            StackTrainer(self.worker.trainer, 2).train([loaded], self._work(2))
        except Unstackable as problem:
            return str(problem)
        except Exception as problem:
            return f"the first user failed ({problem!r}"[:200] + ")"
        few = list(range(min(self.width, 8)))
        alone, together = self._train(few, 1), self._train(few, self.width)
        if np.linalg.norm(together - alone) > 1e-3 * np.linalg.norm(alone) + len(first) ** 0.5:
            return "stacks give other updates than users alone"
        halves = self._train(few[: len(few) // 2], self.width)
        halves = halves + self._train(few[len(few) // 2 :], self.width)
        if together.tobytes() != halves.tobytes():
            return "the last bits of an update would depend on who shares the stack"
        return self._slower() if measure else ""

    def _slower(self) -> str:
        """Compare the times per user; each the best of three, against a busy machine."""
        users = list(range(self.width))
        self._train(users, self.width)
        stacked, single = [], []
        for _ in range(3):
            self._train(users, self.width)
            stacked.append(self.seconds / len(users))
            self._train(users[:4], 1)
            single.append(self.seconds / 4)
        return "" if min(stacked) * CLEARLY < min(single) else "stacks are not clearly faster"

    def _train(self, users: Sequence[int], width: int) -> NDArray[np.int64]:
        request = self._request(users, width)
        started = time.process_time()
        partial = self.worker.train(request)
        self.seconds = time.process_time() - started
        return partial.total

    def _work(self, width: int) -> LocalWork:
        from clients.protocol import LocalWork

        return LocalWork(**{**self.settings.client.model_dump(), "users_at_once": width})

    def _request(self, users: Sequence[int], width: int) -> TrainRequest:
        from clients.protocol import MechanismSettings, Piece, StreamSettings, TrainRequest

        plan = self.plan
        bounds = tuple(plan.bounds(self.worker.trainer.sizes))
        mechanism = MechanismSettings(plan.clipping, bounds, plan.grid_spacing, 0.0, len(users))
        return TrainRequest(
            self.weights,
            (Piece(0, tuple(users), 0),),
            mechanism,
            StreamSettings(self.settings.run.seed, "trial", False, 0, 0),
            self._work(width),
        )
