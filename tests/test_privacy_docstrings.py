"""Hold the privacy floor to its own words: sources, guarantees, limits and examples that run."""

import doctest
import importlib
import inspect
from pathlib import Path

import pytest

FLOOR = Path(__file__).parent.parent / "privacy"
MODULES = sorted(path.stem for path in FLOOR.glob("[a-z]*.py"))

# What draws, bounds, hides or accounts for people's data, by module.
MECHANISMS = {
    "plan": ["PrivacyPlan"],
    "sampling": ["poisson_cohort", "fixed_cohort", "cut_to_cap"],
    "seeds": ["KeyedSource", "SystemSource"],
    "clipping": ["clip_update"],
    "noise": ["add_noise"],
    "accounting": ["epsilon_spent", "epsilon_without_amplification"],
    "accounting_rdp": ["renyi_bound"],
    "accounting_pld": ["loss_bound"],
    "accounting_profile": ["quick_epsilon"],
    "loss_composition": ["compose"],
    "loss_grid": ["one_round"],
    "gaussian": ["gaussian_epsilon"],
    "calibration": [
        "noise_multiplier_for",
        "rounds_for",
        "cohort_for",
        "cohort_at_sample_rate",
        "population_for",
    ],
    "audit": ["gaussian_bound", "one_run_bound"],
    "statement": ["guarantee_sentence"],
}
NAMES = [(module, name) for module, names in MECHANISMS.items() for name in names]


def public_objects(module):
    """List the functions and classes that a module defines for others."""
    found = importlib.import_module(f"privacy.{module}")
    for name, thing in vars(found).items():
        own = getattr(thing, "__module__", "") == found.__name__
        if (
            own
            and not name.startswith("_")
            and (inspect.isfunction(thing) or inspect.isclass(thing))
        ):
            yield name, thing


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_every_mechanism_states_what_it_guarantees_and_what_not(module, name):
    words = inspect.getdoc(getattr(importlib.import_module(f"privacy.{module}"), name))
    guarantee, limits = words.index("Guarantee: "), words.index("Not covered: ")
    assert guarantee < limits
    # Only an example may follow.
    last = words[limits:].split("\n\n")
    assert all(paragraph.startswith(">>> ") for paragraph in last[1:])


@pytest.mark.parametrize("module", MODULES)
def test_every_public_docstring_begins_with_a_sentence(module):
    for name, thing in public_objects(module):
        first = inspect.getdoc(thing).split("\n\n")[0]
        assert "." in first, name
        assert first[0].isupper(), name


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_every_mechanism_shows_an_example(module, name):
    thing = getattr(importlib.import_module(f"privacy.{module}"), name)
    examples = doctest.DocTestParser().get_examples(inspect.getdoc(thing))
    shown = any(example.want for example in examples)
    # Noise is shown by its scale: what it draws is random.
    assert shown or (module, name) == ("noise", "add_noise")


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_of_a_room_give_what_they_say(module):
    assert doctest.testmod(importlib.import_module(f"privacy.{module}")).failed == 0
