"""Train a small model over Flower nodes, privately."""
