"""Turn the replies of a round into a released model: server optimizers as Flower strategies."""
