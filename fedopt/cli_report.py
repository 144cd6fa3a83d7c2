"""Run `fedopt report`: write the report of a run or a ledger, or verify it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from privacy.errors import SettingsError

if TYPE_CHECKING:
    from fedopt.report_verify import Findings

FORMATS = ("html", "json", "md")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the command; they are checked together in `run`."""
    parser.add_argument("run", nargs="?", metavar="RUN", help="run directory")
    parser.add_argument("--ledger", metavar="FILE", help="add up all runs on this ledger instead")
    parser.add_argument(
        "--format",
        metavar="|".join(FORMATS),
        default=None,
        help="form of the report (default html)",
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="file to write (default: html into the run directory, json and md to stdout)",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="compute everything again and compare; 1 where something differs, nothing is written",
    )


def run(arguments: argparse.Namespace) -> int:
    """Do what the flags say; returns the exit code."""
    problems = list(_problems(arguments))
    if problems:
        raise SettingsError(problems)
    if arguments.run:
        _refuse_central(Path(arguments.run))
    if arguments.verify:
        return _verify(arguments)
    form = arguments.format or "html"
    if form == "html":
        _refuse_without_extra()
    if arguments.ledger:
        return _write_ledger(Path(arguments.ledger), form, arguments.output)
    return _write_run(Path(arguments.run), form, arguments.output)


def _problems(arguments: argparse.Namespace) -> Any:
    if (arguments.run is None) == (arguments.ledger is None):
        got = "neither" if arguments.run is None else "both"
        yield f"report needs either RUN or --ledger FILE, got {got}; give one of them"
    if arguments.format not in (None, *FORMATS):
        yield f"format must be one of {', '.join(FORMATS)}, got {arguments.format!r}; choose one"
    if arguments.verify and arguments.output:
        yield f"output does not go with --verify, got {arguments.output!r}; leave one of them out"
    if arguments.output and not Path(arguments.output).absolute().parent.is_dir():
        yield f"output must lie in an existing folder, got {arguments.output!r}; make the folder"
    if arguments.output and Path(arguments.output).is_dir():
        yield f"output must be a file, got the folder {arguments.output!r}; name a file in it"


def _refuse_without_extra() -> None:
    from fedopt.report_page import missing_packages

    missing = missing_packages()
    if missing:
        raise SettingsError(
            f"format html needs {' and '.join(missing)}, got an installation without; "
            'pip install "fedopt[report]", or use --format json or md'
        )


def _write_run(folder: Path, form: str, output: str | None) -> int:
    from fedopt import report, run_directory
    from fedopt.report_page import html_page
    from fedopt.report_reading import refuse_newer_file

    stored = folder / run_directory.REPORT_JSON
    facts = report.read_run(folder)
    refuse_newer_file(stored)  # it is not replaced by an older one
    built = report.build_report(facts)
    if form == "html" and output is None:
        report.write_files(folder, built)
        print(folder / run_directory.REPORT_HTML)
        return 0
    text = html_page(built) if form == "html" else _text(built, form)
    _deliver(text or "", output)
    return 0


def _refuse_central(folder: Path) -> None:
    from fedopt import run_directory

    names = (run_directory.CENTRAL_REPORT, run_directory.STEPS)
    if found := [name for name in names if (folder / name).is_file()]:
        raise SettingsError(
            f"run must be one with a privacy ledger, got {folder.name!r}, which was trained "
            f"centrally and has no guarantee; its results are in {found[0]}"
        )


def _text(built: dict[str, Any], form: str) -> str:
    from fedopt.report import to_json
    from fedopt.report_markdown import markdown

    return to_json(built) if form == "json" else markdown(json.loads(to_json(built)))


def _write_ledger(path: Path, form: str, output: str | None) -> int:
    from fedopt.report import to_json
    from fedopt.report_ledger import ledger_report
    from fedopt.report_ledger_page import ledger_markdown, ledger_page

    built: dict[str, Any] = json.loads(to_json(ledger_report(path)))
    if form == "json":
        _deliver(to_json(built), output)
    elif form == "md":
        _deliver(ledger_markdown(built), output)
    else:
        _deliver(ledger_page(built), output or str(path.with_name(path.name + ".html")))
    return 0


def _deliver(text: str, output: str | None) -> None:
    """Write a file and print its path, or print the text."""
    from fedopt.run_directory import write_text

    if output is None:
        sys.stdout.write(text)
        return
    try:
        write_text(Path(output), text)
    except OSError as problem:
        raise SettingsError(
            f"output must be writable, got {output!r} ({problem.strerror}); name another file"
        ) from problem
    print(output)


def _verify(arguments: argparse.Namespace) -> int:
    from fedopt.report_verify import verify_ledger, verify_run

    if arguments.ledger:
        found = verify_ledger(Path(arguments.ledger))
    else:
        found = verify_run(Path(arguments.run))
    print(_as_json(found) if arguments.format == "json" else _as_lines(found))
    return 1 if found.differences else 0


def _as_json(found: Findings) -> str:
    return json.dumps({"verified": not found.differences, **vars(found)}, indent=2)


def _as_lines(found: Findings) -> str:
    count = len(found.differences)
    verdict = f"{count} difference{'s' if count > 1 else ''} found" if count else "verified"
    return "\n".join(
        [
            *(f"checked: {line}" for line in found.checked),
            *(f"warning: {line}" for line in found.warnings),
            *(f"difference: {line}" for line in found.differences),
            verdict,
        ]
    )
