"""Eight-bit layers: close to the float layers that they replace, alike in both ways to compute them, and guarded."""

import copy

import pytest
import torch
from torch import nn

from lookupvit_video.errors import RunFailure
from lookupvit_video.models.adapters import add_adapters
from lookupvit_video.models.kernels import int8, optimize
from lookupvit_video.models.kernels.int8 import (
    Int8Linear,
    Int8Weights,
    check_quantized,
    linear_layers,
    output_error,
    quantize,
    quantize_weights,
)
from lookupvit_video.models.lookupvit import LookupViT, lookupvit_base_16x2

SHAPES = [(3, 50, 96), (2, 96), (1, 10, 7, 96)]


def assert_equal_but_for_rounding(found, wanted):
    """A value between two integers may become either one of them."""
    assert (found - wanted).norm() < 1e-3 * wanted.norm()


@pytest.fixture
def small():
    """A model, and what runs it on two clips."""
    torch.manual_seed(0)
    model = optimize(LookupViT(num_classes=5, num_frames=4, size=32, tubelet=(2, 8, 8), compressed_grid=(1, 2, 2),
                               dim=32, depth=2, num_heads=2)).eval()  # fmt: skip
    clips = torch.randn(2, 3, 4, 32, 32)

    def run():
        with torch.no_grad():
            return model(clips)

    return model, run


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_an_answer_is_close_to_the_float_layers_and_depends_on_its_own_clip_only(shape, bias):
    torch.manual_seed(1)
    layer = nn.Linear(96, 40, bias=bias)
    x = torch.randn(shape) * torch.arange(1, shape[0] + 1).view(-1, *[1] * (len(shape) - 1)) + 0.3
    found, wanted = Int8Linear(layer)(x), layer(x)
    assert found.shape == wanted.shape
    for one, expected in zip(found, wanted, strict=True):
        assert 1e-4 < (one - expected).norm() / expected.norm() < 0.02
    assert torch.equal(found[:1], Int8Linear(layer)(x[:1]))
    assert_equal_but_for_rounding(Int8Linear(layer).plain(x), found)


@torch.no_grad()
def test_the_operator_and_plain_operations_agree_and_traces_take_the_latter(monkeypatch):
    layer, x = Int8Linear(nn.Linear(64, 24)), torch.randn(2, 30, 64)
    monkeypatch.setattr(int8, "_is_capable", lambda: False)
    plain = layer(x)
    monkeypatch.undo()
    assert_equal_but_for_rounding(layer(x), plain)
    program = torch.export.export(layer, (x,))
    assert "_int_mm" in str(program.graph)
    assert_equal_but_for_rounding(program.module()(x), plain)
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))


@torch.no_grad()
def test_extreme_inputs():
    layer = nn.Linear(16, 8)
    for x in (torch.zeros(1, 3, 16), torch.full((1, 3, 16), 5.0), torch.full((1, 3, 16), -1e-35)):
        for found in (Int8Linear(layer)(x), Int8Linear(layer).plain(x)):
            torch.testing.assert_close(found, layer(x), rtol=0.02, atol=0.02)
    nn.init.zeros_(layer.weight)
    torch.testing.assert_close(Int8Linear(layer)(x), layer(x))


def test_all_layers_but_classifiers_and_adapted_ones_turn_to_eight_bits(small):
    model, run = small
    before, expected = linear_layers(model), run()
    assert len(before) == 2 * 11
    replaced = quantize(model, run)
    assert replaced.keys() == before.keys()
    assert linear_layers(model) == {}
    assert isinstance(model.heads["lookup"].linear, nn.Linear)
    assert 1e-4 < check_quantized(model, replaced, run, expected) < 0.05
    adapted = copy.deepcopy(small[0])
    add_adapters(adapted.blocks, "lora")
    assert linear_layers(adapted) == {}


def test_a_layer_that_costs_accuracy_stays_in_float(small):
    model, run = small
    with torch.no_grad():  # one channel so large that the others are rounded away
        model.blocks[0].lookup_mlp[0].bias[3] += 1000
        model.blocks[0].lookup_mlp[2].weight[:, 3] = 0
    expected = run()
    replaced = quantize(model, run)
    assert linear_layers(model).keys() == {"blocks.0.lookup_mlp.2"}
    assert len(replaced) == 21
    check_quantized(model, replaced, run, expected)


def test_layers_return_to_float_until_the_answers_are_close_enough(small, monkeypatch):
    model, run = small
    expected, untouched, errors = run(), copy.deepcopy(model), []
    monkeypatch.setattr(int8, "output_error", lambda *_: errors.append(len(linear_layers(model))) or 1.0)
    assert quantize(model, run) == {}
    assert errors == [0, 11, 17, 20, 21]  # layers in float when the answers were compared
    assert torch.equal(run(), expected)
    assert [*model.state_dict()] == [*untouched.state_dict()]


def test_a_wrong_scale_of_any_layer_is_found(small):
    model, run = small
    expected = run()
    replaced = quantize(model, run)
    for name in replaced:
        scale = model.get_submodule(name).scale
        scale.mul_(2)
        with pytest.raises(RunFailure, match=f"{name}: its 8-bit output differs by "):
            check_quantized(model, replaced, run, expected)
        scale.div_(2)
    check_quantized(model, replaced, run, expected)
    with pytest.raises(RunFailure, match=r"logits differ by 2 of themselves"):
        check_quantized(model, replaced, run, -expected)
    assert output_error(expected + 7, expected) < 1e-5  # of no meaning in a softmax
    assert not output_error(expected * torch.nan, expected) <= 1


def test_a_base_model_shrinks_to_less_than_a_third():
    with torch.device("meta"):
        model = lookupvit_base_16x2(num_classes=400)
        size = sum(value.nbytes for value in model.state_dict().values())
        for name, layer in linear_layers(model).items():
            model.set_submodule(name, Int8Linear(layer))
    assert sum(value.nbytes for value in model.state_dict().values()) < 0.3 * size


@torch.no_grad()
def test_weights_alone_in_eight_bits_compute_in_floats(small):
    model, run = small
    expected, layers = run(), list(linear_layers(model))
    quantize_weights(model)
    assert output_error(run(), expected) < 0.03
    kept = [module for module in model.modules() if isinstance(module, Int8Weights)]
    assert len(kept) == len(layers) > 5
    assert all(module.weight.dtype == torch.int8 and module.weight.abs().amax(1).eq(127).all() for module in kept)
    layer = nn.Linear(7, 3, bias=False)
    x = torch.randn(2, 7)
    assert (Int8Weights(layer)(x) - layer(x)).abs().max() <= 0.5 / 127 * layer.weight.abs().max() * x.abs().sum(1).max()
