"""Check that a state comes back as it was, and that another model's or training's is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from fedopt.central_state import (
    can_be_resumed,
    keep_state,
    newest_state,
    put_back,
    remove_states,
    state_of,
    states_in,
)
from privacy.errors import CheckpointError
from strategies.optimizers import build_optimizer

PLACE = {"generator": {"state": 2**127 + 1}, "epoch": [1, 2.5, None]}


class Counting(nn.Module):
    """Hold weights, a frozen weight that no state needs, and a buffer that training changes."""

    def __init__(self, size: int = 3) -> None:
        super().__init__()
        self.layer = nn.Linear(size, 2)
        self.frozen = nn.Parameter(torch.zeros(5), requires_grad=False)
        self.register_buffer("seen", torch.zeros(1, dtype=torch.int64))

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        self.seen += 1
        return nn.functional.dropout(self.layer(points))


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam([p for p in model.parameters() if p.requires_grad])


def plain(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([model.layer.weight])


def own(name: str) -> Callable[[nn.Module], torch.optim.Optimizer]:
    def build(model: nn.Module) -> torch.optim.Optimizer:
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        return build_optimizer(name, named, lr=0.1)

    return build


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    optimizer.zero_grad()
    loss = model(torch.rand(4, 3)).square().sum()
    loss.backward()
    optimizer.step()
    return loss.item()


@pytest.mark.parametrize("build", [adam, own("fedlars"), own("fedlamb")])
def test_a_state_goes_to_disk_and_back_bit_for_bit(
    build: Callable[[nn.Module], torch.optim.Optimizer], tmp_path: Path
) -> None:
    torch.manual_seed(1)
    model, other = Counting(), Counting()
    optimizer = build(model)
    step(model, optimizer)
    keep_state(tmp_path, state_of(1, model, optimizer, PLACE), {"settings_hash": "a", "row": {}})
    expected = [step(model, optimizer) for _ in range(3)]
    found = newest_state(tmp_path, "a")
    assert found is not None
    state, facts = found
    assert (state.step, state.place, facts["row"]) == (1, PLACE, {})
    assert sorted(state.weights) == ["layer.bias", "layer.weight", "seen"]
    resumed = build(other)
    put_back(state, other, resumed)
    assert [step(other, resumed) for _ in range(3)] == expected
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_the_last_two_states_are_kept_until_the_end(tmp_path: Path) -> None:
    model = Counting()
    (tmp_path / "config.toml").touch()
    assert not can_be_resumed(tmp_path)
    assert newest_state(tmp_path, "a") is None
    for number in (2, 4, 6):
        keep_state(tmp_path, state_of(number, model, adam(model), {}), {"settings_hash": "a"})
    kept = sorted(path.name for path in states_in(tmp_path).folder.iterdir())
    assert kept == ["round-0000004.safetensors", "round-0000006.safetensors"]
    assert can_be_resumed(tmp_path)
    remove_states(tmp_path)
    assert not can_be_resumed(tmp_path)


def test_a_state_of_other_settings_is_refused(tmp_path: Path) -> None:
    model = Counting()
    keep_state(tmp_path, state_of(2, model, adam(model), {}), {"settings_hash": "a"})
    with pytest.raises(CheckpointError, match="checkpoint of step 2 belongs to another training"):
        newest_state(tmp_path, "b")


def test_a_state_of_another_model_or_optimizer_is_refused() -> None:
    model = Counting()
    state = state_of(2, model, adam(model), {})
    larger = Counting(size=4)
    with pytest.raises(CheckpointError, match=r"or of another shape: layer\.weight; start anew"):
        put_back(state, larger, adam(larger))
    with pytest.raises(CheckpointError, match="must be of this optimizer, got another"):
        put_back(state, model, plain(model))
