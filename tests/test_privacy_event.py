"""The neutral description of one release: the rate and the neighbours of each sampling."""

import dataclasses

import pytest

from privacy.event import SAMPLINGS, AccountingEvent


@pytest.mark.parametrize(
    ("sampling", "rate", "adjacency"),
    [
        ("poisson", 0.02, "add-or-remove-one"),
        ("fixed", 0.02, "replace-one"),
        ("everyone", 1.0, "add-or-remove-one"),
    ],
)
def test_each_sampling_has_its_rate_and_its_neighbours(sampling, rate, adjacency):
    event = AccountingEvent(sampling, 500, 10, 1.0)
    assert sampling in SAMPLINGS
    assert (event.sample_rate, event.adjacency) == (rate, adjacency)


def test_an_event_is_a_value():
    event = AccountingEvent("poisson", 500, 10, 1.0)
    assert event == AccountingEvent("poisson", 500, 10, 1.0, None)
    assert (
        len(
            {
                event,
                AccountingEvent("poisson", 500, 10, 1.0),
                AccountingEvent("poisson", 500, 10, 1.0, 20),
            }
        )
        == 2
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.cohort = 11
