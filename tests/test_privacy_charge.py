"""What the ledger accepts as a charge: the last values that pass and the first that do not."""

import dataclasses
import math

import pytest
from ledger_child import EVENT, EVENT_AS_RUN, FACTS

from privacy.errors import SettingsError
from privacy.ledger_charge import (
    Ceiling,
    Charge,
    Reservation,
    charge_problems,
    charge_record,
    ledger_row,
    open_problems,
    realised_record,
)

LARGEST = 2**63 - 1  # what SQLite can hold
CHARGE = Charge(1, 0, "00ff", EVENT, EVENT_AS_RUN, 0.01)


def with_event(**changes) -> Charge:
    event = dataclasses.replace(EVENT, **changes)
    as_run = dataclasses.replace(EVENT_AS_RUN, sampling=event.sampling)
    return dataclasses.replace(CHARGE, event=event, event_as_run=as_run)


@pytest.mark.parametrize(
    "charge",
    [
        CHARGE,
        dataclasses.replace(CHARGE, round=LARGEST, attempt=LARGEST, clip_norm=5e-324),
        with_event(noise_multiplier=0.0),
        with_event(noise_multiplier=0),
        with_event(population=LARGEST, cohort=1),
        with_event(cohort_cap=1),
        with_event(sampling="everyone"),
    ],
)
def test_the_last_values_that_pass_are_charged(charge):
    assert charge_problems(charge) == []


@pytest.mark.parametrize(
    ("charge", "words"),
    [
        (dataclasses.replace(CHARGE, round=0), "round must be a whole number from 1, got 0"),
        (dataclasses.replace(CHARGE, round=1.0), "round must be a whole number from 1, got 1.0"),
        (dataclasses.replace(CHARGE, attempt=-1), "attempt must be a whole number from 0"),
        (dataclasses.replace(CHARGE, key_hash="00FF"), "key_hash must be lower-case"),
        (dataclasses.replace(CHARGE, key_hash=""), "key_hash must be lower-case"),
        (dataclasses.replace(CHARGE, clip_norm=0.0), "clip_norm must be a finite number above 0"),
        (dataclasses.replace(CHARGE, clip_norm=math.inf), "clip_norm must be a finite number"),
        (with_event(noise_multiplier=-1e-9), "event.noise_multiplier must be a finite number 0 or"),
        (with_event(noise_multiplier=10**400), "event.noise_multiplier must be a finite number 0"),
        (with_event(population=0), "event.population must be a whole number from 1, got 0"),
        (with_event(population=LARGEST + 1), "event.population must be a whole number from 1"),
        (with_event(cohort=0), "event.cohort must be a whole number from 1, got 0"),
        (with_event(cohort_cap=0), "event.cohort_cap must be a whole number from 1, got 0"),
    ],
)
def test_the_first_values_beyond_are_refused_by_one_sentence(charge, words):
    (problem,) = charge_problems(charge)
    assert problem.startswith(words)


def test_samplings_of_claim_and_run_must_be_one():
    charge = dataclasses.replace(
        CHARGE, event_as_run=dataclasses.replace(EVENT_AS_RUN, sampling="fixed")
    )
    (problem,) = charge_problems(charge)
    assert "must sample as event does ('poisson'), got 'fixed'" in problem


@pytest.mark.parametrize("delta", [5e-324, math.nextafter(1.0, 0.0)])
def test_a_delta_inside_its_range_opens_a_ledger_even_for_one_user(delta):
    facts = dataclasses.replace(FACTS, population=1, delta=delta)
    assert open_problems("run", facts) == []


@pytest.mark.parametrize("delta", [0.0, 1.0, 2.0, -1.0, math.nan, math.inf, "0.1"])
def test_a_delta_beyond_its_range_opens_none(delta):
    (problem,) = open_problems("run", dataclasses.replace(FACTS, delta=delta))
    assert problem.startswith("delta must be between 0 and 1")


def test_what_came_of_a_round_may_be_nothing_but_not_less():
    assert list(realised_record(0, 0, 0.0).values()) == [0, 0, 0.0]
    with pytest.raises(SettingsError) as refusal:
        realised_record(-1, -1, -1.0)
    assert len(refusal.value.problems) == 3


@pytest.mark.parametrize(
    "value",
    [
        CHARGE,
        Reservation("a", 1, 0, "ff", "reserved"),
        Ceiling(1.0, len),
        ledger_row(charge_record("run", CHARGE)),
    ],
)
def test_charges_reservations_ceilings_and_rows_are_values(value):
    name = dataclasses.fields(value)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, name, 2)
