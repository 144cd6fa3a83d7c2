"""Show how a run goes: one line on a terminal, plain lines elsewhere, JSON events on request."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

from fedopt.config import Settings

Row = dict[str, Any]


class Progress:
    """Turn rows of rounds.jsonl into what a person wants to see while waiting."""

    def __init__(self, settings: Settings, *, quiet: bool, json_events: bool) -> None:
        self.settings = settings
        self.quiet = quiet
        self.json_events = json_events
        self.started = time.monotonic()
        self.first_round: int | None = None
        self.metric = ""
        self.value: float | None = None
        self.terminal = sys.stderr.isatty()
        self.ceiling: float | None = settings.privacy.epsilon

    @contextlib.contextmanager
    def shown(self, *, verbose: bool) -> Iterator[None]:
        """Silence Flower's logger while the run goes, and end the progress line after it."""
        flower = logging.getLogger("flwr")
        before = flower.level
        flower.setLevel(logging.INFO if verbose else logging.ERROR)
        try:
            yield
        finally:
            flower.setLevel(before)
            if self.terminal and not self.quiet:
                sys.stderr.write("\n")

    def start(self, facts: Row) -> None:
        """Say what is about to run."""
        self.metric = facts["metric"]
        self.ceiling = facts["epsilon"]
        if self.json_events:
            print(json.dumps({"event": "started", **facts}), flush=True)
        if not self.quiet:
            print(
                f"{facts['strategy']} on the {facts['engine']} engine ({facts['workers']} "
                f"workers, {facts['device']}): claimed {facts['cohort']:,} of "
                f"{facts['population']:,} users a round, noise multiplier "
                f"{facts['noise_multiplier']:.4g}; trained {facts['simulated_cohort']} of "
                f"{facts['users']:,}{at_once(facts['users_at_once'])}; "
                f"{facts['parameters']:,} parameters",
                file=sys.stderr,
                flush=True,
            )
            if facts["note"]:
                print(f"note: {facts['note']}", file=sys.stderr, flush=True)

    def round(self, row: Row) -> None:
        """Show one round."""
        if self.metric in row:
            self.value = row[self.metric]
        if self.json_events:
            print(json.dumps({"event": "round", **row}), flush=True)
        if self.quiet:
            return
        if self.first_round is None:
            self.first_round, self.started = row["round"], time.monotonic()
        line = self.line(row)
        if self.terminal:
            sys.stderr.write("\r\x1b[2K" + line)
            sys.stderr.flush()
        elif self.metric in row or row["round"] == 0:
            print(line, file=sys.stderr, flush=True)

    def line(self, row: Row) -> str:
        """Put round, loss, metric, epsilon spent and left, speed and time left on one line."""
        parts = [f"round {row['round']}/{self.settings.privacy.rounds}"]
        if row.get("train_loss") is not None:
            parts.append(f"loss {row['train_loss']:.3f}")
        if self.value is not None:
            parts.append(f"{self.metric} {self.value:.3f}")
        parts.append(self._epsilon(row))
        if row.get("seconds"):
            parts.append(f"{row['cohort'] / row['seconds']:.1f} users/s")
        left = self._seconds_left(row)
        if left is not None:
            parts.append(f"{left // 60:.0f}:{left % 60:02.0f} left")
        return "  ".join(parts)

    def _epsilon(self, row: Row) -> str:
        if row.get("epsilon") is None:
            return "not private"
        spent = row["epsilon"]
        if self.ceiling is None:
            return f"epsilon {spent:.2f}"
        return f"epsilon {spent:.2f} spent, {max(self.ceiling - spent, 0.0):.2f} left"

    def _seconds_left(self, row: Row) -> float | None:
        done = row["round"] - (self.first_round or 0)
        if done <= 0:
            return None
        each = (time.monotonic() - self.started) / done
        return float(each * (self.settings.privacy.rounds - row["round"]))


def at_once(users: int) -> str:
    """Say that users are trained in stacks, where they are."""
    return f", {users} at once" if users > 1 else ""


def time_by_phase(rows: Iterable[Row]) -> str:
    """Say how long rounds took, and what of the workers' time was not training steps, by phase."""
    from strategies.round_record import added_up

    kept = list(rows)
    rounds = sum(row.get("seconds", 0.0) for row in kept)
    spent = added_up(row.get("seconds_by_phase", {}) for row in kept)
    besides = ", ".join(
        f"{name} {spent[name]:.1f} s" for name in ("configure", "evaluation") if name in spent
    )
    work = {
        name: spent[name] for name in ("training", "data", "clipping", "noise") if name in spent
    }
    whole = sum(work.values()) or 1.0
    shares = ", ".join(f"{name} {seconds / whole:.1%}" for name, seconds in work.items())
    return f"time: rounds {rounds:.1f} s ({besides}); the workers' share: {shares}"
