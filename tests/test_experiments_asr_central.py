"""Check that the model learns to recognise speakers it never heard."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from experiments.asr import central, central_training
from experiments.asr.batching import Batching
from experiments.asr.central_training import train_centrally
from experiments.asr.model import SpeechTransformer
from experiments.asr.recipes import RECIPES, Recipe, ramp, wanted_recipe
from experiments.asr.seed_models import save_model
from experiments.asr.speaker import SpeechUser
from experiments.asr.task import SpeechTask, task
from experiments.asr.tokens import ENGLISH
from fedopt.central import CentralTraining, TrainsCentrally, train
from fedopt.config import build_settings
from fedopt.simulation import simulate
from fedopt.weights import initial_model
from privacy.errors import SettingsError


def test_the_rate_rises_stays_and_falls() -> None:
    factors = [ramp(step, 400) for step in range(1, 401)]
    assert factors[0] == 0.01
    assert factors[99] == factors[199] == 1.0
    assert factors[300] == pytest.approx(0.5)
    assert factors[-1] == pytest.approx(2 / 400)
    assert ramp(1, 1) == 1.0


def test_seconds_of_training_are_enough_to_read_unseen_synthetic_speakers(
    tmp_path: Path,
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        speech = task(
            speakers=30, held_out_speakers=6, batch_size=8, cache_dir=tmp_path, progress=False
        )
        seen: list[tuple[int, float]] = []
        metrics = train_centrally(
            speech,
            steps=160,
            recipe=Recipe(learning_rate=3e-3),
            report_every=80,
            report=lambda step, loss, now: seen.append((step, now["wer"])),
        ).metrics
    finally:
        torch.set_num_threads(threads)
    assert [step for step, _ in seen] == [80, 160]
    assert metrics["wer"] < 0.35
    assert metrics["cer"] < metrics["wer"]


def test_the_same_seed_trains_the_same_model(tmp_path: Path) -> None:
    speech = task(speakers=2, held_out_speakers=1, cache_dir=tmp_path, progress=False)
    first, again, other = (
        train_centrally(speech, steps=3, seed=seed).metrics["loss"] for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_the_command_line_prints_the_result_and_refuses_bad_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert central.main(["--dataset", "librispeech", "--data-root", str(tmp_path / "no")]) == 2
    refused = capsys.readouterr()
    assert refused.out == ""
    assert "data_root must be an existing folder" in refused.err
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    small = {"speakers": 2, "held_out_speakers": 1, "progress": False}
    monkeypatch.setattr(central, "task", lambda **options: task(**{**options, **small}))
    assert central.main(["--steps", "2", "--report-every", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert central.main(["--option", "colour=red", "--option", "model"]) == 2
    assert capsys.readouterr().err.count("option must be NAME=VALUE") == 2
    assert len(lines) == 2
    assert lines[1].startswith("step 2 ")
    assert "WER" in lines[1]


# Origin: published central configurations (arXiv 2310.00098 and its code).
@pytest.mark.parametrize(
    ("name", "rates"),
    [
        ("ls", {1: 0.5, 250_000: 0.5, 300_000: 0.25, 350_000: 0.125}),
        ("ls-100", {330_000: 0.5, 330_001: 0.25, 380_000: 0.25, 380_001: 0.125}),
        ("ls-100-to-cv", {40_000: 0.5, 40_001: 0.25, 90_001: 0.125}),
        ("cv-en-10", {100_000: 0.5, 125_000: 0.25}),
        ("cv-de", {1: 0.2, 150_000: 0.2, 150_001: 0.1}),
    ],
)
def test_the_published_rates_fall_as_published(name: str, rates: dict[int, float]) -> None:
    recipe = RECIPES[name]
    factor = recipe.rate_factor(600_000)
    for step, rate in rates.items():
        assert recipe.learning_rate * factor(step) == pytest.approx(rate)
    assert recipe.optimizer == "fedlars"
    assert recipe.hyperparameters() == {
        "momentum": 0.9,
        "trust_coefficient": 0.001,
        "weight_decay": 0.0,
        "eps": 1e-8,
    }


def test_gradients_are_clipped_to_norm_one_before_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # LARS and Adam undo any factor on a gradient; only plain descent shows the clipping.
    monkeypatch.setattr(
        central_training, "_optimizer", lambda recipe, model: torch.optim.SGD(model.parameters())
    )
    sizes = {"speakers": 1, "held_out_speakers": 1, "utterances": 2, "progress": False}
    speech = task(cache_dir=tmp_path, **sizes)
    moved = {}
    for enlarged in (1e-3, 100.0):
        monkeypatch.setattr(
            speech,
            "loss",
            lambda model, batch, factor=enlarged: factor * SpeechTask.loss(speech, model, batch),
        )
        before = initial_model(speech.model, 0, None)
        steady = Recipe(learning_rate=0.5, optimizer="fedlars")  # a constant rate
        after = train_centrally(speech, steps=1, recipe=steady).model
        pairs = zip(before.parameters(), after.parameters(), strict=True)
        moved[enlarged] = sum((one - two).square().sum().item() for one, two in pairs) ** 0.5
    assert moved[100.0] == pytest.approx(0.5, rel=1e-3)
    assert moved[1e-3] < 0.05


def test_a_lars_step_has_the_published_length(tmp_path: Path) -> None:
    speech = task(speakers=2, held_out_speakers=1, cache_dir=tmp_path, progress=False)
    before = dict(initial_model(speech.model, 0, None).named_parameters())
    trained = train_centrally(speech, steps=1, recipe=RECIPES["ls-100"])
    for name, after in trained.model.named_parameters():
        start = before[name].detach().norm().item()
        moved = (after.detach() - before[name].detach()).norm().item()
        if start > 0:  # a layer at zero takes ratio 1
            assert moved == pytest.approx(0.5 * 0.001 * start, rel=1e-3), name


def test_a_seed_model_starts_a_private_run_and_a_wrong_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    seed = tmp_path / "seed.safetensors"
    sizes = ["speakers=2", "held_out_speakers=1", "progress=false"]
    options = [word for size in sizes for word in ("--option", size)]
    assert central.main(["--steps", "2", "--output", str(seed), *options]) == 0
    speech = task(speakers=2, held_out_speakers=1, progress=False)
    loaded = initial_model(speech.model, 5, str(seed))
    trained = train_centrally(speech, steps=2).model
    state = trained.state_dict()
    # The command trains with batches of 8, the call with the task's 2, so only shapes agree.
    assert {name: value.shape for name, value in loaded.state_dict().items()} == {
        name: value.shape for name, value in state.items()
    }
    again = train_centrally(speech, steps=1, init_from=seed, recipe=Recipe(1e-12)).model
    for name, value in again.state_dict().items():
        torch.testing.assert_close(value, loaded.state_dict()[name], atol=1e-9, rtol=0)
    larger = task(speakers=2, held_out_speakers=1, progress=False, language="de")
    with pytest.raises(SettingsError, match=r"head\.bias, head\.weight"):
        initial_model(larger.model, 5, str(seed))


def test_a_seed_model_of_other_characters_of_equal_number_is_refused_by_every_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    sizes = {"speakers": 2, "held_out_speakers": 1, "progress": False}
    chosen = {"task": "experiments.asr.task:task", "options": sizes}
    settings = {"task": chosen, "server": {"strategy": "central"}, "privacy": {"rounds": 1}}
    train(build_settings(settings), tmp_path / "seed")
    seed = tmp_path / "seed" / "model.safetensors"
    trained = initial_model(task(**sizes).model, 0, str(seed)).state_dict()
    again = initial_model(task(**sizes).model, 1, str(seed), task(**sizes).signature())
    assert all(torch.equal(trained[name], value) for name, value in again.state_dict().items())

    reversed_ = sizes | {"characters": ENGLISH[::-1]}
    private = {
        "task": {**chosen, "options": reversed_, "init_from": str(seed)},
        "privacy": {"rounds": 1, "simulated_cohort": 2, "noise_multiplier": 1.0},
        "engine": {"engine": "local"},
    }
    said = 'must be of a model with the characters "zyx.*", got " .*body_from'
    with pytest.raises(SettingsError, match=said):
        simulate(private, output=tmp_path / "private", report=False)
    assert not (tmp_path / "private").exists()
    with pytest.raises(SettingsError, match=said):
        train(build_settings(settings | {"task": private["task"]}), tmp_path / "no")
    with pytest.raises(SettingsError, match=said):
        train_centrally(task(**reversed_), steps=1, init_from=seed)

    body = {**reversed_, "body_from": str(seed)}
    private["task"] = {**chosen, "options": body}
    simulate(private, output=tmp_path / "private", report=False)
    last, english = tmp_path / "private" / "model.safetensors", task(**sizes)
    with pytest.raises(SettingsError, match='got "zyx'):
        initial_model(english.model, 0, str(last), english.signature())


def test_the_head_is_made_anew_on_request_only_and_the_body_is_loaded_strictly(
    tmp_path: Path,
) -> None:
    sizes = {"speakers": 1, "held_out_speakers": 1, "progress": False, "cache_dir": tmp_path}
    torch.manual_seed(1)
    english = task(**sizes).model()
    seed = tmp_path / "seed.safetensors"
    save_model(english, seed, {"steps": "0"})
    german = task(**sizes, language="de", body_from=seed).model()
    for name, value in german.state_dict().items():
        own = english.state_dict()[name]
        assert name.startswith("head.") or torch.equal(value, own), name
    assert german.state_dict()["head.weight"].shape[0] == 34
    with pytest.raises(SettingsError, match=r"outside the head; .*blocks\.0"):
        task(**sizes, model="small", body_from=seed).model()
    seed.write_bytes(b"nothing")
    with pytest.raises(SettingsError, match=r"body_from 'seed\.safetensors' must be safetensors"):
        task(**sizes, body_from=seed).model()
    with pytest.raises(SettingsError, match="body_from must be an existing file"):
        task(**sizes, body_from=tmp_path / "no")


def test_a_run_of_fedopt_trains_the_speech_task_in_one_place(tmp_path: Path) -> None:
    speech = task(speakers=2, held_out_speakers=1, cache_dir=tmp_path, progress=False)
    assert isinstance(speech, TrainsCentrally)
    options = {"optimizer": "fedlamb", "batch_size": 4}
    wanted = CentralTraining(seed=1, steps=3, report_every=2, learning_rate=0.01, options=options)
    model = initial_model(speech.model, 1, None)
    before = {name: weights.clone() for name, weights in model.state_dict().items()}
    told: list[int] = []
    speech.train_centrally(model, wanted, lambda step, loss, metrics: told.append(step))
    assert told == [2, 3]
    moved = [
        name for name, weights in model.state_dict().items() if (weights != before[name]).any()
    ]
    assert len(moved) > len(before) // 2


def test_a_published_recipe_brings_the_papers_loss_and_padding_unless_others_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"speakers": 2, "held_out_speakers": 1, "progress": False, "cache_dir": tmp_path}
    built = []
    monkeypatch.setattr(
        central, "task", lambda **options: built.append(task(**{**options, **sizes})) or built[-1]
    )
    tiny = ["--steps", "1", "--model", "tiny", "--batch-size", "2"]
    assert central.main([*tiny, "--recipe", "ls-100"]) == 0
    assert central.main(tiny) == 0
    assert central.main([*tiny, "--recipe", "ls", "--option", "loss=character"]) == 0
    chosen = [(speech.loss_per, speech.tokens.padded) for speech in built]
    assert chosen == [("utterance", True), ("character", False), ("character", True)]


def test_options_of_a_run_give_the_recipe() -> None:
    own = Batching(5, 0.0, 0.3, 2.0)
    plain, batching = wanted_recipe(CentralTraining(seed=1), own)
    assert (plain, batching) == (RECIPES["quick"], own)
    options = {"recipe": "ls-100", "optimizer": "fedlamb"}
    wanted = CentralTraining(seed=1, learning_rate=0.3, options=options)
    chosen, batching = wanted_recipe(wanted, own)
    assert (chosen.learning_rate, chosen.optimizer, chosen.start) == (0.3, "fedlamb", 330_000)
    assert batching == Batching(5, 240.0, 0.3, 2.0)
    assert wanted_recipe(wanted, Batching(5, 60.0))[1] == Batching(5, 60.0)
    three = CentralTraining(seed=1, options=options | {"batch_size": 3})
    assert wanted_recipe(three, Batching(5, 60.0, 0.3, 2.0))[1] == Batching(3, 0.0, 0.3, 2.0)


def test_a_run_brings_the_options_of_its_recipe_and_keeps_those_of_the_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[SpeechTask, Batching | None]] = []
    everyone = SpeechTask.all_training_data

    def spy(self: SpeechTask, batching: Batching | None = None) -> SpeechUser:
        seen.append((self, batching))
        return everyone(self, batching)

    monkeypatch.setattr(SpeechTask, "all_training_data", spy)
    sizes = {"speakers": 1, "utterances": 2, "held_out_speakers": 1, "progress": False}
    options = {**sizes, "cache_dir": str(tmp_path / "cache"), "most_padding": 0.25, "dropout": 0.1}
    settings = build_settings(
        {
            "privacy": {"rounds": 1},
            "server": {"strategy": "central", "hyperparameters": {"recipe": "cv-en-10"}},
            "engine": {"device": "cpu"},
            "task": {"task": "experiments.asr.task:task", "model": "tiny", "options": options},
        }
    )
    train(settings, tmp_path / "run")
    ((built, batching),) = seen
    assert batching == Batching(2, 216.0, 0.25, 5.0)
    model = built.model()
    assert isinstance(model, SpeechTransformer)
    assert (model.layer_drop, model.blocks[0].dropout) == (0.4, 0.1)
    assert built._augmentation.time_masks == 10


def test_weights_are_kept_at_every_report_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed, steps = tmp_path / "seed.safetensors", []

    def stop(
        model: torch.nn.Module, path: Path, about: dict[str, str], signature: dict[str, str]
    ) -> None:
        save_model(model, path, about, signature)
        steps.append(about["steps"])
        if len(steps) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(central, "save_model", stop)
    sizes = ["speakers=1", "utterances=2", "held_out_speakers=1", "progress=false"]
    options = [word for size in (*sizes, f"cache_dir={tmp_path}") for word in ("--option", size)]
    command = ["--steps", "9", "--report-every", "1", "--output", str(seed), *options]
    with pytest.raises(KeyboardInterrupt):
        central.main(command)
    assert steps == ["1", "2"]
    assert seed.is_file()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"colour": 1}, "got colour"),
        ({"recipe": "x"}, "recipe must be one of quick"),
        ({"optimizer": "x"}, "optimizer must be one of adam"),
        ({"batch_size": 0}, "batch_size must be a whole number"),
        ({"batch_size": 1.5}, "batch_size must be a whole number"),
    ],
)
def test_wrong_options_of_a_run_are_refused(options: dict[str, float | str], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        wanted_recipe(CentralTraining(seed=1, options=options), Batching())


def test_all_wrong_options_are_told_together() -> None:
    wrong = {"colour": 1, "recipe": "x", "optimizer": "y", "batch_size": True}
    with pytest.raises(SettingsError) as refused:
        wanted_recipe(CentralTraining(seed=1, options=wrong), Batching())
    assert len(refused.value.problems) == 4
