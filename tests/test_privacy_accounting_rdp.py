"""Check that Opacus' analysis is its own, and that reading it imports none of its trainers."""

from __future__ import annotations

import subprocess
import sys

import pytest

from privacy.accounting_rdp import _opacus_analysis

CALIBRATE = """
import sys
from privacy.plan import PrivacyPlan
plan = PrivacyPlan.for_epsilon(
    epsilon=8, population=1000000, cohort=5000, rounds=70, delta=1e-8, clip_norm=1.0
)
print(sorted({"torch", "opacus", "flwr", "ray"} & set(sys.modules)))
"""

STEP = """
import sys
import torch
from strategies.optimizers import build_optimizer
weight = torch.nn.Parameter(torch.zeros(3))
optimizer = build_optimizer("fedadam", [("weight", weight)], lr=0.1)
weight.grad = torch.ones(3)
optimizer.step()
optimizer.zero_grad()
optimizer.load_state_dict(optimizer.state_dict())
print(sorted({"torch._dynamo", "sympy"} & set(sys.modules)))
"""


@pytest.mark.parametrize("code", [CALIBRATE, STEP], ids=["calibrate", "server-step"])
def test_nothing_heavy_is_imported_that_is_not_used(code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "[]"


def test_the_analysis_is_that_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    from opacus.accountants.analysis import rdp

    monkeypatch.delitem(sys.modules, rdp.__name__)
    _opacus_analysis.cache_clear()
    ours = _opacus_analysis()
    _opacus_analysis.cache_clear()
    assert ours is not rdp
    assert ours.__file__ == rdp.__file__
    orders = [1.5, 2.0, 8.8, 64.0]
    for noise_multiplier in (0.5, 1.0, 4.0):
        wish = {"q": 0.005, "noise_multiplier": noise_multiplier, "steps": 1, "orders": orders}
        assert list(ours.compute_rdp(**wish)) == list(rdp.compute_rdp(**wish))
