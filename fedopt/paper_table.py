"""Print the privacy tables of arXiv 2310.00098 beside what our accountants say to the same rows.

Rows: tables 1, 17 and 18 (Common Voice in English, French and German), delta 1e-9, Poisson sampling
assumed by the paper. Left out: the rows at noise 0.625e-6, whose columns cannot be told apart in
the published text, and rows without a printed epsilon.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from privacy.accounting import epsilon_spent
from privacy.accounting_rdp import convert, renyi_divergence
from privacy.errors import PrivacyWarning
from privacy.event import AccountingEvent
from privacy.statement import round_up

DELTA = 1e-9
_TYPO = "printed 1.3 is a misprint of 13, which the same (z, q, T) has elsewhere"
_HIGH_ORDER = "printed order 3 is a misprint: it would give 9.8; order 4 gives the printed epsilon"
_FRENCH_ORDER = "printed order 3 is a misprint: it would give 724; order 1.3 fits"
_SMALL_GRID = "the paper's largest order was 25; a larger order gives a smaller epsilon"
_ROUNDS = "rounds 2006 here, where other rows at this sample rate have 2034"
_COARSE_GRID = "the paper's smallest order was 1.5 here; order 1.1 to 1.3 gives a smaller epsilon"


@dataclass(frozen=True)
class PaperRow:
    """Hold one printed row: language, the run, the printed epsilon and order, and its slips."""

    language: str
    noise_multiplier: float
    cohort: int
    population: int
    rounds: int
    epsilon: float
    order: float | None
    slips: tuple[str, ...] = ()

    @property
    def event(self) -> AccountingEvent:
        """Give the round as the paper accounts it."""
        return AccountingEvent("poisson", self.population, self.cohort, self.noise_multiplier)


@dataclass(frozen=True)
class PaperComparison:
    """Hold ours beside a printed row; None where there is nothing to compare.

    at_printed_order: RDP at the printed order alone, which shows how the number came about.
    """

    row: PaperRow
    rdp: float
    rdp_order: float | None
    pld: float | None
    pld_library: str | None
    at_printed_order: float | None
    warnings: tuple[PrivacyWarning, ...]


PAPER_ROWS: tuple[PaperRow, ...] = (
    PaperRow("en", 0.1024, 1024, 34_753, 2006, 3.3e4, 1.1),
    PaperRow("en", 1.024, 10_240, 347_530, 2006, 13, 4),
    PaperRow("en", 5.12, 51_200, 1_737_650, 2006, 1.6, 25),
    PaperRow("en", 0.0512, 1024, 34_753, 2006, 3.5e5, 1.1),
    PaperRow("en", 0.512, 10_240, 347_530, 2006, 72, 1.5),
    PaperRow("en", 2.56, 51_200, 1_737_650, 2006, 3.5, 10),
    PaperRow("en", 0.03072, 1024, 34_753, 2006, 1.1e6, 1.1),
    PaperRow("en", 0.3072, 10_240, 347_530, 2006, 370, 1.1),
    PaperRow("en", 1.536, 51_200, 1_737_650, 2006, 6.5, 7),
    PaperRow("en", 0.02048, 1024, 34_753, 2006, 2.6e6, 1.1),
    PaperRow("en", 1.024, 51_200, 1_737_650, 2006, 1.3, 4, (_TYPO,)),
    PaperRow("en", 2.048, 102_400, 3_475_300, 2006, 4.5, 9),
    PaperRow("en", 0.01024, 1024, 34_753, 2006, 1.1e7, 1.1),
    PaperRow("en", 0.512, 51_200, 1_737_650, 2006, 72, 1.5),
    PaperRow("en", 0.512, 51_200, 17_376_500, 2034, 13, 3),
    PaperRow("en", 1.024, 102_400, 3_475_300, 2006, 13, 4),
    PaperRow("en", 2.048, 204_800, 6_950_600, 2006, 4.5, 9),
    PaperRow("en", 2.048, 204_800, 69_506_000, 2006, 0.75, 25, (_SMALL_GRID, _ROUNDS)),
    PaperRow("en", 0.00512, 1024, 34_753, 2006, 4.2e7, 1.1),
    PaperRow("en", 0.512, 102_400, 3_475_300, 2006, 72, 1.5),
    PaperRow("en", 1.024, 204_800, 6_950_600, 2006, 13, 4),
    PaperRow("en", 1.024, 204_800, 69_506_000, 2034, 2.1, 10),
    PaperRow("en", 1.024, 204_800, 695_060_000, 3390, 1.2, 15),
    PaperRow("en", 0.003072, 1024, 34_753, 2006, 1.2e8, 1.1),
    PaperRow("en", 0.3072, 102_400, 3_475_300, 2006, 370, 1.1),
    PaperRow("en", 0.6144, 204_800, 6_950_600, 2006, 42, 2),
    PaperRow("en", 0.6144, 204_800, 69_506_000, 2034, 7.2, 3, (_HIGH_ORDER,)),
    PaperRow("en", 0.6144, 204_800, 695_060_000, 3390, 3.7, 6),
    PaperRow("en", 0.0018432, 1024, 34_753, 2006, 4.5e8, 1.5, (_COARSE_GRID,)),
    PaperRow("en", 0.18432, 102_400, 3_475_300, 2006, 2.3e4, 1.5, (_COARSE_GRID,)),
    PaperRow("en", 0.36864, 204_800, 6_950_600, 2006, 270, 1.5, (_COARSE_GRID,)),
    PaperRow("en", 0.36864, 204_800, 69_506_000, 2034, 45, 1.5, (_COARSE_GRID,)),
    PaperRow("en", 0.36864, 204_800, 695_060_000, 3390, 16, 2.5),
    PaperRow("en", 0.001024, 1024, 34_753, 2006, 1.1e9, 1.1),
    PaperRow("en", 0.1024, 102_400, 3_475_300, 2006, 3.2e4, None),
    PaperRow("en", 0.2048, 204_800, 6_950_600, 2006, 1.1e3, 1.1),
    PaperRow("en", 0.2048, 204_800, 69_506_000, 2034, 270, 1.1),
    PaperRow("en", 0.2048, 204_800, 695_060_000, 3390, 94, 1.3),
    PaperRow("fr", 2.56, 256_000, 1_542_750, 2002, 24, 3),
    PaperRow("fr", 2.56, 256_000, 15_427_500, 2013, 1.9, None),
    PaperRow("fr", 0.768, 256_000, 1_542_750, 2002, 180, 3, (_FRENCH_ORDER,)),
    PaperRow("fr", 0.768, 256_000, 15_427_500, 2013, 14, 3),
    PaperRow("fr", 0.768, 256_000, 46_282_500, 1991, 5.5, None),
    PaperRow("de", 2.56, 256_000, 1_603_750, 2002, 23, None),
    PaperRow("de", 2.56, 256_000, 16_037_500, 2016, 1.8, 20),
    PaperRow("de", 0.768, 256_000, 1_603_750, 2002, 170, None),
    PaperRow("de", 0.768, 256_000, 16_037_500, 2016, 14, None),
    PaperRow("de", 0.768, 256_000, 48_112_500, 2068, 5.4, 5),
)


@lru_cache(maxsize=128)
def compare(row: PaperRow) -> PaperComparison:
    """Account one row of the paper by RDP and, where it can, by PLD."""
    releases = [(row.event, row.rounds)]
    rdp = epsilon_spent(releases, DELTA)
    pld = epsilon_spent(releases, DELTA, "pld")
    answered = pld.accountant == "pld"
    at_order = None
    if row.order is not None:
        at_order = convert(row.rounds * renyi_divergence(row.event, row.order), row.order, DELTA)
    return PaperComparison(
        row=row,
        rdp=rdp.epsilon,
        rdp_order=rdp.order,
        pld=pld.epsilon if answered else None,
        pld_library=pld.library if answered else None,
        at_printed_order=at_order,
        warnings=pld.warnings,
    )


def paper_lines() -> Iterator[str]:
    """Write the tables line by line; epsilons of ours are rounded up."""
    yield f"arXiv 2310.00098, tables 1, 17, 18; delta {DELTA:g}; add-or-remove-one; Poisson assumed"
    yield (
        f"{'':<3}{'z':>10}{'cohort':>9}{'population':>13}{'rounds':>7}"
        f"{'printed':>10}{'order':>6}{'RDP':>14}{'order':>6}{'PLD':>8}"
    )
    notes: dict[str, int] = {}
    for row in PAPER_ROWS:
        ours = compare(row)
        marks = "".join(f" [{notes.setdefault(slip, len(notes) + 1)}]" for slip in row.slips)
        yield (
            f"{row.language:<3}{row.noise_multiplier:>10g}{row.cohort:>9,}{row.population:>13,}"
            f"{row.rounds:>7}{row.epsilon:>10.4g}{row.order or '-':>6}{_short(ours.rdp):>14}"
            f"{ours.rdp_order:>6g}{_short(ours.pld):>8}{marks}"
        )
    yield ""
    yield from (f"[{number}] {slip}" for slip, number in notes.items())
    yield "PLD -: left out, epsilon by RDP is above 600, where e^epsilon nears the largest float"
    yield (
        "The paper's code draws cohorts of a fixed size, for which Poisson numbers do not hold. "
        "No row was trained with the cohort and population it names."
    )


def paper_json() -> dict[str, Any]:
    """Give the tables as plain data, numbers unrounded."""
    return {"schema_version": 1, "delta": DELTA, "rows": [_plain(row) for row in PAPER_ROWS]}


def _plain(row: PaperRow) -> dict[str, Any]:
    ours = compare(row)
    return {
        "language": row.language,
        "population": row.population,
        "cohort": row.cohort,
        "rounds": row.rounds,
        "noise_multiplier": row.noise_multiplier,
        "printed": {"epsilon": row.epsilon, "order": row.order, "slips": list(row.slips)},
        "rdp": {"epsilon": ours.rdp, "order": ours.rdp_order},
        "rdp_at_printed_order": ours.at_printed_order,
        "pld": {"epsilon": ours.pld, "library": ours.pld_library},
        "warnings": [{"code": each.code, "text": each.text} for each in ours.warnings],
    }


def _short(epsilon: float | None) -> str:
    if epsilon is None:
        return "-"
    if epsilon < 1000:
        return round_up(epsilon)
    unit = 10.0 ** (math.floor(math.log10(epsilon)) - 3)
    return f"{math.ceil(epsilon / unit) * unit:.3e}"
