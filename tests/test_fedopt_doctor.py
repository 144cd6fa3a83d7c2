"""Show that the doctor tells what is there, and finds what stands in the way of a run."""

from __future__ import annotations

import pytest

from fedopt import doctor
from fedopt.cli import main
from fedopt.planning import engine_choice

GOOD = {
    "python": "3.11.7",
    "flwr": "1.41.0",
    "torch": "2.11.0+cpu",
    "torchaudio": "2.11.0+cpu",
    "numpy": "2.1.0",
    "opacus": "1.6.0",
    "dp-accounting": "0.6.0",
    "safetensors": "0.5.0",
    "ray": "2.55.1",
}


def test_a_sound_installation_is_shown_with_engine_and_reason(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    for name in ("python", "torch", "flwr", "cores", "memory", "GPU", "engine", "shared memory"):
        assert any(line.startswith(name) for line in shown.splitlines()), name
    engine, why = engine_choice()
    assert f"{engine}: {why}" in shown


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"flwr": "1.42.0"}, "flwr must be 1.41.x, got 1.42.0"),
        ({"torchaudio": "2.9.0"}, "torchaudio 2.9.0 does not import with torch 2.11.0"),
        ({"opacus": None}, "opacus is missing"),
    ],
)
def test_a_version_that_does_not_fit_is_a_problem(
    change: dict[str, str | None],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = {name: text for name, text in (GOOD | change).items() if text is not None}
    monkeypatch.setattr(doctor, "versions", lambda: found)
    assert main(["doctor"]) == 2
    assert told in capsys.readouterr().out


def test_what_fits_is_no_problem_and_missing_extras_are_hints() -> None:
    assert doctor.installation_problems(GOOD) == []
    bare = {name: text for name, text in GOOD.items() if name not in ("ray", "torchaudio")}
    assert doctor.installation_problems(bare) == []
    told = doctor.hints(bare, [])
    assert any("fedopt[ray]" in hint for hint in told)
    assert any("fedopt[speech]" in hint for hint in told)
    assert any("one worker for each" in hint for hint in doctor.hints(GOOD, ["a", "b"]))
