"""Start small central trainings here or in children that are killed, and compare what they left."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import pytest
from engine_runs import children, dying, ending

from fedopt import run_directory
from fedopt.central import train
from fedopt.config import Settings, build_settings

LAST = 7
RANDOM = {"dropout": 0.2, "layer_drop": 0.2, "speed": 0.1, "tract": 0.1, "spec_augment": "paper"}
"""All that is drawn at random in a training; with four batches an epoch, it takes two epochs."""

PLACES = {
    "before settings": ("fedopt.run_directory:write_tables", False),
    "after settings": ("fedopt.run_directory:write_tables", True),
    "inside state": ("strategies.checkpoint:sync", False),
    "after state": ("strategies.checkpoint:CheckpointFolder.write_aside", True),
    "after publish": ("strategies.checkpoint:CheckpointFolder.publish", True),
    "after model": ("fedopt.run_directory:write_model", True),
    "after row": ("fedopt.run_log:RunLog.append", True),
    "between steps": ("experiments.asr.speech_task:SpeechTask.loss", True),
    "in evaluation": ("experiments.asr.speech_task:SpeechTask.evaluate", False),
    "before report": ("fedopt.run_directory:write_text", False),
}


def central_settings(
    cache: Path, optimizer: str = "adam", changes: Mapping[str, Any] | None = None, **options: Any
) -> Settings:
    """Build the settings of a few steps of tiny speech; `changes` maps section.key to value."""
    sizes = {"speakers": 2, "utterances": 5, "held_out_speakers": 1, "progress": False}
    tables: dict[str, dict[str, Any]] = {
        "privacy": {"rounds": LAST},
        "server": {"strategy": "central", "hyperparameters": {"optimizer": optimizer}},
        "task": {
            "model": "tiny",
            "options": {**sizes, "batch_size": 3, "cache_dir": str(cache), **options},
        },
        "engine": {"device": "cpu"},
        "run": {"eval_every": 2, "seed": 3},
    }
    for name, value in (changes or {}).items():
        section, key = name.split(".")
        tables[section][key] = value
    return build_settings(tables)


def left_behind(folder: Path) -> tuple[bytes, str, list[dict[str, Any]], list[str]]:
    """Give model bytes, rows, the report's history, and the files of a finished training."""
    report = json.loads((folder / "central-report.json").read_text())
    return (
        (folder / "model.safetensors").read_bytes(),
        (folder / "steps.jsonl").read_text(),
        report["history"],
        sorted(path.name for path in folder.iterdir()),
    )


class Stopped(BaseException):
    """End a training in this process as if it were killed."""


def stop_at(monkeypatch: pytest.MonkeyPatch, place: str, number: int) -> None:
    """Let the `number`th time that a training comes to a place be its end."""
    path, after = PLACES[place]
    ended = ending(_found(path)[2], number, after, _stop)
    monkeypatch.setattr(path.replace(":", "."), ended)


def _stop() -> NoReturn:
    raise Stopped


def killed(settings: Settings, folder: Path, place: str, number: int) -> None:
    """Train in a child process that ends itself with -9 at a place."""
    process = children().Process(
        target=_child_main,
        args=(settings.model_dump(exclude_unset=True), str(folder), place, number),
    )
    process.start()
    process.join(120)
    assert process.exitcode == -9


def _child_main(tables: dict[str, Any], folder: str, place: str, number: int) -> None:
    path, after = PLACES[place]
    owner, name, function = _found(path)
    setattr(owner, name, dying(function, number, after))
    train(build_settings(tables), Path(folder), resume=run_directory.is_run(Path(folder)))


def _found(path: str) -> tuple[Any, str, Callable[..., Any]]:
    """Find a function by module:name: what holds it, its name, itself."""
    import importlib

    module, _, names = path.partition(":")
    owner: Any = importlib.import_module(module)
    *outer, name = names.split(".")
    for each in outer:
        owner = getattr(owner, each)
    return owner, name, getattr(owner, name)
