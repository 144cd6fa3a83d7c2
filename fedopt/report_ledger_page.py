"""Draw the report of a ledger as a page and as Markdown, from its JSON alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedopt.report_markdown import bullets, escaped, table
from fedopt.report_tables import show, show_epsilon
from privacy.statement import strength

TEMPLATE = "report_ledger.html.j2"
COLUMNS = ("run", "charged", "released", "noise multiplier", "probability", "epsilon alone")


def ledger_page(report: Mapping[str, Any]) -> str:
    """Render the page; report: as read from JSON. Raises ImportError where jinja2 is missing."""
    from fedopt.report_page import environment, generator

    return (
        environment()
        .get_template(TEMPLATE)
        .render(
            report=report,
            weak=bool(strength(float(report["epsilon"]["value"]))),
            columns=COLUMNS,
            runs=run_rows(report),
            together=together_rows(report),
            generator=generator(),
        )
    )


def ledger_markdown(report: Mapping[str, Any]) -> str:
    """Write the report of a ledger as Markdown; report: as read from JSON."""
    parts = [
        "# Privacy budget of a ledger",
        f"> {escaped(report['statement'])}",
        table(("all runs together", "value"), together_rows(report)),
        table(COLUMNS, run_rows(report)),
        bullets("Not covered", report["not_covered"]),
        bullets("Warnings", [f"{one['code']}: {one['text']}" for one in report["warnings"]]),
        f"Ledger {report['ledger_digest'][:16]}.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def run_rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Lay out each run in words."""
    return [
        (
            one["run_id"],
            show(one["charged"]),
            show(one["released"]),
            ", ".join(show(value) for value in one["noise_multipliers"]),
            ", ".join(show(value) for value in one["sample_rates"]),
            show_epsilon(one["epsilon"]["value"]),
        )
        for one in report["runs"]
    ]


def together_rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Lay out what all runs together have spent."""
    answers = [
        (f"Epsilon by {name.upper()} ({answer['library']})", show_epsilon(answer["epsilon"]))
        for name, answer in report["accountants"].items()
        if answer["epsilon"] is not None
    ]
    return [
        *answers,
        ("Tier", report["tier"]),
        ("Delta", f"{report['delta']:g}"),
        ("Population", show(report["population"])),
        ("Unit of privacy", report["unit"]),
        ("Adjacency", report["adjacency"]),
        ("Ledger digest", report["ledger_digest"]),
    ]
