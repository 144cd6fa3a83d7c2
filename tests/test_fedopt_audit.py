"""Show that the audit finds what is broken, leaves alone what is right, and survives its run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from audit_runs import STRENGTH, USERS, audit_settings, audited, with_noise
from engine_runs import rows, run, start_child
from engine_tasks import EngineTask
from torch import nn

from clients import worker
from clients.protocol import LocalWork, MechanismSettings, Piece, StreamSettings, TrainRequest
from fedopt.audit import read_audit, without_canaries
from fedopt.audit_canaries import WithCanaries
from fedopt.audit_result import audit_of_run
from fedopt.cli import main
from fedopt.report import read_run
from fedopt.simulation import simulate
from privacy import clipped_sum
from privacy.audit_canaries import Canaries
from privacy.clipping import clip_scales
from privacy.errors import SettingsError
from privacy.seeds import Streams
from strategies.round_record import RoundRecord


def faulty_seeds(folder: Path, factor: float, seeds: Sequence[int]) -> int:
    """Count the seeds in which an audit exceeds the claim, with noise of factor times its size."""
    found = 0
    for seed in seeds:
        in_clients, in_server = with_noise(factor)
        with in_clients, in_server:
            audit = audited(folder / f"{factor}-{seed}", audit_settings(seed=seed))
        found += "all rounds" in audit["exceeded"]
    return found


def correct_seeds(folder: Path, seeds: Sequence[int]) -> int:
    """Count the seeds in which no bound at all exceeds its limit."""
    audits = (audited(folder / str(seed), audit_settings(seed=seed)) for seed in seeds)
    return sum(not audit["exceeded"] for audit in audits)


def test_without_noise_the_audit_exceeds_the_claim(tmp_path: Path) -> None:
    in_clients, in_server = with_noise(0.0)
    with in_clients, in_server:
        audit = audited(tmp_path / "run", audit_settings())
    assert {"all rounds", "final model only", "cohorts known"} <= set(audit["exceeded"])
    assert audit["bounds"][0]["epsilon"] > 2 * audit["bounds"][0]["limit"]
    assert main(["audit", str(tmp_path / "run")]) == 1


def test_half_the_noise_exceeds_the_claim_in_most_of_ten_seeds(tmp_path: Path) -> None:
    assert faulty_seeds(tmp_path, 0.5, range(10)) > 5


def test_correct_code_stays_below_in_ten_seeds(tmp_path: Path) -> None:
    assert correct_seeds(tmp_path, range(10)) >= 9


@pytest.mark.slow
def test_correct_code_stays_below_in_95_of_100_seeds(tmp_path: Path) -> None:
    assert correct_seeds(tmp_path, range(100)) >= 95


@pytest.mark.slow
def test_half_the_noise_exceeds_the_claim_in_most_of_100_seeds(tmp_path: Path) -> None:
    assert faulty_seeds(tmp_path, 0.5, range(100)) > 50


def test_the_fit_finds_the_strength_that_was_run(tmp_path: Path) -> None:
    audit = audited(tmp_path / "run", audit_settings(canaries=400, size=40_000))
    all_rounds, one_layer, final = audit["bounds"][:3]
    # Directions overlap: 200 included canaries add 200 / 40003 of mu^2 to the variance. The
    # fit of 100 against 100 scores has a standard error of 0.2.
    wanted = STRENGTH / math.sqrt(1 + STRENGTH**2 * 200 / 40_003)
    assert all_rounds["fitted_mu"] == pytest.approx(wanted, abs=0.6)
    assert one_layer["fitted_mu"] == pytest.approx(wanted, abs=0.6)
    # Plain steps of rate 1: the last model holds the sum of all releases.
    assert final["fitted_mu"] == pytest.approx(all_rounds["fitted_mu"], rel=1e-3)
    assert all_rounds["limit"] > audit["cohorts_known"]["limit"] > all_rounds["epsilon"] > 5.0


class FourLayers(nn.Module):
    """Hold four vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ParameterList([nn.Parameter(torch.zeros(5000)) for _ in range(4)])


class FourLayerTask(EngineTask):
    """Be a task of four layers, whose users change nothing."""

    def model(self) -> nn.Module:
        return FourLayers()

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        assert isinstance(model, FourLayers)
        return sum((part.sum() * 0.0 for part in model.parts), torch.zeros(()))

    def evaluate(self, model: nn.Module, split: str) -> dict[str, float]:
        return {"loss": 1.0, "distance": 0.0}


def four_layers(folder: Path, scales: Any) -> dict[str, Any]:
    """Audit a run whose clip takes other factors."""
    task = FourLayerTask(users=USERS, size=1, zero=True, folder="", pause=0.0)
    with mock.patch.object(clipped_sum, "clip_scales", scales):
        return audited(folder, audit_settings(), task=task)


def test_a_clip_that_does_nothing_is_found(tmp_path: Path) -> None:
    def no_clip(clipping: str, norms: list[float], bounds: list[float]) -> list[float]:
        return [1.0] * len(norms)

    audit = four_layers(tmp_path / "run", no_clip)
    assert {"all rounds", "all rounds, one layer", "cohorts known"} <= set(audit["exceeded"])


def test_a_clip_by_the_average_layer_is_found_by_the_canaries_of_one_layer(tmp_path: Path) -> None:
    def average_clip(clipping: str, norms: list[float], bounds: list[float]) -> list[float]:
        return [min(1.0, bounds[0] * len(norms) / max(sum(norms), 1e-9))] * len(norms)

    # Right where all layers are equally long, so the canaries of all layers see nothing.
    assert four_layers(tmp_path / "wrong", average_clip)["exceeded"] == ["all rounds, one layer"]
    assert not four_layers(tmp_path / "right", clip_scales)["exceeded"]


def test_sampled_cohorts_stay_below_and_known_cohorts_show_more(tmp_path: Path) -> None:
    drawn: dict[str, Any] = {
        "sampling": "poisson",
        "cohort": 51,
        "simulated_cohort": 51,
        "rounds": 12,
    }
    audit = audited(tmp_path / "run", audit_settings(**drawn, noise_multiplier=0.8))
    assert audit["exceeded"] == []
    assert audit["cohorts_known"]["fitted_mu"] > audit["bounds"][0]["fitted_mu"] > 0.0
    cohorts = [len(kept["cohort"]) for kept in read_audit(tmp_path / "run/audit.json")["rounds"]]
    assert all(20 < cohort < 85 for cohort in cohorts)


def test_canaries_are_users_and_means_leave_them_out(tmp_path: Path) -> None:
    settings = audit_settings(canaries=20, size=200, clip_norm=1e-6)
    run(settings, tmp_path / "run")
    released = rows(tmp_path / "run")[1]
    assert (released["cohort"], released["replies"]) == (24, 24)
    # All four data users are clipped in both layers; 20 canaries that count would dilute that.
    assert released["clipped_fraction"] == pytest.approx(1.0)
    assert released["layer_clipped"] == pytest.approx([1.0, 1.0])
    assert 1.0 < released["train_loss"] < 3.0  # mean squares of standard normal targets, and 1
    facts = read_run(tmp_path / "run")
    assert facts.plan.simulation.users == 24
    assert facts.provenance["data_users"] == USERS


def test_the_mean_over_data_users_is_exact() -> None:
    record = RoundRecord(
        round=1, attempt=0, cohort=7, replies=6, epsilon=1.0, train_loss=1.0, update_norm=2.0,
        clipped_fraction=0.5, noise_std=0.1, step_norm=1.0, faults={"5": "late"},
        layer_clipped=[0.25],
    )  # fmt: skip
    # Users 0 to 3 are data users; of canaries 0 to 2 (users 4 to 6) the second was late.
    found = without_canaries(record, 4, (0, 1, 2))
    assert (found.train_loss, found.update_norm, found.clipped_fraction) == (1.5, 3.0, 0.75)
    assert found.layer_clipped == [0.375]
    nobody = without_canaries(RoundRecord(1, 0, 2, 2, 1.0, 0.0, 0.0, 0.0, 0.1, 1.0), 4, (0, 1))
    assert (nobody.train_loss, nobody.update_norm) == (None, None)


def test_a_worker_adds_exactly_the_clipped_canaries(tmp_path: Path) -> None:
    task = WithCanaries(EngineTask(users=2, size=2000, zero=True, folder="", pause=0.0), 30)
    clip_norm, spacing = 0.5, 2.0**-41
    sizes = (2000, 3)
    bounds = tuple(clip_norm * math.sqrt(size / sum(sizes)) for size in sizes)
    mechanism = MechanismSettings("per-layer-dim", bounds, spacing, 0.0, 32)
    request = TrainRequest(
        weights={"first": np.zeros(2000, np.float32), "second": np.ones(3, np.float32)},
        pieces=(Piece(0, tuple(range(32)), 0),),
        mechanism=mechanism,
        streams=StreamSettings(5, "ab", False, 1, 0),
        work=LocalWork(),
    )
    partial = worker.Worker(task).train(request)
    assert [outcome.fault for outcome in partial.outcomes] == [""] * 32
    known = Canaries(30, Streams(5, "ab"), sizes, "per-layer-dim", bounds)
    wanted = np.zeros(2003)
    for index in np.flatnonzero(known.included):
        parts = known.update(int(index))
        for part, start, size, bound in zip(parts, known.starts, sizes, bounds, strict=True):
            if part is not None:
                wanted[start : start + size] += part * (bound / np.linalg.norm(part))
    assert partial.total * spacing == pytest.approx(wanted, abs=1e-6)
    assert task.metric == "distance"


CRASHES = [
    ("before checkpoint", 2),
    ("after checkpoint", 2),
    ("after commit", 1),
    ("after line", 2),
]


@pytest.mark.parametrize("crash", CRASHES, ids=lambda crash: f"{crash[0]} {crash[1]}")
def test_scores_survive_a_death_anywhere(crash: tuple[str, int], tmp_path: Path) -> None:
    settings = audit_settings(canaries=20, size=200, rounds=3)
    run(settings, tmp_path / "whole")
    child = start_child(settings, tmp_path / "cut", crash)
    child.join(120)
    assert child.exitcode == -9
    run(settings, tmp_path / "cut", resume=True)
    whole, cut = ((tmp_path / name / "audit.json").read_bytes() for name in ("whole", "cut"))
    assert cut == whole
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")


def test_an_interrupted_run_is_audited_as_far_as_it_released(tmp_path: Path) -> None:
    settings = audit_settings(canaries=20, size=200, rounds=3)
    child = start_child(settings, tmp_path / "run", ("after checkpoint", 3))
    child.join(120)
    assert [kept["round"] for kept in read_audit(tmp_path / "run/audit.json")["rounds"]] == [2, 3]
    audit = audit_of_run(tmp_path / "run")
    assert audit is not None
    assert audit["rounds"] == 2


@pytest.mark.slow
def test_workers_in_ray_build_the_same_canaries(tmp_path: Path) -> None:
    settings = audit_settings(canaries=20, size=200)
    run(settings, tmp_path / "local")
    engine = settings.engine.model_copy(update={"engine": "ray", "workers": 2})
    # In a process of its own: Ray leaves files open in the one that starts it.
    child = start_child(settings.model_copy(update={"engine": engine}), tmp_path / "ray")
    child.join(300)
    assert child.exitcode == 0
    local, ray = (read_audit(tmp_path / name / "audit.json") for name in ("local", "ray"))
    assert ray["rounds"] == local["rounds"]


def test_a_run_whose_scores_are_lost_is_not_gone_on_with(tmp_path: Path) -> None:
    settings = audit_settings(canaries=20, size=200)
    run(settings, tmp_path / "run")
    (tmp_path / "run" / "audit.json").unlink()
    with pytest.raises(SettingsError, match=r"audit\.json"):
        run(settings, tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"canaries": 15}, "at least 16"),
        ({"canaries": 200, "size": 500}, "at most 50 canary users"),
        ({"virtual_users": True, "sampling": "poisson"}, "--virtual-users"),
    ],
)
def test_an_audit_that_would_show_nothing_is_refused(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=said) as caught:
        run(audit_settings(**changes), tmp_path / "new" / "run")
    assert len(caught.value.problems) == 1
    assert list(tmp_path.iterdir()) == []


def test_flowers_own_workers_know_no_canaries(tmp_path: Path) -> None:
    settings = audit_settings(canaries=20, size=200)
    with pytest.raises(SettingsError, match="fedopt's own workers"):
        simulate(settings, output=tmp_path / "run", grid=mock.Mock())


def test_a_data_user_of_a_canarys_name_is_refused() -> None:
    class Namesake(EngineTask):
        def user_ids(self) -> Sequence[str]:
            return ["fedopt canary 3"]

    with pytest.raises(SettingsError, match="rename"):
        WithCanaries(Namesake(users=1, size=3, zero=False, folder="", pause=0.0), 5)
