"""What PyTorchVideo's models have of their own; the contract that they share with all models is in test_models.py."""

import pytest
import torch
from pytorchvideo.models.hub import mvit_base_16x4
from pytorchvideo.models.x3d import create_x3d

from lookupvit_video.models.build import create_model
from lookupvit_video.models.complexity import count_parameters, measured_macs
from lookupvit_video.models.pytorchvideo_models import X3D, MViT

SMALL = {"num_classes": 5, "num_frames": 4, "size": 32}
PEERS = {"mvit": "mvit_tiny", "x3d": "x3d_xs"}
every_peer = pytest.mark.parametrize("name", PEERS)


def awake(model):
    """Give each scale and bias a value of its own: X3D's blocks start as their shortcuts alone."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.rand(parameter.shape, generator=generator), alpha=0.3)
    return model


def small_model(name, seed=0, **arguments):
    torch.manual_seed(seed)
    return awake(create_model(PEERS[name], **{**SMALL, **arguments}))


def clips(batch=3, frames=4, size=32):
    return torch.randn(batch, 3, frames, size, size, generator=torch.Generator().manual_seed(1))


@every_peer
def test_compiles_in_one_graph_and_exports_for_any_batch(name):
    model = small_model(name)
    if name == "x3d":  # five blocks, of each kind, stand for all 26: tracing takes a second per block
        model.blocks = torch.nn.ModuleList(model.blocks[i] for i in (0, 1, 3, 8, 19))
    (expected,) = model.train()(clips())
    (logits,) = torch.compile(model, fullgraph=True, backend="aot_eager")(clips())
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())

    batch = torch.export.Dim("batch")
    exported = torch.export.export(model.eval(), (clips(),), dynamic_shapes=({0: batch},)).module()
    torch.testing.assert_close(exported(clips()[:2]), model(clips()[:2]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "size", "pixel", "grid", "changed"),
    [
        # One pixel of the last of 8 frames, in the lower left: at most the places whose window holds it change.
        ("mvit", 32, (31, 0), (4, 2, 2), [(3, 1, 0)]),  # windows of 3 frames, 2 apart
        ("x3d", 64, (32, 0), (8, 2, 2), [(5, 1, 0), (6, 1, 0), (7, 1, 0)]),  # the stem's windows of 5 frames
    ],
)
def test_features_lie_in_order_of_time_height_width(name, size, pixel, grid, changed):
    torch.manual_seed(0)
    model = create_model(
        PEERS[name], num_classes=5, num_frames=8, size=size
    ).eval()  # not awake: X3D's shortcuts are local
    if name == "mvit":
        for block in model.blocks:
            torch.nn.init.zeros_(block.attn.proj.weight)  # what is left of a block is local as well
    before = clips(1, 8, size)
    after = before.clone()
    after[:, :, -1, pixel[0], pixel[1]] += 100
    with torch.no_grad():
        features, others = model.forward_features(before), model.forward_features(after)
    assert features.grid == others.grid == grid
    difference = (features.tokens - others.tokens).abs().amax(-1).reshape(grid)
    assert [tuple(place) for place in difference.nonzero().tolist()] == changed


def test_mvit_is_pytorchvideos():
    torch.manual_seed(0)
    model = create_model("mvit_base", **SMALL).eval()
    torch.manual_seed(0)
    theirs = mvit_base_16x4(spatial_size=32, temporal_size=4, head_num_classes=5).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(clips()), theirs(clips()), rtol=0, atol=0)


@pytest.mark.parametrize("clip_size", [(4, 64), (6, 96)])  # as trained; larger, over whose places logits are averaged
def test_x3d_is_pytorchvideos(clip_size):
    torch.manual_seed(0)
    model = awake(create_model("x3d_l", num_classes=5, num_frames=4, size=64)).eval()
    torch.manual_seed(0)
    theirs = awake(
        create_x3d(
            input_clip_length=4, input_crop_size=64, model_num_class=5, depth_factor=5.0, head_activation=None
        ).eval()
    )
    with torch.no_grad():
        torch.testing.assert_close(model(clips(2, *clip_size)), theirs(clips(2, *clip_size)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "frames", "size", "parameters", "gmacs"),
    [
        ("mvit_base", 16, 224, 36.6e6, 70.5),
        ("x3d_xs", 4, 160, 3.8e6, 0.60), ("x3d_s", 13, 160, 3.8e6, 1.96), ("x3d_m", 16, 224, 3.8e6, 4.73),
        ("x3d_l", 16, 312, 6.1e6, 18.37),
    ],
)  # fmt: skip
def test_published_parameters_and_macs(name, frames, size, parameters, gmacs):
    model = create_model(name, num_classes=400, num_frames=frames, size=size).to("meta")
    assert count_parameters(model) == pytest.approx(parameters, rel=0.01)
    clip = torch.zeros(1, 3, frames, size, size, device="meta")
    assert measured_macs(model, clip) / 1e9 == pytest.approx(gmacs, rel=0.01)


@pytest.mark.parametrize(("name", "depth"), [("mvit", 4), ("x3d", 26)])
def test_names_tell_layers(name, depth):
    model = small_model(name)
    names = dict(model.named_parameters())
    assert len(model.blocks) == depth
    assert {n.split(".")[1] for n in names if n.startswith("blocks.")} == {str(i) for i in range(depth)}
    assert {n.split(".")[0] for n in names} == {"tokenizer", "blocks", "head"}


def test_mistakes_are_named():
    for wrong in ({"num_frames": 5}, {"size": 30}):
        with pytest.raises(ValueError, match="frames in parts of 2 and pixels in parts of 4"):
            MViT(**{**SMALL, **wrong})
    with pytest.raises(ValueError, match=r"DATA.TRAIN_CROP_SIZE is 31; X3D halves it five times"):
        X3D(**{**SMALL, "size": 31})
    with pytest.raises(ValueError, match=r"clips of \(3, 4, 32, 32\) in the batch, got \(3, 4, 16, 64\)"):
        small_model("mvit")(clips().reshape(3, 3, 4, 16, 64))
