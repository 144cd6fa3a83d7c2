"""Show that a round's numbers do not depend on which worker answered first."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.protocol import NORM_SPACING, PartialSum, UserOutcome
from strategies.round_record import outcome_numbers

LOSSES = st.lists(st.floats(-1e12, 1e12), min_size=1, max_size=12)


def outcome(user: int, loss: float, fault: str = "") -> UserOutcome:
    return UserOutcome(user, loss, 2.0 * loss, user % 2 == 0, 0.1, fault)


def partial(*layers: int, **phases: float) -> PartialSum:
    norms = tuple(round(layer / NORM_SPACING) for layer in layers)
    halves = tuple(norm // 2 for norm in norms)
    size = 10.0 * len(phases)
    return PartialSum(np.zeros(1, np.int64), (), 0, layers, size, phases, norms, halves)


@given(losses=LOSSES, order=st.randoms(use_true_random=False))
def test_means_have_the_same_bits_in_any_order(losses: list[float], order: object) -> None:
    users = list(enumerate(losses))
    shuffled = list(users)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    first = outcome_numbers({user: outcome(user, loss) for user, loss in users}, [])
    second = outcome_numbers({user: outcome(user, loss) for user, loss in shuffled}, [])
    assert first == second


def test_means_are_over_users_that_contributed_and_faults_are_named() -> None:
    outcomes = {4: outcome(4, 1.0), 2: outcome(2, 3.0), 7: outcome(7, 9.0, "broken")}
    numbers = outcome_numbers(
        outcomes, [partial(2, 0, noise=1.0), partial(0, 1, noise=0.5, training=2.0)]
    )
    assert (numbers["cohort"], numbers["replies"]) == (3, 2)
    assert (numbers["train_loss"], numbers["update_norm"]) == (2.0, 4.0)
    assert numbers["clipped_fraction"] == 1.0
    assert numbers["layer_clipped"] == [1.0, 0.5]
    assert (numbers["layer_norms"], numbers["layer_norms_clipped"]) == ([1.0, 0.5], [0.5, 0.25])
    assert numbers["faults"] == {"7": "broken"}
    assert numbers["seconds_by_phase"] == {"noise": 1.5, "training": 2.0}
    assert numbers["peak_memory_megabytes"] == 20.0


def test_amounts_are_added_up_over_workers() -> None:
    partials = [
        PartialSum(np.zeros(1, np.int64), (), 0, amounts=amounts)
        for amounts in ({"frames": 2**60}, {}, {"frames": 3, "words": 1})
    ]
    assert outcome_numbers({}, partials)["amounts"] == {"frames": 2**60 + 3, "words": 1}


def test_a_round_of_nobody_has_no_means() -> None:
    numbers = outcome_numbers({}, [])
    assert (numbers["cohort"], numbers["replies"]) == (0, 0)
    assert numbers["train_loss"] is None
    assert numbers["peak_memory_megabytes"] == pytest.approx(0.0)
