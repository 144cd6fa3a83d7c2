"""Be the command `fedopt budget`: epsilon for a plan, or the plan for an epsilon."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator

from fedopt.budget_answer import BudgetAnswer, answer, as_json, mu_method
from fedopt.budget_request import plot_problems, read_request
from privacy.accounting import epsilon_without_amplification, gdp_mu
from privacy.errors import SettingsError
from privacy.statement import round_up, strength, tier

_FLAGS = (
    ("population", "N", "users from whom each cohort is drawn; 1000000, 1_000_000 or 1e6"),
    ("cohort", "M", "expected users per round"),
    ("rounds", "T", "released models"),
    ("delta", "D", "chance that the guarantee fails; below 1 / population"),
    ("epsilon", "E", "target; the noise is solved unless --solve names something else"),
    ("noise-multiplier", "Z", "noise standard deviation on the sum / clip norm"),
    ("solve", "WHAT", "noise, rounds, cohort or population; its own flag is left out"),
    (
        "hold",
        "WHAT",
        "with --solve cohort: population (default), or sample-rate: population, cohort and noise "
        "multiplier are then the start, and grow together at constant noise on the mean",
    ),
    (
        "accountant",
        "NAME",
        "the one that is quoted and solved with: rdp (default), pld, exact; prv quotes but solves "
        "nothing; all shows every one and quotes rdp",
    ),
    ("sampling", "NAME", "poisson (default), fixed or everyone"),
    ("plot", "FILE", "draw epsilon by rounds and by population; .svg, .png or .pdf"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `fedopt budget`; values stay strings, so that all are checked together."""
    parser.set_defaults(collects_problems=True, problems=[])
    for name, metavar, text in _FLAGS:
        parser.add_argument(f"--{name}", metavar=metavar, help=text)
    parser.add_argument("--json", action="store_true", help="print JSON, numbers unrounded")
    parser.add_argument(
        "--paper", action="store_true", help="print the tables of arXiv 2310.00098 beside ours"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the answer on stdout; returns the exit code.

    Raises: SettingsError with every mistake at once, or where the target is impossible.
    """
    if arguments.paper:
        return _run_paper(arguments)
    found = answer(read_request(arguments))
    if arguments.plot:
        from fedopt.budget_plot import write_plot

        write_plot(found, arguments.plot)
    if arguments.json:
        print(json.dumps(as_json(found), indent=2, allow_nan=False))
    else:
        print("\n".join(table(found)))
    return 0


def table(found: BudgetAnswer) -> Iterator[str]:
    """Write the answer for people, line by line; every epsilon is rounded up."""
    event, request = found.event, found.request
    quoted = found.spent[found.quoted]
    yield (
        f"epsilon {round_up(found.epsilon)} at delta {request.delta:g} for one user, "
        f"{event.adjacency}, by {quoted.accountant} ({quoted.library})"
    )
    yield f"{tier(found.epsilon)}{_remark(found.epsilon)}"
    if request.solve != "epsilon":
        yield f"solved: {request.solve}, for epsilon at most {request.epsilon:g}"
    yield ""
    yield from _aligned(_plan_rows(found))
    yield ""
    yield from _aligned(_epsilon_rows(found))
    if found.warnings:
        yield ""
        yield from (f"warning {each.code}: {each.text}" for each in found.warnings)


def _plan_rows(found: BudgetAnswer) -> Iterator[tuple[str, str]]:
    event = found.event
    mu = gdp_mu(found.releases)
    yield "population", f"{event.population:,}"
    yield "cohort", f"{event.cohort:,} (sample rate {event.sample_rate:.4g}, {event.sampling})"
    yield "rounds", f"{found.rounds:,}"
    yield "noise multiplier", round_up(event.noise_multiplier, 4)
    yield "noise std on the mean", f"{event.noise_multiplier / event.cohort:.3g} clip norms"
    yield "delta x population", f"{found.request.delta * event.population:.3g}"
    if mu is not None:
        yield "mu of Gaussian DP", f"{mu:.4g} ({mu_method(event)})"


def _epsilon_rows(found: BudgetAnswer) -> Iterator[tuple[str, str]]:
    for name, spent in found.spent.items():
        if spent.accountant != name:
            yield f"epsilon by {name}", "not computed, see the warnings"
            continue
        order = f", order {spent.order:g}" if spent.order is not None else ""
        yield f"epsilon by {name}", f"{round_up(spent.epsilon)} ({spent.library}{order})"
    bare = epsilon_without_amplification(found.releases, found.request.delta)
    yield "without amplification", f"{round_up(bare)} (if it is known who was in which cohort)"
    if found.fixed_size is not None:
        spent = found.fixed_size
        yield (
            "for fixed-size cohorts",
            f"{round_up(spent.epsilon)} ({spent.adjacency}, {spent.library}); not comparable",
        )


def _aligned(rows: Iterator[tuple[str, str]]) -> Iterator[str]:
    listed = list(rows)
    width = max(len(name) for name, _ in listed)
    yield from (f"  {name:<{width}}  {value}" for name, value in listed)


def _remark(epsilon: float) -> str:
    words = strength(epsilon)
    return f"; {words}" if words else ""


def _run_paper(arguments: argparse.Namespace) -> int:
    from fedopt.paper_table import paper_json, paper_lines

    problems = [*arguments.problems, *plot_problems(arguments.plot)]
    for name, _, _ in _FLAGS:
        if getattr(arguments, name.replace("-", "_")) is not None:
            problems.append(f"--{name} does not go with --paper, got both; leave one out")
    if problems:
        raise SettingsError(problems)
    if arguments.json:
        print(json.dumps(paper_json(), indent=2, allow_nan=False))
    else:
        for line in paper_lines():
            print(line, flush=True)
    return 0
