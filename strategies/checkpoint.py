"""Keep one round on disk: weights, optimizer, and what is needed to go on, bit for bit.

A checkpoint is one safetensors file (no code runs on loading); its metadata hold a JSON text.
It is written aside, and renamed into place only after the ledger has committed the round. A file
found aside whose round is committed is therefore renamed, never trained again.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from privacy.errors import CheckpointError

SCHEMA_VERSION = 1
KEPT = 2


@dataclass(frozen=True)
class Checkpoint:
    """Hold a finished round.

    weights: tensors by name. optimizer: a torch state_dict. facts: JSON-able; must hold
    "settings_hash" and whatever the writer wants back.
    """

    round: int
    weights: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    facts: dict[str, Any]


class CheckpointFolder:
    """Write checkpoints aside, publish them, and find the newest; keeps the last two."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, round_number: int) -> Path:
        """Name the published file of a round."""
        return self.folder / f"round-{round_number:07d}.safetensors"

    def aside(self, round_number: int) -> Path:
        """Name the file of a round that is not yet committed."""
        return self.folder / f"aside-{round_number:07d}.safetensors"

    def write_aside(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint where nobody takes it for a released one; durable on return."""
        from safetensors import SafetensorError

        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.aside(checkpoint.round).with_suffix(".partial")
        try:
            write_file(partial, checkpoint)
            os.replace(partial, self.aside(checkpoint.round))
            sync(self.folder)
        except (OSError, SafetensorError) as problem:
            raise CheckpointError(
                f"checkpoint of round {checkpoint.round} could not be written ({problem}); the "
                "last good one is kept, so make room and run again with --resume"
            ) from problem
        finally:
            partial.unlink(missing_ok=True)

    def publish(self, round_number: int) -> None:
        """Make a committed round visible and drop rounds older than the last two.

        A crash of the machine may undo it; `recover` then finds the file aside and does it again.
        """
        os.replace(self.aside(round_number), self.path(round_number))
        for old in sorted(self.folder.glob("round-*.safetensors"))[:-KEPT]:
            old.unlink()

    def newest(self) -> Checkpoint | None:
        """Read the newest published checkpoint; None where there is none.

        Raises: CheckpointError where the file is damaged.
        """
        published = sorted(self.folder.glob("round-*.safetensors"))
        return read_file(published[-1]) if published else None

    def recover(self, committed_round: int) -> None:
        """Finish what a crash left: publish a committed file, remove an uncommitted one."""
        for found in sorted(self.folder.glob("aside-*")):
            number = found.stem.removeprefix("aside-")
            if found.suffix == ".safetensors" and int(number) == committed_round:
                self.publish(committed_round)
            else:
                found.unlink()


def write_file(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint as one safetensors file and flush it to the disk."""
    from safetensors.torch import save_file

    tensors = {f"model.{name}": tensor.detach() for name, tensor in checkpoint.weights.items()}
    state = _split_state(checkpoint.optimizer, tensors)
    # safetensors refuses tensors that share memory; a copy keeps views and aliases apart.
    copies = {name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}
    text = {
        "schema_version": SCHEMA_VERSION,
        "round": checkpoint.round,
        "optimizer": state,
        "order": list(checkpoint.weights),
        "facts": checkpoint.facts,
        "checksum": checksum(copies),
    }
    save_file(copies, path, metadata={"fedopt": json.dumps(text)})
    sync(path)


def read_file(path: Path) -> Checkpoint:
    """Read a checkpoint; raises CheckpointError where it is damaged or of a newer schema."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as opened:
            text = json.loads(opened.metadata()["fedopt"])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        return _checkpoint(path, text, tensors)
    except (SafetensorError, OSError, LookupError, TypeError, ValueError) as problem:
        raise CheckpointError(
            f"checkpoint {path.name} must be a whole safetensors file of fedopt, got "
            f"{type(problem).__name__} {problem}; remove it to fall back to the one before"
        ) from problem


def _checkpoint(
    path: Path, text: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> Checkpoint:
    if text["schema_version"] > SCHEMA_VERSION:
        raise CheckpointError(
            f"checkpoint {path.name} has schema {text['schema_version']}, this version reads up "
            f"to {SCHEMA_VERSION}; use the newer fedopt"
        )
    if text["checksum"] != checksum(tensors):
        raise ValueError("numbers that do not fit their checksum")
    return Checkpoint(
        round=text["round"],
        weights={name: tensors[f"model.{name}"] for name in text["order"]},
        optimizer=_join_state(text["optimizer"], tensors),
        facts=text["facts"],
    )


def checksum(tensors: Mapping[str, torch.Tensor]) -> int:
    """Sum up the bytes of tensors, by name, to notice damage; it is no seal against intent."""
    found = 0
    for name in sorted(tensors):
        whole = tensors[name].reshape(-1)
        found = zlib.crc32(whole.view(torch.uint8).numpy().data, found)
    return found


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _split_state(state: Mapping[str, Any], tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Move the tensors of an optimizer's state into `tensors`; return the rest as JSON."""
    plain: dict[str, dict[str, Any]] = {}
    for index, values in state["state"].items():
        plain[str(index)] = {}
        for key, value in values.items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer.{index}.{key}"] = value
                plain[str(index)][key] = {"tensor": f"optimizer.{index}.{key}"}
            else:
                plain[str(index)][key] = {"value": value}
    return {"state": plain, "param_groups": state["param_groups"]}


def _join_state(text: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    state = {
        int(index): {
            key: tensors[value["tensor"]] if "tensor" in value else value["value"]
            for key, value in values.items()
        }
        for index, values in text["state"].items()
    }
    groups = [
        {key: tuple(value) if key == "betas" else value for key, value in group.items()}
        for group in text["param_groups"]
    ]
    return {"state": state, "param_groups": groups}
