"""Hold the parts of one run while it goes, and what it leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedopt import run_directory
from fedopt.config import Settings
from fedopt.data_findings import DataFindings
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

    note: what there is to say before it starts, in one sentence. findings: what was found in the
    data so far, by whichever process read it.
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
    findings: DataFindings = field(init=False)

    def __post_init__(self) -> None:
        """Go on with what was found before a restart."""
        self.findings = DataFindings(self.folder / run_directory.FINDINGS)

    @property
    def streams(self) -> Streams:
        """Open the streams of the run."""
        secure = self.settings.privacy.randomness == "secure"
        return Streams(self.settings.run.seed, self.digest, secure)
