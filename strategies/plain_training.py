"""Train without privacy, as Flower does, with a server optimizer and checkpoints."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp.exception import InconsistentMessageReplies
from numpy.typing import NDArray

from clients.arrays import arrays_of, weights_record
from privacy.errors import CheckpointError
from strategies.checkpoint import Checkpoint, CheckpointFolder
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

    def check_replies(self, replies: Sequence[Message], asked: set[int], weight_key: str) -> None:
        """Refuse what Flower would average without a word; errors are left to Flower's own rules.

        Raises: InconsistentMessageReplies where a node was not asked or replied twice, where an
        array has another shape or is no floating array, or where the weights are no weights.
        """
        answers = [reply for reply in replies if reply.has_content()]
        problems = reply_problems(answers, asked)
        problems += [problem for reply in answers for problem in self._array_problems(reply)]
        problems += weight_problems([reply.content for reply in answers], weight_key)
        if problems:
            raise InconsistentMessageReplies(
                reason=f"{'; '.join(problems[:4])}; skipping aggregation."
            )

    def _array_problems(self, reply: Message) -> list[str]:
        """Name arrays that numpy would broadcast or cast without a word."""
        shapes, kinds = [], []
        for record in reply.content.array_records.values():
            for name, array in record.items():
                sent = self.model.parameters.get(name)
                if sent is not None and tuple(array.shape) != tuple(sent.shape):
                    shapes.append(name)
                if sent is not None and not array.dtype.startswith("float"):
                    kinds.append(f"{name} ({array.dtype})")
        node = f"in the reply of node {reply.metadata.src_node_id}"
        problems = []
        if shapes:
            problems.append(
                f"arrays {', '.join(shapes[:4])} are missing or have another shape {node}"
            )
        if kinds:
            problems.append(f"arrays {', '.join(kinds[:4])} must be floating {node}")
        return problems

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


def reply_problems(replies: Sequence[Message], asked: set[int]) -> list[str]:
    """Name the nodes that replied twice or were not asked."""
    times = Counter(reply.metadata.src_node_id for reply in replies)
    problems = [f"node {node} replied {count} times" for node, count in times.items() if count > 1]
    return problems + [f"node {node} was not asked" for node in times if node not in asked]


def weight_problems(contents: Sequence[RecordDict], weight_key: str) -> list[str]:
    """Name weights that make no weighted mean; a missing one is left to Flower's own message."""
    records = [record for content in contents for record in content.metric_records.values()]
    found = [record[weight_key] for record in records if weight_key in record]
    weights = [weight for weight in found if isinstance(weight, int | float)]
    problems = [
        f"{weight_key} must be a finite number >= 0, got {weight}"
        for weight in weights
        if not (math.isfinite(weight) and weight >= 0)
    ]
    if weights and not problems and sum(weights) == 0:
        problems = [f"{weight_key} must not be 0 in every reply"]
    return problems
