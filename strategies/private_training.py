"""Release one private round after another: charged before, visible after.

The order of a round: budget check and reservation, training, checkpoint written aside, ledger
commit, rename; only then is anything of the round shown, evaluated or sent on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import torch
from flwr.app import ArrayRecord, Message
from flwr.serverapp import Grid

from clients.arrays import weights_record
from clients.protocol import PartialSum, UserOutcome
from privacy.accounting import Accountant, epsilon_spent
from privacy.errors import CheckpointError
from privacy.ledger import Ceiling, Charge, Ledger, Releases, Reservation
from privacy.plan import PrivacyPlan
from privacy.seeds import Streams
from strategies.checkpoint import Checkpoint, CheckpointFolder
from strategies.round_record import RoundRecord, outcome_numbers
from strategies.server_model import ServerModel

Send = Callable[[list[Message]], Iterable[Message]]


@dataclass(frozen=True)
class Account:
    """State how releases are drawn and charged.

    ceiling: epsilon that no round may pass, over all runs on the ledger; None for none.
    repeatable: a repeated round would be the same release, byte for byte, so it is charged once.
    """

    streams: Streams
    ledger: Ledger
    ceiling: float | None = None
    accountant: Accountant = "rdp"
    repeatable: bool = True

    @property
    def run(self) -> str:
        """Name the run that charges."""
        assert self.ledger.run is not None
        return self.ledger.run


class RoundInFlight(Protocol):
    """Hold a round from its messages to its release."""

    number: int
    attempt: int
    outcomes: dict[int, UserOutcome]
    partials: list[PartialSum]

    def take(self, replies: Iterable[Message]) -> None:
        """Add the replies that answer what was asked."""
        ...

    def finish(self) -> torch.Tensor:
        """Complete the noise and divide; returns the released mean, float64 (coordinates,)."""
        ...


class PrivateTraining:
    """Carry a private training from round to round.

    Guarantee: no release is visible before its charge is committed, and no charge is lost.
    """

    in_flight: RoundInFlight | None = None

    def __init__(
        self,
        plan: PrivacyPlan,
        account: Account,
        model: ServerModel,
        checkpoints: CheckpointFolder | None,
    ) -> None:
        self.plan = plan
        self.account = account
        self.model = model
        self.checkpoints = checkpoints
        self.reservation: Reservation | None = None
        self.arrays: ArrayRecord = weights_record(model.arrays())
        self.record: RoundRecord | None = None
        self.answered: tuple[Releases, float] | None = None

    def configure(self, number: int, grid: Grid) -> list[Message]:
        """Charge the round, draw its cohort and build the messages."""
        raise NotImplementedError

    def collect(self, send: Send, messages: list[Message], grid: Grid) -> None:
        """Send messages and take the replies."""
        assert self.in_flight is not None
        self.in_flight.take(send(messages) if messages else [])

    def learn(self, finished: RoundInFlight) -> None:
        """Learn from a round that is visible; nothing by default."""

    def restore(self) -> int:
        """Go back to the last committed round; returns its number, 0 where there is none."""
        if self.checkpoints is None:
            return 0
        self.checkpoints.recover(self.account.ledger.last_committed_round(self.account.run))
        found = self.checkpoints.newest()
        if found is None:
            return 0
        committed = self.account.ledger.last_committed_round(self.account.run)
        if found.facts["settings_hash"] != self.account.streams.settings_hash:
            raise CheckpointError(
                f"checkpoint of round {found.round} must belong to this run, got one of other "
                "settings; remove it, or resume the run it belongs to"
            )
        if found.round > committed:
            raise CheckpointError(
                f"checkpoint of round {found.round} must be on the ledger, which ends at round "
                f"{committed}; restore the ledger that belongs to this run"
            )
        self.model.load(found.weights, found.optimizer)
        self.arrays = weights_record(self.model.arrays())
        self.record = RoundRecord(**found.facts["record"])
        return found.round

    def charge(self, number: int) -> int:
        """Reserve the round's charge on the ledger; returns its attempt.

        Raises: BudgetExhausted where the round would pass the ceiling; nothing is charged then.
        """
        self.started = time.perf_counter()
        attempt = self._attempt(number)
        self.reservation = self.account.ledger.reserve(
            Charge(
                round=number,
                attempt=attempt,
                key_hash=self.account.streams.key_hash(number, attempt),
                event=self.plan.event,
                event_as_run=self.plan.event_as_run,
                clip_norm=self.plan.clip_norm,
            ),
            ceiling=self._ceiling(),
        )
        return attempt

    def _attempt(self, number: int) -> int:
        """Repeat a repeatable round under its own reservation; otherwise take a fresh attempt."""
        if self.account.repeatable:
            return 0
        last = self.account.ledger.last_attempt(self.account.run, number)
        return 0 if last is None else last + 1

    def _ceiling(self) -> Ceiling | None:
        if self.account.ceiling is None:
            return None
        return Ceiling(self.account.ceiling, self._epsilon)

    def _epsilon(self, releases: Releases) -> float:
        """Compute epsilon; the ceiling and the record of a round mostly ask for the same one."""
        if self.answered is None or self.answered[0] != releases:
            spent = epsilon_spent(releases, self.plan.delta, self.account.accountant)
            self.answered = (releases, spent.epsilon)
        return self.answered[1]

    def epsilon_so_far(self) -> float | None:
        """Compute the claimed epsilon of this run's charges; None where infinite."""
        spent = self._epsilon(self.account.ledger.releases(self.account.run))
        return None if spent == float("inf") else spent

    def finish(self, timed: dict[str, float]) -> RoundRecord:
        """Release the round: noise completed, model stepped, checkpoint kept, charge committed."""
        assert self.in_flight is not None
        current = self.in_flight
        mean = current.finish()
        step_norm = self.model.step(mean, current.number)
        self.arrays = weights_record(self.model.arrays())
        record = self._record(current, step_norm, timed)
        self._keep(record)
        self.learn(current)
        self.in_flight, self.record = None, record
        return record

    def _record(
        self, current: RoundInFlight, step_norm: float, timed: dict[str, float]
    ) -> RoundRecord:
        numbers = outcome_numbers(current.outcomes, current.partials)
        numbers["seconds_by_phase"] |= timed
        record = RoundRecord(
            round=current.number,
            attempt=current.attempt,
            epsilon=self.epsilon_so_far(),
            noise_std=self.plan.noise_std_on_mean,
            step_norm=step_norm,
            **numbers,
        )
        return replace(record, seconds=time.perf_counter() - self.started)

    def _keep(self, record: RoundRecord) -> None:
        assert self.reservation is not None
        if self.checkpoints is not None:
            self.checkpoints.write_aside(self._checkpoint(record))
        self.account.ledger.commit(
            self.reservation,
            cohort_realised=record.cohort,
            replies=record.replies,
            noise_std_realised=self.plan.noise_std_on_sum,
        )
        if self.checkpoints is not None:
            self.checkpoints.publish(record.round)

    def _checkpoint(self, record: RoundRecord) -> Checkpoint:
        weights: dict[str, torch.Tensor] = {
            name: torch.from_numpy(array) for name, array in self.model.arrays().items()
        }
        facts: dict[str, Any] = {
            "settings_hash": self.account.streams.settings_hash,
            "record": asdict(record),
        }
        return Checkpoint(record.round, weights, self.model.optimizer.state_dict(), facts)
