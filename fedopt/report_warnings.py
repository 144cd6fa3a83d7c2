"""Collect what a reader of the report must know: warnings of the plan, the accountant, the run."""

from __future__ import annotations

from fedopt import run_directory
from fedopt.report_accounting import NOT_BOUNDED
from fedopt.report_facts import RunFacts
from privacy.accounting import PrivacySpent
from privacy.assumptions import extrapolates
from privacy.errors import PrivacyWarning
from privacy.statement import plan_warnings, strength


def all_warnings(
    facts: RunFacts, claimed: PrivacySpent, as_run: PrivacySpent
) -> list[PrivacyWarning]:
    """List the warnings of a run, each code once."""
    found = [
        *plan_warnings(facts.plan, facts.randomness),
        *claimed.warnings,
        *(one for one in as_run.warnings if one.code == NOT_BOUNDED),
        *_run_warnings(facts, claimed.epsilon, as_run.epsilon),
    ]
    return list({warning.code: warning for warning in found}.values())


def _run_warnings(facts: RunFacts, claimed: float, as_run: float) -> list[PrivacyWarning]:
    released = sum(row.state == "committed" for row in facts.charges)
    charged = len(facts.charges)
    weak, weak_as_run = strength(claimed), strength(as_run)
    people = extrapolates(facts.plan) and not facts.plan.simulation.virtual
    runs = facts.other_runs
    planned = facts.plan.rounds
    model = run_directory.file_digest(facts.folder / run_directory.MODEL)
    candidates = [
        (
            released < planned,
            "not-finished",
            f"{released} of {planned} planned rounds were released.",
        ),
        (
            charged > released,
            "charged-not-released",
            f"{charged} releases are charged for {released} released models: rounds that were "
            "repeated or interrupted stay charged.",
        ),
        (
            bool(runs),
            "ledger-shared",
            f"{len(runs)} more runs are on the same ledger; what they spend on the same people "
            "adds to this: see fedopt report --ledger.",
        ),
        (
            facts.provenance.get("model_sha256", model) != model,
            "model-changed",
            "The model file is not the one that the run wrote.",
        ),
        (
            bool(weak_as_run) and people,
            "as-run-weak",
            f"As run: {weak_as_run} for the people in the data set.",
        ),
        (bool(weak), "epsilon-large", f"As claimed: {weak}."),
    ]
    return [PrivacyWarning(code, text) for holds, code, text in candidates if holds]
