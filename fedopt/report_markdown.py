"""Write the report as Markdown, short enough to paste into a review or a model card."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fedopt.report_tables import accounting_rows, sides

_SPECIAL = re.compile(r"([\\`*_\[\]|#~])")


def markdown(report: Mapping[str, Any]) -> str:
    """Write sentence, tables, warnings and what is not covered; report: as read from JSON."""
    provenance = report["provenance"]
    missing = [item for item in report["assumptions"] if item["state"] == "not enforced"]
    parts = [
        "# Privacy budget",
        f"> {escaped(report['statement'])}",
        escaped(report["as_run_statement"]),
        bullets(
            "Not enforced by the code", (f"{item['name']}: {item['detail']}" for item in missing)
        ),
        table(
            ("", "claimed", "as run"),
            [(row.name, row.claimed, row.as_run) for row in sides(report)],
        ),
        table(("claimed", "value"), accounting_rows(report)),
        bullets("Trust", report["trust"]),
        bullets("Not covered", report["not_covered"]),
        bullets("Warnings", (f"{one['code']}: {one['text']}" for one in report["warnings"])),
        f"Run {escaped(provenance['run_id'])}, settings {provenance['settings_hash'][:16]}, "
        f"ledger {provenance['ledger_digest'][:16]}, "
        f"model {(provenance['model_sha256'] or 'none')[:16]}.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def escaped(text: object) -> str:
    """Take from a text every power to be more than text in Markdown, on one line."""
    line = " ".join(str(text).split())
    return _SPECIAL.sub(r"\\\1", html.escape(line, quote=False))


def bullets(title: str, lines: Iterable[str]) -> str:
    """Write a titled list; nothing where there are no lines."""
    listed = [f"- {escaped(line)}" for line in lines]
    return "\n".join([f"**{title}**", "", *listed]) if listed else ""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table with a line of heads."""
    written = [f"| {' | '.join(head)} |", f"| {' | '.join(['---'] * len(head))} |"]
    return "\n".join([*written, *(f"| {' | '.join(map(escaped, row))} |" for row in rows)])
