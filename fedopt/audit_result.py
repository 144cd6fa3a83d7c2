"""Hold what the canaries of a run show against the epsilon of the run as it ran."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedopt import run_directory
from fedopt.audit import CanaryScores, canaries_of, read_audit, scores_of_round, write_audit
from fedopt.report_facts import RunFacts, read_run
from privacy.accounting import epsilon_without_amplification
from privacy.audit import (
    LowerBound,
    count_right_guesses,
    gaussian_bound,
    one_run_bound,
    sample,
)
from privacy.audit_canaries import Canaries

CONFIDENCE = 0.95
BOUNDS = 5
MISS = (1 - CONFIDENCE) / BOUNDS
"""What each bound may miss, so that all of them hold together with the confidence stated."""

METHOD = (
    "canary users with random unit directions through the real clip, noise and sum; Gaussian fit "
    "(arXiv 2302.03098) and one-run bound without assumptions (arXiv 2305.08846)"
)
SEES_ALL = "sees every released model, not who was in a cohort"
SEES_LAST = "sees the first and the last model only"
SEES_COHORTS = "sees every released model, and knows when the user was in the cohort"


@dataclass(frozen=True)
class Evidence:
    """Bring together the canaries of a run and their scores after its last committed round."""

    canaries: Canaries
    scores: CanaryScores
    delta: float

    def fit(self, scores: NDArray[np.float64], chosen: NDArray[np.bool_]) -> LowerBound:
        """Fit the chosen canaries' scores, those included against those left out."""
        inside = self.canaries.included
        one_layer = not bool((chosen & self.canaries.whole()).any())
        return gaussian_bound(
            sample(scores[chosen & inside]),
            sample(scores[chosen & ~inside]),
            self.delta,
            MISS,
            self.canaries.dimensions(one_layer=one_layer),
        )

    def all_rounds(self, *, one_layer: bool = False) -> LowerBound:
        """Fit the sums over all releases."""
        whole = self.canaries.whole()
        return self.fit(np.array(self.scores.releases), ~whole if one_layer else whole)

    def final_model(self) -> LowerBound:
        """Fit what is in the last model."""
        return self.fit(np.array(self.scores.final), self.canaries.whole())

    def cohorts_known(self) -> LowerBound:
        """Fit the sums over the releases that drew the canary, in units of one release's noise."""
        drawn = np.array(self.scores.drawn)
        scores = np.array(self.scores.known) / np.sqrt(np.maximum(drawn, 1))
        return self.fit(scores, self.canaries.whole() & (drawn > 0))

    def one_run(self) -> LowerBound:
        """Guess which canaries were included, and bound epsilon by how many guesses are right."""
        whole = self.canaries.whole()
        scores = np.array(self.scores.releases)[whole]
        guesses, right = count_right_guesses(scores, self.canaries.included[whole])
        return one_run_bound(int(whole.sum()), guesses, right, self.delta, MISS)


def evidence(facts: RunFacts) -> Evidence | None:
    """Read the evidence of a run; None where it has no canaries, or released nothing.

    Raises: SettingsError where the scores are missing, damaged or of another round.
    """
    done = [row.round for row in facts.charges if row.state == "committed"]
    count = facts.settings.privacy.audit
    if not count or not done:
        return None
    sizes = [size for _, size in facts.provenance["layers"]]
    settings_hash = facts.provenance["settings_hash"]
    canaries = canaries_of(facts.settings, settings_hash, sizes, facts.plan.bounds(sizes))
    scores = scores_of_round(facts.folder / run_directory.AUDIT, count, max(done))
    return Evidence(canaries, scores, facts.plan.delta)


def audit_group(facts: RunFacts, limit: float) -> dict[str, Any] | None:
    """Collect the audit for the report; None where there is none.

    limit: epsilon of the run as it ran, by the accountant that is quoted.

    Guarantee: with correct code all bounds stay below their limits in 95 of 100 runs at least,
    as far as scores are Gaussian; the one-run bound needs no such assumption.
    Not covered: bounds far below the limit do not show that epsilon is smaller than accounted.
    """
    found = evidence(facts)
    if found is None:
        return None
    known = _known_limit(facts, found.scores)
    bounds = [
        _row("all rounds", SEES_ALL, found.all_rounds(), limit),
        _row("all rounds, one layer", SEES_ALL, found.all_rounds(one_layer=True), limit),
        _row("final model only", SEES_LAST, found.final_model(), limit),
        _row("one run, no assumption", SEES_ALL, found.one_run(), limit),
    ]
    cohorts_known = _row("cohorts known", SEES_COHORTS, found.cohorts_known(), known)
    return {
        "method": METHOD,
        "canaries": found.canaries.count,
        "included": int(found.canaries.included.sum()),
        "rounds": found.scores.round,
        "confidence": CONFIDENCE,
        "bounds": bounds,
        "cohorts_known": cohorts_known,
        "exceeded": [
            row["name"] for row in [*bounds, cohorts_known] if row["epsilon"] > row["limit"]
        ],
    }


def _row(name: str, adversary: str, bound: LowerBound, limit: float) -> dict[str, Any]:
    return {
        "name": name,
        "adversary": adversary,
        "epsilon": bound.epsilon,
        "mu": bound.mu,
        "fitted_epsilon": bound.fitted_epsilon,
        "fitted_mu": bound.fitted_mu,
        "limit": limit,
    }


def _known_limit(facts: RunFacts, scores: CanaryScores) -> float:
    """Account as many releases as the most drawn canary was in, without amplification."""
    releases = [(facts.plan.event_as_run, max(scores.drawn))] if max(scores.drawn) else []
    return epsilon_without_amplification(releases, facts.plan.delta)


def audit_of_run(folder: Path) -> dict[str, Any] | None:
    """Audit a run directory; raises SettingsError where it is damaged."""
    from fedopt.report_accounting import quoted_as_run

    facts = read_run(folder)
    run_id = facts.provenance["run_id"]
    return audit_group(facts, quoted_as_run(facts, facts.ledger.releases_as_run(run_id)).epsilon)


def keep_result(folder: Path) -> None:
    """Write the result of an audited run beside its scores; nothing where there is none."""
    from fedopt.report_json import plain

    found = audit_of_run(folder)
    if found is not None:
        path = folder / run_directory.AUDIT
        write_audit(path, read_audit(path) | {"result": plain(found)})
