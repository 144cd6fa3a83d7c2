"""Read the command line, call what it asks for, and end with an honest exit code.

0 finished, 1 a verification found a difference, 2 bad settings, 3 budget, 4 workers lost,
130 interrupted. Results go to stdout, progress and errors to stderr.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

COMMANDS = {
    "run": "train privately and write a run directory with a privacy-budget report",
    "budget": "compute epsilon, or solve noise, rounds, cohort or population for it",
    "report": "write or verify the privacy-budget report of a run",
    "audit": "show lower bounds of epsilon measured by the canary users of a run",
    "doctor": "show versions, devices and the engine that would be chosen",
}
INTERRUPTED = 130


class Parser(argparse.ArgumentParser):
    """Refuse a malformed command line as every other mistake is refused."""

    def error(self, message: str) -> None:  # type: ignore[override]
        """Raise argparse's complaint as a settings error."""
        from privacy.errors import SettingsError

        raise SettingsError(f"{message}; see {self.prog} --help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    quiet_libraries()
    from privacy.errors import FedOptError, SettingsError

    try:
        return _dispatch(list(sys.argv[1:] if arguments is None else arguments))
    except FedOptError as problem:
        for line in str(problem).splitlines():
            print(f"fedopt: {line}", file=sys.stderr)
        return problem.exit_code
    except KeyboardInterrupt:
        print("fedopt: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as problem:
        place = f" {problem.filename}" if problem.filename else ""
        print(
            f"fedopt: a file cannot be used:{place} ({problem.strerror}); make room or choose "
            "another place, then go on with --resume",
            file=sys.stderr,
        )
        return SettingsError.exit_code


def console() -> None:
    """Be the console command: end the process with main's exit code."""
    sys.exit(main())


def quiet_libraries() -> None:
    """Keep Flower and Ray from reaching the network; they read these when first imported."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def _dispatch(arguments: list[str]) -> int:
    if arguments and arguments[0] in COMMANDS:
        return _command(arguments[0])(arguments[1:])
    parser = _overview()
    if not arguments:
        parser.print_help()
        return 2
    parser.parse_args(arguments)
    return 0


def _overview() -> Parser:
    from importlib.metadata import version

    listing = "\n".join(f"  {name:<8} {text}" for name, text in COMMANDS.items())
    parser = Parser(
        prog="fedopt",
        description="Simulate private federated learning at population scale.",
        epilog=f"commands:\n{listing}\n\nfedopt COMMAND --help shows a command's flags.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=list(COMMANDS), metavar="COMMAND")
    parser.add_argument("--version", action="version", version=f"fedopt {version('fedopt')}")
    return parser


def _command(name: str) -> Callable[[list[str]], int]:
    if name == "run":
        from fedopt.cli_run import run

        return run
    return {"budget": _budget, "report": _report, "audit": _audit, "doctor": _doctor}[name]


def parse_all(parser: Parser, arguments: list[str]) -> argparse.Namespace:
    """Parse flags; unknown ones are reported together, with the nearest known flag."""
    import difflib

    from privacy.errors import SettingsError

    known, unknown = parser.parse_known_args(arguments)
    flags = [flag for action in parser._actions for flag in action.option_strings]
    problems = []
    for before, word in zip(["", *unknown], unknown, strict=False):
        if before.startswith("--") and "=" not in before and not word.startswith("-"):
            continue  # the value of the unknown flag before it
        near = difflib.get_close_matches(word.split("=")[0], flags, n=1)
        hint = f"did you mean {near[0]}?" if near else f"see {parser.prog} --help"
        problems.append(f"{word!r} is not a flag of {parser.prog}; {hint}")
    if problems:
        known.problems = problems
        if not hasattr(known, "collects_problems"):
            raise SettingsError(problems)
    return known


def _budget(arguments: list[str]) -> int:
    from fedopt import budget

    parser = Parser(prog="fedopt budget", description=COMMANDS["budget"], allow_abbrev=False)
    budget.add_arguments(parser)
    return budget.run(parse_all(parser, arguments))


def _report(arguments: list[str]) -> int:
    from fedopt import cli_report

    parser = Parser(prog="fedopt report", description=COMMANDS["report"], allow_abbrev=False)
    cli_report.add_arguments(parser)
    return cli_report.run(parse_all(parser, arguments))


def _audit(arguments: list[str]) -> int:
    from fedopt import cli_audit

    parser = Parser(prog="fedopt audit", description=COMMANDS["audit"], allow_abbrev=False)
    cli_audit.add_arguments(parser)
    return cli_audit.run(parse_all(parser, arguments))


def _doctor(arguments: list[str]) -> int:
    from fedopt import doctor

    parser = Parser(prog="fedopt doctor", description=COMMANDS["doctor"], allow_abbrev=False)
    parse_all(parser, arguments)
    return doctor.run()
