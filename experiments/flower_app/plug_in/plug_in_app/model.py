"""Hold the model, the data of a node, and the plain training loop of the app."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

FEATURES, CLASSES, EXAMPLES = 16, 4, 64


def build_model() -> nn.Module:
    """Build a small perceptron; layer norm in place of batch norm, which a plan refuses."""
    return nn.Sequential(
        nn.Linear(FEATURES, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, CLASSES)
    )


def load_data(partition: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw the examples of one node; a real app reads the node's own data here."""
    generator = np.random.default_rng(partition)
    labels = generator.integers(0, CLASSES, EXAMPLES)
    centres = np.random.default_rng(10_000).normal(size=(CLASSES, FEATURES))
    points = centres[labels] + generator.normal(size=(EXAMPLES, FEATURES))
    return torch.from_numpy(points.astype(np.float32)), torch.from_numpy(labels)


def train(
    model: nn.Module, data: tuple[torch.Tensor, torch.Tensor], lr: float, epochs: int
) -> float:
    """Train with plain SGD; returns the last loss."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    loss = torch.zeros(())
    for _ in range(epochs):
        for points, labels in zip(data[0].split(16), data[1].split(16), strict=True):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(points), labels)
            loss.backward()
            optimizer.step()
    return float(loss.detach())


@torch.inference_mode()
def test(model: nn.Module, data: tuple[torch.Tensor, torch.Tensor]) -> tuple[float, float]:
    """Measure loss and accuracy."""
    logits = model(data[0])
    loss = float(nn.functional.cross_entropy(logits, data[1]))
    return loss, float((logits.argmax(dim=1) == data[1]).float().mean())
