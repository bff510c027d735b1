"""From a config to a model. What each model then does: test_models.py."""

import threading

import pytest
import torch

from lookupvit_video.config import KEYS, load_config
from lookupvit_video.models import build as build_module
from lookupvit_video.models.blocks import BlockOptions
from lookupvit_video.models.build import build_model, create_model, model_spec
from lookupvit_video.models.tokenizer import sine_cosine_positions
from tests.models.test_models import MODELS, SMALL, clips, config, every_model, small_model


def test_the_names_in_the_contract_are_what_a_config_can_name():
    """Every choice that changes a model must stand in a model of test_models.py."""
    models = [config(name).MODEL for name in MODELS]
    keys = "ARCH ENCODER RESIZE REVERSE_WEIGHTS HEADS INFERENCE_HEAD POOL TOKENS ACTIVATION"
    for key in keys.split():
        assert all(choice in [model[key] for model in models] for choice in KEYS[f"MODEL.{key}"].choices), key
    for key in ("QK_NORM", "LAYER_SCALE", "COMPRESSED_GRIDS", "FREEZE_ENCODER"):
        assert any(model[key] for model in models), key


def test_grids_of_training_and_test_are_named_once_the_default_first():
    cfg = load_config(None, [*SMALL, "MODEL.COMPRESSED_GRIDS", "[[2,1,1],[1,2,2]]", "TEST.GRIDS", "[[2,2,2],[2,1,1]]"])
    assert model_spec(cfg).grids == ((1, 2, 2), (2, 1, 1), (2, 2, 2))
    assert model_spec(cfg).arguments["grids"] == ((2, 1, 1), (2, 2, 2))


@pytest.mark.parametrize(
    "override",
    [
        "VARIANT S MODEL.DIM 0", "DIM 48", "DEPTH 1", "NUM_HEADS 2", "NUM_CLASSES 4", "TUBELET [4,8,8]",
        "COMPRESSED_GRID [1,2,1]", "RESIZE trilinear", "REVERSE_WEIGHTS scaled", "REVERSE_WEIGHTS transpose",
        "HEADS ['lookup']", "INFERENCE_HEAD lookup", "POOL average_norm", "QK_NORM True", "LAYER_SCALE 0.1",
        "ACTIVATION gelu_tanh", "ACTIVATION quick_gelu", "NORM_EPS 1e-3",
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["lookupvit", "factorised"])
def test_what_a_config_sets_reaches_the_model(name, override):
    if name == "factorised":
        override = override.replace("[1,2,1]", "[2,1]").replace("[4,8,8]", "[1,8,8]")
    model, changed = small_model(name).eval(), small_model(name, f"MODEL.{override}").eval()
    with torch.no_grad():
        assert not torch.equal(model(clips()), changed(clips()))  # from the same seed


@every_model
def test_weights_follow_from_the_seed_and_are_finite(name):
    model, same = small_model(name), small_model(name)
    other = small_model(name, seed=1)
    differ = 0
    for (key, a), b, c in zip(
        model.state_dict().items(), same.state_dict().values(), other.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), key
        assert a.isfinite().all(), key
        differ += not torch.equal(a, c)
    assert differ > 10


# Arguments --------------------------------------------------------------------------------------------------------

NAMED = """MODEL.NUM_CLASSES 7 DATA.NUM_FRAMES 8 DATA.TRAIN_CROP_SIZE 64 DATA.TEST_CROP_SIZE 64 MODEL.TUBELET [2,16,8]
           MODEL.COMPRESSED_GRID [2,3,1] MODEL.RESIZE trilinear MODEL.TEMPORAL_DEPTH 3 MODEL.POOL average_norm
           MODEL.DROP_PATH 0.25 MODEL.DROPOUT_RATE 0.5 MODEL.ACTIVATION quick_gelu MODEL.NORM_EPS 1e-3
           MODEL.LAYER_SCALE 0.125 MODEL.QK_NORM True MODEL.REVERSE_WEIGHTS scaled MODEL.INPUT changes""".split()


@every_model
def test_an_empty_model_is_the_model_without_its_parameters(name):
    cfg, full = config(name), small_model(name)
    empty = build_model(cfg, empty=True)
    assert all(parameter.is_meta for parameter in empty.parameters())
    assert {key: parameter.requires_grad for key, parameter in empty.named_parameters()} == {
        key: parameter.requires_grad for key, parameter in full.named_parameters()
    }
    buffers = dict(build_model(cfg).named_buffers())
    for key, buffer in empty.named_buffers():
        assert torch.equal(buffer, buffers[key]), key
    empty.load_state_dict(full.state_dict(), assign=True)
    with torch.no_grad():
        assert torch.equal(empty.eval()(clips(name)), full.eval()(clips(name)))


def test_other_models_get_their_parameters_while_an_empty_one_is_built():
    with build_module._without_parameters():
        made = []
        thread = threading.Thread(target=lambda: made.append(torch.nn.Linear(2, 2)))
        thread.start()
        thread.join()
        assert torch.nn.Linear(2, 2).weight.is_meta
    assert not made[0].weight.is_meta
    assert not torch.nn.Linear(2, 2).weight.is_meta


def test_every_argument_is_the_configs():
    arguments = model_spec(
        load_config(None, [*NAMED, *"MODEL.DIM 40 MODEL.DEPTH 5 MODEL.NUM_HEADS 4".split()])
    ).arguments
    assert arguments == {
        "num_classes": 7, "num_frames": 8, "size": 64, "tubelet": (2, 16, 8), "compressed_grid": (2, 3, 1),
        "resize": "trilinear", "encoder": "joint", "temporal_depth": 3, "dim": 40, "depth": 5, "num_heads": 4,
        "pool": "average_norm", "drop_path": 0.25, "dropout": 0.5,
        "options": BlockOptions("quick_gelu", 1e-3, 0.125, True, "scaled"), "heads": ("compressed", "lookup"),
        "input": "changes", "inference_head": "average", "grids": (), "exits": (), "keep": (), "keep_by": "pixels",
        "registers": 0, "reset": False,
    }  # fmt: skip
    for variant, sizes in (("S", (384, 12, 6)), ("L", (1024, 24, 16))):
        arguments = model_spec(load_config(None, [*NAMED, "MODEL.VARIANT", variant])).arguments
        assert tuple(arguments[name] for name in ("dim", "depth", "num_heads")) == sizes


def test_what_counts_operations_gets_the_models_shape():
    cfg = load_config(None, [*NAMED, *"MODEL.DIM 40 MODEL.DEPTH 5 MODEL.NUM_HEADS 4 MODEL.ADAPTER lora".split()])
    shape = model_spec(cfg).shape
    assert (shape.grid, shape.tubelet, shape.dim, shape.depth, shape.num_heads) == ((4, 4, 8), (2, 16, 8), 40, 5, 4)
    assert (shape.num_classes, shape.encoder, shape.temporal_depth, shape.pool) == (7, "joint", 3, "average_norm")
    assert (shape.adapter, shape.adapter_width, shape.temporal_adapter) == ("lora", 8, False)
    factorised = ["MODEL.ENCODER", "factorised", "MODEL.COMPRESSED_GRID", "[7,7]"]
    for overrides, adapter, width, temporal in (
        ("", "none", 0, False), ("MODEL.ADAPTER adaptformer", "adaptformer", 64, True),
        ("MODEL.ADAPTER lora MODEL.ADAPTER_WIDTH 3", "lora", 3, True),
        ("MODEL.ADAPTER lora MODEL.FREEZE_SPATIAL True", "lora", 8, False),
    ):  # fmt: skip
        shape = model_spec(load_config(None, [*factorised, *overrides.split()])).shape
        assert (shape.adapter, shape.adapter_width, shape.temporal_adapter) == (adapter, width, temporal)
    assert model_spec(load_config(None, "MODEL.ARCH x3d MODEL.VARIANT XS".split())).macs() == {}


def test_settings_that_no_shape_tells_are_of_this_projects_models():
    cfg = load_config(None, "MODEL.VARIANT S MODEL.ADAPTER lora MODEL.ADAPTER_SCALE 2".split())
    assert model_spec(cfg).settings_not_in_weights == {
        "NUM_HEADS": 6, "POOL": "average", "RESIZE": "triangle", "INPUT": "frames", "REVERSE_WEIGHTS": "softmax",
        "ACTIVATION": "gelu",
        "NORM_EPS": 1e-6, "ADAPTER_SCALE": 2.0, "POSITIONS": "learned",
    }  # fmt: skip
    rotary = model_spec(load_config(None, ["MODEL.POSITIONS", "rotary"])).settings_not_in_weights
    assert (rotary["POSITIONS"], rotary["ROTARY"]) == ("rotary", "vjepa2_1")
    assert model_spec(load_config(None, ["MODEL.ARCH", "vit"])).settings_not_in_weights["NUM_HEADS"] == 12
    assert model_spec(load_config(None, "MODEL.ARCH mvit MODEL.VARIANT Ti".split())).settings_not_in_weights == {}


PARTS = (
    "tokenizer.positions",
    "class_token",
    "blocks.0.mlp.0.weight",
    "blocks.0.norm_mlp.weight",
    "temporal.positions",
    "temporal.blocks.0.norm_mlp.bias",
    "frame_norm.weight",
    "head.linear.weight",
    "heads.lookup.norm.weight",
    "blocks.0.mlp.adapter.down.weight",
    "blocks.0.mlp.0.lora_up",
)
SPATIAL = "MODEL.ENCODER factorised MODEL.COMPRESSED_GRID [7,7] MODEL.FREEZE_SPATIAL True"


@pytest.mark.parametrize(
    ("overrides", "frozen"),
    [
        ("", ""), ("MODEL.FREEZE_ENCODER True", "YYYYYYY...."), ("MODEL.ADAPTER lora", "YYYYYYY...."),
        ("MODEL.ADAPTER lora MODEL.TRAIN_NORMS True", "YYY.Y......"),
        ("MODEL.FREEZE_ENCODER True MODEL.TRAIN_NORMS True", "YYY.Y......"), (SPATIAL, "Y.YY......."),
        (f"{SPATIAL} MODEL.TRAIN_NORMS True", "Y.Y........"),
        ("MODEL.FREEZE_ENCODER True SOLVER.FREEZE_EPOCHS 2", "YYYYYYY...."),
    ],
)  # fmt: skip
def test_what_is_frozen(overrides, frozen):
    spec = model_spec(load_config(None, overrides.split()))
    assert "".join("Y" if spec.is_frozen(name) else "." for name in PARTS) == (frozen or "." * len(PARTS))


def test_a_temporal_transformer_that_begins_as_the_identity():
    torch.manual_seed(0)
    cfg = config("vit factorised", "MODEL.TEMPORAL_INIT identity MODEL.TEMPORAL_DEPTH 3")
    temporal = build_model(cfg).temporal
    torch.testing.assert_close(temporal.positions.detach()[0], 0.02 * sine_cosine_positions((2, 1, 1), 24))
    for block in temporal.blocks:
        assert not any(p.any() for p in (*block.attention.projection.parameters(), *block.mlp[2].parameters()))
        assert block.attention.qkv.weight.any()
        assert block.mlp[0].weight.any()


def test_tokens_that_a_config_names_are_taken_as_they_are():
    for tokens, key in (("random", "KEEP_TOKENS"), ("merge", "MERGE_TOKENS")):
        model = build_model(config("vit", f"MODEL.TOKENS {tokens} MODEL.{key} 3"))
        assert (model.reduce.keep if tokens == "random" else model.merged) == (3 if tokens == "random" else [3, 3])
    assert build_model(config("vit", "MODEL.KEEP_TOKENS 3 MODEL.MERGE_TOKENS 3")).merged is None


def test_where_nothing_is_as_cheap_the_cheapest_is_taken_and_told(caplog):
    cheap = "MODEL.COMPRESSED_GRID [1,1,1] MODEL.DEPTH 1"
    model = build_model(config("vit", f"{cheap} MODEL.TOKENS merge"))
    assert model.merged == [16]  # half of 32
    assert "MODEL.TOKENS merge: even the cheapest, used here, costs more" in caplog.text
    caplog.clear()
    assert build_model(config("vit", f"{cheap} MODEL.TOKENS random")).reduce.keep >= 1
    assert caplog.text == ""


def test_adapters_change_no_number_of_tokens():
    for tokens in ("random", "merge"):
        plain, adapted = (build_model(config("vit", f"MODEL.TOKENS {tokens} {more}"))
                          for more in ("", "MODEL.ADAPTER lora MODEL.ADAPTER_WIDTH 20"))  # fmt: skip
        assert plain.merged == adapted.merged
        if tokens == "random":
            assert plain.reduce.keep == adapted.reduce.keep


def test_the_fewest_tokens_are_one_or_half_of_them(monkeypatch):
    monkeypatch.setattr(build_module, "tokens_within", lambda *_: 0)
    assert build_model(config("vit", "MODEL.TOKENS random")).reduce.keep == 1
    assert build_model(config("vit", "MODEL.TOKENS merge MODEL.DEPTH 1")).merged == [16]


def test_a_model_is_made_by_name():
    model = create_model(
        "lookupvit_tiny_16x2", num_classes=4, num_frames=4, size=32, compressed_grid=(1, 1, 1), depth=1
    )
    assert model.tokenizer.projection.out_channels == 192
    assert len(model.blocks) == 1
    with torch.no_grad():
        assert model.eval()(torch.zeros(2, 3, 4, 32, 32)).shape == (2, 4)
    with pytest.raises(ValueError, match=r"model 'lookupvit': choose one of lookupvit_tiny_16x2, .*, x3d_l$"):
        create_model("lookupvit")
