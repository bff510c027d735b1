"""What every model of the registry does, each variant as small as it can be built, by the names of ``create_model``."""

import inspect

import pytest
import torch
from timm.models._manipulate import group_parameters

from lookupvit_video.checkpoints.checkpoint import load_checkpoint, load_weights, save_checkpoint
from lookupvit_video.config import get_key, load_config
from lookupvit_video.models.build import build_model, create_model
from lookupvit_video.models.contract import Features, VideoModel
from lookupvit_video.models.pretrained import init_from
from lookupvit_video.registry import MODELS, imported, list_models
from tests.models.test_models import MODELS as CONFIGURED
from tests.models.test_models import small_model

SMALL = {"num_classes": 5, "num_frames": 4, "size": 32}
SMALLER = {"depth": 2, "tubelet": (2, 8, 8), "compressed_grid": (1, 2, 2)}  # of models with tubelets
every_name = pytest.mark.parametrize("name", list_models())


def entry_of(name):
    return next(entry for entry in MODELS.values() if name in [own for own, _ in entry.variants.values()])


def small(name):
    torch.manual_seed(0)
    takes = inspect.signature(entry_of(name).model_class).parameters if entry_of(name).tubelets else {}
    model = create_model(name, **SMALL, **{key: value for key, value in SMALLER.items() if key in takes})
    return model, torch.randn(2, 3, 4, 32, 32, generator=torch.Generator().manual_seed(1))


@every_name
def test_a_model_trains_predicts_and_describes_its_parameters(name):
    model, clips = small(name)
    assert isinstance(model, VideoModel)
    outputs, features = model.train()(clips, with_features=True)
    assert isinstance(outputs, tuple)
    assert {tuple(logits.shape) for logits in outputs} == {(2, 5)}
    sum(logits.square().sum() for logits in outputs).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())

    assert isinstance(features, Features)
    assert features.tokens.shape[0] == 2
    assert (features.compressed is not None) == bool(model.grids) == entry_of(name).compressed_grids
    model.eval()
    with torch.no_grad():
        logits = model(clips)
        assert logits.shape == (2, 5)
        assert torch.equal(model.forward_head(model.forward_features(clips)), logits)

    axes = {key: parameter.ndim for key, parameter in model.named_parameters()}
    assert model.no_weight_decay() <= axes.keys()
    assert {key for key, count in axes.items() if count > 1 and "positions" in key} <= model.no_weight_decay()
    layers = model.layer_ids()
    assert set(layers.values()) == set(range(len(model.blocks) + 2))
    assert {key for key, layer in layers.items() if layer == len(model.blocks) + 1} == {
        key for key in axes if key.startswith(("head.", "heads."))
    }

    model.reset_classifier(300)
    with torch.no_grad():
        assert model(clips).shape == (2, 300)
    for head in model.classifiers():
        last = [module for module in head.modules() if isinstance(module, torch.nn.Linear)][-1]
        assert last.weight.std().item() == pytest.approx(0.02, rel=0.1)
        assert not last.bias.any()


@pytest.mark.parametrize("name", [next(iter(entry.variants.values()))[0] for entry in MODELS.values()])
def test_a_model_exports_for_any_batch(name):
    model, clips = small(name)
    if name == "x3d_xs":  # tracing takes a second a block: these five, of each kind, are enough
        model.blocks = torch.nn.ModuleList(model.blocks[i] for i in (0, 1, 3, 8, 19))
    batch = torch.export.Dim("batch")
    exported = torch.export.export(model.eval(), (clips,), dynamic_shapes=({0: batch},)).module()
    torch.testing.assert_close(exported(clips[:1]), model(clips[:1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["lookupvit", "factorised", "vit factorised", "lora factorised", "vit class", "mvit"])
def test_timm_groups_parameters_as_this_project_does(name):
    model = small_model(name)
    wanted = {}
    for key, layer in model.layer_ids().items():
        wanted.setdefault(layer, []).append(key)
    assert list(group_parameters(model, model.group_matcher()).values()) == [wanted[layer] for layer in sorted(wanted)]


@pytest.mark.parametrize("name", [name for name, entry in MODELS.items() for _ in range(entry.tubelets)])
def test_factories_have_the_sizes_of_the_registry(name):
    for own_name, sizes in MODELS[name].variants.values():
        factory = imported(MODELS[name].builder.replace(MODELS[name].model_class.__name__, own_name))
        with torch.device("meta"):
            assert repr(factory(num_classes=5, num_frames=8)) == repr(
                create_model(own_name, num_classes=5, num_frames=8)
            )
        assert sizes


def test_the_config_builds_what_create_model_makes():
    for arch, entry in MODELS.items():
        variant, (name, _) = next(iter(entry.variants.items()))
        cfg = load_config(None, ["MODEL.ARCH", arch, "MODEL.VARIANT", variant])
        assert get_key(cfg, "MODEL.NUM_CLASSES") == 400
        assert repr(build_model(cfg)) == repr(create_model(name, num_classes=400))


def test_every_configured_model_is_one_of_the_registry():
    for name in CONFIGURED:
        assert isinstance(small_model(name), VideoModel)


@pytest.mark.parametrize("form", ["vjepa2", "vjepa2_1", "dinov3", "pe"])
def test_rotary_weights_serve_another_grid(form, tmp_path):
    """From 16 frames of 224 pixels to 32 of 288: no table without learned positions, else it is resized."""
    shape = "MODEL.DIM 12 MODEL.DEPTH 1 MODEL.NUM_HEADS 2 MODEL.COMPRESSED_GRID [1,2,2] MODEL.NUM_CLASSES 3".split()
    rotary = ["MODEL.POSITIONS", "rotary", "MODEL.ROTARY", form]
    small = load_config(None, [*shape, *rotary])
    torch.manual_seed(0)
    model = build_model(small).eval()
    assert (model.tokenizer.positions is None) == form.startswith("vjepa")
    save_checkpoint(tmp_path / "x.pt", cfg=small, classes=list("abc"), model=model)
    sizes = "DATA.NUM_FRAMES 32 DATA.TRAIN_CROP_SIZE 288 DATA.TEST_CROP_SIZE 288".split()
    large = build_model(load_config(None, [*shape, *rotary, *sizes])).eval()
    report = init_from(large, str(tmp_path / "x.pt"))
    assert report.fresh == []
    assert report.resized == ({} if form.startswith("vjepa") else {"tokenizer.positions": "8x14x14 -> 16x18x18"})
    with torch.no_grad():
        logits = large(torch.randn(1, 3, 32, 288, 288))
    assert logits.isfinite().all()
    again = build_model(load_config(None, [*shape, *rotary, *sizes]))
    load_weights(again, load_checkpoint(tmp_path / "x.pt"), resize_positions=True)
    for name, value in again.state_dict().items():
        assert torch.equal(value, large.state_dict()[name]), name
