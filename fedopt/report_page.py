"""Draw the report as one self-contained HTML page, from its JSON alone."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from importlib import resources
from typing import TYPE_CHECKING, Any

from fedopt.report_tables import show, sides, tables
from privacy.statement import strength

if TYPE_CHECKING:
    import jinja2

NEEDED = ("matplotlib", "jinja2")
TEMPLATE = "report_page.html.j2"


def html_page(report: Mapping[str, Any]) -> str | None:
    """Render the page; None where the report extra (matplotlib, jinja2) is not installed.

    report: what build_report gave, or what was read back from privacy-report.json; both give the
    same page. Every text of the report is escaped.
    """
    if missing_packages():
        return None
    from fedopt.report_charts import all_charts
    from fedopt.report_json import to_json

    read: dict[str, Any] = json.loads(to_json(report))
    missing = [item for item in read["assumptions"] if item["state"] == "not enforced"]
    page = environment().get_template(TEMPLATE)
    return page.render(
        report=read,
        not_enforced=missing,
        weak=bool(strength(float(read["claimed"]["epsilon"]["value"]))),
        sides=sides(read),
        tables=tables(read),
        charts=all_charts(read),
        generator=generator(),
    )


def environment() -> jinja2.Environment:
    """Build the template engine: every text is escaped, and a missing key is an error."""
    import jinja2

    def source(name: str) -> str:
        return resources.files("fedopt").joinpath(name).read_text(encoding="utf-8")

    built = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        loader=jinja2.FunctionLoader(source),
    )
    built.filters["show"] = show
    return built


def missing_packages() -> list[str]:
    """List the packages of the report extra that are not installed."""
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


def generator() -> str:
    """Name what draws the page; the same JSON and the same generator give the same bytes."""
    from importlib.metadata import version

    return ", ".join(f"{name} {version(name)}" for name in ("fedopt", *NEEDED))
