"""Check first weights from files: what fits, what is refused, and what a file says of itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from fedopt.run_directory import write_model
from fedopt.weights import (
    first_names,
    initial_model,
    load_weights,
    model_metadata,
    signature_of,
    weights_of_model,
)
from privacy.errors import SettingsError

ENGLISH = " '-abcdefghijklmnopqrstuvwxyz"


def _written(folder: Path, signature: dict[str, str] | None = None) -> Path:
    write_model(folder, weights_of_model(nn.Linear(3, 2)), signature)
    return folder / "model.safetensors"


def test_another_signature_is_refused_with_both_and_the_cure(tmp_path: Path) -> None:
    path = _written(tmp_path, {"characters": ENGLISH})
    with pytest.raises(SettingsError) as refused:
        load_weights(nn.Linear(3, 2), path, {"characters": ENGLISH[::-1]})
    said = str(refused.value)
    assert repr(ENGLISH) in said
    assert repr(ENGLISH[::-1]) in said
    assert "body_from" in said


def test_long_signatures_are_shown_where_they_differ(tmp_path: Path) -> None:
    long = "".join(map(chr, range(97, 97 + 26))) * 4
    path = _written(tmp_path, {"characters": f"{long}X{long}"})
    with pytest.raises(SettingsError) as refused:
        load_weights(nn.Linear(3, 2), path, {"characters": f"{long}Y{long}"})
    said = str(refused.value)
    assert "...klmnopqrstuvwxyzYabcdefghijklmno..." in said
    assert "...klmnopqrstuvwxyzXabcdefghijklmno..." in said
    assert len(said) < 400


@pytest.mark.parametrize(
    ("carried", "wanted"),
    [
        ({"characters": "ab"}, {"characters": "ab"}),
        ({"characters": "ab"}, {}),
        ({"characters": "ab"}, {"sizes": "3"}),
        (None, {"characters": "ab"}),
    ],
)
def test_an_equal_or_unknown_signature_loads(
    carried: dict[str, str] | None, wanted: dict[str, str], tmp_path: Path
) -> None:
    path = _written(tmp_path, carried)
    model = initial_model(lambda: nn.Linear(3, 2), 0, str(path), wanted)
    with safe_open(path, framework="pt") as opened:
        assert torch.equal(model.weight.detach(), opened.get_tensor("weight"))


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {"format": "pt"},
        {"fedopt": "no JSON"},
        {"fedopt": "[1]"},
        {"fedopt": '{"signature": 3}'},
        {"fedopt": '{"about": {"characters": "other"}}'},
    ],
)
def test_a_foreign_file_loads(metadata: dict[str, str] | None, tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    source = nn.Linear(3, 2)
    save_file(dict(weights_of_model(source)), path, metadata=metadata)
    model = nn.Linear(3, 2)
    load_weights(model, path, {"characters": "ab"})
    assert torch.equal(model.weight, source.weight)


def test_a_seed_model_that_says_its_characters_plainly_is_compared_too(tmp_path: Path) -> None:
    path = tmp_path / "older.safetensors"
    save_file(dict(weights_of_model(nn.Linear(3, 2))), path, metadata={"characters": "ba"})
    with pytest.raises(SettingsError, match="characters 'ab', got 'ba'"):
        load_weights(nn.Linear(3, 2), path, {"characters": "ab"})


def test_equal_models_are_equal_bytes_and_without_signature_as_before(tmp_path: Path) -> None:
    weights = weights_of_model(nn.Linear(3, 2))
    facts = {name: name for name in "abcdefgh"}
    written = set()
    for number in range(4):
        folder = tmp_path / str(number)
        folder.mkdir()
        write_model(folder, weights, dict(sorted(facts.items(), reverse=bool(number % 2))))
        written.add((folder / "model.safetensors").read_bytes())
    assert len(written) == 1
    write_model(tmp_path, weights)
    save_file(weights, tmp_path / "plain.safetensors")
    plain = (tmp_path / "plain.safetensors").read_bytes()
    assert (tmp_path / "model.safetensors").read_bytes() == plain
    assert model_metadata({}) is None


def test_a_task_may_say_nothing() -> None:
    assert signature_of(object()) == {}


def test_many_wrong_tensors_are_named_and_counted(tmp_path: Path) -> None:
    path = _written(tmp_path)
    deep = nn.Sequential(*(nn.Linear(3, 2) for _ in range(6)))
    with pytest.raises(SettingsError, match=r"0\.bias, 0\.weight, .*3\.weight and 6 more"):
        load_weights(deep, path)
    assert first_names(["a"]) == "a"
    assert first_names(list("abcdefgh")) == "a, b, c, d, e, f, g, h"
