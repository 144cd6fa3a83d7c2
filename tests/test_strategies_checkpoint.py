"""Show that a checkpoint brings back every bit, and that a broken or half-written one fails."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch

from privacy.errors import CheckpointError
from strategies.checkpoint import Checkpoint, CheckpointFolder, read_file, write_file
from strategies.optimizers import build_optimizer

NAMES = [
    "fedavg",
    "fedavgm",
    "fedadagrad",
    "fedadam",
    "fedyogi",
    "fednovograd",
    "fedlamb",
    "fedlars",
]


def stepped(name: str, steps: int) -> tuple[dict[str, torch.nn.Parameter], torch.optim.Optimizer]:
    generator = torch.Generator().manual_seed(1)
    weights = {
        "z": torch.nn.Parameter(torch.randn(4, 3, generator=generator)),
        "a": torch.nn.Parameter(torch.randn(5, generator=generator)),
    }
    optimizer = build_optimizer(name, list(weights.items()), lr=0.1)
    step(weights, optimizer, steps, 7)
    return weights, optimizer


def step(
    weights: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer, steps: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for parameter in weights.values():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def checkpoint(number: int, name: str = "fedadam") -> Checkpoint:
    weights, optimizer = stepped(name, 3)
    return Checkpoint(number, dict(weights), optimizer.state_dict(), {"settings_hash": "ab"})


@pytest.mark.parametrize("name", NAMES)
def test_an_optimizer_read_back_goes_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    weights, optimizer = stepped(name, 3)
    path = tmp_path / "one.safetensors"
    write_file(path, Checkpoint(3, dict(weights), optimizer.state_dict(), {"settings_hash": "ab"}))
    found = read_file(path)
    assert (found.round, found.facts, list(found.weights)) == (
        3,
        {"settings_hash": "ab"},
        ["z", "a"],
    )
    again = {key: torch.nn.Parameter(tensor) for key, tensor in found.weights.items()}
    resumed = build_optimizer(name, list(again.items()), lr=0.1)
    resumed.load_state_dict(found.optimizer)
    step(weights, optimizer, 2, 11)
    step(again, resumed, 2, 11)
    for key in weights:
        assert torch.equal(weights[key], again[key])


def test_the_last_two_rounds_are_kept(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "checkpoints")
    for number in (1, 2, 3, 4):
        folder.write_aside(checkpoint(number))
        folder.publish(number)
    names = sorted(path.name for path in folder.folder.iterdir())
    assert names == ["round-0000003.safetensors", "round-0000004.safetensors"]
    newest = folder.newest()
    assert newest is not None
    assert newest.round == 4


def test_a_round_written_aside_is_not_visible_and_recovery_asks_the_ledger(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    folder.write_aside(checkpoint(1))
    assert folder.newest() is None
    folder.recover(committed_round=0)
    assert list(tmp_path.iterdir()) == []
    folder.write_aside(checkpoint(1))
    folder.recover(committed_round=1)
    newest = folder.newest()
    assert newest is not None
    assert newest.round == 1


def test_an_empty_folder_and_a_missing_one_have_no_checkpoint(tmp_path: Path) -> None:
    for folder in (CheckpointFolder(tmp_path), CheckpointFolder(tmp_path / "none")):
        folder.recover(0)
        assert folder.newest() is None


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9, 0.999])
def test_a_cut_off_checkpoint_is_refused_by_name(kept: float, tmp_path: Path) -> None:
    path = tmp_path / "round-0000001.safetensors"
    write_file(path, checkpoint(1))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(CheckpointError, match=r"round-0000001\.safetensors must be a whole"):
        CheckpointFolder(tmp_path).newest()


@pytest.mark.parametrize("place", [0.5, 0.8, 0.99])
def test_a_changed_bit_is_noticed(place: float, tmp_path: Path) -> None:
    path = tmp_path / "round-0000001.safetensors"
    write_file(path, checkpoint(1))
    damaged = bytearray(path.read_bytes())
    damaged[int(len(damaged) * place)] ^= 4
    path.write_bytes(bytes(damaged))
    with pytest.raises(CheckpointError):
        read_file(path)


def test_a_file_of_somebody_else_and_of_a_later_schema_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "round-0000001.safetensors"
    save_file({"w": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="safetensors file of fedopt"):
        read_file(path)
    save_file({"w": torch.zeros(2)}, path, metadata={"fedopt": '{"schema_version": 99}'})
    with pytest.raises(CheckpointError, match="schema 99"):
        read_file(path)
    save_file({"w": torch.zeros(2)}, path, metadata={"fedopt": '{"schema_version": 1}'})
    with pytest.raises(CheckpointError, match="whole safetensors file"):
        read_file(path)


def test_a_full_disk_leaves_the_last_good_checkpoint_and_says_so_in_one_sentence(
    tmp_path: Path,
) -> None:
    folder = CheckpointFolder(tmp_path)
    folder.write_aside(checkpoint(1))
    folder.publish(1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, before[1]))
    try:
        with pytest.raises(
            CheckpointError, match=r"round 2 could not be written .*make room"
        ) as got:
            folder.write_aside(checkpoint(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(got.value)
    newest = folder.newest()
    assert newest is not None
    assert newest.round == 1
    assert [path.name for path in tmp_path.iterdir()] == ["round-0000001.safetensors"]
