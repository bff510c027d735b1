"""What moves is drawn alike wherever it is, and the model that learns it costs what the closed form says."""

import pytest
import torch

from lookupvit_video.models.complexity import Shape, lookupvit_macs, measured_macs, vit_macs
from lookupvit_video.models.lookupvit import HEADS, LookupViT
from lookupvit_video.models.pretexts.moving import SIDE, MovingModel, moving_macs, moving_pictures
from lookupvit_video.models.vit import ViT

SIZES = {"num_classes": 3, "num_frames": 4, "size": 32, "tubelet": (2, 8, 8), "dim": 24, "depth": 2, "num_heads": 3}
KINDS = {
    "lookupvit": lambda: LookupViT(**SIZES, compressed_grid=(1, 2, 2), grids=[(2, 3, 3)]),
    "compressed head": lambda: LookupViT(**SIZES, compressed_grid=(1, 2, 2), heads=("compressed",)),
    "lookup head": lambda: LookupViT(**SIZES, compressed_grid=(1, 2, 2), heads=("lookup",), inference_head="lookup"),
    "vit": lambda: ViT(**SIZES),
}
READ = {"lookupvit": HEADS, "compressed head": ("compressed",), "lookup head": ("lookup",)}
CORNER = torch.tensor([[1.0, 1, 1], [1, 0, 0], [1, 0, 0]])
BAR = torch.tensor([[0.0, 1, 0], [0, 1, 0], [0, 1, 0]])


def make(kind):
    torch.manual_seed(0)
    return MovingModel(KINDS[kind]())


def video(shape, scale, step, seed):
    """Frames (3, 8, 64, 64) of a shape, ``scale`` pixels a cell, that goes ``step`` pixels a frame over a scene."""
    generator = torch.Generator().manual_seed(seed)
    frames = torch.rand(3, 1, 64, 64, generator=generator).repeat(1, 8, 1, 1)
    drawn = shape.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
    side = len(drawn)
    for time in range(8):
        y, x = 2 + step[0] * time, 2 + step[1] * time
        frames[:, time, y : y + side, x : x + side] += 3 * drawn
    return frames


def test_place_size_path_and_scene_do_not_show_but_the_shape_does():
    shapes = [video(shape, scale, step, seed) for seed, (shape, scale, step) in enumerate([
        (CORNER, 3, (0, 6)), (CORNER, 5, (5, 0)), (CORNER, 4, (5, 5)), (BAR, 3, (0, 6)), (BAR, 5, (0, 5)),
    ])]  # fmt: skip
    pictures = moving_pictures(torch.stack(shapes)).flatten(1)
    torch.testing.assert_close(pictures.norm(dim=1), torch.ones(5))
    alike = pictures @ pictures.T
    assert min(alike[0, 1], alike[0, 2], alike[1, 2], alike[3, 4]) > 0.85
    assert alike[:3, 3:].max() < 0.75


def test_light_does_not_show():
    frames = video(CORNER, 4, (0, 6), 0)[None]
    torch.testing.assert_close(moving_pictures(0.05 * frames - 1), moving_pictures(frames), atol=1e-4, rtol=0)


def test_where_nothing_moves_the_picture_is_empty():
    still = torch.rand(2, 3, 1, 32, 32).repeat(1, 1, 8, 1, 1)
    assert torch.equal(moving_pictures(still), torch.zeros(2, SIDE, SIDE))


@pytest.mark.parametrize("kind", KINDS)
def test_each_token_set_with_a_head_draws_and_all_that_it_needs_trains(kind):
    model = make(kind)
    drawn = model(torch.randn(2, 3, 4, 32, 32))
    assert drawn.shape == (len(READ.get(kind, "1")), 2, SIDE, SIDE)
    assert (drawn == 0).all()
    torch.nn.init.normal_(model.decoder[0][-1].weight)
    model(torch.randn(2, 3, 4, 32, 32)).square().sum().backward()
    still = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert still == {name for name, _ in model.named_parameters() if name.startswith("encoder.head")}


def test_any_of_the_models_grids_is_taken():
    model = make("lookupvit")
    torch.nn.init.normal_(model.decoder[0][-1].weight)
    clip = torch.randn(1, 3, 4, 32, 32)
    assert not torch.equal(model(clip), model(clip, (2, 3, 3)))


@pytest.mark.parametrize("kind", KINDS)
def test_closed_form_equals_measured_macs(kind):
    shape, sets = Shape((2, 4, 4), (2, 8, 8), 24, 2, 3, 3), READ.get(kind, ("lookup",))
    parts = vit_macs(shape) if kind == "vit" else lookupvit_macs(shape, (1, 2, 2), heads=sets)
    assert sum(moving_macs(parts, 24, len(sets)).values()) == measured_macs(make(kind), torch.zeros(1, 3, 4, 32, 32))
