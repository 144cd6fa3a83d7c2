"""Time pfl-research beside the plain loop, in turn, in an environment that has both.

    build/pfl/bin/python -m experiments.benchmarks.engine_pfl --size 1M --cohort 100 --rounds 5

The environment is made by experiments/benchmarks/make_pfl_environment.sh; fedopt needs none of it.
Prints one JSON line of seconds per user, CPU and wall, for both.
"""

# mypy: ignore-errors
from __future__ import annotations

import argparse
import json
import time
import warnings

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from pfl.privacy.gaussian_mechanism import GaussianMechanism
from pfl.privacy.privacy_mechanism import CentrallyAppliedPrivacyMechanism
from torch.nn import functional

from experiments.benchmarks.engine_work import (
    BATCH,
    CLIENT_LR,
    CLIP_NORM,
    NOISE_MULTIPLIER,
    USERS,
    PlainLoop,
    examples,
    perceptron,
)


class Net(torch.nn.Module):
    """Offer a perceptron the way pfl wants it."""

    def __init__(self, size):
        super().__init__()
        self.net = perceptron(size)

    def loss(self, points, labels, eval=False):
        """Compute the mean cross entropy."""
        return functional.cross_entropy(self.net(points), labels)

    @torch.no_grad()
    def metrics(self, points, labels, eval=False):
        """Measure the loss."""
        loss = functional.cross_entropy(self.net(points), labels, reduction="sum").item()
        return {"loss": Weighted(loss, len(labels))}


class Turns(TrainingProcessCallback):
    """Time pfl's rounds and give the plain loop its turn between them."""

    def __init__(self, size, cohort):
        self.plain, self.cohort = PlainLoop(size), cohort
        self.pfl, self.plains = [], []

    def on_train_begin(self, *, model):
        """Start the watch."""
        self.begun = time.process_time(), time.perf_counter()
        return Metrics()

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        """Take a round's time per user."""
        self.pfl.append(self.since(self.begun))
        begun = time.process_time(), time.perf_counter()
        self.plain.round(range(self.cohort))
        self.plains.append(self.since(begun))
        self.begun = time.process_time(), time.perf_counter()
        return False, Metrics()

    def since(self, begun):
        """Give CPU and wall seconds per user."""
        cpu, wall = time.process_time() - begun[0], time.perf_counter() - begun[1]
        return cpu / self.cohort, wall / self.cohort


def run(size, cohort, rounds):
    """Train with pfl; user data sets are made once, so that slicing is not what is timed."""
    np.random.seed(0)
    points, labels = examples(size)
    made = {
        user: PyTorchTensorDataset((points[user], labels[user]), user_id=str(user))
        for user in range(USERS)
    }
    data = FederatedDataset(made.__getitem__, get_user_sampler("minimize_reuse", list(made)))
    net, turns = Net(size), Turns(size, cohort)
    private = CentrallyAppliedPrivacyMechanism(GaussianMechanism(CLIP_NORM, NOISE_MULTIPLIER))
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=rounds,
            evaluation_frequency=10**6,
            train_cohort_size=cohort,
            val_cohort_size=0,
        ),
        backend=SimulatedBackend(data, data, postprocessors=[private]),
        model=PyTorchModel(net, torch.optim.SGD, torch.optim.SGD(net.parameters(), lr=1.0)),
        model_train_params=NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=CLIENT_LR, local_batch_size=BATCH
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=None),
        callbacks=[turns],
        send_metrics_to_platform=False,
    )
    return turns


def main():
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="10k")
    parser.add_argument("--cohort", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    # The first two rounds are not counted: the first also evaluates every user.
    turns = run(given.size, given.cohort, given.rounds + 2)
    print(json.dumps({"pfl": turns.pfl[2:], "plain": turns.plains[2:], "torch": torch.__version__}))


if __name__ == "__main__":
    main()
