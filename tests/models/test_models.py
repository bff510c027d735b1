"""What every model that a config can name must do: one contract, each test over all of them."""

import math

import pytest
import torch
from torch.nn import functional as F

from lookupvit_video.config import load_config
from lookupvit_video.models.adapters import is_adapter
from lookupvit_video.models.build import build_model
from lookupvit_video.models.lookupvit import LookupViT
from lookupvit_video.models.vit import ViT
from lookupvit_video.registry import VIT_SIZES

SMALL = "DATA.NUM_FRAMES 4 DATA.TRAIN_CROP_SIZE 32 DATA.TEST_CROP_SIZE 32 MODEL.COMPRESSED_GRID [1,2,2] MODEL.DIM 24 \
         MODEL.DEPTH 2 MODEL.NUM_HEADS 3 MODEL.TUBELET [2,8,8] MODEL.NUM_CLASSES 5".split()
FACTORISED = "MODEL.ENCODER factorised MODEL.COMPRESSED_GRID [2,2] MODEL.TEMPORAL_DEPTH 2"
IMAGE = "DATA.NUM_FRAMES 1 MODEL.TUBELET [1,8,8]"
STREAMING = "MODEL.STREAMING True MODEL.HEADS ['compressed'] MODEL.INFERENCE_HEAD compressed"
LOOKUPVITS = {
    "lookupvit": "",
    "scaled": "MODEL.REVERSE_WEIGHTS scaled",
    "transpose": "MODEL.REVERSE_WEIGHTS transpose",
    "qk_norm": "MODEL.QK_NORM True MODEL.LAYER_SCALE 0.1",
    "trilinear": "MODEL.RESIZE trilinear MODEL.ACTIVATION gelu_tanh MODEL.NORM_EPS 1e-5",
    "average_norm": "MODEL.POOL average_norm MODEL.ACTIVATION quick_gelu",
    "compressed only": "MODEL.HEADS ['compressed']",
    "lookup only": "MODEL.HEADS ['lookup']",
    "read compressed": "MODEL.INFERENCE_HEAD compressed",
    "read lookup": "MODEL.INFERENCE_HEAD lookup",
    "attentive": "MODEL.POOL attentive",
    "factorised": FACTORISED,
    "factorised attentive": f"{FACTORISED} MODEL.POOL attentive MODEL.INFERENCE_HEAD compressed",
    "image": IMAGE,
    "multi-resolution": "MODEL.COMPRESSED_GRIDS [[1,1,2],[2,3,3]] TEST.GRIDS [[1,1,1]]",
    "exits": "MODEL.DEPTH 3 MODEL.EXITS [1,2]",
    "exits factorised": f"{FACTORISED} MODEL.EXITS [1] MODEL.KEEP [1,0.5]",
    "exits compressed": "MODEL.HEADS ['compressed'] MODEL.EXITS [1] MODEL.POOL attentive",
    "keep": "MODEL.DEPTH 4 MODEL.KEEP [1,0.5]",
    "keep transpose": "MODEL.KEEP [1,0.5] MODEL.REVERSE_WEIGHTS transpose MODEL.EXITS [1]",
    "keep random": "MODEL.KEEP [1,0.5] MODEL.KEEP_BY random",
    "keep pixels factorised": f"{FACTORISED} MODEL.KEEP [1,0.5] MODEL.KEEP_BY pixels MODEL.EXITS [1]",
    "exits probe": "MODEL.FREEZE_ENCODER True MODEL.EXITS [1]",
    "exits lora": "MODEL.ADAPTER lora MODEL.EXITS [1] MODEL.KEEP [1,0.5]",
    "lookup_conv": "MODEL.LOOKUP_CONV [3,3,3]",
    "lookup_conv factorised": f"{FACTORISED} MODEL.LOOKUP_CONV [1,3,3]",
    "lookup_conv keep": "MODEL.LOOKUP_CONV [1,3,1] MODEL.DEPTH 3 MODEL.KEEP [1,0.5,0.25] MODEL.ADAPTER adaptformer",
    "convolutional": "MODEL.TOKENIZER convolutional",
    "keep convolutional": "MODEL.TOKENIZER convolutional MODEL.KEEP [1,0.5] MODEL.EXITS [1]",
    "convolutional factorised": f"{FACTORISED} MODEL.TOKENIZER convolutional MODEL.INPUT changes",
    "rotary": "MODEL.POSITIONS rotary MODEL.COMPRESSED_GRIDS [[1,1,2],[2,3,3]]",
    "keep rotary": "MODEL.POSITIONS rotary MODEL.ROTARY vjepa2 MODEL.KEEP [1,0.5] MODEL.EXITS [1] MODEL.QK_NORM True",
    "rotary factorised": f"{FACTORISED} MODEL.POSITIONS rotary MODEL.ROTARY dinov3 MODEL.PRE_NORM True",
    "streaming": STREAMING,
    "streaming rotary": f"{STREAMING} MODEL.POSITIONS rotary MODEL.LAYER_SCALE 0.1 MODEL.POOL attentive",
    "linear probe": "MODEL.FREEZE_ENCODER True",
    "attentive probe": "MODEL.FREEZE_ENCODER True MODEL.POOL attentive",
    "spatial factorised probe": f"{FACTORISED} MODEL.FREEZE_SPATIAL True",
    "adaptformer": "MODEL.ADAPTER adaptformer",
    "connector factorised probe": f"{FACTORISED} MODEL.FREEZE_SPATIAL True MODEL.ADAPTER connector",
    "lora factorised": f"{FACTORISED} MODEL.ADAPTER lora MODEL.ADAPTER_WIDTH 3",
}
DENSE = {
    "vit lookup_conv": "MODEL.LOOKUP_CONV [3,3,3]",
    "vit lookup_conv factorised": f"{FACTORISED} MODEL.LOOKUP_CONV [1,3,3]",
    "vit": "",
    "vit class": "MODEL.POOL class MODEL.ACTIVATION gelu_tanh",
    "vit attentive": "MODEL.POOL attentive MODEL.QK_NORM True MODEL.LAYER_SCALE 0.1",
    "vit average_norm": "MODEL.POOL average_norm",
    "vit factorised": FACTORISED,
    "vit image": IMAGE,
    "vit convolutional": "MODEL.TOKENIZER convolutional MODEL.POOL class MODEL.REGISTERS 2",
    "vit rotary": "MODEL.POSITIONS rotary MODEL.POOL class MODEL.REGISTERS 2",
    "vit resize": "MODEL.TOKENS resize",
    "vit random": "MODEL.TOKENS random MODEL.KEEP_TOKENS 7",
    "vit merge": "MODEL.TOKENS merge MODEL.MERGE_TOKENS 9",
    "vit merge class": "MODEL.TOKENS merge MODEL.POOL class",
    "vit probe": "MODEL.FREEZE_ENCODER True MODEL.POOL attentive",
    "vit lora": "MODEL.ADAPTER lora MODEL.ADAPTER_WIDTH 3",
    "vit adaptformer factorised": f"{FACTORISED} MODEL.ADAPTER adaptformer",
}
PEERS = {"mvit": "MODEL.ARCH mvit MODEL.VARIANT Ti", "x3d": "MODEL.ARCH x3d MODEL.VARIANT XS"}
MODELS = LOOKUPVITS | {name: f"MODEL.ARCH vit {overrides}" for name, overrides in DENSE.items()} | PEERS
every_model = pytest.mark.parametrize("name", MODELS)


def config(name, overrides=""):
    return load_config(None, [*SMALL, *MODELS[name].split(), *overrides.split()])


def small_model(name="lookupvit", overrides="", seed=0):
    """Build a model in which no bias, norm, scale or adapter is at its start of 0 or 1, where faults could hide."""
    torch.manual_seed(seed)
    model = build_model(config(name, overrides))
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.ndim == 1 or is_adapter(parameter_name):
                parameter.add_(torch.rand_like(parameter), alpha=0.3)
    return model


def clips(name="lookupvit", batch=3):
    frames = 1 if "image" in name else 4
    return torch.randn(batch, 3, frames, 32, 32, generator=torch.Generator().manual_seed(1))


def loss(outputs):
    return sum(logits.square().sum() for logits in outputs)


def in_head(name):
    return name.startswith(("head.", "heads.", "exits."))


def new(name):
    return in_head(name) or ".adapter." in name or ".lora_" in name


# What trains in the models that are frozen in part.
FROZEN = {
    **dict.fromkeys(("linear probe", "attentive probe", "vit probe", "exits probe"), in_head),
    **dict.fromkeys(
        ("adaptformer", "lora factorised", "exits lora", "lookup_conv keep", "vit lora", "vit adaptformer factorised"),
        new,
    ),
    "spatial factorised probe": lambda name: not name.startswith(("tokenizer.", "blocks.")),
    "connector factorised probe": lambda name: not name.startswith(("tokenizer.", "blocks.", "frame_norms.")),
}


@every_model
def test_training_gives_logits_per_head_and_every_trainable_parameter_a_gradient(name):
    model = small_model(name).double().train()
    outputs = model(clips(name).double())
    assert isinstance(outputs, tuple)
    two_heads = name in LOOKUPVITS and not name.endswith(("only", "exits compressed"))
    exits = len(getattr(model, "exits", ()))
    assert [tuple(logits.shape) for logits in outputs] == [(3, 5)] * (1 + two_heads) * (1 + exits)
    loss(outputs).backward()
    for parameter_name, parameter in model.named_parameters():
        frozen = name in FROZEN and not FROZEN[name](parameter_name)
        assert parameter.requires_grad != frozen, parameter_name
        if frozen:
            assert parameter.grad is None, parameter_name
        elif not parameter_name.endswith(("norm_key.bias", "norm_k.bias")):  # a shift of all keys moves no softmax
            assert parameter.grad.abs().max() > 1e-9, parameter_name


@every_model
def test_eval_is_deterministic_without_dropout_and_a_clip_does_not_see_its_neighbours(name):
    rates = "MODEL.DROPOUT_RATE 0.5"
    if "probe" not in name and name != "x3d":  # which take no drop path
        rates += " MODEL.DROP_PATH 0.5"
    plain, model = small_model(name).double().eval(), small_model(name, rates).double().eval()
    batch = clips(name).double()
    with torch.no_grad():
        together = model(batch)
        assert together.shape == (3, 5)
        assert torch.equal(together, model(batch))
        assert torch.equal(together, plain(batch))
        alone = torch.cat([model(batch[i : i + 1]) for i in range(3)])
        assert not torch.allclose(model.train()(batch)[0], model(batch)[0])  # the rates act in training
    assert not torch.allclose(together[0], together[1])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-11)


@every_model
def test_float32_agrees_with_float64_and_the_state_dict_round_trips(name):
    model, other = small_model(name).eval(), small_model(name, seed=1).eval()
    with torch.no_grad():
        assert not torch.allclose(model(clips(name)), other(clips(name)))
        other.load_state_dict(model.state_dict(), strict=True)
        assert torch.equal(model(clips(name)), other(clips(name)))
        torch.testing.assert_close(
            model(clips(name)).double(), model.double()(clips(name).double()), rtol=1e-3, atol=1e-4
        )


@every_model
def test_features_lie_on_their_grids(name):
    model = small_model(name).eval()
    with torch.no_grad():
        features = model.forward_features(clips(name))
    if name in PEERS:
        assert features.tokens.shape[:2] == (3, math.prod(features.grid))
        return
    t = 1 if "image" in name or "streaming" in name else 2
    if name in LOOKUPVITS:
        assert features.grid == (t, 4, 4)
        assert features.compressed_grid == (2 if "factorised" in name else 1, 2, 2)
        assert features.tokens.shape == (3, t * 16, 24)
        assert features.compressed.shape == (3, math.prod(features.compressed_grid), 24)
        assert list(features.attention) == []
    else:
        fewer = {"vit resize": ((1, 2, 2), 4), "vit random": (None, 7), "vit merge": (None, 32 - 9 - 9)}
        if name == "vit merge class":
            fewer[name] = (None, 32 - sum(model.merged))
        grid, count = fewer.get(name, ((t, 4, 4), t * 16))
        assert features.grid == grid
        assert features.tokens.shape == (3, count, 24)


@every_model
def test_bfloat16_autocast_trains_and_keeps_the_tokens_in_float32(name):
    model = small_model(name).train()
    torch.manual_seed(2)
    (want, *_) = model(clips(name))
    torch.manual_seed(2)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(clips(name))
        features = model.forward_features(clips(name))
    loss(outputs).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), parameter_name
    if name not in PEERS:  # theirs have batch norms over three clips, or merge pooling's rounding
        assert all(part.dtype == torch.float32 for part in features if isinstance(part, torch.Tensor))
    if "merge" not in name:  # where two matches are nearly alike, rounding decides
        assert F.cosine_similarity(outputs[0].float().flatten(), want.flatten(), dim=0) > 0.99


# Tracing takes a second or two: one model stands for those with the same graph, test_peers.py traces PyTorchVideo's.
SAME_GRAPH = {"lookup only", "read lookup", "attentive", "factorised", "image", "multi-resolution", "linear probe",
              "attentive probe", "exits", "exits compressed", "keep random", "exits probe", "exits lora",
              "lookup_conv factorised", "lookup_conv keep", "rotary factorised", "connector factorised probe",
              "keep convolutional", "convolutional factorised",
              "vit average_norm", "vit image", "vit probe", "vit lora",
              "vit adaptformer factorised", "spatial factorised probe", *PEERS}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in MODELS if name not in SAME_GRAPH])
def test_compiles_in_one_graph_and_exports_for_any_batch(name):
    torch._dynamo.reset()
    has_budgets = name.startswith(("exits", "keep"))
    model = small_model(name, f"MODEL.DEPTH {2 if has_budgets else 1} MODEL.TEMPORAL_DEPTH 1").train()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    gradients = []
    for each in (model, compiled):
        model.zero_grad()
        torch.manual_seed(2)  # for the random tokens
        outputs = each(clips(name))
        loss(outputs).backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()
    batch = torch.export.Dim("batch")
    exported = torch.export.export(model.eval(), (clips(name),), dynamic_shapes=({0: batch},)).module()
    for part in (clips(name), clips(name)[:2]):
        torch.testing.assert_close(exported(part), model(part), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["factorised", "vit factorised", "lookupvit", "vit"])
def test_only_blocks_of_a_factorised_encoder_see_one_time_index(name):
    model = small_model(name).double().eval()
    before = clips().double()
    after = before.clone()
    after[:, :, 2:] += 1  # the second of two time indices
    with torch.no_grad():
        changed = zip(model.forward_features(before), model.forward_features(after), strict=True)
        tokens = [(a - b).abs().amax(-1) > 1e-6 for a, b in changed if isinstance(a, torch.Tensor)]
        assert not torch.allclose(model(before), model(after))
    for part in tokens if "factorised" in name else tokens[:1]:
        first, second = part.unflatten(1, (2, -1)).unbind(1)
        assert second.all()
        assert first.any() == ("factorised" not in name)


def test_frames_of_a_factorised_encoder_are_images_and_their_order_counts():
    """Each time index goes through the blocks as an image would, with the positions of its time."""
    model = small_model("factorised").double().eval()
    image = small_model("image", "MODEL.COMPRESSED_GRID [1,2,2] MODEL.TUBELET [1,8,8]").double().eval()
    image.blocks.load_state_dict(model.blocks.state_dict())
    with torch.no_grad():
        features = model.forward_features(clips().double())
        for t, tokens in enumerate(model.tokenizer(clips().double()).unflatten(1, (2, 16)).unbind(1)):
            image.tokenizer.forward = lambda clip, tokens=tokens: tokens
            alone = image.forward_features(clips().double())
            torch.testing.assert_close(features.tokens.unflatten(1, (2, 16))[:, t], alone.tokens)
            torch.testing.assert_close(features.compressed.unflatten(1, (2, 4))[:, t], alone.compressed)
        # By hand from here on: norm, mean of each time index, temporal transformer, head.
        frames = model.frame_norms["lookup"](features.tokens).unflatten(1, (2, 16)).mean(2)
        logits = model.heads["lookup"](model.temporal(frames))
        model.inference_heads = ("lookup",)
        torch.testing.assert_close(model(clips().double()), logits)


def test_inference_heads():
    names = ("lookupvit", "read compressed", "read lookup")
    average, compressed, lookup = (small_model(name).eval() for name in names)
    with torch.no_grad():
        each = compressed(clips()), lookup(clips())
        assert not torch.allclose(*each)
        torch.testing.assert_close(average(clips()), sum(each) / 2)
        # Nobody reads the lookup tokens after the last block, which therefore need not write to them.
        by_hand = compressed.heads["compressed"](average.forward_features(clips()).compressed)
        torch.testing.assert_close(each[0], by_hand)
        for logits, want in zip(average.train()(clips()), each, strict=True):
            torch.testing.assert_close(logits, want)
    calls = []
    for model in (average.eval(), compressed, lookup):
        model.blocks[-1].lookup_mlp.register_forward_hook(lambda *_, model=model: calls.append(model))
        model(clips())
    assert calls == [average, lookup]


def test_a_model_that_reads_compressed_tokens_only_has_no_last_infusion():
    only, both = small_model("compressed only"), small_model("read compressed")
    missing = {name for name, _ in both.named_parameters()} - {name for name, _ in only.named_parameters()}
    parts = ("cross_attention.infuse_", "norm_infuse", "norm_lookup_mlp", "lookup_mlp")
    assert missing
    assert all(name.startswith(("heads.lookup.", *(f"blocks.1.{part}" for part in parts))) for name in missing)
    only.load_state_dict(both.state_dict(), strict=False)
    with torch.no_grad():
        assert torch.equal(only.eval()(clips()), both.eval()(clips()))
        assert torch.equal(only.train()(clips())[0], both.train()(clips())[0])


def test_attention_is_returned_only_when_asked_for():
    for name, shape in {"lookupvit": (3, 3, 4, 32), "factorised": (6, 3, 4, 16)}.items():  # B (or B t), heads, M, N
        model = small_model(name).eval()
        with torch.no_grad():
            features = model.forward_features(clips(), return_attention=True)
        assert [tuple(weights.shape) for weights in features.attention] == [shape] * 2
        for weights in features.attention:
            torch.testing.assert_close(weights.sum(-1), torch.ones(shape[:-1]))


def test_training_can_return_features_beside_the_logits():
    model = small_model().train()
    with torch.no_grad():
        logits, features = model(clips(), with_features=True)
        torch.testing.assert_close(logits, model(clips()))
        torch.testing.assert_close(features.compressed, model.forward_features(clips()).compressed)


def test_one_set_of_weights_serves_several_grids():
    model = small_model("multi-resolution")
    grids = [(1, 2, 2), (1, 1, 2), (2, 3, 3), (1, 1, 1)]
    for grid in grids:
        single = small_model(overrides=f"MODEL.COMPRESSED_GRID {list(grid)}".replace(", ", ","), seed=1)
        single.load_state_dict(model.state_dict(), strict=True)  # the grids are in no weight
        for mode in (True, False):
            with torch.no_grad():
                torch.testing.assert_close(
                    model.train(mode)(clips(), grid), single.train(mode)(clips()), rtol=0, atol=0
                )
                torch.testing.assert_close(model(clips(), list(grid)), model(clips(), grid), rtol=0, atol=0)
        assert model.forward_features(clips(), grid).compressed_grid == grid
        assert model.forward_features(clips(), grid).compressed.shape == (3, math.prod(grid), 24)
    with torch.no_grad():
        assert torch.equal(model(clips()), model(clips(), grids[0]))
        assert not torch.allclose(model(clips()), model(clips(), grids[1]))
    with pytest.raises(ValueError, match="compressed grid 1x3x3: this model was made with 1x2x2, 1x1x2, 2x3x3, 1x1x1"):
        model(clips(), (1, 3, 3))


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        (LookupViT, {"heads": ("both",)}, "choose from compressed, lookup"),
        (LookupViT, {"heads": ()}, "choose from compressed, lookup"),
        (LookupViT, {"heads": ("lookup",), "inference_head": "compressed"}, "choose average, lookup"),
        (LookupViT, {"pool": "class"}, "choose average, average_norm or attentive"),
        (
            LookupViT,
            {"compressed_grid": (3, 1, 1)},
            r"\(3, 1, 1\) is larger than the grid of lookup tokens \(2, 2, 2\)",
        ),
        (LookupViT, {"num_heads": 5}, "width 24 cannot be split over 5 heads"),
        (ViT, {"pool": "mean"}, "choose average, average_norm, class, attentive"),
        (ViT, {"tokens": "some"}, "choose all, resize, random, merge"),
        (ViT, {"encoder": "factorised", "tokens": "merge"}, "takes all tokens"),
        (ViT, {"encoder": "factorised", "pool": "class"}, "has no class token"),
    ],
)
def test_mistakes_are_named(model, arguments, message):
    small = {"num_classes": 2, "num_frames": 4, "size": 32, "dim": 24, "num_heads": 3, "compressed_grid": (1, 1, 1)}
    with pytest.raises(ValueError, match=message):
        model(**{**small, **arguments})


@pytest.mark.parametrize("arch", ["lookupvit", "vit"])
@pytest.mark.parametrize("variant", VIT_SIZES)
def test_variants_have_vits_sizes(arch, variant):
    with torch.device("meta"):  # shapes only: no memory is taken
        model = build_model(load_config(None, ["MODEL.ARCH", arch, "MODEL.VARIANT", variant]))
    dim, depth, _ = VIT_SIZES[variant]
    matrices = sum(p.numel() for p in model.blocks.parameters() if p.ndim == 2)
    assert matrices == depth * (19 if arch == "lookupvit" else 12) * dim**2
