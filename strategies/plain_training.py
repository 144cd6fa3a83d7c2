"""Train without privacy, as Flower does, with a server optimizer and checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord
from flwr.serverapp.exception import InconsistentMessageReplies
from numpy.typing import NDArray

from clients.protocol import weights_record
from privacy.errors import CheckpointError
from strategies.checkpoint import Checkpoint, CheckpointFolder
from strategies.private_training import arrays_of
from strategies.server_model import ServerModel


class PlainTraining:
    """Step the model on the replies' weighted mean and keep each round.

    identity: what a checkpoint must share to be gone on with.
    """

    def __init__(
        self, model: ServerModel, checkpoints: CheckpointFolder | None, identity: str
    ) -> None:
        self.model = model
        self.checkpoints = checkpoints
        self.identity = identity
        self.arrays = weights_record(model.arrays())

    def restore(self) -> int:
        """Go back to the last kept round; returns its number, 0 where there is none."""
        found = self.checkpoints.newest() if self.checkpoints is not None else None
        if found is None:
            return 0
        if found.facts["settings_hash"] != self.identity:
            raise CheckpointError(
                f"checkpoint of round {found.round} belongs to another strategy, model or plan; "
                "give another checkpoint_dir or the settings it was made with"
            )
        self.model.load(found.weights, found.optimizer)
        self.arrays = weights_record(self.model.arrays())
        return found.round

    def step(self, mean: ArrayRecord, number: int) -> ArrayRecord:
        """Step on the mean of the replies; running statistics take the mean itself.

        Raises: InconsistentMessageReplies where arrays are missing or have other shapes.
        """
        arrays = arrays_of(mean)
        self._check(arrays)
        self.model.step(self._update(arrays), number)
        self.model.take_statistics(arrays)
        self.arrays = weights_record(self.model.arrays())
        if self.checkpoints is not None:
            self._keep(number)
        return self.arrays

    def _check(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        sent = self.model.arrays()
        wrong = [
            name for name in sent if name not in arrays or arrays[name].shape != sent[name].shape
        ]
        if wrong:
            raise InconsistentMessageReplies(
                reason=f"arrays {', '.join(wrong[:4])} are missing from the replies or have "
                "another shape than the model; skipping aggregation."
            )
        broken = [name for name in sent if not np.isfinite(arrays[name]).all()]
        if broken:
            raise InconsistentMessageReplies(
                reason=f"arrays {', '.join(broken[:4])} hold NaN or infinity; skipping aggregation."
            )

    def _update(self, arrays: Mapping[str, NDArray[Any]]) -> torch.Tensor:
        """Subtract the current model from the replies' mean, in float64."""
        parts = [
            torch.from_numpy(np.asarray(arrays[name], dtype=np.float64))
            - parameter.detach().double()
            for name, parameter in self.model.parameters.items()
        ]
        return torch.cat([part.reshape(-1) for part in parts])

    def _keep(self, number: int) -> None:
        assert self.checkpoints is not None
        weights = {name: torch.from_numpy(array) for name, array in self.model.arrays().items()}
        self.checkpoints.write_aside(
            Checkpoint(
                number,
                weights,
                self.model.optimizer.state_dict(),
                {"settings_hash": self.identity},
            )
        )
        self.checkpoints.publish(number)
