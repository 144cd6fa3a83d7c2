"""Hold the one object that sampler, clip bounds, noise, denominator and accounting come from.

Everything that decides a guarantee is a public field, fixed before the first round. What depends
on people's data is never a field here, only an argument elsewhere.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from privacy import noise
from privacy.clipping import CLIPPINGS, layer_bounds
from privacy.errors import SettingsError
from privacy.event import SAMPLINGS, AccountingEvent, Sampling
from privacy.sampling import cut_to_cap, draw_cohort, poisson_cohort
from privacy.seeds import Streams

if TYPE_CHECKING:
    from privacy.accounting import Accountant

PLACEMENTS = ("clients", "server")


@dataclass(frozen=True)
class SimulatedCohort:
    """State what a simulation really draws: m_s of N_s users, in place of the claimed m of N."""

    users: int
    cohort: int
    virtual: bool = False


@dataclass(frozen=True, kw_only=True)
class PrivacyPlan:
    """Fix how a training is sampled, clipped and noised, and so what it guarantees.

    population: number N of users. cohort: expected number m of users in a round.
    rounds: number T of releases planned. delta: the guarantee's delta.
    noise_multiplier: z, noise standard deviation on the SUM of clipped updates / clip norm C;
    0 means not private. clip_norm: C. clipping: see privacy.clipping. sampling: "poisson",
    "fixed" or "everyone". noise_placement: "clients" (each adds its share) or "server".
    cohort_cap: largest Poisson cohort that is trained; None for no cap.
    simulated: set by `simulate`.

    Each round releases (sum of clipped updates + N(0, (z C)^2 I)) / m with m fixed beforehand.

    Raises: SettingsError naming every field that is out of range.
    Reference: McMahan et al. 2018 (arXiv 1710.06963), Algorithm 1; Mironov et al. 2019
    (arXiv 1908.10530) for the Poisson-subsampled Gaussian.
    Guarantee: the sequence of all released models is (epsilon(), delta)-differentially private
    for each user, add-or-remove-one ("fixed": replace-one), against whoever sees them.
    Not covered: the server itself, losses, norms and evaluation metrics, choices made by looking
    at private data, repeatable randomness.

    >>> plan = PrivacyPlan(population=1000, cohort=10, rounds=5, delta=1e-5,
    ...                    noise_multiplier=1.0, clip_norm=2.0)
    >>> plan.sample_rate, plan.noise_std_on_mean
    (0.01, 0.2)
    """

    population: int
    cohort: int
    rounds: int
    delta: float
    noise_multiplier: float
    clip_norm: float
    clipping: str = "per-layer-dim"
    sampling: Sampling = "poisson"
    noise_placement: str = "clients"
    cohort_cap: int | None = None
    simulated: SimulatedCohort | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        problems = plan_problems(dataclasses.asdict(self))
        if problems:
            raise SettingsError(problems)
        noise.fraction_bits(self.simulation.cohort, self.simulated_noise_multiplier)

    @classmethod
    def for_epsilon(
        cls,
        *,
        epsilon: float,
        population: int,
        cohort: int,
        rounds: int,
        delta: float,
        accountant: Accountant = "rdp",
        sampling: Sampling = "poisson",
        **settings: Any,
    ) -> PrivacyPlan:
        """Build the plan with the least noise multiplier that keeps epsilon after all rounds.

        Raises: SettingsError when no noise reaches the target, saying what would.
        """
        from privacy.calibration import noise_multiplier_for

        multiplier = noise_multiplier_for(
            epsilon=epsilon,
            population=population,
            cohort=cohort,
            rounds=rounds,
            delta=delta,
            sampling=sampling,
            accountant=accountant,
        )
        return cls(
            population=population,
            cohort=cohort,
            rounds=rounds,
            delta=delta,
            noise_multiplier=multiplier,
            sampling=sampling,
            **settings,
        )

    def simulate(self, *, users: int, cohort: int, virtual: bool = False) -> PrivacyPlan:
        """Return the plan that draws `cohort` of `users` data users yet noises as claimed.

        The noise multiplier shrinks to z m_s / m, so the noise on the mean is z C / m as claimed.
        virtual: draw from the whole population and map several ids to one user's data.

        Raises: SettingsError when the simulated cohort does not fit the users.
        """
        return dataclasses.replace(self, simulated=SimulatedCohort(users, cohort, virtual))

    @property
    def sample_rate(self) -> float:
        """Give the claimed probability q that one user is in a cohort."""
        return self.event.sample_rate

    @property
    def simulation(self) -> SimulatedCohort:
        """Give what is really drawn: the claimed population and cohort unless simulated."""
        return self.simulated or SimulatedCohort(self.population, self.cohort)

    @property
    def denominator(self) -> int:
        """Give the fixed number that every noisy sum is divided by."""
        return self.simulation.cohort

    @property
    def simulated_noise_multiplier(self) -> float:
        """Give z_s = z m_s / m, the noise on the sum that is really released."""
        return self.noise_multiplier * self.denominator / self.cohort

    @property
    def noise_std_on_sum(self) -> float:
        """Give the standard deviation of the noise on the sum that is released."""
        return self.simulated_noise_multiplier * self.clip_norm

    @property
    def noise_std_on_mean(self) -> float:
        """Give the standard deviation z C / m of the noise per coordinate of a release."""
        return self.noise_multiplier * self.clip_norm / self.cohort

    @property
    def grid_spacing(self) -> float:
        """Give the spacing of the integer grid on which updates are summed."""
        drawn = self.simulation.cohort
        return noise.grid_spacing(self.clip_norm, drawn, self.simulated_noise_multiplier)

    @cached_property
    def event(self) -> AccountingEvent:
        """Describe one round as claimed, for the accountants."""
        return AccountingEvent(
            self.sampling, self.population, self.cohort, self.noise_multiplier, self.cohort_cap
        )

    @cached_property
    def event_as_run(self) -> AccountingEvent:
        """Describe one round as the simulation runs it, for the people in its data set.

        With virtual users several ids share one person's data, so nothing is said of people;
        the event then describes the draw of ids alone.
        """
        drawn = self.simulation
        return AccountingEvent(
            self.sampling,
            self.population if drawn.virtual else drawn.users,
            drawn.cohort,
            self.simulated_noise_multiplier,
            self.cohort_cap,
        )

    def epsilon(self, accountant: Accountant = "rdp", rounds: int | None = None) -> float:
        """Compute the claimed epsilon after `rounds` releases (default: all planned)."""
        from privacy.accounting import epsilon_spent

        count = self.rounds if rounds is None else rounds
        return epsilon_spent([(self.event, count)], self.delta, accountant).epsilon

    def epsilon_as_run(self, accountant: Accountant = "rdp", rounds: int | None = None) -> float:
        """Compute what the simulation itself gives to the people in its data set."""
        from privacy.accounting import epsilon_spent

        count = self.rounds if rounds is None else rounds
        return epsilon_spent([(self.event_as_run, count)], self.delta, accountant).epsilon

    def bounds(self, sizes: Sequence[int]) -> list[float]:
        """Share the clip norm among layers of the given sizes."""
        return layer_bounds(self.clipping, self.clip_norm, sizes)

    def draw(self, streams: Streams, round: int, attempt: int = 0) -> NDArray[np.int64]:
        """Draw the ids of one round, ascending, from the data users (or virtual ids)."""
        drawn = self.simulation
        source = streams.source("cohort", round, attempt)
        users = self.population if drawn.virtual else drawn.users
        return draw_cohort(source, self.sampling, users, drawn.cohort, self.cohort_cap)

    def draw_connected(
        self, streams: Streams, round: int, attempt: int, connected: int
    ) -> NDArray[np.int64]:
        """Draw from the users that are connected now, each with the claimed rate, never topped up.

        Raises: SettingsError where more are connected than the population, or the sampling is
        not Poisson, the only one that needs to know nothing of who is not there.
        """
        if self.sampling != "poisson":
            raise SettingsError(
                f"sampling must be poisson where nodes come and go, got {self.sampling!r}"
            )
        if connected > self.population:
            raise SettingsError(
                f"population must be at least the {connected} connected nodes, "
                f"got {self.population}; raise the population and solve the noise again"
            )
        source = streams.source("cohort", round, attempt)
        drawn = poisson_cohort(source, connected, self.sample_rate)
        return cut_to_cap(source, drawn, self.cohort_cap)

    def share_deviation(self, share: int, whole: int) -> float:
        """Give the noise deviation on the sum that `share` of a drawn cohort of `whole` adds.

        The shares of one cohort complete to exactly z_s C, whatever its realised size.
        """
        return noise.share_deviation(self.noise_std_on_sum, share, whole)


def plan_problems(values: dict[str, Any]) -> list[str]:
    """List every field of a plan that is out of range, one sentence each."""
    problems = [
        f"{name.replace('_', '-')} must be a whole number >= 1, got {values[name]!r}"
        for name in ("population", "cohort", "rounds")
        if not _whole(values[name])
    ]
    problems += _real_problems(values)
    problems += _name_problems(values)
    if not problems:
        problems += _cohort_problems(values)
    return problems


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _number(value: Any) -> bool:
    real = isinstance(value, int | float) and not isinstance(value, bool)
    return real and abs(value) <= sys.float_info.max  # also for integers of 400 digits


def _real_problems(values: dict[str, Any]) -> list[str]:
    problems = []
    delta, multiplier, clip = values["delta"], values["noise_multiplier"], values["clip_norm"]
    if not (_number(delta) and 0.0 < delta < 1.0):
        problems.append(f"delta must be between 0 and 1, got {delta!r}; try 1 / (10 population)")
    if not (_number(multiplier) and multiplier >= 0.0):
        problems.append(f"noise-multiplier must be a finite number >= 0, got {multiplier!r}")
    if not (_number(clip) and 1e-20 <= clip <= 1e20):
        problems.append(
            f"clip-norm must be a number from 1e-20 to 1e20, got {clip!r}; try 0.1 to 10"
        )
    return problems


def _name_problems(values: dict[str, Any]) -> list[str]:
    allowed = {"clipping": CLIPPINGS, "sampling": SAMPLINGS, "noise_placement": PLACEMENTS}
    return [
        f"{name.replace('_', '-')} must be one of {', '.join(names)}, got {values[name]!r}"
        for name, names in allowed.items()
        if values[name] not in names
    ]


def _cohort_problems(values: dict[str, Any]) -> list[str]:
    problems = []
    population, cohort, cap = values["population"], values["cohort"], values["cohort_cap"]
    if cohort > population:
        problems.append(
            f"cohort must be at most the population {population}, got {cohort}; lower the cohort"
        )
    if values["sampling"] == "everyone" and cohort != population:
        problems.append(
            f"cohort must equal the population {population} where sampling is everyone, "
            f"got {cohort}"
        )
    if cap is not None and (values["sampling"] != "poisson" or not _whole(cap) or cap < cohort):
        problems.append(
            f"cohort-cap must be a whole number >= cohort {cohort} with Poisson sampling, "
            f"got {cap!r}; try {cohort + math.ceil(6 * math.sqrt(cohort))}"
        )
    return problems + _simulation_problems(values)


def _simulation_problems(values: dict[str, Any]) -> list[str]:
    drawn = values["simulated"]
    if drawn is None:
        return []
    users, cohort = drawn["users"], drawn["cohort"]
    problems = []
    if not _whole(users):
        problems.append(f"simulated users must be a whole number >= 1, got {users!r}")
    if not _whole(cohort):
        problems.append(f"simulated-cohort must be a whole number >= 1, got {cohort!r}")
    if problems:
        return problems
    limit = values["population"] if drawn["virtual"] else users
    if users > values["population"]:
        problems.append(
            f"population must be at least the {users} users of the data set, "
            f"got {values['population']}; raise the population"
        )
    if cohort > limit:
        problems.append(
            f"simulated-cohort must be at most the {limit} users it is drawn from, got {cohort}"
        )
    if values["sampling"] == "everyone" and cohort != limit:
        problems.append(
            f"simulated-cohort must be {limit} where sampling is everyone, got {cohort}"
        )
    return problems
