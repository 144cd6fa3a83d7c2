"""Train the speech model in one place, without users or privacy: the reference run.

python -m experiments.asr.central --dataset synthetic --steps 400
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from experiments.asr.options import DATASETS
from experiments.asr.task import SpeechTask, task
from privacy.errors import SettingsError

if TYPE_CHECKING:
    from experiments.asr.batching import SpeechBatch

Report = Callable[[int, float, dict[str, float]], None]
"""Is told: steps done, mean training loss since the last report, metrics on the split."""

_WARM_UP_STEPS = 100
_LARGEST_GRADIENT_NORM = 1.0


def train_centrally(
    speech: SpeechTask,
    *,
    steps: int,
    learning_rate: float = 2e-3,
    seed: int = 0,
    report_every: int = 100,
    report: Report = lambda step, loss, metrics: None,
) -> dict[str, float]:
    """Train with Adam on all speakers' utterances together; give the last metrics on dev.

    The rate rises linearly over 100 steps and falls linearly over the last half of the run;
    gradients are clipped to norm 1. Utterances of different speakers share a batch.
    """
    import torch

    torch.manual_seed(seed)
    model = speech.model()
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    generator = np.random.default_rng(seed)
    batches = _endless_batches(speech, generator)
    losses: list[float] = []
    metrics: dict[str, float] = {}
    for step in range(1, steps + 1):
        optimizer.param_groups[0]["lr"] = learning_rate * rate_factor(step, steps)
        optimizer.zero_grad()
        loss = speech.loss(model, next(batches))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), _LARGEST_GRADIENT_NORM)
        optimizer.step()
        losses.append(loss.item())
        if step % report_every == 0 or step == steps:
            metrics = dict(speech.evaluate(model, "dev"))
            report(step, float(np.mean(losses)), metrics)
            losses.clear()
    return metrics


def rate_factor(step: int, steps: int) -> float:
    """Give the share of the learning rate at a step: warm-up, plateau, linear fall to zero."""
    rise = min(1.0, step / min(_WARM_UP_STEPS, steps))
    fall = min(1.0, 2.0 * (steps - step + 1) / steps)
    return min(rise, fall)


def _endless_batches(speech: SpeechTask, generator: np.random.Generator) -> Iterator[SpeechBatch]:
    everyone = speech.all_training_data()
    while True:
        yield from everyone.batches(generator)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; give the exit code: 0 finished, 2 bad settings."""
    given = _parser().parse_args(arguments)
    try:
        speech = task(
            dataset=given.dataset,
            data_root=given.data_root,
            model=given.model,
            batch_size=given.batch_size,
            dropout=given.dropout,
            spec_augment=given.spec_augment,
            speed=given.speed,
            tract=given.tract,
        )
    except SettingsError as problem:
        sys.stderr.write(f"{problem}\n")
        return problem.exit_code
    start = time.process_time()

    def report(step: int, loss: float, metrics: dict[str, float]) -> None:
        seconds = time.process_time() - start
        sys.stdout.write(
            f"step {step}  training loss {loss:.3f}  dev loss {metrics['loss']:.3f}  "
            f"WER {metrics['wer']:.3f}  CER {metrics['cer']:.3f}  CPU seconds {seconds:.0f}\n"
        )
        sys.stdout.flush()

    train_centrally(
        speech,
        steps=given.steps,
        learning_rate=given.learning_rate,
        seed=given.seed,
        report_every=given.report_every,
        report=report,
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", choices=DATASETS, default="synthetic")
    parser.add_argument("--data-root")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--dropout", type=float)
    parser.add_argument("--spec-augment", default="none")
    parser.add_argument("--speed", type=float, default=0.0)
    parser.add_argument("--tract", type=float, default=0.0)
    parser.add_argument("--report-every", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    sys.exit(main())
