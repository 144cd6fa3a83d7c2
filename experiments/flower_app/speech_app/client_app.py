"""Name the ClientApp for Flower."""

from fedopt.client_app import app

__all__ = ["app"]
