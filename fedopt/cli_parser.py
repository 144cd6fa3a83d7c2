"""Parse a command line so that a malformed one is refused like every other mistake."""

from __future__ import annotations

import argparse

COMMANDS = {
    "run": "train privately and write a run directory with a privacy-budget report",
    "budget": "compute epsilon, or solve noise, rounds, cohort or population for it",
    "report": "write or verify the privacy-budget report of a run",
    "audit": "show lower bounds of epsilon measured by the canary users of a run",
    "doctor": "show versions, devices and the engine that would be chosen",
}


class Parser(argparse.ArgumentParser):
    """Refuse a malformed command line as every other mistake is refused."""

    def error(self, message: str) -> None:  # type: ignore[override]
        """Raise argparse's complaint as a settings error."""
        from privacy.errors import SettingsError

        raise SettingsError(f"{message}; see {self.prog} --help")


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
