"""Check the speech task as the engines use it."""

from __future__ import annotations

import itertools
import logging
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from clients.task import Task, load_task
from experiments.asr.batching import Batching, SpeechBatch
from experiments.asr.corpora import Corpus, UnreadableAudio, Utterance
from experiments.asr.evaluation import Measured
from experiments.asr.layers import TimePositions
from experiments.asr.model import SpeechTransformer, build_model
from experiments.asr.options import SpeechOptions
from experiments.asr.speaker import SpeechUser
from experiments.asr.task import SpeechTask, outline, task
from experiments.asr.tokens import Tokens
from experiments.asr.word_error_rate import ErrorCounts
from privacy.errors import SettingsError

SIZES = {"speakers": 4, "utterances": 6, "held_out_speakers": 2, "progress": False}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def speech(cache: Path) -> SpeechTask:
    return task(cache_dir=cache, **SIZES)


def test_the_task_is_found_by_name_and_offers_the_protocol(cache: Path) -> None:
    found = load_task("experiments.asr.task:task", {**SIZES, "cache_dir": str(cache)})
    assert isinstance(found, Task)
    assert isinstance(found, SpeechTask)
    assert found.metric == "wer"
    assert found.splits == ("dev", "test")
    assert list(found.user_ids()) == sorted(found.user_ids())
    assert len(found.user_ids()) == 4


def test_an_unknown_option_is_a_settings_error() -> None:
    with pytest.raises(SettingsError, match="does not take these options"):
        load_task("experiments.asr.task:task", {"colour": "red"})


def test_every_wrong_option_is_reported_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        task(
            dataset="radio",
            model="huge",
            dropout=2.0,
            batch_size=0,
            speakers=0,
            spec_augment="some",
            speed=0.9,
        )
    text = str(caught.value)
    assert len(caught.value.problems) == 7
    for option in (
        "dataset",
        "model",
        "dropout",
        "batch_size",
        "speakers",
        "spec_augment",
        "speed",
    ):
        assert f"{option} must be" in text


def test_a_missing_data_root_is_a_settings_error() -> None:
    with pytest.raises(SettingsError, match="data_root must be an existing folder"):
        task(dataset="librispeech", data_root="/no/such/folder")


def test_one_epoch_holds_each_utterance_of_the_user_once(speech: SpeechTask) -> None:
    user = speech.user_data(speech.user_ids()[1])
    batches = list(user.batches(np.random.default_rng(0)))
    assert [len(batch.feature_lengths) for batch in batches] == [2, 2, 2]
    written = []
    for batch in batches:
        ends = batch.target_lengths.cumsum(0).tolist()
        starts = [0, *ends]
        labels = batch.targets.tolist()
        written += [
            speech.tokens.decode(labels[start:end])
            for start, end in zip(starts, ends, strict=False)
        ]
        for features, length in zip(batch.features, batch.feature_lengths, strict=True):
            assert not features[length:].any()
    assert sorted(written) == sorted(item.text for item in user.utterances)


@pytest.mark.parametrize("spec_augment", [False, True])
def test_batches_depend_on_the_generator_only(cache: Path, spec_augment: bool) -> None:
    built = task(cache_dir=cache, spec_augment=spec_augment, speed=0.1, tract=0.1, **SIZES)
    user = built.user_data(built.user_ids()[0])
    first, again, other = (list(user.batches(np.random.default_rng(seed))) for seed in (3, 3, 4))
    for one, two in zip(first, again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert any(
        one.features.shape != two.features.shape or not torch.equal(one.features, two.features)
        for one, two in zip(first, other, strict=True)
    )


def _brute_force_loss(log_probabilities: np.ndarray, labels: list[int]) -> float:
    """Add up the probability of every path that collapses to the labels."""
    steps, size = log_probabilities.shape
    total = 0.0
    for path in itertools.product(range(size), repeat=steps):
        kept = [label for label, _ in itertools.groupby(path)]
        if [label for label in kept if label] == labels:
            total += math.exp(
                sum(log_probabilities[step, label] for step, label in enumerate(path))
            )
    return -math.log(total)


class _Fixed(torch.nn.Module):
    def __init__(self, logits: torch.Tensor, lengths: list[int]) -> None:
        super().__init__()
        self.logits, self.lengths = torch.nn.Parameter(logits), torch.tensor(lengths)

    def forward(
        self, features: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.logits, self.lengths


def _batch(labels: list[list[int]]) -> SpeechBatch:
    return SpeechBatch(
        torch.zeros(len(labels), 6, 80),
        torch.full((len(labels),), 6),
        torch.tensor([label for row in labels for label in row]),
        torch.tensor([len(row) for row in labels]),
    )


def test_the_loss_is_the_sum_over_all_paths_per_character(speech: SpeechTask) -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 4, 3)
    loss = speech.loss(_Fixed(logits, [4, 3]), _batch([[1, 1], [2]]))
    log_probabilities = torch.log_softmax(logits, dim=-1).numpy()
    first = _brute_force_loss(log_probabilities[0], [1, 1])
    second = _brute_force_loss(log_probabilities[1, :3], [2])
    assert loss.item() == pytest.approx((first + second) / 3, rel=1e-5)


def test_labels_that_do_not_fit_count_zero_and_stay_finite(speech: SpeechTask) -> None:
    model = _Fixed(torch.randn(2, 4, 3), [4, 4])
    loss = speech.loss(model, _batch([[1, 1, 1, 1], [2]]))
    loss.backward()  # type: ignore[no-untyped-call]
    assert math.isfinite(loss.item())
    assert model.logits.grad is not None
    assert not model.logits.grad[0].any()
    assert model.logits.grad[1].any()


def test_evaluation_covers_the_split_and_leaves_the_model_as_it_was(speech: SpeechTask) -> None:
    torch.manual_seed(0)
    model = speech.model().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    metrics = speech.evaluate(model, "dev")
    assert set(metrics) == {"loss", "wer", "cer", "wer_p50", "wer_p90"}
    assert metrics["wer"] > 0.9
    assert metrics["loss"] > 1.0
    assert metrics == speech.evaluate(model, "dev")
    assert metrics != speech.evaluate(model, "test")
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    with pytest.raises(SettingsError, match="split must be one of dev, test"):
        speech.evaluate(model, "train")


def test_a_perfect_model_has_no_errors(speech: SpeechTask, monkeypatch: pytest.MonkeyPatch) -> None:
    def oracle(logits: torch.Tensor, lengths: torch.Tensor, tokens: Tokens) -> list[str]:
        return [said.pop(0) for _ in lengths]

    dev = sorted(speech.corpus.split("dev"), key=lambda item: item.seconds)
    said = [item.text for item in dev]
    monkeypatch.setattr("experiments.asr.evaluation.greedy_decode", oracle)
    metrics = speech.evaluate(speech.model(), "dev")
    assert not said
    assert metrics["wer"] == metrics["cer"] == 0.0


def test_the_loss_of_the_split_is_weighted_by_characters(speech: SpeechTask) -> None:
    torch.manual_seed(0)
    model = speech.model().eval()
    held_out = SpeechUser(
        speech.corpus.split("dev"), speech._bank, speech.tokens, Batching(1), speech._augmentation
    )
    total, characters = 0.0, 0
    with torch.inference_mode():
        for batch in held_out.batches(np.random.default_rng(0)):
            count = int(batch.target_lengths.sum())
            total += speech.loss(model, batch).item() * count
            characters += count
    assert speech.evaluate(model, "dev")["loss"] == pytest.approx(total / characters, rel=1e-4)


def test_the_description_counts_what_is_there(speech: SpeechTask) -> None:
    facts = speech.describe()
    assert facts["training speakers"] == 4
    assert facts["training utterances"] == 24
    assert facts["dev speakers"] == facts["test speakers"] == 2
    seconds = sum(item.seconds for item in speech.corpus.split("train"))
    assert facts["training hours"] == pytest.approx(seconds / 3600, abs=1e-3)


def test_batches_travel_to_other_processes_and_devices(speech: SpeechTask) -> None:
    batch = next(iter(speech.all_training_data().batches(np.random.default_rng(0))))
    copy = pickle.loads(pickle.dumps(batch))
    assert all(torch.equal(one, two) for one, two in zip(batch, copy, strict=True))
    moved = speech.move(batch, "meta")
    assert isinstance(moved, SpeechBatch)
    assert {tensor.device.type for tensor in moved} == {"meta"}


def _spoken(key: str, split: str, text: str, seconds: float) -> Utterance:
    return Utterance(key, f"speaker-{key}", split, text, seconds)


def _read(utterance: Utterance) -> np.ndarray:
    if utterance.text == "broken":
        raise UnreadableAudio("it is broken")
    generator = np.random.default_rng(len(utterance.text))
    return generator.normal(0, 0.1, int(utterance.seconds * 16000)).astype(np.float32)


def test_what_cannot_be_learned_is_left_out_named_and_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    corpus = Corpus(
        "hand-made",
        (
            _spoken("a", "train", "fits", 1.0),
            _spoken("b", "train", "far too many letters for this", 0.3),
            _spoken("c", "train", "long", 31.0),
            _spoken("d", "train", "broken", 1.0),
            _spoken("e", "dev", "good", 1.0),
            _spoken("f", "dev", "broken", 1.0),
        ),
        _read,
        notes={"missing audio": 2},
    )
    with caplog.at_level(logging.WARNING):
        built = SpeechTask(corpus, lambda labels: build_model("tiny", labels))
    assert caplog.messages == [
        "Skipped b in hand-made: more labels than steps",
        "Skipped c in hand-made: longer than 30 seconds",
    ]
    assert list(built.user_ids()) == ["speaker-a", "speaker-d"]
    assert built.splits == ("dev",)
    assert list(built.user_data("speaker-d").batches(np.random.default_rng(0))) == []
    assert built.evaluate(built.model(), "dev")["loss"] > 0
    facts = built.describe()
    assert facts["corpus: missing audio"] == 2
    assert facts["corpus: more labels than steps"] == 1
    assert facts["corpus: longer than 30 seconds"] == 1
    assert facts["corpus: unreadable when read"] == 2


def test_error_rates_by_speaker_are_percentiles_over_speakers() -> None:
    counts = {f"s{number}": ErrorCounts(number, 10, 0, 10) for number in range(11)}
    measured = Measured(0.5, counts, speech_seconds=8.0, padded_seconds=10.0, wall_seconds=2.0)
    metrics = measured.metrics
    assert metrics["wer"] == 0.5
    assert metrics["wer_p50"] == pytest.approx(0.5)
    assert metrics["wer_p90"] == pytest.approx(0.9)
    assert measured.real_time_factor == 0.25
    assert measured.padding_share == pytest.approx(0.2)
    assert Measured(0.0, {}, 0.0, 0.0, 1.0).metrics == {}


@pytest.mark.parametrize(("broken", "read"), [("broken", 0), ("good", 1)])
def test_an_evaluation_that_could_not_read_all_says_so_and_never_looks_perfect(
    broken: str, read: int, caplog: pytest.LogCaptureFixture
) -> None:
    utterances = (
        _spoken("a", "train", "fits", 1.0),
        _spoken("e", "dev", broken, 1.0),
        _spoken("f", "dev", "broken", 1.0),
    )
    built = SpeechTask(
        Corpus("hand-made", utterances, _read), lambda labels: build_model("tiny", labels)
    )
    with caplog.at_level(logging.WARNING, "experiments.asr.speech_task"):
        for _ in range(2):
            metrics = built.evaluate(built.model(), "dev")
    assert metrics["evaluated_utterances"] == read
    assert ("wer" in metrics, "loss" in metrics) == (bool(read), bool(read))
    ours = "experiments.asr.speech_task"
    (said,) = [each.message for each in caplog.records if each.name == ours]
    assert said == (
        "Evaluated 1 of 2 utterances of the dev split"
        if read
        else "No utterance of the dev split can be read, so it has no wer"
    )
    assert ("real-time factor of evaluation" in built.describe()) == bool(read)


def test_an_evaluation_tells_its_speed_and_padding(speech: SpeechTask) -> None:
    torch.manual_seed(0)
    speech.evaluate(speech.model(), "dev")
    latest = speech.latest
    assert latest is not None
    spoken = sum(item.seconds for item in speech.corpus.split("dev"))
    assert latest.speech_seconds == pytest.approx(spoken, rel=0.02)
    assert set(latest.by_speaker) == {item.speaker for item in speech.corpus.split("dev")}
    facts = speech.describe()
    assert float(facts["real-time factor of evaluation"]) > 0
    assert 0 <= float(facts["padding share of evaluation"]) < 0.5
    assert 0 <= float(facts["padding share of batches"]) < 0.5


def test_batches_by_seconds_stay_within_the_seconds(cache: Path) -> None:
    built = task(cache_dir=cache, batch_seconds=4.0, pad_seconds=0.5, **SIZES)
    user = built.user_data(built.user_ids()[0])
    batches = list(user.batches(np.random.default_rng(0)))
    assert sum(len(batch.feature_lengths) for batch in batches) == 6
    for batch in batches:
        rows, frames, _ = batch.features.shape
        assert frames % 50 == 0
        assert rows * frames <= 400 or rows == 1


def test_half_precision_trains_to_nearly_the_same_loss(cache: Path) -> None:
    exact, half = (
        task(cache_dir=cache, precision=precision, **SIZES) for precision in ("float32", "bfloat16")
    )
    torch.manual_seed(0)
    model = exact.model()
    batch = next(iter(exact.all_training_data().batches(np.random.default_rng(0))))
    one, two = exact.loss(model, batch), half.loss(model, batch)
    assert one.dtype == two.dtype == torch.float32
    assert one.item() == pytest.approx(two.item(), rel=0.02)
    assert one.item() != two.item()


def test_model_options_reach_the_model(cache: Path) -> None:
    changed = {"positions": "sinusoidal", "norm": "post", "checkpoint_activations": True}
    model = task(cache_dir=cache, **changed, **SIZES).model()
    assert isinstance(model, SpeechTransformer)
    assert isinstance(model.positions, TimePositions)
    assert not any(block.norm_first for block in model.blocks)
    assert model.checkpoint_activations
    conformer = task(cache_dir=cache, model="experiments.asr.conformer:small_conformer", **SIZES)
    torch.manual_seed(0)
    batch = next(iter(conformer.all_training_data().batches(np.random.default_rng(0))))
    loss = conformer.loss(conformer.model(), batch)
    loss.backward()  # type: ignore[no-untyped-call]
    assert math.isfinite(loss.item())


@pytest.mark.parametrize("compiled", [False, True])
def test_blocks_are_compiled_where_asked(
    cache: Path, monkeypatch: pytest.MonkeyPatch, compiled: bool
) -> None:
    seen: list[torch.nn.Module] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda part, **how: seen.append(part))
    model = task(cache_dir=cache, compiled=compiled, **SIZES).model()
    assert isinstance(model, SpeechTransformer)
    assert seen == (list(model.blocks) if compiled else [])


def test_users_can_be_parted_dealt_evenly_and_capped(cache: Path) -> None:
    options = {"user_part": "fl-50", "iid": True, "most_user_seconds": 5.0}
    built = task(cache_dir=cache, **options, **SIZES)
    whole = task(cache_dir=cache, **SIZES)
    assert set(built.user_ids()) < set(whole.user_ids())
    assert len(built.user_ids()) == 2
    for user in built.user_ids():
        assert sum(item.seconds for item in built.user_data(user).utterances) <= 5.0
    left_out = built.describe()["corpus: beyond the seconds of a user"]
    assert built.describe()["training utterances"] == 12 - int(left_out)


def test_letters_outside_the_token_set_are_counted(cache: Path) -> None:
    built = task(cache_dir=cache, characters=" efhinorstuvwx", **SIZES)
    count = built.describe()["corpus: characters without a label"]
    said = [item.text for item in built.corpus.utterances]
    assert count == sum(bool(set(text) - set(" efhinorstuvwx")) for text in said) > 0
    assert built.model().state_dict()["head.bias"].shape == (15,)


def test_the_outline_has_model_and_cost_but_no_users() -> None:
    built = outline(dataset="common-voice", model="narrow", batch_seconds=120.0)
    assert list(built.user_ids()) == []
    with torch.device("meta"):
        assert sum(p.numel() for p in built.model().parameters()) == 113_910_816
    hours = built.gpu_hours(2000, 1024, 10, 1)
    assert hours is not None
    assert built.gpu_hours(1000, 1024, 10, 1) == pytest.approx(hours / 2)
    assert built.gpu_hours(2000, 1024, 0, 10) == pytest.approx(hours * 10 * 2.8 / 20)
    assert "published mean of Common Voice 13 en" in built.cost_assumption(0)
    megabytes = built.batch_megabytes()
    assert megabytes is not None
    assert 3_000 < megabytes < 9_000
    foreign = outline(model="experiments.asr.conformer:small_conformer")
    assert foreign.gpu_hours(1, 1, 1, 1) is None
    assert foreign.batch_megabytes() is None
    assert foreign.cost_assumption(1) == ""


def test_every_wrong_new_option_is_reported_at_once() -> None:
    wrong = {
        "batch_seconds": -1.0,
        "most_padding": 2.0,
        "pad_seconds": True,
        "most_user_seconds": "all",
        "read_threads": -1,
        "precision": "half",
        "iid": 1,
        "subsets": "train-clean-100",
        "user_part": "some",
        "language": "xx",
        "positions": "none",
    }
    with pytest.raises(SettingsError) as caught:
        SpeechOptions(**wrong)  # type: ignore[arg-type]
    assert len(caught.value.problems) == len(wrong)
    assert all(any(name in text for text in caught.value.problems) for name in wrong)


def test_progress_is_told_to_a_callable_and_shown_as_a_bar_otherwise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[tuple[int, int]] = []
    sizes = {**SIZES, "speakers": 1, "held_out_speakers": 1, "utterances": 1}
    task(cache_dir=tmp_path / "one", **{**sizes, "progress": lambda *now: told.append(now)})
    assert told == [(1, 3), (2, 3), (3, 3)]
    task(cache_dir=tmp_path / "two", **{**sizes, "progress": True})
    assert capsys.readouterr().out == ""


def test_a_batch_that_memory_does_not_hold_has_the_same_loss_in_halves(speech: SpeechTask) -> None:
    batch = next(speech.user_data(speech.user_ids()[0]).batches(np.random.default_rng(1)))
    three = SpeechBatch(
        torch.cat([batch.features, batch.features[:1]]),
        torch.cat([batch.feature_lengths, batch.feature_lengths[:1]]),
        torch.cat([batch.targets, batch.targets[: int(batch.target_lengths[0])]]),
        torch.cat([batch.target_lengths, batch.target_lengths[:1]]),
    )
    model = speech.model().eval()
    whole = speech.loss(model, three)
    halves = speech.halve(three)
    assert [len(half.target_lengths) for _, half in halves] == [1, 2]
    parts = sum(weight * float(speech.loss(model, half).detach()) for weight, half in halves)
    assert parts == pytest.approx(float(whole.detach()), rel=1e-5)
    (only,) = speech.halve(halves[0][1])
    assert only == (1.0, halves[0][1])


def test_the_loss_per_utterance_is_that_per_character_times_their_length(cache: Path) -> None:
    by_character, by_utterance = (
        task(cache_dir=cache, loss=loss, **SIZES) for loss in ("character", "utterance")
    )
    user = by_character.user_ids()[0]
    batch = next(by_character.user_data(user).batches(np.random.default_rng(1)))
    model = by_character.model().eval()
    letters = batch.target_lengths.double().mean()
    assert len(set(batch.target_lengths.tolist())) == 2
    whole = float(by_utterance.loss(model, batch).detach())
    assert whole == pytest.approx(
        float(by_character.loss(model, batch).detach() * letters), rel=1e-6
    )
    halves = by_utterance.halve(batch)
    assert [weight for weight, _ in halves] == [0.5, 0.5]
    parts = sum(w * float(by_utterance.loss(model, half).detach()) for w, half in halves)
    assert parts == pytest.approx(whole, rel=1e-5)
    held = [item for item in by_character.corpus.utterances if item.split == "dev"]
    mean = sum(len(item.text) for item in held) / len(held)
    measured = [built.evaluate(model, "dev")["loss"] for built in (by_character, by_utterance)]
    assert measured[1] == pytest.approx(measured[0] * mean, rel=1e-6)


def test_padded_text_begins_and_ends_with_a_space_in_training_and_evaluation(cache: Path) -> None:
    plain, padded = (task(cache_dir=cache, pad_text=pad, **SIZES) for pad in (False, True))
    user = plain.user_ids()[0]
    bare, wide = (
        next(built.user_data(user).batches(np.random.default_rng(1))) for built in (plain, padded)
    )
    ends = torch.tensor([plain.tokens.encode(" ")[0]] * 2)
    assert wide.target_lengths.tolist() == (bare.target_lengths + 2).tolist()
    first = int(wide.target_lengths[0])
    torch.testing.assert_close(wide.targets[[0, first - 1]], ends)
    torch.testing.assert_close(wide.targets[1 : first - 1], bare.targets[: first - 2])
    model = plain.model().eval()
    losses = [built.evaluate(model, "dev")["loss"] for built in (plain, padded)]
    assert losses[0] != losses[1]
    assert plain.latest
    assert padded.latest
    assert plain.latest.by_speaker == padded.latest.by_speaker
