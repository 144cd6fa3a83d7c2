"""Check the recipes of central training against the published ones, value by value."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.asr.options import SpeechOptions
from experiments.asr.recipes import RECIPES, central_options

GOLDEN = json.loads((Path(__file__).parent / "golden" / "paper_configurations.json").read_text())
CENTRAL = {name: row for name, row in GOLDEN["central"].items() if not name.startswith("_")}


def test_the_recipes_are_the_published_ones_and_one_of_ours() -> None:
    assert len(CENTRAL) == 12
    assert set(RECIPES) == {"quick", *CENTRAL}


@pytest.mark.parametrize("name", sorted(CENTRAL))
def test_a_recipe_has_the_published_values(name: str) -> None:
    unsaid = {"factor": 0.5, "batch_seconds": 240.0, "dropout": None, "layer_drop": None}
    recipe = RECIPES[name]
    expected = unsaid | CENTRAL[name]
    assert {key: getattr(recipe, key) for key in expected} == expected
    assert recipe.optimizer == "fedlars"


@pytest.mark.parametrize("name", sorted(CENTRAL))
def test_the_rate_of_a_recipe_falls_as_published(name: str) -> None:
    row = CENTRAL[name]
    rate, start, every = row["learning_rate"], row["start"], row["every"]
    factor = RECIPES[name].rate_factor(600_000)
    assert factor(1) == factor(start) == 1.0
    now = [rate * factor(start + step) for step in (1, every, every + 1, 2 * every)]
    if row["decay"] == "step":  # the first fall is at the start
        assert now == pytest.approx([rate / 2, rate / 2, rate / 4, rate / 4])
    else:
        falls = [0.5 ** (step / every) for step in (1, every, every + 1, 2 * every)]
        assert now == pytest.approx([rate * fall for fall in falls])


@pytest.mark.parametrize("name", sorted(CENTRAL))
def test_a_published_recipe_brings_the_published_task(name: str) -> None:
    options = {"model": "base", "spec_augment": "paper", "pad_seconds": 5.0}
    options |= {"loss": "utterance", "pad_text": True}
    options["precision"] = "float32" if name == "cv-en" else "bfloat16"
    options["batch_seconds"] = 216.0 if name == "cv-en-10" else 240.0
    if name == "cv-en-10":
        options |= {"dropout": 0.4, "layer_drop": 0.4}
    assert central_options({"recipe": name}) == options
    SpeechOptions(**central_options({"recipe": name}))
    assert 300_000 <= RECIPES[name].steps <= 600_000
    assert RECIPES[name].steps > RECIPES[name].start
    lars = {"momentum": 0.9, "trust_coefficient": 0.001, "weight_decay": 0.0, "eps": 1e-8}
    assert RECIPES[name].hyperparameters() == lars


def test_our_own_recipe_brings_its_batch_only_and_an_unknown_one_nothing() -> None:
    assert central_options({}) == central_options({"recipe": "quick"}) == {"batch_size": 8}
    assert central_options({"recipe": "x"}) == {}
