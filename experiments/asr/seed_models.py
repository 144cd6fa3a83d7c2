"""Write seed models and load them: strictly, or all but the head where the characters differ."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from clients.local_training import trainable
from privacy.errors import SettingsError

if TYPE_CHECKING:
    import torch

_HEAD = "head."


def save_model(
    model: torch.nn.Module,
    path: Path,
    about: Mapping[str, str],
    signature: Mapping[str, str] | None = None,
) -> None:
    """Write the trainable tensors by name as safetensors, beside the place and then renamed.

    about: facts for the file's head, for example the steps of training. signature: of the task,
    which `fedopt run --init-from` compares. The file fits the same model and characters.
    """
    from safetensors.torch import save_file

    from fedopt.weights import model_metadata

    tensors = {
        name: parameter.detach().cpu().contiguous() for name, parameter in trainable(model).items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    save_file(tensors, aside, metadata=model_metadata(signature or {}, about))
    aside.rename(path)


def load_body(model: torch.nn.Module, path: Path) -> None:
    """Load every trainable tensor outside the head; the head keeps its fresh weights.

    Raises: SettingsError when the file is no safetensors, or a tensor outside the head is
    missing, left over or of another shape, or the model has no head; the tensors are named.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from fedopt.weights import first_names, misfits

    try:
        found = _without_head(load_file(path))
    except (OSError, SafetensorError) as problem:
        raise SettingsError(
            f"body_from {path.name!r} must be safetensors, got {problem}; correct the path"
        ) from problem
    own = _without_head(trainable(model))
    if len(own) == len(trainable(model)):
        raise SettingsError(
            f"body_from needs a model whose last layer is called head, got "
            f"{type(model).__name__}; load it whole by init_from"
        )
    if wrong := misfits(own, found):
        raise SettingsError(
            f"body_from {path.name!r} must hold the model's tensors outside the head; missing, "
            f"left over or of another shape: {first_names(wrong)}"
        )
    for name, parameter in own.items():
        parameter.data.copy_(found[name])


def _without_head(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(_HEAD)}
