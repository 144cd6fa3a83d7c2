"""Be Flower's FedAvg with any torch optimizer as the server's step, private or not."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.exception import InconsistentMessageReplies, PrivacyBudgetExhausted
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from flwr.serverapp.strategy import Result

from clients.arrays import arrays_of
from privacy.errors import BudgetExhausted, SettingsError
from privacy.plan import PrivacyPlan
from strategies.checkpoint import CheckpointFolder
from strategies.cohort_training import Cohorts, CohortTraining
from strategies.node_training import NodeMessages, NodeTraining
from strategies.optimizers import build_optimizer
from strategies.plain_training import PlainTraining, weight_problems
from strategies.plug_in import (
    RunDirectory,
    plug_in_account,
    refuse_with_plan,
    run_directory,
)
from strategies.private_training import PrivateTraining
from strategies.round_record import RoundRecord
from strategies.schedules import advice
from strategies.server_model import OptimizerFactory, ServerModel

Schedule = Callable[[int], float]
EvaluateFunction = Callable[[int, ArrayRecord], MetricRecord | None]
MetricsFunction = Callable[[list[RecordDict], str], MetricRecord]
RoundObserver = Callable[[RoundRecord, ArrayRecord], None]
Folder = str | Path


def constant_rate(round_number: int) -> float:
    """Keep the server's learning rate."""
    return 1.0


class FedOptimizer(FlowerFedAvg):
    """Step the server's model with any torch optimizer on the aggregated update.

    optimizer: a name for `build_optimizer`, or a function from named parameters to an optimizer.
    hyperparameters: passed to `build_optimizer`, for example {"lr": 0.1, "tau": 1e-3}.
    fraction_train ... evaluate_metrics_aggr_fn: Flower's own, with Flower's defaults.
    privacy: the plan of a private training; None trains and weights as Flower does. With a plan
    nodes are drawn by the plan, so fraction_train and min_train_nodes must be left alone.
    schedule: factor on the learning rate as a function of the round, from 1.
    seed: of noise and cohorts; None draws both from the operating system, in secret.
    checkpoint_dir: folder of checkpoints; a strategy started on it goes on where it stopped.
    output_dir: run directory with rounds.jsonl, ledger and privacy report (needs a plan).
    cohorts: population mode, in which workers train many users each (needs a plan).
    on_round: called with the record and the arrays of each private round once they are visible.

    Raises: SettingsError for settings that exclude each other.
    Reference: Reddi et al. 2021 (arXiv 2003.00295), Algorithm 1.
    Guarantee: with a plan, what the plan states, for each node as one user.
    Not covered: client metrics and evaluation; that one node is one person.
    """

    def __init__(
        self,
        optimizer: str | OptimizerFactory = "fedavg",
        hyperparameters: dict[str, Any] | None = None,
        *,
        fraction_train: float = 1.0,
        fraction_evaluate: float = 1.0,
        min_train_nodes: int = 2,
        min_evaluate_nodes: int = 2,
        min_available_nodes: int = 2,
        weighted_by_key: str = "num-examples",
        arrayrecord_key: str = "arrays",
        configrecord_key: str = "config",
        train_metrics_aggr_fn: MetricsFunction | None = None,
        evaluate_metrics_aggr_fn: MetricsFunction | None = None,
        privacy: PrivacyPlan | None = None,
        schedule: Schedule | None = None,
        seed: int | None = None,
        checkpoint_dir: Folder | None = None,
        output_dir: Folder | None = None,
        cohorts: Cohorts | None = None,
        on_round: RoundObserver | None = None,
    ) -> None:
        super().__init__(
            fraction_train=fraction_train,
            fraction_evaluate=fraction_evaluate,
            min_train_nodes=min_train_nodes,
            min_evaluate_nodes=min_evaluate_nodes,
            min_available_nodes=min_available_nodes,
            weighted_by_key=weighted_by_key,
            arrayrecord_key=arrayrecord_key,
            configrecord_key=configrecord_key,
            train_metrics_aggr_fn=train_metrics_aggr_fn,
            evaluate_metrics_aggr_fn=evaluate_metrics_aggr_fn,
        )
        refuse_with_plan(privacy, cohorts, output_dir, fraction_train, min_train_nodes)
        self.optimizer_name = optimizer if isinstance(optimizer, str) else "own optimizer"
        self.hyperparameters = dict(hyperparameters or {})
        self.factory = _factory(optimizer, self.hyperparameters)
        self.privacy = privacy
        self.schedule = schedule or constant_rate
        self.place(seed, checkpoint_dir, output_dir)
        self.cohorts = cohorts
        self.observers: list[RoundObserver] = [] if on_round is None else [on_round]
        self.model: ServerModel | None = None
        self.private: PrivateTraining | None = None
        self.plain: PlainTraining | None = None
        self.directory: RunDirectory | None = None
        self.asked: set[int] = set()

    def place(
        self, seed: int | None, checkpoint_dir: Folder | None, output_dir: Folder | None
    ) -> None:
        """Set where randomness comes from and where the run is kept."""
        self.seed = seed
        self.output_dir = None if output_dir is None else Path(output_dir)
        self.checkpoint_dir = _checkpoint_dir(checkpoint_dir, self.output_dir)

    def open(self, initial_arrays: ArrayRecord) -> int:
        """Take the initial weights, or the last checkpoint's; returns the round they are of."""
        self.model = ServerModel(arrays_of(initial_arrays), self.factory, self.schedule)
        checkpoints = None if self.checkpoint_dir is None else CheckpointFolder(self.checkpoint_dir)
        identity = self.identity()
        if self.privacy is None:
            self.plain = PlainTraining(self.model, checkpoints, identity)
            return self.plain.restore()
        if self.cohorts is not None:
            self.private = CohortTraining(self.privacy, self.cohorts, self.model, checkpoints)
        else:
            folder = self.output_dir or self.checkpoint_dir
            account = plug_in_account(self.privacy, self.model, identity, self.seed, folder)
            self.private = NodeTraining(self.privacy, account, self.model, checkpoints)
            self._open_directory(identity)
        finished = self.private.restore()
        if self.directory is not None:
            self.directory.resume(finished)
        if self.private.record is not None:
            self._observe(self.private.record)
        return finished

    def _open_directory(self, identity: str) -> None:
        if self.output_dir is None:
            return
        assert self.privacy is not None
        assert self.model is not None
        self.directory = run_directory(
            self.output_dir,
            self.privacy,
            self.optimizer_name,
            self.hyperparameters,
            self.seed,
            self.model,
            identity,
        )

    def identity(self) -> str:
        """Hash what a checkpoint must share to be gone on with: strategy, plan, model."""
        assert self.model is not None
        layers = [(name, tuple(p.shape)) for name, p in self.model.parameters.items()]
        # Runs that differ share no noise, so the rates count too, whatever function gives them.
        rounds = self.privacy.rounds if self.privacy is not None else 0
        rates = [float(self.schedule(number)) for number in range(1, rounds + 1)]
        facts = (
            self.optimizer_name,
            sorted(self.hyperparameters.items()),
            self.privacy,
            layers,
            rates,
        )
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    @property
    def arrays(self) -> ArrayRecord:
        """Give the current model."""
        training = self.private or self.plain
        assert training is not None
        return training.arrays

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Draw the round's users or nodes and build the messages to them.

        Raises: PrivacyBudgetExhausted before a round that would pass the budget.
        """
        if self.model is None:
            self.open(arrays)
        if self.private is None:
            own = ConfigRecord(dict(config.items()))
            messages = list(super().configure_train(server_round, arrays, own, grid))
            self.asked = {message.metadata.dst_node_id for message in messages}
            return messages
        if isinstance(self.private, NodeTraining):
            self.private.messages = NodeMessages(
                self.arrayrecord_key, self.configrecord_key, self.min_available_nodes, config
            )
        try:
            return self.private.configure(server_round, grid)
        except BudgetExhausted as problem:
            if self.cohorts is not None:
                raise
            raise PrivacyBudgetExhausted(str(problem)) from problem

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Turn the replies of a round into the next model.

        Without a plan faulty replies raise Flower's InconsistentMessageReplies, and no reply at
        all leaves the model alone. With a plan a faulty or missing reply counts as zeros.
        """
        if self.private is not None:
            assert self.private.in_flight is not None
            self.private.in_flight.take(replies)
            return self._release({})
        assert self.plain is not None
        # Replies come in any order; in node order the same replies have the same mean.
        ordered = sorted(replies, key=lambda reply: reply.metadata.src_node_id)
        self.plain.check_replies(ordered, self.asked, self.weighted_by_key)
        try:
            mean, metrics = super().aggregate_train(server_round, ordered)
        except (ValueError, EOFError) as problem:  # bytes that numpy cannot read
            raise InconsistentMessageReplies(
                reason=f"replies could not be averaged ({problem}); skipping aggregation."
            ) from problem
        return (None, metrics) if mean is None else (self.plain.step(mean, server_round), metrics)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Average the nodes' metrics as Flower does.

        Raises: InconsistentMessageReplies where Flower does, and for weights that are no weights.
        """
        replied = list(replies)
        answers = [reply.content for reply in replied if reply.has_content()]
        if problems := weight_problems(answers, self.weighted_by_key):
            raise InconsistentMessageReplies(
                reason=f"{'; '.join(problems[:4])}; skipping aggregation."
            )
        return super().aggregate_evaluate(server_round, replied)

    def _release(self, timed: dict[str, float]) -> tuple[ArrayRecord, MetricRecord]:
        assert self.private is not None
        record = self.private.finish(timed)
        self._observe(record)
        metrics: dict[str, Any] = {"cohort": record.cohort, "replies": record.replies}
        if record.epsilon is not None:
            metrics["epsilon"] = record.epsilon
        return self.private.arrays, MetricRecord(metrics)

    def _observe(self, record: RoundRecord) -> None:
        for observer in self.observers:
            observer(record, self.arrays)

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFunction | None = None,
    ) -> Result:
        """Run the training from the initial weights, or from the last checkpoint.

        Raises: PrivacyBudgetExhausted (population mode: BudgetExhausted) before a round that
        would pass the budget; WorkersLost where no worker is left.
        """
        result = Result()
        self._advise()
        finished = self.open(initial_arrays)
        try:
            self._evaluate(result, finished, evaluate_fn)
            for current in range(finished + 1, num_rounds + 1):
                metrics = self._train(grid, current, timeout, train_config or ConfigRecord())
                if metrics is not None:
                    result.train_metrics_clientapp[current] = metrics
                self._evaluate_on_clients(result, grid, current, timeout, evaluate_config)
                self._evaluate(result, current, evaluate_fn)
        finally:
            self._close()
        result.arrays = self.arrays
        return result

    def _close(self) -> None:
        """Write model and report of what was released, also when a budget or a fault ended it."""
        if self.directory is None or self.model is None:
            return
        if isinstance(self.private, NodeTraining):
            self.directory.nodes(self.private.counts)
        self.directory.close(
            {name: parameter.detach() for name, parameter in self.model.parameters.items()}
        )

    def _advise(self) -> None:
        """Say once where a layer-normalised optimizer runs at a rate that never decays."""
        if self.schedule is constant_rate:
            sentence = advice(self.optimizer_name, None)
            if sentence is not None:
                logging.getLogger("flwr").warning(sentence)

    def _train(
        self, grid: Grid, current: int, timeout: float, config: ConfigRecord
    ) -> MetricRecord | None:
        started = time.perf_counter()
        messages = list(self.configure_train(current, self.arrays, config, grid))
        sent = time.perf_counter()

        def send(batch: list[Message]) -> Iterable[Message]:
            return grid.send_and_receive(batch, timeout=timeout)

        if self.private is None:
            return self.aggregate_train(current, send(messages))[1]
        self.private.collect(send, messages, grid)
        timed = {"configure": sent - started, "exchange": time.perf_counter() - sent}
        return self._release(timed)[1]

    def _evaluate_on_clients(
        self,
        result: Result,
        grid: Grid,
        current: int,
        timeout: float,
        config: ConfigRecord | None,
    ) -> None:
        if self.cohorts is not None:
            return
        own = ConfigRecord(dict(config.items()) if config else {})
        messages = list(self.configure_evaluate(current, self.arrays, own, grid))
        if not messages:
            return
        replies = list(grid.send_and_receive(messages, timeout=timeout))
        try:
            metrics = self.aggregate_evaluate(current, replies)
        except Exception as problem:
            if self.privacy is None:
                raise
            # Under a plan no node's fault ends the run; the evaluation of this round is lost.
            logging.getLogger("flwr").warning(
                "The evaluation of round %d is lost: %s", current, problem
            )
            metrics = None
        if metrics is not None:
            result.evaluate_metrics_clientapp[current] = metrics

    def _evaluate(self, result: Result, current: int, evaluate_fn: EvaluateFunction | None) -> None:
        measured = evaluate_fn(current, self.arrays) if evaluate_fn is not None else None
        if measured is not None:
            result.evaluate_metrics_serverapp[current] = measured
        if self.directory is not None and self.private is not None:
            metrics = measured or result.evaluate_metrics_clientapp.get(current, MetricRecord())
            record = self.private.record if current else None
            self.directory.round(current, record, dict(metrics.items()))


def _factory(
    optimizer: str | OptimizerFactory, hyperparameters: dict[str, Any]
) -> OptimizerFactory:
    if callable(optimizer):
        if hyperparameters:
            raise SettingsError("hyperparameters go with a name; put them into your own function")
        return optimizer
    return lambda named: build_optimizer(optimizer, named, **hyperparameters)


def _checkpoint_dir(given: Folder | None, output: Path | None) -> Path | None:
    if given is not None:
        return Path(given)
    return None if output is None else output / "checkpoints"
