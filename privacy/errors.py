"""Say what went wrong, in one tree of exceptions that every floor of the house shares.

    FedOptError
    |-- SettingsError     a setting, a file or a name the user gave is wrong      exit 2
    |-- LedgerError       the ledger is damaged, foreign, or in use               exit 2
    |-- CheckpointError   a checkpoint is damaged or belongs to another run       exit 2
    |-- BudgetExhausted   the next round would pass the privacy ceiling           exit 3
    `-- WorkersLost       users of a round could not be accounted for             exit 4

A message is one sentence: what, what was got, what is wanted, what to do.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


class FedOptError(Exception):
    """Stand at the root of every error that fedopt raises on purpose."""

    exit_code = 1


class SettingsError(FedOptError, ValueError):
    """Report every mistake in the settings at once.

    ``problems`` holds one sentence per mistake.
    """

    exit_code = 2

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class LedgerError(FedOptError):
    """Refuse a ledger that is damaged, foreign or held by another run."""

    exit_code = 2


class CheckpointError(FedOptError):
    """Refuse a checkpoint that is damaged or belongs to another run."""

    exit_code = 2


class BudgetExhausted(FedOptError):
    """Stop before the round that would pass the privacy ceiling."""

    exit_code = 3


class WorkersLost(FedOptError):
    """Stop because users of a round could not be accounted for."""

    exit_code = 4


@dataclass(frozen=True)
class PrivacyWarning:
    """Carry one warning as a stable code for programs and a sentence for people."""

    code: str
    text: str
