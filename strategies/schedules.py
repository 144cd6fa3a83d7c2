"""Give the factor on the server's learning rate as a pure function of the round number."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, Protocol

from privacy.errors import SettingsError
from strategies.hyperparameters import FRACTION, POSITIVE, Rule, check_names, check_values

_WHOLE = ("start", "every", "warmup")
LAYER_NORMALISED = frozenset({"fednovograd", "fedlamb", "fedlars", "scale"})


class Schedule(Protocol):
    """Map a round number, counted from 1, to a factor on the learning rate.

    A schedule has no state besides the round number, so a resumed run needs nothing else. Its
    repr names every setting; two schedules are equal when their settings are.
    """

    def __call__(self, round_number: int) -> float:
        """Return the factor of that round, from 0 to 1."""
        ...


@dataclass(frozen=True)
class Constant:
    """Keep the rate."""

    def __call__(self, round_number: int) -> float:
        """Return 1."""
        return 1.0


@dataclass(frozen=True)
class Exponential:
    """Keep the rate up to round ``start``, then multiply it by ``factor`` every ``transition``.

    The decay is continuous: factor^((round - start) / transition), not a staircase. The defaults
    are those of the paper's models trained from scratch.
    Reference: Pelikan et al. 2023, arXiv 2310.00098, experimental setup.
    """

    start: int = 1000
    transition: float = 500
    factor: float = 0.6

    def __call__(self, round_number: int) -> float:
        """Return the factor of that round."""
        late = max(0, round_number - self.start)
        return float(self.factor ** (late / self.transition))


@dataclass(frozen=True)
class Step:
    """Multiply the rate by ``factor`` after every ``every`` rounds."""

    every: int
    factor: float = 0.5

    def __call__(self, round_number: int) -> float:
        """Return the factor of that round."""
        return float(self.factor ** (max(0, round_number - 1) // self.every))


@dataclass(frozen=True)
class Cosine:
    """Lower the rate along half a cosine, from 1 in round 1 to ``floor`` in round ``rounds``.

    Reference: Loshchilov and Hutter 2017, arXiv 1608.03983, equation 5, without restarts.
    """

    rounds: int
    floor: float = 0.0

    def __call__(self, round_number: int) -> float:
        """Return the factor of that round; after the last round it stays at ``floor``."""
        height = (1 + math.cos(math.pi * _done(round_number, self.rounds))) / 2
        return self.floor + (1 - self.floor) * height


@dataclass(frozen=True)
class Linear:
    """Keep the rate up to round ``start``, then lower it along a line to ``floor`` at the end."""

    rounds: int
    floor: float = 0.0
    start: int = 1

    def __call__(self, round_number: int) -> float:
        """Return the factor of that round; after round ``rounds`` it stays at ``floor``."""
        first = max(1, self.start)
        return 1 - (1 - self.floor) * _done(round_number - first + 1, self.rounds - first + 1)


def _done(round_number: int, rounds: int) -> float:
    return min(1.0, max(0, round_number - 1) / max(1, rounds - 1))


Decay = Constant | Exponential | Step | Cosine | Linear


@dataclass(frozen=True)
class Warmup:
    """Raise the rate linearly over the first ``warmup`` rounds, times another schedule.

    Round r of the warmup has the factor r / warmup, so the first round already moves.
    """

    warmup: int
    then: Decay

    def __call__(self, round_number: int) -> float:
        """Return the product of the ramp and the other schedule at that round."""
        return min(1.0, max(0, round_number) / self.warmup) * self.then(round_number)


def _whole_from(lowest: int) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and float(value).is_integer()
        and value >= lowest
    )


RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "rounds": (_whole_from(1), "a whole number >= 1"),
        "start": (_whole_from(0), "a whole number >= 0"),
        "transition": POSITIVE,
        "every": (_whole_from(1), "a whole number >= 1"),
        "factor": (lambda value: POSITIVE[0](value) and value <= 1, "a number above 0, up to 1"),
        "floor": FRACTION,
        "warmup": (_whole_from(0), "a whole number >= 0"),
    }
)

SCHEDULES: Mapping[str, type[Decay]] = MappingProxyType(
    {
        "constant": Constant,
        "exponential": Exponential,
        "step": Step,
        "cosine": Cosine,
        "linear": Linear,
    }
)
"""The names that `build_schedule` takes; each also takes `warmup`."""


def build_schedule(name: str, *, rounds: int, **options: float) -> Decay | Warmup:
    """Build a schedule by name; every schedule takes ``warmup``, a number of rounds.

    constant: no options. exponential: start, transition, factor. step: every, factor.
    cosine and linear: floor, reached in round ``rounds``; linear: start.

    Raises: SettingsError for an unknown name, and one sentence per option that is unknown,
    missing or out of range.
    """
    if name not in SCHEDULES:
        raise SettingsError(f"schedule must be one of {', '.join(SCHEDULES)}, got {name!r}")
    kind = SCHEDULES[name]
    own = [field.name for field in fields(kind) if field.name != "rounds"]
    problems = check_names(f"schedule {name}", options, [*own, "warmup"])
    problems += check_values({"rounds": rounds, **options}, RULES)
    if name == "step" and "every" not in options:
        problems.append("schedule step needs every, the number of rounds between two decays")
    if problems:
        raise SettingsError(problems)
    whole: dict[str, Any] = {
        key: int(value) if key in _WHOLE else value for key, value in options.items()
    }
    warmup = int(whole.pop("warmup", 0))
    if any(field.name == "rounds" for field in fields(kind)):
        whole["rounds"] = rounds
    built: Decay = kind(**whole)
    return Warmup(warmup, built) if warmup else built


def advice(name: str, schedule: Schedule | None) -> str | None:
    """Return one sentence when an optimizer whose steps never shrink runs at a constant rate.

    name: server optimizer. schedule: None means a constant rate.
    """
    decay = schedule.then if isinstance(schedule, Warmup) else schedule
    if name.lower() not in LAYER_NORMALISED or not isinstance(decay, Constant | None):
        return None
    return (
        f"{name} makes steps of the same length however small the update is, so at a constant "
        "rate the model circles around its goal; let the rate decay, for example with the "
        "schedule exponential or cosine."
    )
