"""Check the recipes of central training against the published ones, value by value."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.asr.recipes import RECIPES

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
