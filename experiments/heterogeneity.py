"""Draw how unlike the layers of a model are: update norms by layer and round, of finished runs.

    python -m experiments.heterogeneity RUN [RUN ...] --output experiments/results/NAME

RUN is a directory of fedopt run. NAME.json and NAME.svg hold mean L2 norms over the users of each
round, before and after clipping. They come straight from people's updates: not private.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.sweep import portable
from fedopt import run_directory
from fedopt.run_log import RunLog
from privacy.errors import SettingsError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SCHEMA_VERSION = 1
NOTE = "not private: norms of people's updates, covered by no guarantee"
SIDES = ("before_clipping", "after_clipping")
_KEYS = {"before_clipping": "layer_norms", "after_clipping": "layer_norms_clipped"}
_MOST_NAMES = 40


def read_norms(folder: Path) -> dict[str, Any]:
    """Read the norms by round and layer of a run; raises SettingsError where it logged none."""
    rows = RunLog(folder / run_directory.ROUNDS).rows() if folder.is_dir() else []
    told = [row for row in rows if all(row.get(key) for key in _KEYS.values())]
    if not told:
        raise SettingsError(
            f"run must be a directory whose rounds.jsonl has norms by layer, got {folder.name!r}; "
            "run it again with this version"
        )
    settings = run_directory.load_settings(folder).model_dump(mode="json", exclude_none=True)
    layers = run_directory.read_provenance(folder)["layers"]
    return {
        "run": folder.name,
        "settings": portable(settings),
        "layers": [name for name, _ in layers],
        "sizes": [size for _, size in layers],
        "rounds": [row["round"] for row in told],
        **{side: [_rounded(row[key]) for row in told] for side, key in _KEYS.items()},
    }


def _rounded(values: Sequence[float]) -> list[float]:
    return [float(f"{value:.4g}") for value in values]


def spread(norms: Sequence[float]) -> float:
    """Give how unlike layers are: the deviation of the natural logarithm of their norms."""
    logs = [math.log(norm) for norm in norms if norm > 0.0]
    return statistics.stdev(logs) if len(logs) > 1 else 0.0


def summary(run: Mapping[str, Any]) -> str:
    """Sum up a run in a line: spread of the layers in the first and the last round."""
    parts = []
    for side in SIDES:
        first, last = spread(run[side][0]), spread(run[side][-1])
        parts.append(f"{side.replace('_', ' ')} {first:.2f} -> {last:.2f}")
    return f"{run['run']}: deviation of log norms over layers, {'; '.join(parts)}"


def draw(runs: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw a map of layers by rounds for each run, before and after clipping, one colour scale."""
    from matplotlib import rc_context
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    shown = [norm for run in runs for side in SIDES for line in run[side] for norm in line if norm]
    scale = LogNorm(min(shown), max(shown)) if shown else None
    heights = [min(9.0, 1.2 + 0.16 * len(run["layers"])) for run in runs]
    with rc_context({"svg.hashsalt": path.stem, "svg.fonttype": "none"}):
        figure = Figure(figsize=(10.0, sum(heights)), layout="constrained")
        panels = figure.subplots(len(runs), 2, squeeze=False, height_ratios=heights, sharey="row")
        for run, row in zip(runs, panels, strict=True):
            for side, axes in zip(SIDES, row, strict=True):
                image = _draw_map(run, side, scale, axes)
            _name_layers(run, row[0])
        figure.colorbar(image, ax=panels, label="mean L2 norm over users (not private)")
        figure.savefig(path, metadata={"Date": None})


def _draw_map(run: Mapping[str, Any], side: str, scale: Any, axes: Axes) -> Any:
    from matplotlib.ticker import MaxNLocator

    columns = list(zip(*run[side], strict=True))
    masked = [[norm if norm > 0.0 else math.nan for norm in layer] for layer in columns]
    rounds = run["rounds"]
    extent = (rounds[0] - 0.5, rounds[-1] + 0.5, len(columns) - 0.5, -0.5)
    axes.set_title(f"{run['run']}, {side.replace('_', ' ')}", fontsize=9)
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return axes.imshow(
        masked, norm=scale, aspect="auto", extent=extent, interpolation="nearest", cmap="viridis"
    )


def _name_layers(run: Mapping[str, Any], axes: Axes) -> None:
    names = run["layers"]
    if len(names) > _MOST_NAMES:
        axes.set_ylabel("layer, in the model's order")
        return
    axes.set_yticks(range(len(names)), names, fontsize=7)


def main(arguments: Sequence[str] | None = None) -> int:
    """Read runs, write JSON and figure; give the exit code: 0 done, 2 unusable runs."""
    parser = argparse.ArgumentParser(prog="python -m experiments.heterogeneity")
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run directory")
    parser.add_argument("--output", type=Path, required=True, help="result, without its ending")
    given = parser.parse_args(arguments)
    runs: list[dict[str, Any]] = []
    problems: list[str] = []
    for folder in given.runs:
        try:
            runs.append(read_norms(folder))
        except SettingsError as problem:
            problems += problem.problems
    if problems:
        print("\n".join(f"heterogeneity: {told}" for told in problems), file=sys.stderr)
        return SettingsError.exit_code
    found = {"schema_version": SCHEMA_VERSION, "note": NOTE, "runs": runs}
    run_directory.write_text(given.output.with_suffix(".json"), json.dumps(found) + "\n")
    draw(runs, given.output.with_suffix(".svg"))
    print("\n".join(summary(run) for run in runs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
