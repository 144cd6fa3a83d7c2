"""Epsilon by every accountant: against exact curves, against each other, and what is refused."""

import logging
import math
import subprocess
import sys
import time

import dp_accounting
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.accounting import (
    available_accountants,
    delta_at,
    epsilon_spent,
    epsilon_without_amplification,
    gdp_mu,
)
from privacy.accounting_pld import LossBound
from privacy.accounting_rdp import ORDERS, convert, renyi_divergence
from privacy.accounting_warnings import library_log, log_warnings
from privacy.errors import PrivacyWarning, SettingsError
from privacy.event import AccountingEvent
from privacy.gaussian import gaussian_delta, gaussian_epsilon
from privacy.loss_composition import compose
from privacy.loss_grid import one_round


def codes(spent) -> list[str]:
    return [warning.code for warning in spent.warnings]


@pytest.mark.parametrize(
    ("cohort", "population", "noise"),
    [(10, 1000, 1.0), (1, 10**6, 0.5), (500, 1000, 10.0), (10, 10**8, 1.0), (999, 1000, 0.7)],
)
@pytest.mark.parametrize("delta", [1e-5, 1e-9, 1e-13])
def test_one_round_by_pld_is_the_exact_amplified_gaussian(cohort, population, noise, delta):
    event = AccountingEvent("poisson", population, cohort, noise)
    epsilon = epsilon_spent([(event, 1)], delta, "pld").epsilon
    rate = cohort / population

    def exact(at: float) -> float:
        # Balle, Barthe and Gaboardi 2018 (arXiv 1807.01647), Theorem 2.
        return rate * gaussian_delta(1 / noise, math.log1p(math.expm1(at) / rate))

    assert exact(epsilon) <= delta
    if epsilon > 1e-3:
        assert exact(epsilon * 0.99) > delta


@pytest.mark.parametrize(("noise", "rounds"), [(1.0, 1), (5.0, 100), (300.0, 10**6)])
def test_everyone_by_pld_and_by_rdp_lies_just_above_the_exact_curve(noise, rounds):
    event = AccountingEvent("everyone", 1000, 1000, noise)
    spent = {name: epsilon_spent([(event, rounds)], 1e-9, name) for name in ("exact", "pld", "rdp")}
    exact = gaussian_epsilon(math.sqrt(rounds) / noise, 1e-9)
    assert spent["exact"].epsilon == exact
    assert exact <= spent["pld"].epsilon <= exact * 1.002
    assert exact <= spent["rdp"].epsilon <= exact * 1.12
    assert spent["exact"].library.startswith("scipy ")


@pytest.mark.parametrize(("population", "cohort"), [(10**4, 100), (10**6, 2947), (10, 9)])
def test_our_transform_and_the_one_of_dp_accounting_agree_where_both_are_precise(
    population, cohort, monkeypatch
):
    event = AccountingEvent("poisson", population, cohort, 1.1)
    theirs = epsilon_spent([(event, 500)], 1e-7, "pld")
    monkeypatch.setattr("privacy.accounting_pld._MOST_ROUNDS", 0)
    ours = epsilon_spent([(event, 500)], 1e-7, "pld")
    assert theirs.library.startswith("dp-accounting ")
    assert ours.library.startswith("fedopt ")
    assert "pld-by-fedopt" in codes(ours)
    assert ours.epsilon == pytest.approx(theirs.epsilon, rel=2e-3)


def test_on_the_same_grid_our_transform_and_the_one_of_dp_accounting_agree_to_seven_digits():
    event, rounds, delta, grid = AccountingEvent("poisson", 10**9, 5300, 3.18), 21_732, 1.7e-8, 5e-7
    accountant = dp_accounting.pld.PLDAccountant(value_discretization_interval=grid)
    inner = dp_accounting.GaussianDpEvent(event.noise_multiplier)
    accountant.compose(dp_accounting.PoissonSampledDpEvent(event.sample_rate, inner), rounds)
    sums = [
        compose([(one_round(event, way, grid, 1e-20, 1e-12), rounds)], 220.0)
        for way in ("remove", "add")
    ]
    ours = max(each.epsilon(delta) for each in sums)
    assert ours == pytest.approx(accountant.get_epsilon(delta), rel=2e-7)


def test_a_tiny_epsilon_is_refined_far_below_the_usual_grid():
    # Full participation in name: 4e-4 is the truth, and a grid of 1e-6 would show twice as much.
    event = AccountingEvent("poisson", 10**13, 10**13 - 1, 1e6)
    exact = gaussian_epsilon(math.sqrt(10_000) / 1e6, 1e-9)
    spent = epsilon_spent([(event, 10_000)], 1e-9, "pld")
    assert exact <= spent.epsilon <= exact * 1.01


@settings(max_examples=25, deadline=None)
@given(
    st.floats(-8, 0).map(lambda power: 10**power),
    st.floats(-0.5, 2.5).map(lambda power: 10**power),
    st.floats(0, 5).map(lambda power: round(10**power)),
    st.floats(-12, -5).map(lambda power: 10**power),
)
def test_the_bisection_over_orders_finds_what_a_look_at_every_order_finds(
    rate, noise, rounds, delta
):
    event = AccountingEvent("poisson", 10**9, max(round(rate * 10**9), 1), noise)
    every = min(
        convert(rounds * renyi_divergence(event, order), order, delta)
        for order in ORDERS
        if order >= 2 or noise < 30
    )
    assert epsilon_spent([(event, rounds)], delta).epsilon <= max(every, 0) * (1 + 1e-9)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 10**6), st.floats(0.4, 5), st.integers(1, 10**5), st.sampled_from([1.5, 4.0]))
def test_more_noise_and_fewer_rounds_never_spend_more(cohort, noise, rounds, factor):
    def spent(noise: float, rounds: int) -> float:
        event = AccountingEvent("poisson", 10**6, cohort, noise)
        return epsilon_spent([(event, rounds)], 1e-9).epsilon

    here = spent(noise, rounds)
    assert spent(noise * factor, rounds) <= here * (1 + 1e-9)
    assert spent(noise, math.ceil(rounds * factor)) >= here * (1 - 1e-9)


def test_pld_is_an_upper_bound_of_what_a_membership_test_achieves():
    # Statistical: 32 rounds of the real mechanism, the best test (the loss), 400,000 tries.
    rounds, rate, noise, tries = 32, 0.1, 1.0, 400_000
    generator = np.random.default_rng(7)

    def losses(present: bool) -> np.ndarray:
        total = np.zeros(tries)
        for _ in range(rounds):
            output = generator.normal(0.0, noise, tries)
            if present:
                output += generator.random(tries) < rate
            total += np.log1p(rate * np.expm1((output - 0.5) / noise**2))
        return total

    inside, outside = losses(True), losses(False)
    threshold = np.quantile(inside, 0.99)
    hit, alarm = (inside > threshold).mean(), (outside > threshold).mean()
    releases = [(AccountingEvent("poisson", 1000, 100, noise), rounds)]
    achieved = (math.log((hit - 1e-3) / alarm), 6 * math.sqrt(1 / (tries * alarm)))
    assert epsilon_spent(releases, 1e-3, "pld").epsilon >= achieved[0] - achieved[1]
    # Half the noise in the mechanism would be seen: the claim for twice the noise is broken.
    claim = epsilon_spent([(AccountingEvent("poisson", 1000, 100, 2.0), rounds)], 1e-3, "pld")
    assert claim.epsilon < achieved[0] - achieved[1]


def test_nothing_released_spends_nothing():
    event = AccountingEvent("poisson", 1000, 10, 1.0)
    for releases in ([], [(event, 0)]):
        spent = epsilon_spent(releases, 1e-5)
        assert (spent.epsilon, spent.sampling, spent.warnings) == (0.0, "none", ())
        assert epsilon_without_amplification(releases, 1e-5) == 0.0
        assert gdp_mu(releases) == 0.0
        assert delta_at(releases, 1.0) == 0.0


def test_a_round_without_noise_has_no_guarantee():
    releases = [(AccountingEvent("poisson", 1000, 10, 0.0), 3)]
    spent = epsilon_spent(releases, 1e-5)
    assert math.isinf(spent.epsilon)
    assert "no-noise" in codes(spent)
    assert math.isinf(epsilon_without_amplification(releases, 1e-5))
    assert math.isinf(gdp_mu(releases))
    assert delta_at(releases, 1.0) == 1.0


def test_equal_rounds_are_merged_and_a_hundred_thousand_rows_take_under_a_second():
    event = AccountingEvent("poisson", 69_506_000, 204_800, 0.6144)
    others = [AccountingEvent("poisson", 10**6, 5000, 1 + step / 10) for step in range(10)]
    rows = [(others[number % 10] if number % 3 else event, 1) for number in range(100_000)]
    merged = {each: sum(n for e, n in rows if e == each) for each in [event, *others]}
    expected = epsilon_spent(list(merged.items()), 1e-9).epsilon
    start = time.process_time()
    assert epsilon_spent(rows, 1e-9).epsilon == pytest.approx(expected, rel=1e-12)
    assert time.process_time() - start < 1.0


def test_a_second_call_with_one_more_round_takes_milliseconds():
    event = AccountingEvent("poisson", 69_506_000, 204_800, 0.6144)
    epsilon_spent([(event, 500)], 1e-9)
    start = time.process_time()
    for rounds in range(501, 521):
        epsilon_spent([(event, rounds)], 1e-9)
    assert (time.process_time() - start) / 20 < 0.005


def test_orders_above_a_thousand_are_answered_by_dp_accounting_by_name():
    event = AccountingEvent("poisson", 10**6, 10_000, 100.0)
    spent = epsilon_spent([(event, 1000)], 1e-9)
    assert spent.library.startswith("dp-accounting ")
    assert 1000 < spent.order < 65536
    assert codes(spent) == ["rdp-by-dp-accounting"]
    assert spent.epsilon < 0.02


def test_the_last_order_is_named_as_the_limit():
    large = epsilon_spent([(AccountingEvent("poisson", 10**9, 1000, 1000.0), 1)], 1e-12)
    small = epsilon_spent([(AccountingEvent("poisson", 34_753, 1024, 0.0512), 2006)], 1e-9)
    assert (large.order, small.order) == (65536, 1.1)
    assert "rdp-order-limit" in codes(large)
    assert "rdp-order-limit" in codes(small)


def test_a_huge_epsilon_is_left_to_rdp_with_a_warning():
    releases = [(AccountingEvent("poisson", 34_753, 1024, 0.1024), 2006)]
    spent = epsilon_spent(releases, 1e-9, "pld")
    assert spent.accountant == "rdp"
    assert spent.epsilon == epsilon_spent(releases, 1e-9).epsilon
    assert "pld-skipped" in codes(spent)


def test_a_grid_that_does_not_fit_is_left_to_rdp_with_a_warning(monkeypatch):
    releases = [(AccountingEvent("poisson", 10, 5, 30.0), 200_000)]
    assert epsilon_spent(releases, 1e-9, "pld").accountant == "pld"
    monkeypatch.setattr("privacy.loss_composition._WIDEST", 300)
    spent = epsilon_spent(releases, 1e-9, "pld")
    assert spent.accountant == "rdp"
    assert "memory" in spent.warnings[-1].text


def test_a_finer_grid_that_does_not_fit_leaves_the_coarser_answer(monkeypatch):
    releases = [(AccountingEvent("poisson", 10, 5, 30.0), 200_000)]
    fine = epsilon_spent(releases, 1e-9, "pld").epsilon
    monkeypatch.setattr("privacy.loss_composition._WIDEST", 100_000)
    coarse = epsilon_spent(releases, 1e-9, "pld")
    assert coarse.accountant == "pld"
    assert fine < coarse.epsilon < fine * 1.01


@pytest.mark.parametrize("most", [1, 3000])
def test_a_grid_too_fine_for_dp_accounting_is_taken_over_by_ours(most, monkeypatch):
    releases = [(AccountingEvent("poisson", 10**6, 1000, 1.0), 500)]
    theirs = epsilon_spent(releases, 1e-8, "pld")
    monkeypatch.setattr("privacy.accounting_pld._MOST_POINTS", most)
    ours = epsilon_spent(releases, 1e-8, "pld")
    assert (theirs.library[:13], ours.library[:6]) == ("dp-accounting", "fedopt")
    assert ours.epsilon == pytest.approx(theirs.epsilon, rel=3e-3)


def test_a_rare_user_with_next_to_no_noise_is_accounted():
    # The user is seen outright when drawn: probability 1e-9, which delta covers or does not.
    event = AccountingEvent("poisson", 10**9, 1, 0.031)
    assert epsilon_spent([(event, 1)], 2e-9, "pld").epsilon == 0.0
    small = epsilon_spent([(event, 1)], 1e-10, "pld")
    assert small.accountant == "pld"
    assert 100 < small.epsilon <= epsilon_spent([(event, 1)], 1e-10).epsilon


def test_pld_above_rdp_is_left_to_rdp_with_a_warning(monkeypatch):
    releases = [(AccountingEvent("poisson", 10**6, 1000, 1.0), 2000)]
    renyi = epsilon_spent(releases, 1e-9)
    loose = LossBound(renyi.epsilon * 2, 1.0, "dp-accounting")
    monkeypatch.setattr("privacy.accounting.loss_bound", lambda *_: loose)
    spent = epsilon_spent(releases, 1e-9, "pld")
    assert (spent.accountant, spent.epsilon) == ("rdp", renyi.epsilon)
    assert codes(spent)[-1] == "pld-looser"


def test_noise_so_small_that_squares_underflow_gives_infinity_not_a_traceback():
    releases = [(AccountingEvent("poisson", 1000, 10, 1e-200), 1)]
    assert math.isinf(epsilon_spent(releases, 1e-9).epsilon)


def test_poisson_and_everyone_add_up():
    poisson = (AccountingEvent("poisson", 1000, 10, 2.0), 10)
    everyone = (AccountingEvent("everyone", 1000, 1000, 20.0), 3)
    for name in ("rdp", "pld"):
        both = epsilon_spent([poisson, everyone], 1e-6, name)
        parts = [epsilon_spent([each], 1e-6, name).epsilon for each in (poisson, everyone)]
        assert max(parts) < both.epsilon < sum(parts) + 1.0
        assert both.sampling == "poisson+everyone"


def test_a_capped_cohort_is_quoted_by_pld_only_and_a_tight_cap_costs():
    def spent(cap: int | None) -> float:
        event = AccountingEvent("poisson", 100_000, 1000, 1.0, cap)
        return epsilon_spent([(event, 1000)], 1e-7, "pld").epsilon

    free = spent(None)
    # Origin: privacy.md 1.4, dp-accounting 0.6.0: 2.4117 uncapped and at 1200, 8.79 at 1050.
    assert free == pytest.approx(2.4117, rel=1e-3)
    assert spent(1200) == pytest.approx(2.4117, rel=1e-3)
    assert spent(1050) == pytest.approx(8.79, rel=1e-2)
    capped = AccountingEvent("poisson", 100_000, 1000, 1.0, 1200)
    with pytest.raises(SettingsError, match="cohort cap, only pld can"):
        epsilon_spent([(capped, 1)], 1e-7)


def test_a_capped_cohort_beyond_pld_is_refused_rather_than_answered_without_the_cap():
    capped = AccountingEvent("poisson", 100_000, 1000, 0.05, 1200)
    with pytest.raises(SettingsError, match="cohort cap"):
        epsilon_spent([(capped, 1000)], 1e-7, "pld")


@pytest.mark.parametrize(
    ("event", "names"),
    [
        (AccountingEvent("poisson", 1000, 10, 1.0), ("rdp", "pld")),
        (AccountingEvent("everyone", 1000, 1000, 1.0), ("rdp", "pld", "exact")),
        (AccountingEvent("fixed", 1000, 10, 1.0), ("rdp",)),
        (AccountingEvent("poisson", 1000, 10, 1.0, 40), ("pld",)),
    ],
)
def test_every_accountant_that_is_available_answers_and_every_other_is_refused(event, names):
    assert available_accountants(event) == names
    for name in ("rdp", "pld", "exact"):
        if name in names:
            assert epsilon_spent([(event, 2)], 1e-6, name).epsilon > 0
        else:
            with pytest.raises(SettingsError, match=f"accountant {name} cannot describe"):
                epsilon_spent([(event, 2)], 1e-6, name)


def test_a_delta_that_one_leaked_user_would_meet_is_warned_of():
    event = AccountingEvent("poisson", 1000, 10, 1.0)
    assert "delta-above-one-over-population" in codes(epsilon_spent([(event, 1)], 1e-3))
    assert codes(epsilon_spent([(event, 1)], 0.999e-3)) == []


def test_without_amplification_is_the_gaussian_of_a_user_in_every_cohort():
    poisson = [(AccountingEvent("poisson", 1000, 10, 2.0), 25)]
    fixed = [(AccountingEvent("fixed", 1000, 10, 2.0), 25)]
    assert epsilon_without_amplification(poisson, 1e-6) == gaussian_epsilon(2.5, 1e-6)
    assert epsilon_without_amplification(fixed, 1e-6) == gaussian_epsilon(5.0, 1e-6)


def test_mu_of_gaussian_dp_follows_the_central_limit_formula():
    everyone = [(AccountingEvent("everyone", 10, 10, 5.0), 100)]
    poisson = [(AccountingEvent("poisson", 1000, 10, 1.0), 400)]
    assert gdp_mu(everyone) == pytest.approx(2.0, rel=1e-12)
    assert gdp_mu(poisson) == pytest.approx(0.2 * math.sqrt(math.e - 1), rel=1e-12)
    assert math.isinf(gdp_mu([(AccountingEvent("poisson", 1000, 10, 0.01), 1)]))
    assert gdp_mu([(AccountingEvent("fixed", 1000, 10, 1.0), 1)]) is None


@pytest.mark.parametrize("cap", [None, 200])
def test_the_profile_passes_through_the_epsilon_at_delta(cap):
    releases = [(AccountingEvent("poisson", 10_000, 100, 1.0, cap), 300)]
    epsilon = epsilon_spent(releases, 1e-8, "pld").epsilon
    assert delta_at(releases, epsilon) == pytest.approx(1e-8, rel=0.02)
    assert delta_at(releases, epsilon / 2) > 1e-7


def test_library_chatter_stays_off_the_console_and_its_logger_is_left_as_it_was(capfd):
    logger = logging.getLogger("absl")
    before = (logger.handlers[:], logger.propagate, logger.level)
    epsilon_spent([(AccountingEvent("poisson", 100, 50, 0.4), 20)], 1e-6)
    epsilon_spent([(AccountingEvent("fixed", 100, 50, 3.0), 20)], 1e-6)
    assert (logger.handlers[:], logger.propagate, logger.level) == before
    assert capfd.readouterr() == ("", "")


def test_what_a_library_logs_becomes_a_warning_each_sentence_once(capfd):
    with library_log() as messages:
        logging.getLogger("absl").warning("order %s dropped", 1.1)
        logging.getLogger("absl").warning("order 1.1 dropped")
    assert log_warnings(messages) == (PrivacyWarning("library-log", "order 1.1 dropped"),)
    assert capfd.readouterr() == ("", "")


def test_importing_the_accounts_is_light():
    code = (
        "import sys, privacy.accounting, privacy.calibration\n"
        "heavy = {'torch', 'opacus', 'dp_accounting', 'scipy', 'flwr', 'ray', 'matplotlib'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
