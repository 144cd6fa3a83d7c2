"""Lay out the report's groups as rows of words, for the page and for Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from privacy.statement import round_up

Report = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """Hold one row of the table of both sides; bad where a reader must stop and think."""

    name: str
    claimed: str
    as_run: str
    bad: bool = False


@dataclass(frozen=True)
class Table:
    """Hold a table of two columns: what, and its value."""

    key: str
    title: str
    rows: list[tuple[str, str]]


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


def sides(report: Report) -> list[Row]:
    """Put claimed and as run side by side."""
    claimed, as_run = report["claimed"], report["as_run"]
    nobody = "nothing is said of people" if as_run["virtual_users"] else None
    names = {
        "Population": "population",
        "Expected cohort": "cohort",
        "Probability of a user in a round": "sample_rate",
        "Noise multiplier (noise on the sum / clip norm)": "noise_multiplier",
    }
    return [
        *(Row(name, show(claimed[key]), show(as_run[key])) for name, key in names.items()),
        Row(
            f"Epsilon at delta {claimed['epsilon']['delta']:g}",
            show_epsilon(claimed["epsilon"]["value"]),
            nobody or show_epsilon(as_run["epsilon"]["value"]),
            bad=bool(nobody or claimed["strength"] or as_run["strength"]),
        ),
        Row("Tier", claimed["tier"], nobody or as_run["tier"]),
        Row("In words", claimed["strength"] or "-", nobody or as_run["strength"] or "-"),
    ]


def tables(report: Report) -> list[Table]:
    """Lay out every group that is a list of facts."""
    return [
        Table("accounting", "Accounting", accounting_rows(report)),
        Table("mechanism", "Mechanism", _mechanism_rows(report)),
        Table("sampling", "Sampling", _sampling_rows(report)),
        Table("setting", "Setting and release", _setting_rows(report)),
        Table("utility", "Utility (not private)", _utility_rows(report)),
        Table("audit", "Audit", _audit_rows(report)),
        Table("provenance", "Provenance", _provenance_rows(report)),
    ]


def accounting_rows(report: Report) -> list[tuple[str, str]]:
    """List the claimed epsilon by every accountant, and what it is made of."""
    group = report["accounting"]
    quoted = group["epsilon"]["accountant"]
    rows = []
    for name, answer in group["accountants"].items():
        mark = ", quoted" if name == quoted else ""
        if answer["epsilon"] is None:
            rows.append((f"Epsilon by {name.upper()}", f"no answer: {answer.get('why', '')}"))
            continue
        order = f", Renyi order {answer['order']:g}" if answer["order"] else ""
        title = f"Epsilon by {name.upper()} ({answer['library']}{order}{mark})"
        rows.append((title, show_epsilon(answer["epsilon"])))
    mu = group["gdp_mu"]
    return [
        *rows,
        ("Delta", f"{group['epsilon']['delta']:g}"),
        ("Delta x population", show(group["delta_times_population"])),
        ("Releases charged", show(group["rounds_charged"])),
        ("Ceiling", "none" if group["ceiling"] is None else f"{group['ceiling']:g}"),
        ("Epsilon at the planned end", show_epsilon(group["epsilon_at_planned_end"]["value"])),
        (
            "Epsilon where cohorts are known (no amplification)",
            show_epsilon(group["epsilon_without_amplification"]["value"]),
        ),
        ("Gaussian mu in the limit of many rounds (no guarantee)", show(mu)),
        ("Tier", group["tier"]),
    ]


def _mechanism_rows(report: Report) -> list[tuple[str, str]]:
    group = report["mechanism"]
    return [
        ("Release", f"{report['release']['what']}: {report['release']['formula']}"),
        ("Noise", group["name"]),
        ("Noise multiplier z, claimed", show(group["noise_multiplier"])),
        ("Clip norm C of a user's whole update", show(group["clip_norm"])),
        ("Clipping", group["clipping"]),
        ("Sensitivity of the sum", show(group["sensitivity"])),
        ("Noise on the sum, as run (standard deviation)", show(group["noise_std_on_sum"])),
        ("Noise on the mean (standard deviation)", show(group["noise_std_on_mean"])),
        ("Fixed divisor", show(group["denominator"])),
        ("Noise added by", report["setting"]["noise_added_by"]),
        ("Noise completed by", report["setting"]["noise_completed_by"]),
        ("Grid of the sum", show(group["grid_spacing"])),
    ]


def _sampling_rows(report: Report) -> list[tuple[str, str]]:
    group = report["sampling"]
    drawn = group["cohort_realised"]
    return [
        ("Scheme", group["scheme"]),
        ("Really drawn so", show(group["enforced"])),
        ("Probability q, claimed", show(group["sample_rate"])),
        ("Probability q, as run", show(group["sample_rate_as_run"])),
        ("Cap on a cohort", show(group["cohort_cap"])),
        (
            "Cohorts drawn (smallest, mean, largest)",
            f"{show(drawn['smallest'])}, {show(drawn['mean'])}, {show(drawn['largest'])}",
        ),
        ("Users drawn without contribution", show(group["users_without_contribution"])),
        ("Remedy", group["remedy"]),
    ]


def _setting_rows(report: Report) -> list[tuple[str, str]]:
    group, release = report["setting"], report["release"]
    nodes = (group["nodes"] or {}).items()
    return [
        ("Mode", group["mode"]),
        *((f"Nodes: {name}", show(count)) for name, count in nodes),
        ("Unit of privacy", f"{report['unit']['name']}: {report['unit']['meaning']}"),
        ("Adjacency", report["adjacency"]),
        ("Rounds planned", show(release["rounds_planned"])),
        ("Rounds released", show(release["rounds_released"])),
        ("Trust model", group["trust_model"]),
        ("Secure aggregation", show(group["secure_aggregation"])),
        ("Randomness", group["randomness"]),
        ("Strategy", group["strategy"]),
        ("Task", group["task"]),
        ("Engine, device", f"{group['engine']}, {group['device']}"),
        ("Tuning runs charged", show(group["tuning_runs_charged"])),
        ("A metric chose the model or the stopping", show(group["metric_chose_anything"])),
    ]


def _utility_rows(report: Report) -> list[tuple[str, str]]:
    group = report["utility"]
    rows = [
        (f"{group['metric']}, final ({group['final_split']} split)", show(group["final"])),
        *(
            (f"{_metric_name(name)} ({split} split, last evaluation)", show(value))
            for split, values in group.get("measured", {}).items()
            for name, value in values.items()
        ),
        *((str(name), show(value)) for name, value in group["data"].items()),
    ]
    if report["extrapolation"] is not None:
        rows.append(("Assumed, not shown", report["extrapolation"]["assumption"]))
    return rows


def _metric_name(name: str) -> str:
    """Say in words what wer_p90 is: a percentile over people."""
    stem, _, percent = name.rpartition("_p")
    return f"{stem}, {percent}th percentile of people" if stem and percent.isdigit() else name


def _audit_rows(report: Report) -> list[tuple[str, str]]:
    audit = report["audit"]
    if audit is None:
        return [("Empirical audit", "not made")]
    known = audit.get("cohorts_known")
    return [
        ("Method", audit["method"]),
        ("Canary users", show(audit["canaries"])),
        ("Confidence of all bounds together", show(audit["confidence"])),
        *(_audit_row(row) for row in [*audit["bounds"], *([known] if known else [])]),
        ("Above their limit, which shows a fault", ", ".join(audit.get("exceeded", [])) or "none"),
    ]


def _audit_row(row: Mapping[str, Any]) -> tuple[str, str]:
    adversary = row.get("adversary")
    name = f"{row['name']} ({adversary})" if adversary else row["name"]
    limit = row.get("limit")
    most = "" if limit is None else f"; accounted: at most {show_epsilon(limit)}"
    return name, f"epsilon at least {show(row['epsilon'])}{most}"


def _provenance_rows(report: Report) -> list[tuple[str, str]]:
    group = report["provenance"]
    rows = []
    for key, value in group.items():
        if key == "versions":
            listed = ", ".join(f"{name} {number}" for name, number in value.items())
            rows.append(("Versions", listed))
        elif not isinstance(value, list | dict):
            plain = str(value) if key == "seed" else show(value)
            rows.append((key.replace("_", " ").capitalize(), plain))
    return rows
