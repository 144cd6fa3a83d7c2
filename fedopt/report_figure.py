"""Draw figures the same way every time, as SVG that stands inside an HTML page by itself."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    Plot = Callable[[Axes], None]

# Told apart by the colour-blind and by line style; each is at least 4.5 : 1 against white.
BLUE, RED, GREEN, PURPLE, GREY = "#00609c", "#b3261e", "#00704f", "#6a3d9a", "#555555"

_SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text: it can be selected, searched and read aloud
    "text.parse_math": False,  # a metric may be named "$"
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "sans-serif"],
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.markersize": 3.5,
}


@dataclass(frozen=True)
class Chart:
    """Hold one figure: its SVG, what it shows in words, and what must be known when reading it.

    key: unique within a page, letters and hyphens. private: False where a reader of this chart
    learns something about people's data that no guarantee covers.
    """

    key: str
    title: str
    svg: str
    alt: str
    caption: str
    private: bool = True


def draw(key: str, *plots: Plot, width: float = 5.2, height: float = 3.1) -> str:
    """Let each plot fill its own axes, one below the other, and give all as one SVG element.

    height: of one plot; sizes in inches. The same input gives the same text: no date, no random
    identifiers. Identifiers start with `key`, so that several figures may stand in one page.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    settings = {**matplotlib.rcParamsDefault, **_SETTINGS, "svg.hashsalt": key}
    with warnings.catch_warnings():
        # Letters that the measuring font lacks are written all the same; old settings are named.
        warnings.simplefilter("ignore")
        with matplotlib.rc_context(settings):
            figure = Figure(figsize=(width, height * len(plots)))
            for row, plot in enumerate(plots, start=1):
                plot(figure.add_subplot(len(plots), 1, row))
            # A figure that knew of its layout would be drawn twice, the first time for nothing.
            ConstrainedLayoutEngine().execute(figure)
            written = io.StringIO()
            figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    return _inline(written.getvalue(), key)


def label(text: object, longest: int = 40) -> str:
    """Make any text fit for a label: no control characters, one line, not too long."""
    plain = "".join(letter if letter.isprintable() else " " for letter in str(text))
    return plain if len(plain) <= longest else plain[: longest - 1] + "…"


def plain_ticks(axes: Axes, *, x: bool = False, y: bool = False) -> None:
    """Write the ticks of a logarithmic axis as plain text: 1e-05."""
    from matplotlib.ticker import LogLocator

    for wanted, axis in ((x, axes.xaxis), (y, axes.yaxis)):
        if wanted:
            axis.set_major_locator(LogLocator(numticks=6))
            axis.set_major_formatter(lambda value, _: f"{value:g}")
            axis.minorticks_off()  # hundreds of marks that nobody reads


def whole_ticks(axes: Axes) -> None:
    """Mark whole numbers only on the axis across: there is no round 1.5."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins="auto", steps=[1, 2, 5, 10], integer=True))


def spreads(values: Sequence[float]) -> bool:
    """Tell whether positive values spread so far that a logarithmic axis shows them better."""
    positive = [value for value in values if value > 0.0]
    return bool(positive) and max(positive) / min(positive) > 100.0


def _inline(document: str, key: str) -> str:
    """Keep the svg element alone and make its identifiers unique in a page."""
    element = document[document.index("<svg") :].strip()
    element = re.sub(r"<metadata>.*?</metadata>\s*", "", element, count=1, flags=re.DOTALL)
    # Inside tags only: a label that reads id="x" is written with &quot; in the text of an element.
    element = re.sub(r'(<[^<>]*\s)id="', rf'\1id="{key}-', element)
    element = re.sub(r"url\(#", f"url(#{key}-", element)
    element = re.sub(r'(?:xlink:)?href="#', f'href="#{key}-', element)
    element = re.sub(r'\sxmlns(:xlink)?="[^"]*"', "", element)  # HTML needs no namespaces
    return element.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)
