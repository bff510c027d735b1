"""What every model that a config can name must do."""

import pytest
import torch

from lookupvit_video.config import load_config
from lookupvit_video.models.build import build_model
from lookupvit_video.models.lookupvit import VARIANTS, LookupViT

SMALL = "DATA.NUM_FRAMES 4 DATA.TRAIN_CROP_SIZE 32 DATA.TEST_CROP_SIZE 32 MODEL.COMPRESSED_GRID [1,2,2] MODEL.DIM 24 \
         MODEL.DEPTH 2 MODEL.NUM_HEADS 3 MODEL.TUBELET [2,8,8] MODEL.NUM_CLASSES 5".split()
ARCHS = ["lookupvit", "vit"]


def small_model(*overrides):
    torch.manual_seed(0)
    return build_model(load_config(None, [*SMALL, *overrides]))


def clips(batch=3):
    return torch.randn(batch, 3, 4, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("arch", ARCHS)
def test_training_gives_logits_per_head_and_every_parameter_a_gradient(arch):
    model = small_model("MODEL.ARCH", arch).train()
    outputs = model(clips())
    assert [tuple(o.shape) for o in outputs] == [(3, 5)] * (2 if arch == "lookupvit" else 1)
    sum(o.square().sum() for o in outputs).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("arch", ARCHS)
def test_eval_is_deterministic_and_a_clip_does_not_see_its_neighbours(arch):
    model = small_model("MODEL.ARCH", arch, "MODEL.DROP_PATH", "0.5", "MODEL.DROPOUT_RATE", "0.5").double().eval()
    batch = clips().double()
    with torch.no_grad():
        together = model(batch)
        alone = torch.cat([model(batch[i : i + 1]) for i in range(3)])
    assert together.shape == (3, 5)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("arch", ARCHS)
def test_float32_agrees_with_float64_and_the_state_dict_round_trips(arch):
    model = small_model("MODEL.ARCH", arch).eval()
    other = small_model("MODEL.ARCH", arch, "RNG_SEED", "1").eval()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
        other.load_state_dict(model.state_dict())
        assert torch.equal(model(clips()), other(clips()))
        torch.testing.assert_close(model(clips()).double(), model.double()(clips().double()), rtol=1e-4, atol=1e-5)


def test_inference_heads():
    average = small_model().eval()
    each = {h: small_model("MODEL.INFERENCE_HEAD", h).eval() for h in ("compressed", "lookup")}
    with torch.no_grad():
        compressed, lookup = each["compressed"](clips()), each["lookup"](clips())
        assert not torch.allclose(compressed, lookup)
        torch.testing.assert_close(average(clips()), (compressed + lookup) / 2)
    with pytest.raises(ValueError, match="choose average, compressed or lookup"):
        LookupViT(num_classes=2, num_frames=4, size=32, compressed_grid=(1, 1, 1), inference_head="both")


def test_attention_is_returned_only_when_asked_for():
    model = small_model().eval()
    with torch.no_grad():
        assert model.forward_features(clips()).attention == []
        features = model.forward_features(clips(), return_attention=True)
    assert [tuple(a.shape) for a in features.attention] == [(3, 3, 4, 32)] * 2  # B, heads, M, N
    for weights in features.attention:
        torch.testing.assert_close(weights.sum(-1), torch.ones(3, 3, 4))
    assert features.compressed.shape == (3, 4, 24)
    assert features.lookup.shape == (3, 32, 24)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_have_vits_sizes(arch, variant):
    with torch.device("meta"):  # shapes only: no memory is taken
        model = build_model(load_config(None, ["MODEL.ARCH", arch, "MODEL.VARIANT", variant]))
    dim, depth, _ = VARIANTS[variant]
    matrices = sum(p.numel() for p in model.blocks.parameters() if p.ndim == 2)
    assert matrices == depth * (19 if arch == "lookupvit" else 12) * dim**2
