"""Keep a central training as it stands at a report, so that it goes on from there bit for bit.

A state is one file with the weights it belongs to, as a checkpoint of a private run is; see
strategies.checkpoint for how it is written.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedopt import run_directory
from fedopt.weights import first_names, misfits
from privacy.errors import CheckpointError

if TYPE_CHECKING:
    import torch

    from strategies.checkpoint import Checkpoint, CheckpointFolder

_WEIGHTS, _RANDOM = "weights.", "random."


@dataclass(frozen=True)
class TrainingState:
    """Hold a central training between two steps.

    step: steps done. weights: trainable parameters and buffers by name. optimizer: a torch
    state_dict. random: states of torch's global generators by type of device. place: what else the
    task needs to go on, as JSON can hold it; for example where it stands in its data.
    """

    step: int
    weights: Mapping[str, torch.Tensor]
    optimizer: Mapping[str, Any]
    random: Mapping[str, torch.Tensor]
    place: Mapping[str, Any]


def state_of(
    step: int,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    place: Mapping[str, Any],
) -> TrainingState:
    """Take a training's state after a step; tensors are those of the training, not copies."""
    import torch

    random = {"cpu": torch.get_rng_state()}
    device = next(model.parameters()).device
    if device.type == "cuda":
        random["cuda"] = torch.cuda.get_rng_state(device)
    return TrainingState(step, _held(model), optimizer.state_dict(), random, place)


def put_back(
    state: TrainingState, model: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Set model, optimizer and torch's global generators to a state.

    Raises: CheckpointError where the state is of another model or optimizer.
    """
    import torch

    _put_back_weights(state, model)
    try:
        optimizer.load_state_dict(dict(state.optimizer))
    except ValueError as problem:
        raise CheckpointError(
            f"the state of step {state.step} must be of this optimizer, got another ({problem}); "
            "start anew in another --output"
        ) from problem
    torch.set_rng_state(state.random["cpu"])
    if "cuda" in state.random:
        torch.cuda.set_rng_state(state.random["cuda"], next(model.parameters()).device)


def _put_back_weights(state: TrainingState, model: torch.nn.Module) -> None:
    own = _held(model)
    if wrong := misfits(own, state.weights):
        raise CheckpointError(
            f"the state of step {state.step} must hold exactly the model's tensors; missing, left "
            f"over or of another shape: {first_names(wrong)}; start anew in another --output"
        )
    for name, tensor in own.items():
        tensor.copy_(state.weights[name])


def _held(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    from clients.local_training import trainable

    named = {**trainable(model), **dict(model.named_buffers())}
    return {name: tensor.detach() for name, tensor in named.items()}


def states_in(folder: Path) -> CheckpointFolder:
    """Give where the states of a central training are kept; the last two are."""
    from strategies.checkpoint import CheckpointFolder

    return CheckpointFolder(folder / run_directory.CHECKPOINTS)


def can_be_resumed(folder: Path) -> bool:
    """Tell whether a central training that ends now can go on later."""
    return run_directory.is_run(folder) and states_in(folder).folder.is_dir()


def keep_state(folder: Path, state: TrainingState, facts: Mapping[str, Any]) -> None:
    """Write a state and what is known of its report; it is on the disk when this returns.

    Raises: CheckpointError where it cannot be written; the one before is kept then.
    """
    from strategies.checkpoint import Checkpoint

    named = {_WEIGHTS + name: tensor for name, tensor in state.weights.items()}
    named |= {_RANDOM + device: tensor for device, tensor in state.random.items()}
    text = {**facts, "place": state.place}
    states = states_in(folder)
    states.write_aside(Checkpoint(state.step, named, dict(state.optimizer), text))
    states.publish(state.step)


def newest_state(folder: Path, digest: str) -> tuple[TrainingState, dict[str, Any]] | None:
    """Read the newest state and the facts that were kept with it; None where there is none.

    digest: settings_hash of the facts, see fedopt.central_settings.
    Raises: CheckpointError where the file is damaged or of another training.
    """
    found = states_in(folder).newest()
    if found is None:
        return None
    if found.facts.get("settings_hash") != digest or "place" not in found.facts:
        raise CheckpointError(
            f"checkpoint of step {found.round} belongs to another training, other data users or "
            "other settings; bring this run's own file back, or start anew in another --output"
        )
    return _state(found), found.facts


def _state(found: Checkpoint) -> TrainingState:
    def named(prefix: str) -> dict[str, torch.Tensor]:
        return {
            name.removeprefix(prefix): tensor
            for name, tensor in found.weights.items()
            if name.startswith(prefix)
        }

    return TrainingState(
        found.round, named(_WEIGHTS), found.optimizer, named(_RANDOM), found.facts["place"]
    )


def remove_states(folder: Path) -> None:
    """Remove the states of a training that has ended; they take more room than its model."""
    shutil.rmtree(states_in(folder).folder, ignore_errors=True)
