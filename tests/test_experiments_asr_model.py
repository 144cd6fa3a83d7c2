"""Check the models: sizes, formulas block by block, and that padding changes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from experiments.asr.layers import (
    Block,
    ConvolutionPositions,
    GatedFrontEnd,
    ModelSettings,
    TimePositions,
    TwoConvolutions,
)
from experiments.asr.model import (
    PRESETS,
    ModelChanges,
    SpeechTransformer,
    build_model,
    check_model,
    compile_blocks,
)
from privacy.errors import SettingsError

SMALL_PAPER = ModelSettings(2, 32, dropout=0.0, layer_drop=0.0)


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# Origin: parameter counts computed for arXiv 2310.00098 with 30 labels; the paper prints
# 255 M, 114 M, 114 M, 450 M and 510 M.
@pytest.mark.parametrize(
    ("name", "parameters", "tensors"),
    [
        ("base", 255_800_864, 296),
        ("narrow", 113_910_816, 296),
        ("shallow", 114_181_664, 136),
        ("wide", 454_314_016, 296),
        ("deep", 510_715_424, 584),
    ],
)
def test_the_papers_models_have_the_papers_sizes(name: str, parameters: int, tensors: int) -> None:
    with torch.device("meta"):
        model = build_model(name, 30)
    assert _count(model) == parameters
    assert len(list(model.parameters())) == tensors
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not list(model.buffers())


def test_a_block_of_the_base_model_has_the_papers_size() -> None:
    with torch.device("meta"):
        block = Block(PRESETS["base"])
        front_end = GatedFrontEnd(768, 0.3)
    assert _count(block) == 7_080_960
    assert _count(front_end.convolution) == 861_696


def test_the_tiny_model_has_about_a_third_of_a_million_parameters() -> None:
    tiny = build_model("tiny", 30)
    assert _count(tiny) == 292_830
    assert len(list(tiny.parameters())) == 26
    assert not any(isinstance(module, nn.BatchNorm1d) for module in tiny.modules())


def test_weights_come_from_the_global_generator() -> None:
    models = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        models.append(
            torch.cat([value.flatten() for value in build_model("tiny", 30).parameters()])
        )
    assert torch.equal(models[0], models[1])
    assert not torch.equal(models[0], models[2])


@pytest.mark.parametrize(
    "settings",
    [
        PRESETS["tiny"],
        SMALL_PAPER,
        ModelSettings(2, 32, norm="post", positions="sinusoidal", dropout=0.0, layer_drop=0.0),
    ],
)
def test_padding_and_neighbours_change_no_result(settings: ModelSettings) -> None:
    torch.manual_seed(0)
    model = SpeechTransformer(settings, 30).eval()
    short, long = torch.randn(1, 61, 80), torch.randn(1, 100, 80)
    together = torch.zeros(2, 130, 80)
    together[0, :61], together[1, :100] = short[0], long[0]
    alone, steps = model(short, torch.tensor([61]))
    batch, lengths = model(together, torch.tensor([61, 100]))
    assert steps.tolist() == [20]
    assert lengths.tolist() == [20, 33]
    torch.testing.assert_close(batch[0, :20], alone[0, :20], atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(
        batch[1, :33], model(long, torch.tensor([100]))[0][0, :33], atol=2e-5, rtol=1e-4
    )


@pytest.mark.parametrize("settings", [PRESETS["tiny"], SMALL_PAPER])
@pytest.mark.parametrize("frames", [3, 4, 5, 6, 99, 100, 101])
def test_three_frames_make_one_step(settings: ModelSettings, frames: int) -> None:
    logits, lengths = SpeechTransformer(settings, 7)(
        torch.randn(2, frames, 80), torch.full((2,), frames)
    )
    assert logits.shape == (2, frames // 3, 7)
    assert lengths.tolist() == [frames // 3] * 2


@pytest.mark.parametrize("settings", [PRESETS["tiny"], SMALL_PAPER])
def test_every_parameter_learns(settings: ModelSettings) -> None:
    torch.manual_seed(0)
    model = SpeechTransformer(settings, 30)
    logits, _ = model(torch.randn(2, 60, 80), torch.tensor([60, 50]))
    logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def _bias(layer: nn.Conv1d) -> torch.Tensor:
    assert layer.bias is not None
    return layer.bias


def _layer_norm(values: torch.Tensor, layer: nn.LayerNorm) -> torch.Tensor:
    centred = values - values.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return centred / scale * layer.weight + layer.bias


def _attention(values: torch.Tensor, block: Block, valid: int) -> torch.Tensor:
    """Write out multi-head attention of one utterance (steps, width) over `valid` steps."""
    width = values.shape[1]
    size = width // block.heads
    weights = torch.split(block.query_key_value.weight, width)
    query, key, value = (values @ weight.T for weight in weights)
    outputs = []
    for head in range(block.heads):
        part = slice(head * size, (head + 1) * size)
        scores = query[:, part] @ key[:valid, part].T / math.sqrt(size)
        outputs.append(torch.softmax(scores, dim=-1) @ value[:valid, part])
    return torch.cat(outputs, dim=1) @ block.attention_out.weight.T


def _perceptron(values: torch.Tensor, block: Block) -> torch.Tensor:
    return (values @ block.mlp_in.weight.T).clamp(min=0) @ block.mlp_out.weight.T


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_a_block_equals_the_written_out_formula(norm: str) -> None:
    torch.manual_seed(3)
    block = Block(ModelSettings(1, 16, norm=norm, dropout=0.0))  # type: ignore[arg-type]
    for layer in (block.attention_norm, block.mlp_norm):
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)
    hidden = torch.randn(9, 16)
    visible = (torch.arange(9) < 6)[None, None, None, :]
    if norm == "pre":
        middle = hidden + _attention(_layer_norm(hidden, block.attention_norm), block, 6)
        expected = middle + _perceptron(_layer_norm(middle, block.mlp_norm), block)
    else:
        middle = _layer_norm(hidden + _attention(hidden, block, 6), block.attention_norm)
        expected = _layer_norm(middle + _perceptron(middle, block), block.mlp_norm)
    torch.testing.assert_close(block(hidden[None], visible)[0], expected, atol=1e-5, rtol=1e-4)


def test_the_gated_front_end_equals_the_written_out_formula() -> None:
    torch.manual_seed(4)
    layer = GatedFrontEnd(6, 0.0)
    nn.init.constant_(layer.scale, 1.5)
    nn.init.constant_(layer.shift, -0.25)
    frames, valid = torch.randn(12, 80) * 3 + 1, 10
    mean, variance = frames[:valid].mean(), frames[:valid].var(unbiased=False)
    normal = (frames - mean) / (variance + 1e-7).sqrt() * 1.5 - 0.25
    normal[valid:] = 0
    padded = torch.cat([torch.zeros(2, 80), normal, torch.zeros(2, 80)])
    weight, bias = layer.convolution.weight, _bias(layer.convolution)
    expected = []
    for step in range(4):
        window = padded[3 * step : 3 * step + 7]
        out = (weight * window.T[None]).sum((1, 2)) + bias
        expected.append(out[:6] * torch.sigmoid(out[6:]))
    lengths = torch.tensor([valid])
    result = layer(frames[None], lengths, torch.ones(1, 4, dtype=torch.bool))
    torch.testing.assert_close(result[0], torch.stack(expected), atol=1e-5, rtol=1e-4)


def test_the_light_front_end_equals_the_written_out_formula() -> None:
    torch.manual_seed(5)
    layer = TwoConvolutions(4)
    nn.init.normal_(_bias(layer.first))
    frames = torch.randn(9, 80)
    padded = torch.cat([torch.zeros(1, 80), frames, torch.zeros(1, 80)])
    first = torch.stack(
        [
            ((layer.first.weight * padded[3 * step : 3 * step + 5].T[None]).sum((1, 2)))
            + _bias(layer.first)
            for step in range(3)
        ]
    ).clamp(min=0)
    first[2:] = 0
    around = torch.cat([torch.zeros(1, 4), first, torch.zeros(1, 4)])
    expected = torch.stack(
        [
            (layer.second.weight * around[step : step + 3].T[None]).sum((1, 2))
            + _bias(layer.second)
            for step in range(3)
        ]
    ).clamp(min=0)
    inside = torch.tensor([[True, True, False]])
    result = layer(frames[None], torch.tensor([6]), inside)
    torch.testing.assert_close(result[0], expected, atol=1e-5, rtol=1e-4)


def test_convolution_positions_add_the_neighbourhood_of_each_channel() -> None:
    torch.manual_seed(6)
    layer = ConvolutionPositions(3)
    hidden = torch.randn(20, 3)
    padded = torch.cat([torch.zeros(7, 3), hidden, torch.zeros(7, 3)])
    weight, bias = layer.convolution.weight[:, 0], _bias(layer.convolution)
    expected = torch.stack(
        [hidden[step] + (weight.T * padded[step : step + 15]).sum(0) + bias for step in range(20)]
    )
    inside = torch.ones(1, 20, dtype=torch.bool)
    result = layer(hidden[None], torch.tensor([20]), inside)
    torch.testing.assert_close(result[0], expected, atol=1e-5, rtol=1e-4)


def test_time_positions_are_sinusoids_of_seconds_from_the_middle() -> None:
    layer = TimePositions(6, 30.0).eval()
    result = layer(torch.zeros(1, 5, 6), torch.tensor([5]), torch.ones(1, 5, dtype=torch.bool))[0]
    for step in range(5):
        seconds = (step - 2) * 0.03
        for channel in range(6):
            angle = seconds * 30.0 * 10000.0 ** (-2 * (channel // 2) / 6)
            expected = math.sin(angle) if channel % 2 == 0 else math.cos(angle)
            assert result[step, channel].item() == pytest.approx(expected, abs=1e-5)


def test_training_shifts_the_time_of_each_utterance_and_evaluation_does_not() -> None:
    torch.manual_seed(0)
    layer = TimePositions(6, 30.0)
    arguments = (torch.zeros(2, 5, 6), torch.tensor([5, 5]), torch.ones(2, 5, dtype=torch.bool))
    shifted = layer.train()(*arguments)
    assert not torch.allclose(shifted[0], shifted[1])
    still = layer.eval()(*arguments)
    assert torch.equal(still[0], still[1])
    assert torch.equal(still, TimePositions(6, 0.0).train()(*arguments))


def test_layer_drop_leaves_out_whole_blocks_in_training_only() -> None:
    always = SpeechTransformer(ModelSettings(3, 16, dropout=0.0, layer_drop=0.999), 5)
    none = SpeechTransformer(ModelSettings(0, 16, dropout=0.0), 5)
    none.load_state_dict(always.state_dict(), strict=False)
    for model in (always, none):
        model.positions = TimePositions(16, 0.0)
    features, lengths = torch.randn(1, 30, 80), torch.tensor([30])
    torch.manual_seed(0)
    dropped = always.train()(features, lengths)[0]
    torch.testing.assert_close(dropped, none.train()(features, lengths)[0])
    assert not torch.allclose(dropped, always.eval()(features, lengths)[0])


def test_dropout_acts_in_training_only() -> None:
    model = build_model("tiny", 30, ModelChanges(dropout=0.5))
    features, lengths = torch.randn(1, 30, 80), torch.tensor([30])
    torch.manual_seed(0)
    first, second = (model.train()(features, lengths)[0] for _ in range(2))
    assert not torch.equal(first, second)
    still, again = (model.eval()(features, lengths)[0] for _ in range(2))
    assert torch.equal(still, again)


@pytest.mark.parametrize("attention_dropout", [True, False])
def test_attention_is_dropped_out_only_where_asked(attention_dropout: bool) -> None:
    settings = ModelSettings(1, 16, dropout=0.5, attention_dropout=attention_dropout)
    block = Block(settings).train()
    nn.init.zeros_(block.mlp_out.weight)
    hidden = torch.randn(1, 9, 16)
    torch.manual_seed(0)
    first, second = (block(hidden, None) for _ in range(2))
    assert torch.equal(first, second) != attention_dropout


@pytest.mark.parametrize(
    ("changes", "kind", "first"),
    [
        (ModelChanges(), TimePositions, True),
        (ModelChanges(positions="sinusoidal"), TimePositions, True),
        (ModelChanges(positions="convolution", norm="post"), ConvolutionPositions, False),
    ],
)
def test_positions_and_norm_are_selectable(
    changes: ModelChanges, kind: type[nn.Module], first: bool
) -> None:
    with torch.device("meta"):
        model = build_model("shallow", 30, changes)
    assert isinstance(model, SpeechTransformer)
    assert isinstance(model.positions, kind)
    assert {block.norm_first for block in model.blocks} == {first}
    if isinstance(model.positions, TimePositions):
        assert model.positions.shift_seconds == (0.0 if changes.positions else 30.0)


def _loss_and_gradients(model: nn.Module) -> tuple[torch.Tensor, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, 60, 80, generator=generator)
    torch.manual_seed(1)
    logits, _ = model.train()(features, torch.tensor([60, 45]))
    loss = logits.float().square().mean()
    return loss, list(torch.autograd.grad(loss, list(model.parameters())))


def test_checkpointed_activations_give_the_same_gradients() -> None:
    settings = replace(SMALL_PAPER, dropout=0.3)
    plain = SpeechTransformer(settings, 5)
    saving = SpeechTransformer(replace(settings, checkpoint_activations=True), 5)
    saving.load_state_dict(plain.state_dict())
    loss, gradients = _loss_and_gradients(plain)
    again, others = _loss_and_gradients(saving)
    assert torch.equal(loss, again)
    for one, two in zip(gradients, others, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("saving", [False, True])
def test_checkpointed_blocks_are_computed_again_for_the_gradient_and_others_are_not(
    saving: bool,
) -> None:
    model = SpeechTransformer(replace(SMALL_PAPER, checkpoint_activations=saving), 5).train()
    passes: list[nn.Module] = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda layer, given: passes.append(layer))
    logits, _ = model(torch.randn(2, 60, 80), torch.tensor([60, 45]))
    assert passes == list(model.blocks)
    logits.square().mean().backward()
    assert passes[2:] == (list(reversed(model.blocks)) if saving else [])
    passes.clear()
    model.eval()(torch.randn(1, 60, 80), torch.tensor([60]))[0].square().mean().backward()
    assert len(passes) == 2


def test_checkpointed_activations_hold_less_memory_between_the_passes() -> None:
    held = {}
    for saving in (False, True):
        torch.manual_seed(0)
        model = SpeechTransformer(replace(SMALL_PAPER, checkpoint_activations=saving), 5)
        seen: dict[int, int] = {}

        def pack(tensor: torch.Tensor, seen: dict[int, int] = seen) -> torch.Tensor:
            storage = tensor.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model.train()(torch.randn(4, 300, 80), torch.tensor([300] * 4))
        held[saving] = sum(seen.values())
    assert held[True] < 0.5 * held[False]


def test_bfloat16_keeps_weights_in_float32_and_results_close() -> None:
    torch.manual_seed(0)
    model = SpeechTransformer(SMALL_PAPER, 5).eval()
    features, lengths = torch.randn(2, 60, 80), torch.tensor([60, 45])
    exact = model(features, lengths)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model(features, lengths)[0]
    assert rounded.dtype == torch.bfloat16
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    torch.testing.assert_close(rounded.float(), exact, atol=0.1, rtol=0.1)
    assert not torch.equal(rounded.float(), exact)


# torch's translator looks at the .grad of the tensors between blocks and warns about it itself.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_blocks_keep_names_and_results() -> None:
    model = SpeechTransformer(SMALL_PAPER, 5)
    loss, gradients = _loss_and_gradients(model)
    names = list(model.state_dict())
    compile_blocks(model, backend="eager")
    again, others = _loss_and_gradients(model)
    torch.testing.assert_close(again, loss)
    torch.testing.assert_close(others, gradients)
    assert list(model.state_dict()) == names


# torch's translator looks at the .grad of the tensors between blocks and warns about it itself.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_code_is_what_runs() -> None:
    runs: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., object]:
        def run(*given: object) -> object:
            runs.append(len(given))
            return graph.forward(*given)

        return run

    model = SpeechTransformer(SMALL_PAPER, 5).eval()
    arguments = torch.randn(2, 60, 80), torch.tensor([60, 45])
    with torch.no_grad():
        plain = model(*arguments)[0]
        assert not runs
        compile_blocks(model, backend)
        torch.testing.assert_close(model(*arguments)[0], plain)
    assert len(runs) == 2


def test_a_model_without_blocks_is_compiled_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[tuple[nn.Module, dict[str, object]]] = []
    monkeypatch.setattr(nn.Module, "compile", lambda part, **how: compiled.append((part, how)))
    whole = nn.Linear(2, 2)
    compile_blocks(whole)
    assert compiled == [(whole, {"dynamic": True, "backend": "inductor"})]
    compiled.clear()
    model = SpeechTransformer(SMALL_PAPER, 5)
    compile_blocks(model, "eager")
    assert compiled == [(block, {"dynamic": True, "backend": "eager"}) for block in model.blocks]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_blocks_compiled_to_machine_code_keep_results() -> None:
    model = SpeechTransformer(SMALL_PAPER, 5)
    loss, gradients = _loss_and_gradients(model)
    compile_blocks(model)
    again, others = _loss_and_gradients(model)
    torch.testing.assert_close(again, loss)
    torch.testing.assert_close(others, gradients, atol=1e-5, rtol=1e-3)


def plain_factory(labels: int) -> nn.Module:
    return nn.Linear(80, labels)


def wrong_factory(labels: int) -> object:
    return labels


def test_any_module_can_be_named() -> None:
    model = build_model(f"{__name__}:plain_factory", 12)
    assert isinstance(model, nn.Linear)
    assert model.out_features == 12


@pytest.mark.parametrize(
    "name", ["no_such_module:f", f"{__name__}:nothing", f"{__name__}:wrong_factory"]
)
def test_a_name_that_gives_no_module_is_a_settings_error(name: str) -> None:
    with pytest.raises(SettingsError, match="model"):
        build_model(name, 12)


def test_all_wrong_model_settings_are_reported_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        check_model(
            "huge",
            ModelChanges(1.0, -0.1, "circle", "middle", 3),  # type: ignore[arg-type]
        )
    assert len(caught.value.problems) == 6
    assert "tiny, small, base" in caught.value.problems[5]
