"""Hold the parts of one run while it goes, and what it leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedopt.config import Settings
from fedopt.run_log import RunLog
from privacy.plan import PrivacyPlan
from privacy.seeds import Streams

if TYPE_CHECKING:
    import torch

    from clients.task import Task
    from strategies.round_record import RoundRecord

Row = dict[str, Any]
Callback = Callable[[Row], None]


@dataclass(frozen=True)
class Result:
    """Hold what a run made: the trained model, its rows per round, the report, the directory."""

    model: torch.nn.Module
    history: list[Row]
    report: dict[str, Any]
    path: Path


@dataclass
class Run:
    """Hold the parts of one run while it goes.

    note: what there is to say before it starts, in one sentence.
    """

    settings: Settings
    plan: PrivacyPlan
    task: Task
    build_task: Callable[[], Task]
    folder: Path
    run_id: str
    digest: str
    callbacks: Sequence[Callback]
    verbose: bool
    model: torch.nn.Module
    log: RunLog
    history: list[Row] = field(default_factory=list)
    latest: RoundRecord | None = None
    note: str = ""

    @property
    def streams(self) -> Streams:
        """Open the streams of the run."""
        secure = self.settings.privacy.randomness == "secure"
        return Streams(self.settings.run.seed, self.digest, secure)
