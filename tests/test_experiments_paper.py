"""Check every published configuration: it loads, its epsilon is right, its comment is honest."""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import experiments.asr
from experiments.asr.flops import training_flops
from experiments.asr.model import PRESETS as MODELS
from experiments.asr.options import SpeechOptions
from experiments.asr.task import outline
from fedopt.cli import main
from fedopt.config import Settings, build_settings
from fedopt.dry_run import gpu_hours
from fedopt.paper_table import PAPER_ROWS
from fedopt.planning import settings_problems, task_options
from privacy.accounting import epsilon_spent
from privacy.event import AccountingEvent

FOLDER = Path(experiments.asr.__file__).parents[1] / "paper"
FILES = sorted(FOLDER.glob("*.toml"))
GOLDEN = json.loads((Path(__file__).parent / "golden" / "paper_configurations.json").read_text())
WITHIN = 0.06
"""How far a printed epsilon of two digits may be from ours before its comment must say why."""


KINDS = {"fl-": 12, "pfl-": 2, "dp-ls-100-": 55, "dp-ls-960-": 8, "dp-cv-": 20, "size-": 15}
"""Files by the beginning of their names."""


def _settings(path: Path) -> Settings:
    return build_settings(tomllib.loads(path.read_text()))


def _comment(path: Path) -> dict[str, str]:
    """Read the "word: value" lines of the first comment; wrapped lines are not needed."""
    first = path.read_text().split("\n\n")[0]
    return dict(re.findall(r"^# ([a-z]+)(?: at cohort \d+)?: (.+)$", first, re.MULTILINE))


def _epsilon(settings: Settings) -> float:
    privacy = settings.privacy
    if not privacy.noise_multiplier:
        return math.inf
    event = AccountingEvent("poisson", privacy.population, privacy.cohort, privacy.noise_multiplier)
    return epsilon_spent([(event, privacy.rounds)], privacy.delta).epsilon


def test_all_configurations_are_there() -> None:
    assert len(FILES) == 112
    kinds = {kind: sum(path.name.startswith(kind) for path in FILES) for kind in KINDS}
    assert kinds == KINDS


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_configuration_loads_and_its_comment_tells_rates_and_epsilon(path: Path) -> None:
    settings, said = _settings(path), _comment(path)
    assert settings_problems(settings, data_needed=False) == []
    SpeechOptions(**task_options(settings))
    assert re.match(r"\d+\.\d (dev|test|dev-other)\b", said["wer"])
    ours = _epsilon(settings)
    if math.isinf(ours):
        assert said["epsilon"] == "infinity (no noise)"
        return
    value, accountant = said["epsilon"].split()
    assert accountant == "(rdp)"
    assert float(value) == pytest.approx(ours, rel=6e-4)
    if "printed" in said and abs(ours / float(said["printed"]) - 1) > WITHIN:
        assert "misprint" in said or "orders" in said


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_loss_targets_and_text_are_the_papers(path: Path) -> None:
    chosen = SpeechOptions(**task_options(_settings(path)))
    assert (chosen.loss, chosen.pad_text) == ("utterance", True)
    assert chosen.transliterate == (chosen.dataset == "common-voice")


def _rates(path: Path) -> list[str]:
    """Give the lines of the first comment that tell word error rates, as they stand there."""
    first = path.read_text().split("\n\n")[0]
    return re.findall(r"^# (wer.*)$", first, re.MULTILINE)


def _published_rates(name: str) -> list[str]:
    """Write the lines that the published tables give for a configuration."""
    if name in GOLDEN["by_cohort"]:
        return list(_rates_by_cohort(**GOLDEN["by_cohort"][name]))
    if found := re.fullmatch(r"size-([a-z]+)-sigma-([^-]+(?:-6)?)-([a-z]+)", name):
        model, sigma, kind = found.groups()
        return [f"wer: {GOLDEN['sizes'][model][sigma][kind]} test"]
    found = re.fullmatch(r"dp-(.+)-sigma-([\d.]+(?:e-6)?)-(.+)", name)
    assert found, name
    seed, sigma, kind = found.groups()
    table = GOLDEN["private"][seed]
    rows = table["wer"][sigma]
    if "-of-" not in kind:
        return ["wer: {} dev, {} test".format(*rows[kind])]
    trained = f"trained with {table['trained']:,} of {table['users']:,} users"
    kinds = [each for each in ("dim", "uniform", "global") if each in rows]
    return ["wer: {} dev, {} test ({}, {})".format(*rows[each], each, trained) for each in kinds]


def _rates_by_cohort(sets: list[str], wer: dict[str, list[float]], **_: Any) -> Iterator[str]:
    for cohort, rates in wer.items():
        named = [f"{rate} {which}" for rate, which in zip(rates, sets, strict=True)]
        # LibriSpeech is told by its harder sets first.
        ordered = named[2:] + named[:2] if len(named) == 4 else named
        yield f"wer at cohort {cohort}: {', '.join(ordered)}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_word_error_rates_are_those_of_the_published_tables(path: Path) -> None:
    assert _rates(path) == _published_rates(path.stem)


def test_every_published_private_rate_has_a_configuration() -> None:
    names = {path.stem for path in FILES}
    assert set(GOLDEN["by_cohort"]) < names
    for seed, table in GOLDEN["private"].items():
        for sigma, kinds in table["wer"].items():
            assert {f"dp-{seed}-sigma-{sigma}-{kind}" for kind in kinds} < names
    for model, sigmas in GOLDEN["sizes"].items():
        for sigma, kinds in sigmas.items():
            assert {f"size-{model}-sigma-{sigma}-{kind}" for kind in kinds} < names


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_training_is_set_as_published(path: Path) -> None:
    settings = _settings(path)
    published = GOLDEN["by_cohort"].get(path.stem, {"schedule": "seeded-cv", "batch_seconds": 120})
    schedule, every = GOLDEN["schedules"][published["schedule"]], GOLDEN["client"]
    client, server = settings.client, settings.server
    assert client.client_lr == schedule["client_lr"]
    assert client.gradient_clip == every["gradient_clip"]
    if path.stem.startswith("fl-"):
        assert (client.local_steps, client.local_epochs) == (0, every["local_epochs"])
    else:
        assert client.local_steps == every["local_steps"]
    assert (server.strategy, server.server_lr) == ("fedlamb", schedule["server_lr"])
    assert server.hyperparameters == GOLDEN["lamb"]
    assert server.schedule == "exponential"
    assert server.schedule_options == {
        "start": schedule["start"],
        "transition": schedule["transition"],
        "factor": 0.6,
    }
    options = task_options(settings)
    assert options["batch_seconds"] == published["batch_seconds"]
    assert {key: options[key] for key in GOLDEN["task"]} == GOLDEN["task"]
    assert options["dataset"] == (
        "librispeech" if options["batch_seconds"] == 360 else "common-voice"
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_model_is_the_published_one(path: Path) -> None:
    chosen = SpeechOptions(**task_options(_settings(path)))
    model = chosen.model_changes.apply(MODELS[chosen.model])
    study = path.stem.startswith("size-")
    assert chosen.model == (path.stem.split("-")[1] if study else "base")
    assert model == replace(MODELS[chosen.model], layer_drop=0.1 if study else 0.3)
    assert chosen.tokens().labels == 30


def test_every_printed_row_has_its_configuration_and_every_printed_value_is_the_rows() -> None:
    printed: dict[tuple[Any, ...], float] = {}
    for path in FILES:
        said, privacy = _comment(path), _settings(path).privacy
        if "printed" in said:
            key = (privacy.population, privacy.cohort, privacy.noise_multiplier, privacy.rounds)
            printed[key] = float(said["printed"])
    rows = {
        (row.population, row.cohort, row.noise_multiplier, row.rounds): row.epsilon
        for row in PAPER_ROWS
    }
    assert printed == rows


# Origin: RDP by Opacus with its default orders, computed apart from this project. The French and
# German rows are printed as 5.5 and 5.4, which is what order 5 gives (5.475 and 5.424).
@pytest.mark.parametrize(
    ("name", "epsilon"),
    [
        ("dp-ls-100-to-cv-en-sigma-3e-6-204800-of-69506000", 7.223),
        ("dp-ls-100-to-cv-en-sigma-10e-6-204800-of-6950600", 4.439),
        ("dp-ls-100-to-cv-en-sigma-10e-6-204800-of-69506000", 0.456),
        ("dp-ls-100-to-cv-en-sigma-20e-6-51200-of-1737650", 12.61),
        ("dp-ls-100-to-cv-en-sigma-30e-6-51200-of-1737650", 6.506),
        ("dp-ls-100-to-cv-en-sigma-3e-6-204800-of-695060000", 3.699),
        ("dp-cv-fr-10-to-90-sigma-3e-6-256000-of-46282500", 5.294),
        ("dp-cv-de-10-to-90-sigma-3e-6-256000-of-48112500", 5.207),
    ],
)
def test_the_headline_epsilons_are_reproduced(name: str, epsilon: float) -> None:
    assert _epsilon(_settings(FOLDER / f"{name}.toml")) == pytest.approx(epsilon, rel=2e-3)


def test_the_misprint_of_a_tenth_is_flagged() -> None:
    path = FOLDER / "dp-ls-100-to-cv-en-sigma-20e-6-51200-of-1737650.toml"
    assert _comment(path)["printed"] == "1.3"
    assert "misprint of 13" in _comment(path)["misprint"]


@pytest.mark.parametrize("path", [p for p in FILES if "sigma" in p.name], ids=lambda p: p.stem)
def test_the_noise_on_the_mean_is_clip_norm_times_sigma(path: Path) -> None:
    found = re.search(r"sigma-([\d.]+(?:e-6)?)", path.stem)
    assert found
    privacy = _settings(path).privacy
    deviation = (privacy.noise_multiplier or 0.0) * privacy.clip_norm / privacy.cohort
    assert deviation == pytest.approx(privacy.clip_norm * float(found[1]), rel=1e-9)


def test_the_learning_rates_end_as_published() -> None:
    from strategies.schedules import build_schedule

    # Origin: the published schedules evaluated at round 2,000.
    ends = (("fl-ls", 0.00216), ("fl-cv-en-to-ls", 0.000389), ("fl-cv-de-10-to-90", 0.000854))
    for name, last in ends:
        server = _settings(FOLDER / f"{name}.toml").server
        schedule = build_schedule(server.schedule, rounds=2000, **server.schedule_options)
        assert server.server_lr
        assert server.server_lr * schedule(2000) == pytest.approx(last, rel=2e-3)


def test_a_dry_run_needs_no_corpus(capsys: pytest.CaptureFixture[str]) -> None:
    name = "dp-ls-100-to-cv-en-sigma-3e-6-204800-of-69506000"
    assert main(["run", "--preset", name, "--dry-run", "--json", "--engine", "local"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["parameters"] == 255_800_864
    assert facts["users"] is None
    assert facts["simulated_cohort"] == 1024
    assert facts["epsilon"] == pytest.approx(7.223, rel=1e-3)
    # Origin: the published cost, 1,120 hours for 2,000 rounds; the estimate is tied to it.
    assert facts["gpu_hours"] == pytest.approx(1120 * 2034 / 2000, rel=0.02)
    assert facts["gpu_hours_assumption"] == "every local step full, 120 s of speech"
    assert facts["worker_megabytes"] == pytest.approx(255_800_864 * 24 / 1e6)
    assert 4_000 < facts["batch_megabytes"] < 6_000


# Origin: cost table of arXiv 2310.00098, hours of an A100 for LibriSpeech by cohort. The row for 64
# is 5 times that for 16 and 10 times that for 8, which the speech alone does not explain.
@pytest.mark.parametrize(("cohort", "hours"), [(8, 106), (16, 206), (32, 382), (64, 1112)])
def test_the_estimate_for_librispeech_is_near_the_published_cost(
    cohort: int, hours: float, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["run", "--preset", "fl-ls", "--dry-run", "--json", "--engine", "local"]
    sizes = ["--cohort", str(cohort), "--simulated-cohort", str(cohort)]
    assert main([*command, *sizes]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["gpu_hours"] == pytest.approx(hours, rel=0.25)
    assert "24.7 minutes of each user, the published mean" in facts["gpu_hours_assumption"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_cost_of_every_configuration_is_estimated_without_a_corpus(path: Path) -> None:
    settings = _settings(path)
    planned = outline(**task_options(settings))
    hours = gpu_hours(planned, settings)
    assert hours is not None
    assert 10 < hours < 10_000
    assert planned.cost_assumption(settings.client.local_steps)


def test_the_cost_line_says_what_it_takes_for_granted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--preset", "fl-cv-en-to-ls", "--dry-run", "--engine", "local"]) == 0
    shown = capsys.readouterr().out
    (cost,) = [line for line in shown.splitlines() if line.startswith("cost ")]
    assert "about 863 A100 hours" in cost
    assert cost.endswith(
        "taken: 24.7 minutes of each user, the published mean of LibriSpeech train-clean-100, "
        "train-clean-360, train-other-500"
    )
    assert re.search(
        r"^memory .*activations of a user's largest batch about 13,900 MB", shown, re.M
    )


def test_a_real_run_without_a_corpus_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--preset", "fl-ls"]) == 2
    assert "needs --data-root" in capsys.readouterr().err


def test_the_speed_of_the_estimate_is_the_published_cost_by_our_count() -> None:
    from experiments.asr.flops import PAPER_FLOPS_PER_SECOND

    step = training_flops(MODELS["base"], 30, 120.0)
    assert 1024 * 2000 * 10 * step / (1120 * 3600) == pytest.approx(
        PAPER_FLOPS_PER_SECOND, rel=0.01
    )
