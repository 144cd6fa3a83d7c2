"""Build the privacy-budget report of a run directory: JSON first, the other forms from it alone."""

from __future__ import annotations

import contextlib
import importlib
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedopt import run_directory
from fedopt.audit_result import audit_group
from fedopt.report_accounting import accounting_group, quoted, quoted_as_run, stated
from fedopt.report_curves import build_curves
from fedopt.report_facts import RunFacts, read_run
from fedopt.report_json import plain, to_json
from fedopt.report_layer_norms import layer_norms
from fedopt.report_measured import measured
from fedopt.report_warnings import all_warnings
from privacy.accounting import PrivacySpent
from privacy.assumptions import assumptions, extrapolates
from privacy.event import AccountingEvent
from privacy.statement import (
    COVERED,
    as_run_sentence,
    guarantee_sentence,
    not_covered,
    strength,
    tier,
    trust_sentences,
)

__all__ = ["RunFacts", "build_report", "plain", "read_run", "to_json", "write_report"]

SCHEMA_VERSION = 1


def write_report(folder: Path) -> dict[str, Any]:
    """Write privacy-report.json and privacy-report.html into a run directory; returns the JSON."""
    report = build_report(read_run(folder))
    write_files(folder, report)
    return report


def load_libraries() -> None:
    """Import what a report needs, two seconds of work, while other processes train."""
    with contextlib.suppress(ImportError):  # the report itself says what is missing
        importlib.import_module("dp_accounting")
        importlib.import_module("matplotlib.figure")
        importlib.import_module("matplotlib.backends.backend_svg")


def write_files(folder: Path, report: Mapping[str, Any]) -> None:
    """Write a report as JSON, and as a page where the report extra is installed."""
    run_directory.write_text(folder / run_directory.REPORT_JSON, to_json(report))
    from fedopt.report_page import html_page

    page = html_page(report)
    if page is not None:
        run_directory.write_text(folder / run_directory.REPORT_HTML, page)


def build_report(facts: RunFacts) -> dict[str, Any]:
    """Collect every group of the report; all numbers come from ledger, settings and rows."""
    run_id = facts.provenance["run_id"]
    claimed, as_run = facts.ledger.releases(run_id), facts.ledger.releases_as_run(run_id)
    spent = quoted(facts, claimed)
    spent_as_run = quoted_as_run(facts, as_run)
    rounds = sum(row.state == "committed" for row in facts.charges)
    return {
        "schema_version": SCHEMA_VERSION,
        "statement": guarantee_sentence(facts.plan, stated(spent), rounds, facts.randomness),
        "as_run_statement": as_run_sentence(
            facts.plan, stated(spent_as_run), rounds, facts.randomness
        ),
        "trust": trust_sentences(facts.plan, facts.plug_in),
        "assumptions": _assumptions(facts),
        "setting": _setting(facts),
        "unit": {"name": "user", "meaning": _unit(facts)},
        "adjacency": facts.plan.event.adjacency,
        "covered": list(COVERED),
        "not_covered": not_covered(_not_covered_here(facts)),
        "release": {
            "what": "the model after every round",
            "rounds_planned": facts.plan.rounds,
            "rounds_released": rounds,
            "formula": "(sum of clipped updates + N(0, (z C)^2)) / m",
        },
        "mechanism": _mechanism(facts),
        "sampling": _sampling(facts),
        "accounting": accounting_group(facts, claimed, spent),
        "claimed": _side(facts.plan.event, spent),
        "as_run": _side(facts.plan.event_as_run, spent_as_run)
        | {"virtual_users": facts.plan.simulation.virtual},
        "extrapolation": _extrapolation(facts, spent, spent_as_run),
        "curves": build_curves(facts.plan, facts.charges, facts.settings.privacy.accountant)
        | layer_norms(facts.rows),
        "audit": audit_group(facts, spent_as_run.epsilon),
        "utility": _utility(facts),
        "provenance": _provenance(facts),
        "warnings": [asdict(warning) for warning in all_warnings(facts, spent, spent_as_run)],
    }


def _side(event: AccountingEvent, spent: PrivacySpent) -> dict[str, Any]:
    return {
        "population": event.population,
        "cohort": event.cohort,
        "sample_rate": event.sample_rate,
        "noise_multiplier": event.noise_multiplier,
        "epsilon": asdict(stated(spent)),
        "tier": tier(spent.epsilon),
        "strength": strength(spent.epsilon),
    }


def _assumptions(facts: RunFacts) -> list[dict[str, Any]]:
    noised = (facts.provenance.get("nodes") or {}).get("replies_with_noise_shares", 0)
    found = assumptions(facts.plan, facts.randomness, facts.plug_in, noised)
    return [asdict(item) for item in found]


def _unit(facts: RunFacts) -> str:
    if facts.plug_in:
        return "one Flower node, all of its data; that a node is one person is the operator's duty"
    return "one person, all of their data"


def _setting(facts: RunFacts) -> dict[str, Any]:
    privacy = facts.settings.privacy
    return {
        "mode": "plug-in" if facts.plug_in else "simulation",
        "nodes": facts.provenance.get("nodes"),
        "trust_model": "central: the server is trusted",
        "noise_added_by": privacy.noise_placement,
        "noise_completed_by": "server",
        "secure_aggregation": False,
        "randomness": privacy.randomness,
        "strategy": facts.settings.server.strategy,
        "task": facts.settings.task.task,
        "engine": facts.settings.engine.engine,
        "device": facts.settings.engine.device,
        "tuning_runs_charged": bool(facts.other_runs),
        "metric_chose_anything": False,
    }


def _mechanism(facts: RunFacts) -> dict[str, Any]:
    plan = facts.plan
    layers = facts.provenance["layers"]
    bounds = plan.bounds([size for _, size in layers])
    shares = facts.rows[-1].get("layer_clipped") if facts.rows else None
    return {
        "name": "Gaussian",
        "noise_multiplier": plan.noise_multiplier,
        "clip_norm": plan.clip_norm,
        "clipping": plan.clipping,
        "sensitivity": plan.clip_norm * (2.0 if plan.event.adjacency == "replace-one" else 1.0),
        "noise_std_on_sum": plan.noise_std_on_sum,
        "noise_std_on_mean": plan.noise_std_on_mean,
        "denominator": plan.denominator,
        "noise_placement": plan.noise_placement,
        "grid_spacing": plan.grid_spacing,
        "layers": [
            {
                "name": name,
                "size": size,
                "bound": bound,
                "signal_to_noise_at_most": _signal_to_noise(bound, plan.noise_std_on_mean, size),
                "clipped_fraction_last_round_not_private": shares[index] if shares else None,
            }
            for index, ((name, size), bound) in enumerate(zip(layers, bounds, strict=True))
        ],
    }


def _signal_to_noise(bound: float, deviation: float, size: int) -> float:
    """Compare the largest possible mean update of a layer with the norm of its noise."""
    return bound / (deviation * math.sqrt(size)) if deviation > 0.0 else math.inf


def _sampling(facts: RunFacts) -> dict[str, Any]:
    done = [row for row in facts.charges if row.state == "committed"]
    sizes = [row.cohort_realised or 0 for row in done]
    replies = sum(row.replies or 0 for row in done)
    return {
        "scheme": facts.plan.sampling,
        "enforced": True,
        "sample_rate": facts.plan.sample_rate,
        "sample_rate_as_run": facts.plan.event_as_run.sample_rate,
        "cohort_cap": facts.plan.cohort_cap,
        "cohort_realised": {
            "smallest": min(sizes, default=0),
            "mean": sum(sizes) / len(sizes) if sizes else 0.0,
            "largest": max(sizes, default=0),
            "by_round": sizes,
        },
        "users_without_contribution": sum(sizes) - replies,
        "remedy": "a lost user counts as zeros; the server completes the noise",
    }


def _extrapolation(
    facts: RunFacts, spent: PrivacySpent, as_run: PrivacySpent
) -> dict[str, Any] | None:
    if not extrapolates(facts.plan):
        return None
    return {
        "trained": {
            "users": facts.plan.simulation.users,
            "cohort": facts.plan.simulation.cohort,
            "epsilon": asdict(stated(as_run)),
        },
        "claimed": {
            "population": facts.plan.population,
            "cohort": facts.plan.cohort,
            "epsilon": asdict(stated(spent)),
        },
        "assumption": "the metric is the same when the claimed cohort is really trained",
    }


def _utility(facts: RunFacts) -> dict[str, Any]:
    metric = facts.provenance["metric"]
    history = [{"round": row["round"], "value": row[metric]} for row in facts.rows if metric in row]
    last = facts.rows[-1] if facts.rows else {}
    tested = last.get(f"test_{metric}")
    return {
        "metric": metric,
        "final": tested if tested is not None else history[-1]["value"] if history else None,
        "final_split": "test" if tested is not None else "dev",
        "private": False,
        "history": history,
        "measured": measured(facts.rows),
        "data": facts.provenance["data"],
    }


def _provenance(facts: RunFacts) -> dict[str, Any]:
    kept = {
        key: value
        for key, value in facts.provenance.items()
        if key not in ("layers", "metric", "data", "schema_version", "mode", "nodes")
    }
    run_id = facts.provenance["run_id"]
    return kept | {
        "ledger_digest": facts.ledger.digest(run_id),
        "model_sha256": run_directory.file_digest(facts.folder / run_directory.MODEL),
        "seed": facts.settings.run.seed,
    }


def _not_covered_here(facts: RunFacts) -> list[str]:
    if facts.settings.task.init_from is None:
        return []
    return ["the data of the seed model that --init-from loaded"]
