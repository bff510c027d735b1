"""The encoder sees visible tubelets only, and costs what the closed form says."""

import pytest
import torch

from lookupvit_video.config import load_config
from lookupvit_video.models.blocks import BlockOptions
from lookupvit_video.models.build import build_model, for_pretraining
from lookupvit_video.models.complexity import Shape, measured_macs
from lookupvit_video.models.lookupvit import HEADS, LookupViT
from lookupvit_video.models.pretexts.masked import (
    MaskedModel,
    compress_visible,
    first_frame,
    masked_macs,
    num_visible,
    tube_masks,
)
from lookupvit_video.models.tokenizer import GridResize, chosen_rows
from lookupvit_video.models.vit import ViT

SIZES = {"num_classes": 3, "num_frames": 4, "size": 32, "tubelet": (2, 8, 8), "dim": 24, "depth": 2, "num_heads": 3}
GRID = (2, 4, 4)
MIXING = BlockOptions(lookup_conv=(3, 3, 3))
KINDS = {
    "lookupvit": lambda: LookupViT(**SIZES, compressed_grid=(1, 2, 2), grids=[(2, 3, 3)]),
    "compressed head": lambda: LookupViT(**SIZES, compressed_grid=(1, 2, 2), heads=("compressed",)),
    "mixing": lambda: LookupViT(**SIZES, compressed_grid=(1, 2, 2), options=MIXING),
    "vit": lambda: ViT(**SIZES),
}


def make(kind, ratio=0.75):
    torch.manual_seed(0)
    return MaskedModel(KINDS[kind](), ratio=ratio, width=32, depth=1)


@pytest.mark.parametrize("ratio", [0.0, 0.5, 0.75, 1.0])
def test_masks_are_tubes_that_part_the_grid(ratio):
    visible, masked = tube_masks((3, 4, 4), ratio, 5)
    assert torch.equal(torch.cat([visible, masked], 1).sort(1).values, torch.arange(48).expand(5, -1))
    assert visible.shape[1] == 3 * num_visible((3, 4, 4), ratio) == 3 * {0.0: 15, 0.5: 8, 0.75: 4, 1.0: 1}[ratio]
    for rows in (visible, masked):
        times = rows.unflatten(1, (3, -1))
        assert torch.equal(times, times[:, :1] + 16 * torch.arange(3)[:, None])
    assert not all(torch.equal(rows, visible[0]) for rows in visible)


@pytest.mark.parametrize("grid", [(1, 2, 2), (2, 3, 3), (2, 4, 4)])
def test_compressed_tokens_are_the_means_of_what_is_visible(grid):
    resize, tokens, positions = GridResize(GRID, grid), torch.randn(3, 32, 8), torch.randn(1, 32, 8)
    everything = torch.arange(32).expand(3, -1)
    torch.testing.assert_close(compress_visible(resize, tokens, everything, positions), resize(tokens))
    visible, _ = tube_masks(GRID, 0.9, 3)
    weights_MN = resize(torch.eye(32)[None])[0]
    made = compress_visible(resize, chosen_rows(tokens, visible), visible, positions)
    for clip, seen in enumerate(visible):
        for cell, weights in enumerate(weights_MN[:, seen]):
            mean = weights @ tokens[clip, seen] / weights.sum() if weights.sum() else weights_MN[cell] @ positions[0]
            torch.testing.assert_close(made[clip, cell], mean)


@pytest.mark.parametrize("kind", KINDS)
def test_only_visible_pixels_and_the_first_frame_reach_the_prediction(kind):
    model, clips = make(kind), torch.randn(2, 3, 4, 32, 32, requires_grad=True)
    for parameter in model.parameters():  # the convolution and the last layer are zero at first
        torch.nn.init.normal_(parameter, std=0.1)
    torch.manual_seed(1)
    changes, masked = model(clips)
    assert changes.shape == (2, 24, 3 * 2 * 8 * 8)
    changes.square().sum().backward()
    assert (clips.grad[:, :, 0] != 0).any(1).all()  # the decoder has all of the first frame
    moved = model.encoder.tokenizer.fold(clips.grad[:, :, 1:2].expand_as(clips)).abs().amax(-1) > 0
    seen = torch.ones(2, 32).scatter(1, masked, 0.0).bool()
    assert torch.equal(moved, seen)


def test_with_everything_visible_the_encoder_is_the_model_itself():
    model, clips = make("mixing"), torch.randn(2, 3, 4, 32, 32)
    for block in model.encoder.blocks:
        torch.nn.init.normal_(block.mixing.weight)
    seen = model.encode(clips, torch.arange(32).expand(2, -1))
    features = model.encoder.forward_features(clips)
    torch.testing.assert_close(seen.tokens, features.tokens)
    torch.testing.assert_close(seen.compressed, features.compressed)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ratio", [0.5, 0.9])
def test_closed_form_equals_measured_macs(kind, ratio):
    lookup_conv = (3, 3, 3) if kind == "mixing" else ()
    shape = Shape(GRID, (2, 8, 8), 24, 2, 3, 3, lookup_conv=lookup_conv)
    options = {"compressed_grid": (1, 2, 2), "heads": ("compressed",) if kind == "compressed head" else HEADS}
    parts = masked_macs(shape, ratio, 32, 1, **({} if kind == "vit" else options))
    assert sum(parts.values()) == measured_macs(make(kind, ratio), torch.zeros(1, 3, 4, 32, 32))


def test_a_step_of_the_base_model_costs_at_most_a_third():
    from lookupvit_video.models.complexity import lookupvit_macs

    shape, grid = Shape((8, 14, 14), (2, 16, 16), 768, 12, 12, 400), (2, 7, 7)
    pretext = sum(masked_macs(shape, 0.9, 192, 2, grid, HEADS).values())
    assert pretext < 0.35 * sum(lookupvit_macs(shape, grid).values())


def test_any_of_the_models_grids_is_taken_and_heads_do_not_train():
    model = make("lookupvit")
    seen = model.encode(torch.randn(1, 3, 4, 32, 32), torch.tensor([[0, 16]]), (2, 3, 3))
    assert seen.compressed.shape == (1, 18, 24)
    model(torch.randn(8, 3, 4, 32, 32), (2, 3, 3)).changes.sum().backward()
    still = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert still == {name for name, _ in model.named_parameters() if name.startswith("encoder.heads.")}
    assert "decoder.positions" in model.no_weight_decay()


def test_the_first_frame_is_that_of_the_place_at_all_times():
    tokenizer, clip = make("vit").encoder.tokenizer, torch.randn(2, 3, 4, 32, 32)
    still = tokenizer.fold(clip[:, :, :1].expand_as(clip)).unflatten(2, (3, 2, 64))
    torch.testing.assert_close(first_frame(tokenizer, clip), still[:, :, :, 1].flatten(2))


def test_either_token_set_alone_gives_the_code():
    """So that each of them has to know how a clip moves."""
    model, first, masked = make("lookupvit"), torch.randn(64, 32, 192), torch.arange(24).expand(64, -1)
    torch.nn.init.normal_(model.decoder.predict.weight)
    for only in range(2):
        sets = [torch.zeros(64, 24), torch.zeros(64, 24)]
        sets[only] = torch.randn(64, 24, requires_grad=True)
        model.decoder(sets, first, masked).sum().backward()
        read = (sets[only].grad != 0).any(1)
        assert 10 < read.sum() < 54


@pytest.mark.parametrize("arch", ["lookupvit", "vit"])
def test_the_demos_config_is_for_both_models(arch):
    cfg = load_config("configs/demo_pretrain.yaml", ["MODEL.ARCH", arch])
    model = for_pretraining(build_model(cfg), cfg.TRAIN.TASK, cfg.PRETRAIN)
    clips = torch.randn(2, 3, cfg.DATA.NUM_FRAMES, cfg.DATA.TRAIN_CROP_SIZE, cfg.DATA.TRAIN_CROP_SIZE)
    changes, masked = model(clips)
    assert changes.shape[:2] == masked.shape
    changes.sum().backward()
    assert {name for name, weight in model.named_parameters() if weight.grad is None} == {
        name for name, _ in model.named_parameters() if name.startswith("encoder.head")
    }
