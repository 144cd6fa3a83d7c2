"""What an account refuses: numbers out of range, all at once, by one sentence each."""

import math

import pytest

from privacy.accounting import delta_at, epsilon_spent, epsilon_without_amplification
from privacy.accounting_values import (
    LARGEST_COUNT,
    choice_problems,
    cohort_problems,
    delta_problems,
    epsilon_problems,
    merge_releases,
    noise_problems,
    whole_number_problems,
)
from privacy.errors import SettingsError
from privacy.event import AccountingEvent


def test_samplings_of_different_adjacency_are_refused_by_name():
    fixed = (AccountingEvent("fixed", 1000, 10, 2.0), 10)
    poisson = (AccountingEvent("poisson", 1000, 10, 2.0), 10)
    with pytest.raises(SettingsError, match=r"replace-one \(fixed\) and add-or-remove-one"):
        epsilon_spent([fixed, poisson], 1e-6)


def test_every_mistake_is_named_at_once():
    bad = AccountingEvent("sometimes", 0, -3, math.nan, 0)
    with pytest.raises(SettingsError) as caught:
        epsilon_spent([(bad, 1)], 1e-6)
    text = str(caught.value)
    for name in ("sampling", "population", "cohort", "noise multiplier", "cohort cap"):
        assert name in text
    with pytest.raises(SettingsError) as caught:
        epsilon_spent([], math.nan, "magic")
    assert len(caught.value.problems) == 2
    for count in (-1, 1.5, True):
        with pytest.raises(SettingsError, match="rounds must be a whole number"):
            epsilon_spent([(AccountingEvent("poisson", 10, 1, 1.0), count)], 1e-6)


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (AccountingEvent("poisson", 10, 11, 1.0), "cohort must be at most population"),
        (AccountingEvent("everyone", 10, 9, 1.0), "cohort must equal population"),
        (AccountingEvent("fixed", 10, 9, 1.0, 9), "cohort cap goes with poisson"),
    ],
)
def test_events_that_cannot_be_are_refused(event, words):
    with pytest.raises(SettingsError, match=words):
        epsilon_spent([(event, 1)], 1e-6)


def test_delta_and_target_are_checked_everywhere():
    with pytest.raises(SettingsError, match="delta must be"):
        epsilon_without_amplification([], 0.0)
    with pytest.raises(SettingsError, match="epsilon must be"):
        delta_at([], -1.0)


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (
            lambda value: whole_number_problems("rounds", value, 1),
            [1, 2, LARGEST_COUNT],
            [0, -1, LARGEST_COUNT + 1, 1.0, True, "1", None, math.nan, 10**400],
        ),
        (lambda value: whole_number_problems("rounds", value, 0), [0, 1], [-1, False]),
        (
            delta_problems,
            [1e-300, 1e-9, 0.5, math.nextafter(1.0, 0.0)],
            [0, 0.0, 1, 1.0, -1e-9, 2, math.nan, math.inf, True, "0.1", None],
        ),
        (
            noise_problems,
            [0, 0.0, 1e-9, 1, 1e9],
            [-1e-9, math.nextafter(1e9, 2e9), math.nan, math.inf, False, "1"],
        ),
        (
            epsilon_problems,
            [1e-9, 1, 1e6],
            [0, 0.0, -1, math.nextafter(1e6, 2e6), math.nan, math.inf, True, "1"],
        ),
    ],
)
def test_a_number_is_refused_by_one_sentence_beyond_its_range_and_passes_within(check, good, bad):
    for value in good:
        assert list(check(value)) == []
    for value in bad:
        (problem,) = check(value)
        assert f"got {value!r}" in problem


def test_a_name_is_refused_unless_it_is_one_of_the_choices():
    assert list(choice_problems("hold", "population", ["population", "rate"])) == []
    (problem,) = choice_problems("hold", "cohort", ["population", "rate"])
    assert problem.startswith("hold must be one of population, rate, got 'cohort'")


@pytest.mark.parametrize(
    ("sampling", "population", "cohort", "words"),
    [
        ("poisson", 10, 10, []),
        ("poisson", 1, 1, []),
        ("fixed", 10, 9, []),
        ("everyone", 10, 10, []),
        ("everyone", int("1000000"), int("1_000_000"), []),
        ("poisson", 10, 11, ["cohort must be at most population"]),
        ("everyone", 10, 11, ["cohort must be at most population"]),
        ("everyone", 10, 9, ["cohort must equal population"]),
        ("poisson", 0, 11, ["population must be a whole number from 1"]),
        ("poisson", 10, 0, ["cohort must be a whole number from 1"]),
        ("everyone", "10", 2.5, ["population must be", "cohort must be"]),
    ],
)
def test_a_cohort_fits_its_population(sampling, population, cohort, words):
    found = list(cohort_problems(sampling, population, cohort))
    assert len(found) == len(words)
    assert all(problem.startswith(word) for problem, word in zip(found, words, strict=True))


def test_releases_are_added_up_in_order_and_empty_ones_are_left_out():
    first, other = AccountingEvent("poisson", 10, 1, 1.0), AccountingEvent("everyone", 10, 10, 2.0)
    releases = [(other, 2), (first, 0), (first, 3), (other, 1)]
    assert merge_releases(releases) == ((other, 3), (first, 3))
    assert merge_releases([(first, 0)]) == ()


def test_releases_of_two_adjacencies_that_spend_nothing_are_no_mistake():
    fixed, poisson = (AccountingEvent(each, 10, 1, 1.0) for each in ("fixed", "poisson"))
    assert merge_releases([(fixed, 0), (poisson, 1)]) == ((poisson, 1),)


def test_a_mistake_that_comes_twice_is_told_once_and_rounds_are_checked_after_they_are_added_up():
    bad = AccountingEvent("poisson", 10, 11, 1.0)
    good = AccountingEvent("poisson", 10, 1, 1.0)
    releases = [(bad, 1), (bad, 2), (good, -1), (good, -1), (good, LARGEST_COUNT), (good, 1)]
    with pytest.raises(SettingsError) as caught:
        merge_releases(releases)
    assert [problem.split(", got")[0] for problem in caught.value.problems] == [
        "rounds must be a whole number from 0 to 1e15",
        "cohort must be at most population",
        "rounds must be a whole number from 0 to 1e15",
    ]
    assert LARGEST_COUNT == 10**15


def test_an_event_that_cannot_be_is_refused_even_where_it_took_no_round():
    with pytest.raises(SettingsError, match="at most population"):
        merge_releases([(AccountingEvent("poisson", 10, 11, 1.0), 0)])


def test_a_cap_is_a_whole_number_from_one_with_poisson_sampling():
    merge_releases([(AccountingEvent("poisson", 10, 1, 1.0, 1), 1)])
    for sampling, cap, words in (
        ("poisson", 0, "cohort cap must be a whole number from 1"),
        ("everyone", 10, "cohort cap goes with poisson sampling only"),
    ):
        with pytest.raises(SettingsError, match=words):
            merge_releases([(AccountingEvent(sampling, 10, 10, 1.0, cap), 1)])
