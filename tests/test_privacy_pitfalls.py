"""Show the pitfalls of PITFALLS.md that cross floors, and that every test named there exists."""

from __future__ import annotations

import ast
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from clients.protocol import LocalWork, MechanismSettings, Piece, StreamSettings, TrainRequest
from clients.task import TensorUserData
from clients.worker import Worker
from privacy.accounting import epsilon_spent, epsilon_without_amplification
from privacy.errors import SettingsError
from privacy.event import AccountingEvent
from privacy.noise import add_noise, grid_spacing, to_real
from privacy.plan import PrivacyPlan
from privacy.seeds import Streams
from strategies.release import released_mean

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "privacy" / "PITFALLS.md").read_text()
SEVERITIES = {"critical", "serious", "minor"}
COORDINATES = 40_000
PLAN = PrivacyPlan(
    population=1000, cohort=20, rounds=1, delta=1e-6, noise_multiplier=1.0, clip_norm=2.0
)
STREAMS = Streams(seed=1, settings_hash="pitfalls")


class Lines:
    """Fit lines: user 1 has a broken number, user 2 three times the data, user 3 cannot be read."""

    def user_ids(self) -> Sequence[str]:
        return ["a", "b", "c", "d"]

    def user_data(self, user_id: str) -> TensorUserData:
        if user_id == "d":
            raise OSError("the file of user d cannot be read")
        inputs = torch.ones(12 if user_id == "c" else 4, 3)
        if user_id == "b":
            inputs[0, 0] = math.nan
        return TensorUserData((inputs, inputs[:, :1] * 5), batch_size=4)

    def model(self) -> torch.nn.Module:
        return torch.nn.Linear(3, 1)

    def loss(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        loss: torch.Tensor = (model(batch[0]) - batch[1]).square().mean()
        return loss

    def evaluate(self, model: torch.nn.Module, split: str) -> Mapping[str, float]:
        return {"loss": 0.0}


def trained(users: tuple[int, ...], noise_std: float = 0.0) -> torch.Tensor:
    """Give the sum of clipped updates of some users, in real units."""
    request = TrainRequest(
        weights={name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()},
        pieces=(Piece(0, users, len(users) if noise_std else 0),),
        mechanism=MechanismSettings("global", (0.5, 0.5), grid_spacing(0.5), noise_std, 4),
        streams=StreamSettings(1, "ab", False, 1, 0),
        work=LocalWork(local_steps=0, local_epochs=1),
    )
    partial = Worker(Lines()).train(request)
    return to_real(torch.from_numpy(partial.total), grid_spacing(0.5))


SHAPES: dict[str, tuple[int, ...]] = {"weight": (1, 3), "bias": (1,)}


def test_a_broken_user_adds_zeros_and_changes_no_other() -> None:
    healthy = trained((0, 2))
    assert float(healthy.norm()) > 0.5
    assert torch.equal(trained((0, 1, 2, 3)), healthy)
    assert not trained((1, 3)).any()


def test_a_user_with_more_examples_adds_no_more_than_the_clip_norm() -> None:
    for user in (0, 2):
        assert 0.49 < float(trained((user,)).norm()) <= 0.5


class LinesWithRunningStatistics(Lines):
    def model(self) -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 1))


def test_a_model_with_running_statistics_is_refused() -> None:
    with pytest.raises(SettingsError, match="batch norm"):
        Worker(LinesWithRunningStatistics())


@pytest.mark.parametrize(("drawn", "noised"), [(0, 0), (9, 9), (20, 20), (20, 3), (41, 30)])
def test_every_cohort_gets_the_noise_due_and_the_fixed_denominator(drawn: int, noised: int) -> None:
    total = torch.zeros(COORDINATES, dtype=torch.int64)
    if noised:
        deviation = PLAN.share_deviation(noised, drawn)
        add_noise(total, STREAMS.source("noise", 1), deviation, PLAN.grid_spacing)
    mean = released_mean(PLAN, STREAMS, total, number=1, attempt=0, drawn=drawn, noised=noised)
    statistic = float((mean / PLAN.noise_std_on_mean).square().sum())
    assert 1e-6 < stats.chi2.cdf(statistic, COORDINATES) < 1 - 1e-6
    assert stats.chi2.cdf(statistic / 1.05**2, COORDINATES) < 1e-6


@pytest.mark.parametrize("drawn", [1, 20, 50])
def test_the_sum_is_divided_by_the_cohort_that_was_expected(drawn: int) -> None:
    silent = dataclasses.replace(PLAN, noise_multiplier=0.0)
    total = torch.full((3,), round(10.0 / PLAN.grid_spacing))
    mean = released_mean(silent, STREAMS, total, number=1, attempt=0, drawn=drawn, noised=0)
    assert mean.tolist() == [0.5, 0.5, 0.5]  # 10 over the expected 20


def test_a_fixed_cohort_is_not_quoted_with_the_poisson_number() -> None:
    # Golden: reference notes on accounting, m/N = 1000/10^5, z = 1, T = 1000, delta 1e-7:
    # Poisson 2.41, without replacement at least 17.5, RDP bound 25.6.
    poisson = AccountingEvent("poisson", 100_000, 1000, 1.0)
    fixed = AccountingEvent("fixed", 100_000, 1000, 1.0)
    spent = epsilon_spent([(fixed, 1000)], 1e-7)
    assert spent.adjacency == "replace-one"
    assert 17.5 < spent.epsilon < 25.7
    assert epsilon_spent([(poisson, 1000)], 1e-7).epsilon < 5.0
    with pytest.raises(SettingsError):
        epsilon_spent([(poisson, 1), (fixed, 1)], 1e-7)


def test_without_secret_sampling_only_the_unamplified_number_holds() -> None:
    releases = [(AccountingEvent("poisson", 100_000, 1000, 1.0), 100)]
    plain = epsilon_without_amplification(releases, 1e-7)
    everyone = [(AccountingEvent("everyone", 100_000, 100_000, 1.0), 100)]
    assert plain == pytest.approx(epsilon_spent(everyone, 1e-7, "exact").epsilon)
    assert plain > 10 * epsilon_spent(releases, 1e-7).epsilon


def test_a_capped_cohort_is_quoted_by_the_truncated_event_alone() -> None:
    capped = AccountingEvent("poisson", 100_000, 1000, 1.0, cohort_cap=1200)
    with pytest.raises(SettingsError, match="cap"):
        epsilon_spent([(capped, 1000)], 1e-7, "rdp")
    # Golden: dp-accounting 0.6.0, TruncatedSubsampledGaussianDpEvent: 2.4117, as without a cap.
    assert epsilon_spent([(capped, 1000)], 1e-7, "pld").epsilon == pytest.approx(2.4117, rel=0.01)


def test_every_test_named_among_the_pitfalls_exists() -> None:
    named = re.findall(r"`(test_\w+)::(test_\w+)`", TEXT)
    assert len(named) > 25
    for file, name in named:
        tree = ast.parse((ROOT / "tests" / f"{file}.py").read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_pitfall_has_a_severity_a_remedy_and_a_test() -> None:
    entries = re.split(r"^### ", TEXT, flags=re.MULTILINE)[1:]
    assert len(entries) >= 20
    for entry in entries:
        title = entry.splitlines()[0]
        severity = re.search(r"^Severity: (\w+)\.", entry, flags=re.MULTILINE)
        assert severity is not None, title
        assert severity.group(1) in SEVERITIES, title
        assert "We: " in entry, title
        assert re.search(r"^(Shown by|Not shown):", entry, flags=re.MULTILINE), title
