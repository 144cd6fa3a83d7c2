"""Describe privacy-report.json key by key; the JSON Schema in the package is made from this."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Number = float | Literal["inf"]
Measured = float | Literal["inf", "-inf", "nan"] | None
Adjacency = Literal["add-or-remove-one", "replace-one"]


class Group(BaseModel):
    """Refuse keys that are not described."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class EpsilonValue(Group):
    """One epsilon with everything it needs to mean something; value "inf": no guarantee."""

    value: Number
    delta: float
    adjacency: Adjacency
    sampling: str
    accountant: str
    version: str
    upper_bound: bool


class Answer(Group):
    """The answer of one accountant; epsilon null where it could not, with the reason."""

    epsilon: Number | None
    order: float | None
    library: str | None
    value: Number | None = None
    delta: float | None = None
    adjacency: Adjacency | None = None
    sampling: str | None = None
    accountant: str | None = None
    version: str | None = None
    upper_bound: bool | None = None
    why: str | None = None


class Warned(Group):
    """A warning: a stable code for programs, a sentence for people."""

    code: str
    text: str


class Assumption(Group):
    """One thing the guarantee rests on, and who sees to it."""

    name: str
    state: Literal["enforced", "trusted", "not enforced"]
    detail: str


class Setting(Group):
    """Who does what, and who is trusted; whether tuning and metrics were part of it.

    nodes: in plug-in mode, how many nodes said what of clipping and noise. tuning_runs_charged:
    whether other runs, such as those that chose the settings, are on the same ledger.
    metric_chose_anything: always False: the rate depends on the round alone, planned rounds or the
    ledger end a run, the last model is kept. What a person chose by looking is not known here.
    """

    mode: Literal["simulation", "plug-in"]
    nodes: dict[str, int] | None
    trust_model: str
    noise_added_by: Literal["clients", "server"]
    noise_completed_by: str
    secure_aggregation: bool
    randomness: Literal["reproducible", "secure"]
    strategy: str
    task: str
    engine: str
    device: str
    tuning_runs_charged: bool
    metric_chose_anything: bool


class Unit(Group):
    """The unit of privacy."""

    name: str
    meaning: str


class Release(Group):
    """What is released, and how often."""

    what: str
    rounds_planned: int
    rounds_released: int
    formula: str


class Layer(Group):
    """One trainable tensor; the share clipped comes from people's data and is not private."""

    name: str
    size: int
    bound: float
    signal_to_noise_at_most: Number
    clipped_fraction_last_round_not_private: float | None


class Mechanism(Group):
    """Clip, noise, divisor: noise_std_on_sum as run, noise_multiplier as claimed."""

    name: str
    noise_multiplier: float
    clip_norm: float
    clipping: str
    sensitivity: float
    noise_std_on_sum: float
    noise_std_on_mean: float
    denominator: int
    noise_placement: Literal["clients", "server"]
    grid_spacing: float
    layers: list[Layer]


class CohortRealised(Group):
    """How many users were drawn."""

    smallest: int
    mean: float
    largest: int
    by_round: list[int]


class Sampling(Group):
    """How cohorts are drawn, claimed and as run."""

    scheme: Literal["poisson", "fixed", "everyone"]
    enforced: bool
    sample_rate: float
    sample_rate_as_run: float
    cohort_cap: int | None
    cohort_realised: CohortRealised
    users_without_contribution: int
    remedy: str


class RoundEpsilon(Group):
    """Epsilon after a round, as rounds.jsonl has it; the kind is that of accounting.epsilon."""

    round: int
    epsilon: Number | None


class Accounting(Group):
    """The claimed epsilon, by every accountant."""

    epsilon: EpsilonValue
    accountants: dict[str, Answer]
    rounds_charged: int
    ceiling: float | None
    epsilon_at_planned_end: EpsilonValue
    epsilon_without_amplification: EpsilonValue
    gdp_mu: Number | None
    tier: str
    delta_times_population: float
    by_round: list[RoundEpsilon]


class Side(Group):
    """One of the two triples, with its epsilon."""

    population: int
    cohort: int
    sample_rate: float
    noise_multiplier: float
    epsilon: EpsilonValue
    tier: str
    strength: str


class SideAsRun(Side):
    """What the simulation itself gives to the people in its data set."""

    virtual_users: bool


class Trained(Group):
    """What was trained."""

    users: int
    cohort: int
    epsilon: EpsilonValue


class Deployment(Group):
    """What is claimed."""

    population: int
    cohort: int
    epsilon: EpsilonValue


class Extrapolation(Group):
    """From what was trained to what is claimed, and the assumption between them."""

    trained: Trained
    claimed: Deployment
    assumption: str


class Described(Group):
    """What all epsilons of one curve share."""

    delta: float
    adjacency: Adjacency
    sampling: str
    accountant: str
    version: str
    upper_bound: bool


class Series(Described):
    """Epsilon against the round by one accountant."""

    points: list[RoundEpsilon]


class ByRound(Group):
    """Epsilon against the round; after charged_until it is projected."""

    charged_until: int
    planned: int
    series: list[Series]


class ProfileCurve(Group):
    """Delta at each epsilon."""

    accountant: str
    version: str
    epsilons: list[float]
    deltas: list[float]


class TradeOffCurve(Group):
    """Least false negative rate at each false positive rate, and the Gaussian curve below it."""

    accountant: str
    version: str
    false_positive: list[float]
    false_negative: list[float]
    mu: Number
    gaussian: list[float]
    gap: float


class PopulationPoint(Group):
    """One point of epsilon against the population."""

    population: int
    cohort: int
    noise_multiplier: float
    epsilon: Number


class PopulationCurve(Described):
    """Epsilon against the population, the noise on the mean held."""

    rounds: int
    noise_std_on_mean: float
    sample_rate_held: list[PopulationPoint]
    cohort_held: list[PopulationPoint]


class LayerNorms(Group):
    """Mean L2 norm of the users' updates by layer, in the order of mechanism.layers; not private.

    One list for each of the rounds, which are chosen evenly from all.
    """

    rounds: list[int]
    before_clipping: list[list[Measured]]
    after_clipping: list[list[Measured]]


class Curves(Group):
    """Curves for drawing; null where none can be computed.

    layer_norms_not_private: absent where the rounds were not logged with norms by layer.
    """

    epsilon_by_round: ByRound
    privacy_profile: ProfileCurve | None
    trade_off: TradeOffCurve | None
    epsilon_by_population: PopulationCurve | None
    layer_norms_not_private: LayerNorms | None = None


class AuditBound(Group):
    """One empirical lower bound of epsilon, against the run as it ran."""

    name: str
    epsilon: Number
    mu: Number | None = None
    fitted_epsilon: Number | None = None
    fitted_mu: Number | None = None
    adversary: str | None = None
    limit: Number | None = None


class Audit(BaseModel):
    """An empirical audit; further keys are the method's own.

    All bounds together hold with the confidence.
    cohorts_known: against an adversary whom sampling hides nothing, so with a limit of its own.
    exceeded: names of the bounds above their limits, each of which shows a fault.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    method: str
    canaries: int
    confidence: float
    bounds: list[AuditBound]
    cohorts_known: AuditBound | None = None
    exceeded: list[str] = Field(default_factory=list)


class MetricValue(Group):
    """The metric after a round."""

    round: int
    value: Measured


class Utility(Group):
    """How well the model does; none of it is private.

    measured: by split, everything that its last evaluation found, percentiles over people included.
    """

    metric: str
    final: Measured
    final_split: Literal["dev", "test"]
    private: Literal[False]
    history: list[MetricValue]
    measured: dict[str, dict[str, Measured]] = Field(default_factory=dict)
    data: dict[str, Any]


class Provenance(Group):
    """Which settings, code, versions, ledger and model; no machine, user or path names."""

    run_id: str
    settings_hash: str
    users_hash: str | None = None
    started: str | None = None
    ended: str | None = None
    times_resumed: int = 0
    commit: str | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    data_users: int
    ledger_digest: str
    model_sha256: str | None
    seed: int


class PrivacyReport(Group):
    """The privacy-budget report of one run. Numbers are unrounded; infinity is the text "inf"."""

    schema_version: Literal[1]
    statement: str
    as_run_statement: str
    trust: list[str]
    assumptions: list[Assumption]
    setting: Setting
    unit: Unit
    adjacency: Adjacency
    covered: list[str]
    not_covered: list[str]
    release: Release
    mechanism: Mechanism
    sampling: Sampling
    accounting: Accounting
    claimed: Side
    as_run: SideAsRun
    extrapolation: Extrapolation | None
    curves: Curves
    audit: Audit | None
    utility: Utility
    provenance: Provenance
    warnings: list[Warned]
