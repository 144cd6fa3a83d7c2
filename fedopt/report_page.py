"""Draw the report as one self-contained HTML page, from its JSON alone."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Mapping
from importlib import resources
from typing import Any

from privacy.statement import round_up, strength

NEEDED = ("matplotlib", "jinja2")
TEMPLATE = "report_page.html.j2"


def html_page(report: Mapping[str, Any]) -> str | None:
    """Render the page; None where the report extra (matplotlib, jinja2) is not installed.

    report: what build_report gave, or what was read back from privacy-report.json; both give the
    same page. Every text of the report is escaped.
    """
    if missing_packages():
        return None
    import jinja2

    from fedopt.report import to_json
    from fedopt.report_charts import all_charts

    read: dict[str, Any] = json.loads(to_json(report))
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    source = resources.files("fedopt").joinpath(TEMPLATE).read_text(encoding="utf-8")
    assumptions = read.get("assumptions") or []
    return environment.from_string(source).render(
        report=read,
        assumptions=assumptions,
        not_enforced=[item for item in assumptions if item["state"] == "not enforced"],
        weak=bool(strength(float(read["claimed"]["epsilon"]["value"]))),
        sides=_sides(read),
        tables=_tables(read),
        charts=all_charts(read),
    )


def missing_packages() -> list[str]:
    """List the packages of the report extra that are not installed."""
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


def show(value: Any) -> str:
    """Print one value of the JSON: whole numbers with separators, others to four digits."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return "infinity" if value == "inf" else str(value)


def show_epsilon(value: Any) -> str:
    """Print an epsilon rounded up; nothing at all is infinite."""
    return round_up(math.inf if value is None else float(value))


def _sides(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    claimed, as_run = report["claimed"], report["as_run"]
    names = {
        "Population": "population",
        "Expected cohort": "cohort",
        "Probability of a user in a round": "sample_rate",
        "Noise multiplier (noise on the sum / clip norm)": "noise_multiplier",
    }
    rows = [_row(name, show(claimed[key]), show(as_run[key])) for name, key in names.items()]
    nobody = "says nothing of the people" if as_run["virtual_users"] else None
    rows.append(
        _row(
            f"Epsilon at delta {claimed['epsilon']['delta']:g}",
            show_epsilon(claimed["epsilon"]["value"]),
            nobody or show_epsilon(as_run["epsilon"]["value"]),
            bad=bool(nobody or claimed["strength"] or as_run["strength"]),
        )
    )
    rows.append(_row("Tier", claimed["tier"], nobody or as_run["tier"]))
    rows.append(_row("In words", claimed["strength"] or "-", nobody or as_run["strength"] or "-"))
    return rows


def _row(name: str, claimed: str, as_run: str, bad: bool = False) -> dict[str, Any]:
    return {"name": name, "claimed": claimed, "as_run": as_run, "bad": bad}


def _tables(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    return []
