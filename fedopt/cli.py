"""Read the command line, call what it asks for, and end with an honest exit code.

0 finished, 1 a verification found a difference, 2 bad settings, 3 budget, 4 workers lost,
130 interrupted. Results go to stdout, progress and errors to stderr.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from fedopt.cli_parser import COMMANDS, Parser, parse_all

INTERRUPTED = 130


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
