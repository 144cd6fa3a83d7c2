"""Offer a run as a Flower ServerApp, whose workers are Flower's nodes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from flwr.serverapp import Grid, ServerApp

from fedopt.flower_settings import flower_settings
from privacy.errors import SettingsError

if TYPE_CHECKING:
    from flwr.app import Context

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run a training whose workers are Flower's nodes; settings come from the run config."""
    from fedopt.simulation import simulate

    values = dict(context.run_config)
    output = values.pop("output", None)
    settings = flower_settings(values)
    wait_for_nodes(grid, settings.engine.workers, settings.engine.timeout)
    simulate(settings, output=str(output) if output else None, grid=grid)


def wait_for_nodes(grid: Grid, workers: int, seconds: float) -> None:
    """Wait until as many nodes are connected as the settings name workers."""
    deadline = time.monotonic() + seconds
    while len(list(grid.get_node_ids())) < workers:
        if time.monotonic() > deadline:
            raise SettingsError(
                f"{workers} nodes must be connected, got {len(list(grid.get_node_ids()))} within "
                f"{seconds:.0f} s; start more or lower workers"
            )
        time.sleep(0.1)
