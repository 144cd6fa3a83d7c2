"""Name the ServerApp for Flower."""

from fedopt.server_app import app

__all__ = ["app"]
