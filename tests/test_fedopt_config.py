"""Show that settings are checked all at once, in words a person can act on."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedopt.config import (
    BYTES_UNCHANGED,
    Settings,
    build_settings,
    changed_settings,
    section_of,
    sections,
    settings_hash,
)
from privacy.errors import SettingsError


def problems(tables: dict[str, Any]) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as refused:
        build_settings(tables)
    return refused.value.problems


def test_all_mistakes_are_told_at_once_in_one_sentence_each() -> None:
    told = problems(
        {
            "privacy": {"population": 0, "delta": 2, "cohorrt": 5, "sampling": "lottery"},
            "client": {"client_lr": "fast"},
            "engine": {"workers": 1.5},
        }
    )
    assert len(told) == 6
    assert all("\n" not in sentence for sentence in told)
    for part in (
        "population must be >= 1, got 0",
        "delta must be < 1",
        "cohorrt is not a setting; did you mean cohort?",
        "sampling must be one of 'poisson', 'fixed' or 'everyone', got 'lottery'",
        "client-lr must be a number, got 'fast'",
        "workers must be a whole number, got 1.5",
    ):
        assert any(part in sentence for sentence in told), part


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "nan", "inf", "-inf"])
def test_nan_and_infinity_are_refused(value: Any) -> None:
    (told,) = problems({"privacy": {"clip_norm": value}})
    assert told.startswith("clip-norm must be")


@pytest.mark.parametrize("text", ["1e6", "1_000_000", "1000000", 1e6])
def test_a_whole_number_may_be_written_as_people_write_it(text: Any) -> None:
    assert build_settings({"privacy": {"population": text}}).privacy.population == 10**6


def test_field_names_are_unique_over_all_tables() -> None:
    names = [name for kind in sections().values() for name in kind.model_fields]
    assert len(names) == len(set(names))
    assert section_of("client_lr") == "client"
    assert section_of("nothing") is None


def test_a_table_that_is_unknown_or_no_table_is_refused() -> None:
    assert "privcy is not a setting" in problems({"privcy": {}})[0]
    assert "privacy" in problems({"privacy": 3})[0]


CHANGES: list[tuple[str, str, Any]] = [
    ("privacy", "population", 999_999),
    ("privacy", "cohort", 4_999),
    ("privacy", "simulated_cohort", 7),
    ("privacy", "rounds", 71),
    ("privacy", "noise_multiplier", 0.5),
    ("privacy", "delta", 2e-8),
    ("privacy", "clip_norm", 1.5),
    ("privacy", "clipping", "global"),
    ("privacy", "noise_placement", "server"),
    ("privacy", "randomness", "secure"),
    ("server", "strategy", "fedavg"),
    ("server", "hyperparameters", {"beta1": 0.8}),
    ("client", "client_lr", 0.25),
    ("client", "user_seconds", 3.0),
    ("task", "options", {"users": 3}),
    ("engine", "device", "cuda"),
    ("run", "seed", 2),
]


@pytest.mark.parametrize(("section", "key", "value"), CHANGES, ids=[c[1] for c in CHANGES])
def test_a_setting_that_changes_bytes_changes_the_hash_and_so_the_noise(
    section: str, key: str, value: Any
) -> None:
    changed = build_settings({section: {key: value}})
    assert settings_hash(changed, "u") != settings_hash(Settings(), "u")
    (told,) = changed_settings(Settings(), changed)
    assert told.startswith(key.replace("_", "-"))


def test_settings_that_change_no_byte_leave_the_hash_and_the_users_change_it() -> None:
    values = {
        "privacy": {"epsilon": 2.0, "accountant": "pld", "ledger": "x"},
        "task": {"data_root": "x"},
        "engine": {
            "engine": "local",
            "workers": 3,
            "ray_address": "x",
            "timeout": 5.0,
            "worker_megabytes": 50.0,
        },
        "run": {"eval_every": 9},
    }
    assert {section: set(table) for section, table in values.items()} == BYTES_UNCHANGED
    changed = build_settings(values)
    assert settings_hash(changed, "u") == settings_hash(Settings(), "u")
    assert changed_settings(Settings(), changed) == []
    assert settings_hash(Settings(), "v") != settings_hash(Settings(), "u")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)
FIELDS = [(section, name) for section, kind in sections().items() for name in kind.model_fields]


@given(values=st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4))
def test_whatever_is_given_is_taken_or_refused_in_sentences(
    values: dict[tuple[str, str], Any],
) -> None:
    tables: dict[str, Any] = {}
    for (section, name), value in values.items():
        tables.setdefault(section, {})[name] = value
    told: tuple[str, ...] = ()
    try:
        build_settings(tables)
    except SettingsError as refused:
        told = refused.problems
    assert all("must be" in sentence or "not a setting" in sentence for sentence in told)
