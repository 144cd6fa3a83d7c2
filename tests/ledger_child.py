"""Charge a ledger from a process of its own, and say so line by line; for the kill tests.

Usage: ledger_child.py FILE RUN FIRST_ROUND ROUNDS [CEILING]
Prints "reserved RUN ROUND" after each reserve returned, "committed RUN ROUND" after each commit,
"exhausted" when the ceiling ends it. The cost of a release here is 1, so CEILING counts rounds.
"""

from __future__ import annotations

import sys

from privacy.errors import BudgetExhausted
from privacy.event import AccountingEvent
from privacy.ledger import Ceiling, Charge, Ledger, PlanFacts, Releases

FACTS = PlanFacts(population=1000, delta=1e-5, adjacency="add-or-remove-one")
EVENT = AccountingEvent("poisson", population=1000, cohort=10, noise_multiplier=1.0)
EVENT_AS_RUN = AccountingEvent("poisson", population=40, cohort=5, noise_multiplier=0.5)


def charge(round_number: int, attempt: int = 0) -> Charge:
    """Ask for a release whose key is its own round and attempt."""
    key = f"{round_number:08x}{attempt:04x}"
    return Charge(round_number, attempt, key, EVENT, EVENT_AS_RUN, clip_norm=0.01)


def count(releases: Releases) -> float:
    """Cost 1 per release."""
    return float(sum(number for _, number in releases))


def main(arguments: list[str]) -> None:
    """Reserve and commit rounds until done, killed, or out of budget."""
    path, run, first, rounds = arguments[0], arguments[1], int(arguments[2]), int(arguments[3])
    ceiling = Ceiling(float(arguments[4]), count) if len(arguments) > 4 else None
    ledger = Ledger.open(path, run=run, plan_facts=FACTS)
    for round_number in range(first, first + rounds):
        try:
            reservation = ledger.reserve(charge(round_number), ceiling=ceiling)
        except BudgetExhausted:
            print("exhausted", flush=True)
            return
        print(f"reserved {run} {round_number}", flush=True)
        ledger.commit(reservation, cohort_realised=9, replies=8, noise_std_realised=0.005)
        print(f"committed {run} {round_number}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
