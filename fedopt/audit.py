"""Audit a run by canary users: keep their scores round by round, and hold them against epsilon.

Scores are on the disk before a round is committed, for the last two rounds, as checkpoints are:
a run that dies anywhere goes on with the scores of the round that it goes on from.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedopt import run_directory
from fedopt.audit_canaries import WatchedPopulation
from privacy.audit_canaries import Canaries
from privacy.errors import SettingsError

if TYPE_CHECKING:
    import torch

    from fedopt.run import Run
    from strategies.round_record import RoundRecord

SCHEMA_VERSION = 1
Floats = tuple[float, ...]


@dataclass(frozen=True)
class CanaryScores:
    """Hold what an adversary has found of each canary after a round.

    releases: inner product of the canary's unit direction with the sum of all released means.
    known: the same over the rounds that drew the canary. drawn: how many these are.
    final: inner product with the change of the weights since the start.
    cohort: canaries of this round's cohort.
    """

    round: int
    releases: Floats
    known: Floats
    drawn: tuple[int, ...]
    final: Floats
    cohort: tuple[int, ...] = ()

    @classmethod
    def at_start(cls, count: int) -> CanaryScores:
        """Give the scores before the first round."""
        return cls(0, (0.0,) * count, (0.0,) * count, (0,) * count, (0.0,) * count)

    def after(
        self, release: NDArray[np.float64], change: NDArray[np.float64], cohort: NDArray[np.int64]
    ) -> CanaryScores:
        """Add a round. release, change: (canaries,) inner products; cohort: canaries drawn."""
        inside = np.zeros(len(self.drawn), dtype=bool)
        inside[cohort] = True
        return CanaryScores(
            round=self.round + 1,
            releases=tuple((np.array(self.releases) + release).tolist()),
            known=tuple((np.array(self.known) + np.where(inside, release, 0.0)).tolist()),
            drawn=tuple((np.array(self.drawn) + inside).tolist()),
            final=tuple(change.tolist()),
            cohort=tuple(cohort.tolist()),
        )


class RunAudit:
    """Watch the server's optimizer: its gradient is minus the released mean, and public.

    Guarantee: what is kept is a function of released means and weights and of the canaries' own
    draws; no data user's update is read.
    Not covered: which canary was in which cohort is known here, and not to who sees the models.
    """

    def __init__(self, path: Path, canaries: Canaries, population: WatchedPopulation) -> None:
        self.path = path
        self.canaries = canaries
        self.population = population
        self.scores = CanaryScores.at_start(canaries.count)

    def watch(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Score every step of an optimizer whose weights are those of the start; gives it back."""
        parameters = [one for group in optimizer.param_groups for one in group["params"]]
        start = _flat([parameter.detach() for parameter in parameters])
        releases: list[NDArray[np.float64]] = []

        def before(*_: Any) -> None:
            mean = -_flat([parameter.grad for parameter in parameters])
            releases[:] = [self.canaries.scores(mean)]

        def after(*_: Any) -> None:
            change = _flat([parameter.detach() for parameter in parameters]) - start
            self._keep(releases[0], self.canaries.scores(change))

        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(after)
        return optimizer

    def _keep(self, release: NDArray[np.float64], change: NDArray[np.float64]) -> None:
        last = self.scores
        self.scores = last.after(release, change, self.population.canaries)
        write_scores(self.path, self.canaries.count, [last, self.scores])

    def take(self, record: RoundRecord) -> RoundRecord:
        """Take note that a round is visible, and give its record without the canaries' zeros.

        Raises: SettingsError where a run goes on from a round whose scores are lost.
        """
        if self.scores.round != record.round:
            self.scores = scores_of_round(self.path, self.canaries.count, record.round)
        return without_canaries(record, self.population.data_users, self.scores.cohort)


def open_audit(run: Run) -> RunAudit | None:
    """Build the audit of a run; None where it has no canaries."""
    from clients.local_training import trainable

    count = run.settings.privacy.audit
    if not count:
        return None
    sizes = tuple(parameter.numel() for parameter in trainable(run.model).values())
    population = WatchedPopulation(len(run.task.user_ids()), count)
    canaries = canaries_of(run.settings, run.digest, sizes, run.plan.bounds(sizes))
    return RunAudit(run.folder / run_directory.AUDIT, canaries, population)


def canaries_of(
    settings: Any, settings_hash: str, sizes: Sequence[int], bounds: Sequence[float]
) -> Canaries:
    """Derive the canaries of a run from its settings and its layers."""
    from privacy.seeds import Streams

    return Canaries(
        count=settings.privacy.audit,
        streams=Streams(settings.run.seed, settings_hash),
        sizes=tuple(sizes),
        clipping=settings.privacy.clipping,
        bounds=tuple(bounds),
    )


def without_canaries(record: RoundRecord, data_users: int, cohort: Sequence[int]) -> RoundRecord:
    """Turn means over all users of a round, where canaries are zeros, into means over data users.

    cohort: the canaries that were drawn. Cohort and replies still count them: they are users.
    """
    replied = sum(str(data_users + index) not in record.faults for index in cohort)
    own = record.replies - replied

    def mean(value: float | None) -> float | None:
        return None if value is None or not own else value * record.replies / own

    return replace(
        record,
        train_loss=mean(record.train_loss),
        update_norm=mean(record.update_norm),
        clipped_fraction=mean(record.clipped_fraction),
        layer_clipped=[mean(share) or 0.0 for share in record.layer_clipped],
    )


def write_scores(path: Path, count: int, kept: Sequence[CanaryScores]) -> None:
    """Write the scores of the last rounds; on the disk when this returns."""
    write_audit(path, {"canaries": count, "rounds": [asdict(scores) for scores in kept]})


def write_audit(path: Path, facts: Mapping[str, Any]) -> None:
    """Write the audit of a run, beside and renamed."""
    run_directory.write_text(path, json.dumps({"schema_version": SCHEMA_VERSION, **facts}) + "\n")


def read_audit(path: Path) -> dict[str, Any]:
    """Read the audit of a run; raises SettingsError where it is missing, damaged or newer."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        version = found["schema_version"]
    except (OSError, ValueError, LookupError, TypeError) as problem:
        raise SettingsError(
            f"{path.name} of a run with canary users must be a JSON object of fedopt, got "
            f"{type(problem).__name__}; the file is missing or damaged, so restore it"
        ) from problem
    if version != SCHEMA_VERSION:
        raise SettingsError(
            f"{path.name} must have schema version {SCHEMA_VERSION}, got {version!r}; "
            "use the fedopt that wrote it"
        )
    return dict(found)


def scores_of_round(path: Path, count: int, number: int) -> CanaryScores:
    """Read the scores after a round.

    Raises: SettingsError where the file is damaged, or holds no such round.
    """
    kept = read_audit(path).get("rounds")
    for values in kept if isinstance(kept, list) else []:
        scores = _scores(values, count)
        if scores is not None and scores.round == number:
            return scores
    raise SettingsError(
        f"{path.name} must hold whole scores of round {number}, got none; it is damaged or of "
        "another run, so restore it or run again"
    )


def _scores(values: Any, count: int) -> CanaryScores | None:
    """Read one round's scores; None where they are not whole."""
    try:
        scores = CanaryScores(
            round=int(values["round"]),
            releases=tuple(map(float, values["releases"])),
            known=tuple(map(float, values["known"])),
            drawn=tuple(map(int, values["drawn"])),
            final=tuple(map(float, values["final"])),
            cohort=tuple(map(int, values["cohort"])),
        )
    except (LookupError, TypeError, ValueError):
        return None
    columns = (scores.releases, scores.known, scores.final, scores.drawn)
    whole = all(len(column) == count and all(map(math.isfinite, column)) for column in columns)
    return scores if whole else None


def _flat(tensors: Sequence[Any]) -> NDArray[np.float64]:
    """Lay tensors behind each other as float64."""
    parts = [tensor.to("cpu").numpy().reshape(-1) for tensor in tensors]
    return np.concatenate(parts).astype(np.float64)
