"""Count a ledger's charges once: the counts are kept together with the row at which they end.

SQLite numbers rows in the order in which they are added, and a ledger never removes a row: a
commit changes its row in place. So the rows after the last counted one are all that is new, and
a round costs the same however long the ledger is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

CLAIMED = ("sampling", "population", "cohort", "noise_multiplier", "cohort_cap")
AS_RUN = ("sampling", "users", "cohort_as_run", "noise_multiplier_as_run", "cohort_cap_as_run")
COUNTED = ("run", *CLAIMED, *AS_RUN[1:])
IDENTITY = ("run", "round", "attempt", "key_hash")

PLACE = "place"
"""Name under which a row's number in the file is read beside its columns."""


@dataclass(frozen=True)
class Tally:
    """Hold the number of rows of each run and event, up to one row of the file.

    counts: mapping of the values of COUNTED to a number of rows.
    end: number of the last row counted, 0 where none was. end_identity: values of its IDENTITY;
    where the file has another row there, it is another file, and must be counted anew.
    """

    counts: Mapping[tuple[Any, ...], int] = field(default_factory=dict)
    end: int = 0
    end_identity: tuple[Any, ...] = ()

    def extended(self, rows: Iterable[Mapping[str, Any]]) -> Tally:
        """Count further rows, given in the order of the file with their PLACE."""
        counts, last = Counter(self.counts), None
        for last in rows:
            counts[tuple(last[name] for name in COUNTED)] += 1
        if last is None:
            return self
        return Tally(counts, last[PLACE], tuple(last[name] for name in IDENTITY))

    def including(self, record: Mapping[str, Any]) -> Tally:
        """Count one row that is not in the file yet."""
        values = tuple(record[name] for name in COUNTED)
        return replace(self, counts={**self.counts, values: self.counts.get(values, 0) + 1})

    def by(self, run: str | None, columns: Sequence[str]) -> list[tuple[tuple[Any, ...], int]]:
        """Count the rows of one run, or of all, by their values in some columns, in fixed order.

        The order is SQLite's, and sums of floats depend on it: NULL comes before every value.
        """
        found: Counter[tuple[Any, ...]] = Counter()
        places = [COUNTED.index(name) for name in columns]
        for values, number in self.counts.items():
            if run is None or values[0] == run:
                found[tuple(values[place] for place in places)] += number
        return sorted(found.items(), key=lambda item: [(v is not None, v) for v in item[0]])


@dataclass
class LatestTally:
    """Keep a ledger's latest tally; it is replaced as a whole, so any thread may do so."""

    tally: Tally = field(default_factory=Tally)
