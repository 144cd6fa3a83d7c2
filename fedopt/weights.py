"""Give a model its first weights, exchange them by name, and hash them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from privacy.errors import SettingsError

if TYPE_CHECKING:
    import torch


def initial_model(
    build: Callable[[], torch.nn.Module], seed: int, init_from: str | None
) -> torch.nn.Module:
    """Build the model with weights drawn under a seed, or loaded from a file.

    Raises: SettingsError for batch norm, or for a file that does not fit the model.
    """
    import torch

    from clients.local_training import refuse_batch_norm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
    refuse_batch_norm(model)
    if init_from is not None:
        load_weights(model, Path(init_from))
    return model


def load_weights(model: torch.nn.Module, path: Path) -> None:
    """Load weights strictly: every trainable tensor present, none over, all shapes equal."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from clients.local_training import trainable

    try:
        found = load_file(path)
    except (OSError, SafetensorError) as problem:
        raise SettingsError(
            f"init-from {path.name!r} must be safetensors, got {problem}; correct the path"
        ) from problem
    own = trainable(model)
    shapes = {name: tuple(parameter.shape) for name, parameter in own.items()}
    given = {name: tuple(tensor.shape) for name, tensor in found.items()}
    if shapes != given:
        wrong = sorted(
            name for name in shapes.keys() | given.keys() if shapes.get(name) != given.get(name)
        )
        raise SettingsError(
            f"init-from {path.name!r} must hold exactly the model's tensors; missing, left over "
            f"or of another shape: {', '.join(wrong[:8])}"
        )
    for name, parameter in own.items():
        parameter.data.copy_(found[name])


def load_arrays(model: torch.nn.Module, arrays: Mapping[str, Any]) -> None:
    """Copy named arrays into the model's trainable parameters."""
    import numpy as np

    from clients.local_training import trainable

    for name, parameter in trainable(model).items():
        np.copyto(parameter.detach().numpy(), arrays[name])


def weights_of_model(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copy the model's trainable parameters by name."""
    from clients.local_training import trainable

    return {name: p.detach().clone() for name, p in trainable(model).items()}


def model_digest(model: torch.nn.Module) -> str:
    """Hash the trainable weights, for comparing runs."""
    parts = hashlib.sha256()
    for name, tensor in weights_of_model(model).items():
        parts.update(json.dumps([name, list(tensor.shape)]).encode())
        parts.update(tensor.numpy().tobytes())
    return parts.hexdigest()
