"""Run fedopt's private speech training under Flower's own runtime."""
