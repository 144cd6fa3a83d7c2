"""Check a report against the ledger, the settings and the model that it speaks of.

Everything is computed again from the run directory and compared number by number, so a change of
any of them is noticed. It does not help against somebody who forges all of them alike.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedopt import run_directory
from fedopt.config import settings_hash
from fedopt.report import build_report, to_json
from fedopt.report_facts import RunFacts, read_run
from fedopt.report_reading import read_report
from privacy.accounting import Releases
from privacy.accounting_profile import quick_epsilon
from privacy.errors import LedgerError
from privacy.ledger import Ledger
from privacy.seeds import Streams

SAME, SAME_CURVE = 1e-9, 1e-6
OTHER_LIBRARY_ABOVE = 0.005
LATER_KEYS = ("utility.measured", "curves.layer_norms_not_private")
"""Keys that reports of earlier versions lack; no guarantee rests on them."""


@dataclass
class Findings:
    """Collect what was checked, what differs, and what could not be checked."""

    checked: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def compare(self, what: str, differences: list[str]) -> None:
        """Note a check and what it found."""
        self.checked.append(what)
        self.differences += differences


def verify_run(folder: Path) -> Findings:
    """Verify the report of a run directory.

    Raises: SettingsError where a file is missing, damaged beyond reading, or of a newer schema.
    A damaged ledger is a difference.
    """
    found = Findings()
    stored = read_report(folder / run_directory.REPORT_JSON)
    try:
        facts = read_run(folder)
    except LedgerError as problem:
        found.compare("ledger is whole", [str(problem)])
        return found
    found.checked.append("ledger is whole and belongs to the run")
    _check_settings(facts, found)
    _check_keys(facts, found)
    _check_model(facts, found)
    _note_versions(facts, found)
    rebuilt = json.loads(to_json(build_report(facts)))
    found.compare(
        "every number of the report, computed again from ledger, settings and log",
        list(differences(stored, rebuilt)),
    )
    _check_page(folder, stored, found)
    accounting = stored["accounting"]["epsilon"]
    releases = facts.ledger.releases(facts.provenance["run_id"])
    _check_other_library(releases, accounting, found)
    return found


def verify_ledger(path: Path) -> Findings:
    """Verify a ledger alone: its seals, and its sum against the other library.

    Raises: SettingsError where the file is missing. A damaged ledger is a difference.
    """
    from fedopt.report_ledger import ledger_report

    found = Findings()
    try:
        report = ledger_report(path)
        releases = Ledger.read(path).releases()
    except LedgerError as problem:
        found.compare("ledger is whole", [str(problem)])
        return found
    found.checked.append("ledger is whole")
    _check_other_library(releases, report["epsilon"], found)
    return found


def differences(stored: Any, rebuilt: Any, path: str = "") -> Iterator[str]:
    """Name every leaf in which two JSON values differ; numbers to 1e-9, those of curves to 1e-6."""
    if isinstance(stored, dict) and isinstance(rebuilt, dict):
        for key in dict.fromkeys([*rebuilt, *stored]):
            yield from _members(stored, rebuilt, key, f"{path}.{key}" if path else str(key))
    elif isinstance(stored, list) and isinstance(rebuilt, list):
        if len(stored) != len(rebuilt):
            yield f"{path}: the report has {len(stored)} entries, computed again {len(rebuilt)}"
        for index, (old, new) in enumerate(zip(stored, rebuilt, strict=False)):
            yield from differences(old, new, f"{path}[{index}]")
    elif not _same(stored, rebuilt, SAME_CURVE if path.startswith("curves.") else SAME):
        yield f"{path}: the report says {_brief(stored)}, computed again it is {_brief(rebuilt)}"


def _members(
    stored: Mapping[str, Any], rebuilt: Mapping[str, Any], key: str, path: str
) -> Iterator[str]:
    if key not in stored:
        if path not in LATER_KEYS:
            yield f"{path}: missing in the report"
    elif key not in rebuilt:
        yield f"{path}: the report has it, computed again it is not there"
    else:
        yield from differences(stored[key], rebuilt[key], path)


def _same(stored: Any, rebuilt: Any, tolerance: float) -> bool:
    if isinstance(stored, float) or isinstance(rebuilt, float):
        numbers = isinstance(stored, int | float) and isinstance(rebuilt, int | float)
        return numbers and math.isclose(stored, rebuilt, rel_tol=tolerance, abs_tol=1e-15)
    return type(stored) is type(rebuilt) and bool(stored == rebuilt)


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else text[:199] + "…"


def _check_settings(facts: RunFacts, found: Findings) -> None:
    """Compare config.toml with the hash that keyed every random stream of the run."""
    users = facts.provenance.get("users_hash")
    if not isinstance(users, str):
        found.warnings.append("settings: the run kept no hash of its users, so none is compared")
        return
    now = settings_hash(facts.settings, users)
    then = facts.provenance["settings_hash"]
    differing = f"{run_directory.CONFIG}: its hash is {now}, the run had {then}"
    found.compare("settings hash", [] if now == then else [differing])


def _check_keys(facts: RunFacts, found: Findings) -> None:
    """Compare the ledger's key hashes with the ones that seed and settings give."""
    if facts.randomness == "secure":
        found.warnings.append("keys: noise came from the system in secret, so no key is compared")
        return
    streams = Streams(facts.settings.run.seed, facts.provenance["settings_hash"])
    wrong = [
        f"ledger: the key of round {row.round}, attempt {row.attempt} is not that of these settings"
        for row in facts.charges
        if row.key_hash != streams.key_hash(row.round, row.attempt)
    ]
    found.compare("keys of the releases", wrong)


def _check_model(facts: RunFacts, found: Findings) -> None:
    now = run_directory.file_digest(facts.folder / run_directory.MODEL)
    then = facts.provenance.get("model_sha256")
    if now is None and then is None:
        found.warnings.append("model: the run has not written one yet")
        return
    if then is None:
        found.warnings.append("model: the run kept no hash of it; compared with the report alone")
        return
    differing = f"{run_directory.MODEL}: its SHA-256 is {now}, the run wrote {then}"
    found.compare("model hash", [] if now == then else [differing])


def _note_versions(facts: RunFacts, found: Findings) -> None:
    """Warn where other versions compute now: a last digit, or a better bound, may then differ."""
    from fedopt.doctor import versions

    then, now = facts.provenance.get("versions", {}), versions()
    names = ("fedopt", "opacus", "dp-accounting", "scipy", "numpy")
    other = [
        f"{name} {then[name]} (now {now.get(name)})"
        for name in names
        if name in then and then[name] != now.get(name)
    ]
    if other:
        found.warnings.append(f"versions: the run used {', '.join(other)}; numbers may differ")


def _check_page(folder: Path, stored: Mapping[str, Any], found: Findings) -> None:
    """Compare the page with a fresh one, where the same versions can draw it again."""
    from fedopt.report_page import generator, html_page, missing_packages

    path = folder / run_directory.REPORT_HTML
    if not path.is_file():
        found.warnings.append("page: there is none")
        return
    if missing_packages():
        found.warnings.append(f"page: not compared without {' and '.join(missing_packages())}")
        return
    kept = path.read_text(encoding="utf-8", errors="replace")
    if f'content="{generator()}"' not in kept:
        found.warnings.append(f"page: not compared, it was not drawn by {generator()}")
        return
    differing = f"{path.name}: it is not the page of this {run_directory.REPORT_JSON}"
    found.compare("page", [] if kept == html_page(stored) else [differing])


def _check_other_library(releases: Releases, quoted: Mapping[str, Any], found: Findings) -> None:
    """Hold the quoted epsilon against PLD by dp-accounting, computed on its own grid."""
    value, delta = float(quoted["value"]), float(quoted["delta"])
    limit = value * (1 + OTHER_LIBRARY_ABOVE)
    other = quick_epsilon(releases, delta) if math.isfinite(value) else None
    if other is not None and other > limit:
        other = quick_epsilon(releases, delta, value / 10)  # a finer grid, before anyone is blamed
    if other is None:
        sampling = quoted["sampling"]
        found.warnings.append(
            f"PLD of dp-accounting cannot answer for epsilon {quoted['value']}, sampling {sampling}"
        )
        return
    if quoted["accountant"] == "pld" and quoted["version"].startswith("dp-accounting"):
        found.warnings.append("PLD of dp-accounting is quoted, so it cannot be a second opinion")
    differing = (
        f"accounting.epsilon: PLD of dp-accounting gives {other!r}, more than the quoted {value!r}"
    )
    found.compare(
        "quoted epsilon against PLD of dp-accounting", [differing] if other > limit else []
    )
