"""Give a model its first weights, exchange them by name, and hash them; say what they are of."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from privacy.errors import SettingsError

if TYPE_CHECKING:
    import torch


_METADATA = "fedopt"
_SHOWN_NAMES, _SHOWN_TEXT = 8, 32


def signature_of(task: Any) -> dict[str, str]:
    """Give the facts that a task's weights depend on and their shapes do not show."""
    return dict(getattr(task, "signature", dict)())


def model_metadata(
    signature: Mapping[str, str], about: Mapping[str, str] | None = None
) -> dict[str, str] | None:
    """Give the metadata of a model file; None where there is nothing to say.

    about: further facts, for readers. All is one entry, because safetensors writes several in a
    random order, and equal runs write equal bytes.
    """
    facts = {"signature": dict(signature), "about": dict(about or {})}
    said = {name: values for name, values in facts.items() if values}
    return {_METADATA: json.dumps(said, sort_keys=True)} if said else None


def initial_model(
    build: Callable[[], torch.nn.Module],
    seed: int,
    init_from: str | None,
    signature: Mapping[str, str] | None = None,
) -> torch.nn.Module:
    """Build the model with weights drawn under a seed, or loaded from a file.

    signature: of the task, see `signature_of`.
    Raises: SettingsError for batch norm, or for a file that does not fit the model or signature.
    """
    import torch

    from clients.local_training import refuse_batch_norm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
    refuse_batch_norm(model)
    if init_from is not None:
        load_weights(model, Path(init_from), signature)
    return model


def load_weights(
    model: torch.nn.Module, path: Path, signature: Mapping[str, str] | None = None
) -> None:
    """Load weights strictly: every trainable tensor present, none over, all shapes equal.

    signature: facts that must be the file's too, where the file says them.
    Raises: SettingsError where the file is no safetensors or does not fit.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from clients.local_training import trainable

    try:
        found = load_file(path)
        carried = _carried(path)
    except (OSError, SafetensorError) as problem:
        raise SettingsError(
            f"init-from {path.name!r} must be safetensors, got {problem}; correct the path"
        ) from problem
    _refuse_another_signature(path, carried, signature or {})
    own = trainable(model)
    if wrong := misfits(own, found):
        raise SettingsError(
            f"init-from {path.name!r} must hold exactly the model's tensors; missing, left over "
            f"or of another shape: {first_names(wrong)}"
        )
    for name, parameter in own.items():
        parameter.data.copy_(found[name])


def misfits(own: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> list[str]:
    """Name, sorted, the tensors that `found` lacks, has too much, or has in another shape."""
    shapes = {name: tensor.shape for name, tensor in own.items()}
    given = {name: tensor.shape for name, tensor in found.items()}
    return sorted(
        name for name in shapes.keys() | given.keys() if shapes.get(name) != given.get(name)
    )


def first_names(names: Sequence[str]) -> str:
    """List the first eight names and count the rest."""
    more = len(names) - _SHOWN_NAMES
    shown = ", ".join(names[:_SHOWN_NAMES])
    return f"{shown} and {more} more" if more > 0 else shown


def _carried(path: Path) -> dict[str, Any]:
    """Read what a model file says of itself; a seed model of older versions says it plainly."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as opened:
        metadata = dict(opened.metadata() or {})
    try:
        return metadata | dict(json.loads(metadata[_METADATA])["signature"])
    except (KeyError, TypeError, ValueError):  # a foreign file
        return metadata


def _refuse_another_signature(
    path: Path, carried: Mapping[str, Any], wanted: Mapping[str, str]
) -> None:
    for name in sorted(wanted.keys() & carried.keys()):
        ours, theirs = wanted[name], str(carried[name])
        if ours != theirs:
            pairs = enumerate(itertools.zip_longest(ours, theirs))
            place = next(number for number, (one, other) in pairs if one != other)
            raise SettingsError(
                f"init-from {path.name!r} must be of a model with the {name} "
                f"{_around(ours, place)}, got {_around(theirs, place)}; choose another file, or "
                "let the speech task make the head anew by --set task.options.body_from=FILE in "
                "place of --init-from"
            )


def _around(text: str, place: int) -> str:
    """Quote a text; of a long one, what stands around a place."""
    if len(text) <= _SHOWN_TEXT:
        return repr(text)
    start = max(0, place - _SHOWN_TEXT // 2)
    end = start + _SHOWN_TEXT
    return repr(f"{'...' if start else ''}{text[start:end]}{'...' if end < len(text) else ''}")


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
