"""Run `fedopt run`: merge preset, file, resumed settings, flags and --set; train; sum up."""

from __future__ import annotations

import argparse
import difflib
import json
import re
import sys
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedopt import config, run_directory
from fedopt.central_settings import CENTRAL, unused_settings
from fedopt.cli_parser import COMMANDS, Parser, parse_all
from privacy.errors import BudgetExhausted, SettingsError

if TYPE_CHECKING:
    from fedopt.run import Result

Tables = config.Tables

FLAGS = {
    "what is claimed and accounted": (
        "population",
        "cohort",
        "simulated_cohort",
        "virtual_users",
        "rounds",
        "epsilon",
        "noise_multiplier",
        "delta",
        "clip_norm",
        "clipping",
        "sampling",
        "noise_placement",
        "randomness",
        "accountant",
        "ledger",
        "audit",
    ),
    "server and clients": (
        "strategy",
        "server_lr",
        "client_lr",
        "local_steps",
        "local_epochs",
    ),
    "what is learned": ("task", "dataset", "data_root", "model", "init_from"),
    "where and how": (
        "engine",
        "workers",
        "ray_address",
        "device",
        "timeout",
        "eval_every",
        "seed",
    ),
}
"""The flags of `fedopt run`, frozen by a test; every other setting is reached by --set."""


def build_parser() -> Parser:
    """Build the parser; values stay text, so that all mistakes are found together."""
    parser = Parser(
        prog="fedopt run",
        description=COMMANDS["run"],
        allow_abbrev=False,
        epilog="Every other setting: --set section.key=value, keys as in a run's config.toml.",
    )
    start = parser.add_argument_group("where settings come from, later ones win")
    start.add_argument("--preset", metavar="NAME", help=_preset_help())
    start.add_argument("--config", metavar="FILE", help="TOML file of settings")
    for title, names in FLAGS.items():
        group = parser.add_argument_group(title)
        for name in names:
            _add_setting(group, name)
    output = parser.add_argument_group("output")
    output.add_argument("--output", metavar="DIR", help="run directory (default runs/<time>-...)")
    output.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    output.add_argument("--dry-run", action="store_true", help="show the plan and stop")
    output.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], dest="assign")
    output.add_argument("--quiet", action="store_true", help="no progress")
    output.add_argument("--verbose", action="store_true", help="show Flower's and Ray's own logs")
    output.add_argument("--json", action="store_true", help="events as JSON lines on stdout")
    parser.set_defaults(collects_problems=True, problems=[])
    return parser


def _add_setting(group: Any, name: str) -> None:
    section = config.section_of(name)
    assert section is not None
    described = config.sections()[section].model_fields[name]
    words = config.choices(name)
    default = "" if described.default is None else f" (default {described.default})"
    about = (described.description or "") + default
    flag = "--" + name.replace("_", "-")
    if described.annotation is bool:
        group.add_argument(flag, dest=name, action="store_const", const=True, help=about)
        return
    metavar = "|".join(words) if words else name.split("_")[-1].upper()
    group.add_argument(flag, dest=name, metavar=metavar, help=about.replace("%", "%%"))


def run(arguments: list[str]) -> int:
    """Train as the flags say; returns the exit code."""
    given = parse_all(build_parser(), arguments)
    folder = Path(given.output) if given.output else None
    settings = _settings(given, folder)
    from fedopt.simulation import default_output

    folder = folder or default_output(settings)
    if settings.server.strategy == CENTRAL:
        from fedopt.cli_central import train_centrally

        return train_centrally(
            settings,
            folder,
            resume=given.resume,
            quiet=given.quiet or given.json,
            json_events=given.json,
        )
    if given.dry_run:
        from fedopt.dry_run import show_plan

        return show_plan(settings, as_json=given.json)
    return _train(settings, folder, given)


def _settings(given: argparse.Namespace, folder: Path | None) -> config.Settings:
    """Collect and validate all settings; raises SettingsError with every mistake."""
    problems: list[str] = list(given.problems)
    tables: Tables = {}
    assigned, malformed = read_assignments(given.assign)
    problems += malformed
    for source in (_file_tables, _resumed_tables, _flag_tables, lambda _: assigned):
        try:
            _lay_over(tables, source(given))
        except SettingsError as problem:
            problems += problem.problems
    if given.resume and folder is None:
        problems.append("resume needs --output DIR of the interrupted run, got none")
    problems += _table_problems(tables, given.dry_run)
    if _strategy(tables) == CENTRAL:
        problems += _central_problems(given, assigned)
    if folder is not None:
        from fedopt.simulation import output_problems

        problems += output_problems(folder, given.resume)
    if problems:
        raise SettingsError(problems)
    return config.build_settings(tables)


def _table_problems(tables: Tables, dry_run: bool) -> list[str]:
    """List the mistakes of single settings, and of those that do not fit together."""
    from fedopt.planning import settings_problems

    problems: list[str] = []
    try:
        config.build_settings(tables)
    except SettingsError as problem:
        problems += problem.problems
    settings, left_out = config.without_mistakes(tables)
    # What names a field that was wrong in itself would compare a default that nobody chose.
    return problems + [
        told
        for told in settings_problems(settings, data_needed=not dry_run)
        if not any(re.search(rf"\b{re.escape(flag)}\b", told) for flag in left_out)
    ]


def _central_problems(given: argparse.Namespace, assigned: Tables) -> list[str]:
    """Refuse what was written on the command line and means nothing in central training."""
    from fedopt.cli_central import unused_words

    written = _flag_tables(given)
    merge(written, assigned)
    return unused_settings(written) + unused_words(dry_run=given.dry_run)


def _lay_over(tables: Tables, more: Tables) -> None:
    """Lay settings over others; a change to central leaves a file's federated server behind."""
    changed = _strategy(more) == CENTRAL != _strategy(tables)
    if changed:
        tables.pop("server", None)
    merge(tables, more)


def _strategy(tables: Tables) -> Any:
    server = tables.get("server")
    return server.get("strategy") if isinstance(server, dict) else None


def merge(tables: Tables, more: Mapping[str, Any]) -> None:
    """Lay settings over others in place; raises SettingsError where a section is no table."""
    for section, table in more.items():
        if not isinstance(table, dict):
            raise SettingsError(f"{section} must be a table of settings, got {table!r}")
        known = tables.setdefault(section, {})
        for key, value in table.items():
            both = isinstance(value, dict) and isinstance(known.get(key), dict)
            known[key] = {**known[key], **value} if both else value


def _preset_help() -> str:
    own, paper = preset_names(("presets",)), preset_names(("paper",))
    return f"{', '.join(own)}, or one of the paper's {len(paper)} in experiments/paper"


def preset_names(folder_names: tuple[str, ...] = ("presets", "paper")) -> list[str]:
    """List the presets that ship with the project."""
    folders = (resources.files("experiments") / name for name in folder_names)
    return sorted(
        found.name.removesuffix(".toml")
        for folder in folders
        if folder.is_dir()
        for found in folder.iterdir()
        if found.name.endswith(".toml")
    )


def _file_tables(given: argparse.Namespace) -> Tables:
    if given.preset and given.config:
        raise SettingsError("preset and config exclude each other, got both; give one of them")
    if given.config:
        return run_directory.read_config(Path(given.config))
    if not given.preset:
        return {}
    if given.preset not in preset_names():
        raise SettingsError(
            f"preset must be one of {_near_presets(given.preset)}, got {given.preset!r}"
        )
    for name in ("presets", "paper"):
        found = resources.files("experiments") / name / f"{given.preset}.toml"
        if found.is_file():
            return tomllib.loads(found.read_text(encoding="utf-8"))
    return {}


def _near_presets(wanted: str) -> str:
    near = difflib.get_close_matches(wanted, preset_names(("paper",)), n=5, cutoff=0.3)
    return ", ".join([*preset_names(("presets",)), *near, "those in experiments/paper"])


def _resumed_tables(given: argparse.Namespace) -> Tables:
    folder = Path(given.output or ".")
    if not given.resume or not given.output or not run_directory.is_run(folder):
        return {}
    return run_directory.read_config(folder / run_directory.CONFIG)


def _flag_tables(given: argparse.Namespace) -> Tables:
    tables: Tables = {}
    for names in FLAGS.values():
        for name in names:
            value = getattr(given, name)
            if value is not None:
                tables.setdefault(str(config.section_of(name)), {})[name] = value
    return tables


def read_assignments(assigned: Sequence[str]) -> tuple[Tables, list[str]]:
    """Read each --set; returns what is well formed, and a sentence for each that is not."""
    tables: Tables = {}
    problems = []
    for text in assigned:
        key, equals, value = text.partition("=")
        parts = key.replace("-", "_").split(".")
        if not equals or len(parts) not in (2, 3) or not all(parts):
            problems.append(f"set must be section.key=value, got {text!r}")
            continue
        table = tables.setdefault(parts[0], {})
        if len(parts) == 3:
            table = table.setdefault(parts[1], {})
        table[parts[-1]] = _value(value)
    return tables, problems


def _value(text: str) -> Any:
    """Read a value as TOML would; what is no TOML is plain text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _train(settings: config.Settings, folder: Path, given: argparse.Namespace) -> int:
    from fedopt.progress import Progress
    from fedopt.simulation import simulate

    progress = Progress(settings, quiet=given.quiet or given.json, json_events=given.json)
    with progress.shown(verbose=given.verbose):
        try:
            result = simulate(
                settings,
                callbacks=[progress.round],
                output=folder,
                resume=given.resume,
                verbose=given.verbose,
                on_start=progress.start,
            )
        except KeyboardInterrupt:
            print(
                f"fedopt: interrupted; go on with: fedopt run --resume --output {folder}",
                file=sys.stderr,
            )
            return 130
        except BudgetExhausted as problem:
            print(f"fedopt: {problem}; the model so far is kept in {folder}", file=sys.stderr)
            return problem.exit_code
    print(summary_json(result) if given.json else summary(result))
    return 0


def summary(result: Result) -> str:
    """Sum up a finished run in a few lines."""
    from fedopt.progress import time_by_phase
    from privacy.statement import round_up

    report = result.report
    accounting, utility = report["accounting"], report["utility"]
    others = ", ".join(
        f"{name.upper()} {round_up(answer['epsilon'])}"
        for name, answer in accounting["accountants"].items()
        if answer["epsilon"] is not None
    )
    history = utility["history"]
    first = f"{history[0]['value']:.3f}" if history else "-"
    last = f"{history[-1]['value']:.3f}" if history else "-"
    tested = f", {utility['final']:.3f} on test" if utility["final_split"] == "test" else ""
    return "\n".join(
        [
            f"{utility['metric']}: {first} -> {last} on development{tested}",
            f"epsilon claimed: {others} at delta {accounting['epsilon']['delta']:g}",
            f"epsilon as run: {round_up(report['as_run']['epsilon']['value'])}"
            + (f" ({report['as_run']['strength']})" if report["as_run"]["strength"] else ""),
            report["statement"],
            time_by_phase(result.history),
            f"report: {result.path / run_directory.REPORT_HTML}",
        ]
    )


def summary_json(result: Result) -> str:
    """Give the last event of --json."""
    from fedopt.report_json import plain

    report = result.report
    return json.dumps(
        {
            "event": "finished",
            "path": str(result.path),
            "utility": {key: report["utility"][key] for key in ("metric", "final", "final_split")},
            "epsilon": plain(report["accounting"]["epsilon"]),
            "statement": report["statement"],
        }
    )
