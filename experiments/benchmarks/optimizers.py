"""Compare every server strategy, each with its tuned rate, on users who see different classes.

    python -m experiments.benchmarks.optimizers --output experiments/results

Each strategy's rate and schedule are tuned on a seed of their own by the mean accuracy over all
rounds, moving by factors of two until both neighbours are worse; FedAvg is tuned like the others
and also run at rate 1. Quoted are fresh seeds on the test split.
Writes optimizers.json and optimizers.svg.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord

from clients.arrays import weights_record
from clients.local_training import trainable
from clients.protocol import LocalWork
from experiments.classification.task import ClassificationTask, task
from fedopt.client_app import cohort_client_app
from fedopt.doctor import commit, versions
from fedopt.local_grid import LocalGrid
from fedopt.population import DealtPopulation
from privacy.ledger import Ledger, PlanFacts
from privacy.plan import PrivacyPlan
from privacy.seeds import Streams
from strategies.cohort_training import Cohorts
from strategies.fed_optimizer import FedOptimizer
from strategies.schedules import build_schedule

FIRST_RATES = {
    "fedavg": 4.0,
    "fedavgm": 0.5,
    "fedadagrad": 0.08,
    "fedadam": 0.04,
    "fedyogi": 0.04,
    "fednovograd": 0.16,
    "fedlamb": 0.04,
    "fedlars": 16.0,
}
TASK = {"users": 100, "examples": 40, "hidden": 32, "concentration": 0.1, "spread": 1.0}
WORK = LocalWork(client_lr=0.3, local_steps=5)
CLAIMED = {"population": 10_000, "cohort": 25, "delta": 1e-6, "clip_norm": 0.5}
TRAINED_COHORT = 10
NOISE_MULTIPLIERS = {"without noise": 0.0, "with noise": 1.0}
SCHEDULES = ("constant", "linear")
TARGETS = (0.7, 0.8)
TUNING_SEED, FIRST_SEED = 1000, 1
MOST_MOVES = 6
LAST_ROUNDS = 5


@dataclass(frozen=True)
class Choice:
    """State what is tuned: the server's rate and how it goes over the rounds."""

    strategy: str
    rate: float
    schedule: str


class Bench:
    """Train the one task with any choice; every run takes the same data and first weights."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        self.task: ClassificationTask = task(**TASK)  # type: ignore[arg-type]
        self.grid = LocalGrid(cohort_client_app(lambda: self.task))
        self.runs = 0

    def plan(self, noise_multiplier: float) -> PrivacyPlan:
        """Build the plan of a condition, simulated on the users of the data set."""
        claimed = PrivacyPlan(rounds=self.rounds, noise_multiplier=noise_multiplier, **CLAIMED)  # type: ignore[arg-type]
        return claimed.simulate(users=len(self.task.user_ids()), cohort=TRAINED_COHORT)

    def accuracies(
        self, choice: Choice, noise_multiplier: float, seed: int, split: str
    ) -> list[float]:
        """Train once; returns the accuracy on a split after every round."""
        self.runs += 1
        torch.manual_seed(seed)
        model = self.task.model()
        found: list[float] = []

        def evaluate(number: int, arrays: ArrayRecord) -> None:
            model.load_state_dict(arrays.to_torch_state_dict())
            with torch.inference_mode():
                found.append(self.task.evaluate(model, split)["accuracy"])

        first = {name: p.detach().numpy() for name, p in trainable(model).items()}
        with tempfile.TemporaryDirectory() as folder:
            strategy = self._strategy(choice, self.plan(noise_multiplier), seed, Path(folder))
            strategy.start(
                self.grid, weights_record(first), num_rounds=self.rounds, evaluate_fn=evaluate
            )
        return found[1:]

    def _strategy(self, choice: Choice, plan: PrivacyPlan, seed: int, folder: Path) -> FedOptimizer:
        facts = PlanFacts(plan.population, plan.delta, plan.event.adjacency)
        # All choices meet the same cohorts and noise of a seed, so they differ in the step alone.
        cohorts = Cohorts(
            population=DealtPopulation(len(self.task.user_ids())),
            work=WORK,
            streams=Streams(seed, "benchmark of optimizers"),
            ledger=Ledger.open(folder / "ledger.sqlite", run="benchmark", plan_facts=facts),
        )
        return FedOptimizer(
            choice.strategy,
            {"lr": choice.rate},
            privacy=plan,
            schedule=build_schedule(choice.schedule, rounds=self.rounds),
            cohorts=cohorts,
        )


def climb(
    score: Callable[[float], float], start: float, most: int = MOST_MOVES
) -> tuple[float, float, bool]:
    """Move by factors of two until both neighbours of a rate score less, at most `most` times.

    Returns the best rate, its score, and whether both its neighbours were tried.
    """
    scores = {start: score(start)}
    best = start
    for _ in range(most):
        for near in (best / 2, best * 2):
            if near not in scores:
                scores[near] = score(near)
        top = max(scores, key=lambda rate: scores[rate])
        if top == best:
            return best, scores[best], True
        best = top
    return best, scores[best], False


def tune(bench: Bench, strategy: str, noise_multiplier: float) -> tuple[Choice, bool]:
    """Find the best schedule and rate of a strategy on the tuning seed and development split."""
    found = []
    for schedule in SCHEDULES:

        def score(rate: float, schedule: str = schedule) -> float:
            choice = Choice(strategy, rate, schedule)
            curve = bench.accuracies(choice, noise_multiplier, TUNING_SEED, "dev")
            return statistics.fmean(curve)

        rate, value, inside = climb(score, FIRST_RATES[strategy])
        found.append((value, Choice(strategy, rate, schedule), inside))
    _, choice, inside = max(found, key=lambda item: item[0])
    return choice, inside


def rounds_to(curve: Sequence[float], target: float) -> int | None:
    """Count the rounds until the accuracy first reaches the target; None where it never does."""
    return next((number for number, value in enumerate(curve, 1) if value >= target), None)


def summary(choice: Choice, curves: list[list[float]]) -> dict[str, Any]:
    """Sum up the fresh seeds of one choice."""
    finals = [statistics.fmean(curve[-LAST_ROUNDS:]) for curve in curves]
    return {
        **asdict(choice),
        "rounds_to": {str(t): [rounds_to(curve, t) for curve in curves] for t in TARGETS},
        "final_accuracy": statistics.fmean(finals),
        "final_accuracy_std": statistics.stdev(finals) if len(finals) > 1 else 0.0,
        "final_accuracies": finals,
        "mean_curve": [statistics.fmean(values) for values in zip(*curves, strict=True)],
    }


def compare(bench: Bench, strategies: Sequence[str], condition: str, seeds: int) -> list[Any]:
    """Tune every strategy for a condition and measure it on fresh seeds."""
    noise = NOISE_MULTIPLIERS[condition]
    rows = []
    choices = [(Choice("fedavg", 1.0, "constant"), "not tuned")]
    for strategy in strategies:
        choice, inside = tune(bench, strategy, noise)
        choices.append((choice, "tuned" if inside else "tuned, best at the edge"))
        print(f"{condition}: {choice}", file=sys.stderr)
    for choice, how in choices:
        numbers = range(FIRST_SEED, FIRST_SEED + seeds)
        curves = [bench.accuracies(choice, noise, seed, "test") for seed in numbers]
        rows.append({"condition": condition, "rate_is": how, **summary(choice, curves)})
    return rows


def draw(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the mean accuracy by round, one panel for each condition."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    conditions = list(dict.fromkeys(row["condition"] for row in results))
    with pyplot.rc_context({"svg.hashsalt": "fedopt"}):
        figure, panels = pyplot.subplots(1, len(conditions), figsize=(11, 4.5), squeeze=False)
        for panel, condition in zip(panels[0], conditions, strict=True):
            for row in (row for row in results if row["condition"] == condition):
                dashed = row["rate_is"] == "not tuned"
                label = f"{row['strategy']} {row['rate']:g}, {row['schedule']}"
                rounds = range(1, len(row["mean_curve"]) + 1)
                panel.plot(rounds, row["mean_curve"], "k--" if dashed else "-", label=label)
            panel.set(title=condition, xlabel="round", ylabel="accuracy", ylim=(0.0, 1.0))
            panel.legend(fontsize=7, loc="lower right")
        figure.tight_layout()
        figure.savefig(path, format="svg", metadata={"Date": None})
        pyplot.close(figure)


def main() -> None:
    """Read the flags, tune, measure, write JSON and figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--strategies", nargs="+", default=list(FIRST_RATES), choices=FIRST_RATES)
    parser.add_argument("--output", type=Path, required=True)
    flags = parser.parse_args()
    torch.set_num_threads(1)
    bench, began = Bench(flags.rounds), time.process_time()
    results = [
        row
        for condition in NOISE_MULTIPLIERS
        for row in compare(bench, flags.strategies, condition, flags.seeds)
    ]
    flags.output.mkdir(parents=True, exist_ok=True)
    document = describe(bench, flags, time.process_time() - began) | {"results": results}
    (flags.output / "optimizers.json").write_text(json.dumps(document, indent=1) + "\n")
    draw(results, flags.output / "optimizers.svg")
    for row in results:
        print(
            f"{row['condition']:14} {row['strategy']:12} {row['rate']:<8g} {row['schedule']:9}",
            row["rounds_to"],
            f"{row['final_accuracy']:.3f} +- {row['final_accuracy_std']:.3f}",
        )


def describe(bench: Bench, flags: argparse.Namespace, cpu_seconds: float) -> dict[str, Any]:
    """Say what was run, where, and how to run it again."""
    noisy = bench.plan(NOISE_MULTIPLIERS["with noise"])
    return {
        "schema_version": 1,
        "benchmark": "optimizers",
        "command": f"python -m experiments.benchmarks.optimizers {shlex.join(sys.argv[1:])}",
        "not_covered": "tuning looks at private data and is not in epsilon",
        "task": TASK,
        "client": asdict(WORK),
        "claimed": CLAIMED | {"clipping": noisy.clipping, "noise_multipliers": NOISE_MULTIPLIERS},
        "epsilon_with_noise": {"rdp": noisy.epsilon()},
        "noise_std_on_mean": noisy.noise_std_on_mean,
        "simulated_cohort": TRAINED_COHORT,
        "rounds": flags.rounds,
        "seeds": list(range(FIRST_SEED, FIRST_SEED + flags.seeds)),
        "tuning_seed": TUNING_SEED,
        "chance": 0.1,
        "runs": bench.runs,
        "cpu_seconds": cpu_seconds,
        "versions": versions(),
        "hardware": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
        "commit": commit(),
    }


if __name__ == "__main__":
    main()
