"""Train in population mode: cohorts of users, dealt in groups to workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flwr.app import Message
from flwr.serverapp import Grid

from clients.findings import Finding
from clients.protocol import LocalWork
from privacy.accounting import Accountant
from privacy.errors import WorkersLost
from privacy.ledger import Ledger
from privacy.plan import PrivacyPlan
from privacy.seeds import Streams
from strategies.checkpoint import CheckpointFolder
from strategies.cohort_round import CohortRound, Population
from strategies.private_training import Account, PrivateTraining, RoundInFlight, Send
from strategies.server_model import ServerModel


@dataclass(frozen=True)
class Cohorts:
    """State the population mode of a strategy: whose data, which work, which streams and ledger.

    ceiling: epsilon that no round may pass, over all runs on the ledger; None for none.
    repeatable: a repeated round has the same bytes (CPU, streams from the seed). on_findings: told
    of what workers found in the data, once its round is visible.
    """

    population: Population
    work: LocalWork
    streams: Streams
    ledger: Ledger
    ceiling: float | None = None
    accountant: Accountant = "rdp"
    repeatable: bool = True
    on_findings: Callable[[Sequence[Finding]], None] = lambda found: None

    @property
    def account(self) -> Account:
        """Give what charging needs; secret randomness is never repeatable."""
        repeatable = self.repeatable and not self.streams.secure
        return Account(self.streams, self.ledger, self.ceiling, self.accountant, repeatable)


class CohortTraining(PrivateTraining):
    """Carry a private training of a population from round to round."""

    in_flight: CohortRound | None = None

    def __init__(
        self,
        plan: PrivacyPlan,
        cohorts: Cohorts,
        model: ServerModel,
        checkpoints: CheckpointFolder | None,
    ) -> None:
        super().__init__(plan, cohorts.account, model, checkpoints)
        self.cohorts = cohorts

    def configure(self, number: int, grid: Grid) -> list[Message]:
        """Charge the round, draw its cohort and build the messages.

        Raises: WorkersLost where there is no worker, BudgetExhausted where the round would pass the
        ceiling; nothing is charged then.
        """
        nodes = sorted(grid.get_node_ids())
        if not nodes:
            raise WorkersLost(f"round {number}: no worker is there; start some and run again")
        attempt = self.charge(number)
        streams = self.cohorts.streams
        users = self.plan.draw(streams, number, attempt)
        self.in_flight = CohortRound(
            plan=self.plan,
            streams=streams,
            work=self.cohorts.work,
            number=number,
            attempt=attempt,
            users=users,
            groups=self.cohorts.population.groups(users),
            sizes=self.model.sizes,
        )
        return self.in_flight.first_messages(self.cohorts.population, self.arrays, nodes)

    def collect(self, send: Send, messages: list[Message], grid: Grid) -> None:
        """Send messages, take the replies, and ask again for what was lost."""
        assert self.in_flight is not None
        while messages:
            self.in_flight.take(send(messages))
            nodes = sorted(grid.get_node_ids())
            messages = self.in_flight.retry_messages(self.arrays, nodes)

    def learn(self, finished: RoundInFlight) -> None:
        """Learn users' costs, for dealing the next rounds, and what was found in the data."""
        self.cohorts.population.learn(finished.outcomes.values())
        for partial in finished.partials:
            if partial.findings:
                self.cohorts.on_findings(partial.findings)
