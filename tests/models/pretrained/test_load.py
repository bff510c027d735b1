"""Others' models against ours: small ones of the real classes, every weight random, so that a wrong place shows."""

import argparse
import pickle
import re
import sys

import pytest
import timm
import torch
import transformers
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from lookupvit_video.checkpoints.checkpoint import save_checkpoint
from lookupvit_video.config import load_config
from lookupvit_video.models.build import build_model
from lookupvit_video.models.pretrained import fitting, init_from, read_state, to_vit_names
from lookupvit_video.models.pretrained.settings import settings_of
from lookupvit_video.models.tokenizer import GridResize
from tests.models.vits import CLASSES, DEPTH, DIM, HEADS, PATCH, SIZE, complete, lookupvit, randomised, saved, vit

HF = {
    "hidden_size": DIM,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "intermediate_size": 4 * DIM,
    "image_size": SIZE,
}
TIMM = {
    "img_size": SIZE,
    "patch_size": PATCH,
    "embed_dim": DIM,
    "depth": DEPTH,
    "num_heads": HEADS,
    "num_classes": CLASSES,
}


def all_tokens(model, clip):
    """The class token, where there is one, and the tokens."""
    features = model.forward_features(clip)
    return features.tokens if features.class_token is None else torch.cat([features.class_token, features.tokens], 1)


def clip(num_frames=4, batch=2):
    return torch.randn(batch, 3, num_frames, SIZE, SIZE, generator=torch.Generator().manual_seed(3))


def images():
    return clip(1)[:, :, 0]


def same(ours, theirs):
    """Compare to a few units in the last place of float32, at values around 1."""
    assert theirs.std() > 0.05  # else they would agree by being nothing
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=5e-6)


# --- the same function ---


@pytest.mark.parametrize("mean_pooling", [True, False])
@torch.no_grad()
def test_videomae_of_hugging_face(tmp_path, mean_pooling):
    config = transformers.VideoMAEConfig(
        **HF, patch_size=PATCH, num_frames=4, tubelet_size=2, num_labels=CLASSES, use_mean_pooling=mean_pooling
    )
    theirs = randomised(transformers.VideoMAEForVideoClassification(config))
    ours = vit(num_frames=4, tubelet=(2, PATCH, PATCH), pool="average_norm", options={"norm_eps": 1e-12})
    report = complete(init_from(ours, saved(tmp_path / "x.safetensors", theirs)), ours)
    assert report.kind == "VideoMAE"
    assert (report.fresh, report.left_out, report.resized) == ([], [], {})
    assert set(report.made) == {"tokenizer.positions"}
    tokens = theirs.videomae(clip().transpose(1, 2)).last_hidden_state
    if mean_pooling:
        same(ours(clip()), theirs(clip().transpose(1, 2)).logits)
        same(ours.forward_features(clip()).tokens, tokens)
    else:  # their norm is before the head's choice of the first token
        same(ours.head.norm(ours.forward_features(clip()).tokens), tokens)


def as_released(state):
    """Turn Hugging Face's VideoMAE names into those of the authors' files."""
    out = {}
    for key, value in state.items():
        key = key.replace("videomae.", "").replace("embeddings.patch_embeddings.projection", "patch_embed.proj")
        key = key.replace("encoder.layer.", "blocks.").replace("attention.output.dense", "attn.proj")
        key = key.replace("intermediate.dense", "mlp.fc1").replace("output.dense", "mlp.fc2")
        key = key.replace("layernorm_before", "norm1").replace("layernorm_after", "norm2").replace("classifier", "head")
        key = re.sub(r"attention\.attention\.(q_bias|query\.bias)", "attn.q_bias", key)  # Hugging Face 4, 5
        key = re.sub(r"attention\.attention\.(v_bias|value\.bias)", "attn.v_bias", key)
        out[key] = value
    for i in range(DEPTH):
        parts = [out.pop(f"blocks.{i}.attention.attention.{part}.weight") for part in ("query", "key", "value")]
        out[f"blocks.{i}.attn.qkv.weight"] = torch.cat(parts)
    return out


@torch.no_grad()
def test_videomae_as_its_authors_released_it(tmp_path):
    config = transformers.VideoMAEConfig(**HF, patch_size=PATCH, num_frames=4, tubelet_size=2, num_labels=CLASSES)
    theirs = randomised(transformers.VideoMAEForVideoClassification(config))
    state = as_released(theirs.state_dict())
    assert {"blocks.0.attn.q_bias", "blocks.0.attn.qkv.weight", "fc_norm.weight", "patch_embed.proj.bias"} <= set(state)
    path = saved(tmp_path / "x.pth", {"module": state, "args": argparse.Namespace(model="vit_base_patch16_224")})
    ours = vit(num_frames=4, tubelet=(2, PATCH, PATCH), pool="average_norm", options={"norm_eps": 1e-12})
    report = complete(init_from(ours, path), ours)
    assert (report.kind, report.fresh, report.left_out) == ("VideoMAE", [], [])
    same(ours(clip()), theirs(clip().transpose(1, 2)).logits)
    second = saved(tmp_path / "v2.safetensors", {f"model.{key}": value for key, value in state.items()})
    of_second = vit(num_frames=4, tubelet=(2, PATCH, PATCH), pool="average_norm", options={"norm_eps": 1e-12})
    report = complete(init_from(of_second, second), of_second)  # VideoMAE v2's names on the Hub
    assert (report.kind, report.fresh, report.left_out) == ("VideoMAE", [], [])
    assert torch.equal(of_second(clip()), ours(clip()))
    encoder = {f"encoder.{key}": value for key, value in state.items() if not key.startswith(("head", "fc_norm"))}
    pretraining = {**encoder, "encoder.norm.weight": torch.ones(DIM), "encoder.norm.bias": torch.ones(DIM)}
    pretraining |= {"decoder.blocks.0.norm1.weight": torch.ones(12)}
    report = complete(init_from(ours, saved(tmp_path / "y.pth", {"model": pretraining})), ours)
    assert report.left_out == ["decoder.blocks.0.norm1.weight"]
    assert report.fresh == ["head.linear.weight", "head.linear.bias"]


@torch.no_grad()
def test_videomae_pretraining_model_gives_its_encoder(tmp_path):
    config = transformers.VideoMAEConfig(**HF, patch_size=PATCH, num_frames=4, tubelet_size=2, decoder_hidden_size=12)
    theirs = randomised(transformers.VideoMAEForPreTraining(config))
    ours = vit(num_frames=4, tubelet=(2, PATCH, PATCH), options={"norm_eps": 1e-12})
    report = complete(init_from(ours, saved(tmp_path / "x.bin", theirs)), ours)
    assert all(key.startswith(("decoder.", "encoder_to_decoder", "mask_token")) for key in report.left_out)
    assert report.fresh == [f"head.{name}" for name in ("norm.weight", "norm.bias", "linear.weight", "linear.bias")]
    tokens = theirs.videomae(clip().transpose(1, 2)).last_hidden_state
    same(ours.forward_features(clip()).tokens, tokens)


@torch.no_grad()
def test_vivit(tmp_path):
    config = transformers.VivitConfig(**HF, num_frames=4, tubelet_size=[2, PATCH, PATCH], num_labels=CLASSES)
    theirs = randomised(transformers.VivitForVideoClassification(config))
    ours = vit(num_frames=4, tubelet=(2, PATCH, PATCH), pool="class", options={"activation": "gelu_tanh"})
    path = saved(tmp_path / "x.safetensors", theirs)
    report = complete(init_from(ours, path), ours)
    assert report.kind == "ViViT"
    assert (report.fresh, report.left_out, report.made, report.resized) == ([], [], {}, {})
    expected = theirs(clip().transpose(1, 2)).logits
    same(ours(clip()), expected)
    old_names = {}  # those of Hugging Face before its version 5, and of the files it published until then
    for key, value in theirs.state_dict().items():
        key = key.replace("vivit.layers.", "vivit.encoder.layer.").replace("mlp.fc1", "intermediate.dense")
        key = key.replace("attention.o_proj", "attention.output.dense").replace("mlp.fc2", "output.dense")
        for letter, word in (("q", "query"), ("k", "key"), ("v", "value")):
            key = key.replace(f"attention.{letter}_proj", f"attention.attention.{word}")
        old_names[key] = value
    ours = vit(num_frames=4, tubelet=(2, PATCH, PATCH), pool="class", options={"activation": "gelu_tanh"})
    assert complete(init_from(ours, saved(tmp_path / "old.bin", old_names)), ours).left_out == []
    same(ours(clip()), expected)
    with_exact_gelu = vit(num_frames=4, tubelet=(2, PATCH, PATCH), pool="average")
    warnings = " ".join(complete(init_from(with_exact_gelu, path), with_exact_gelu).warnings)
    assert "MODEL.ACTIVATION gelu_tanh" in warnings
    assert "MODEL.POOL class" in warnings
    assert "DATA.MEAN [0.5,0.5,0.5]" in str(init_from(with_exact_gelu, path))


@pytest.mark.parametrize(
    ("pool", "theirs", "options"),
    [
        ("class", {}, {}),
        ("class", {"no_embed_class": True}, {}),
        ("class", {"qkv_bias": False, "proj_bias": False}, {}),
        ("class", {"init_values": 0.5}, {}),  # folded in
        ("class", {"init_values": 0.5}, {"layer_scale": 0.1}),
        ("class", {"qk_norm": True}, {"qk_norm": True}),
        ("average_norm", {"global_pool": "avg", "class_token": False}, {}),
        ("average", {"global_pool": "avg", "class_token": False, "fc_norm": False}, {}),
    ],
)
@torch.no_grad()
def test_timm(tmp_path, pool, theirs, options):
    reference = randomised(VisionTransformer(**TIMM, **theirs))
    ours = vit(pool=pool, options=options)
    report = complete(init_from(ours, saved(tmp_path / "x.pth", {"state_dict": reference.state_dict()})), ours)
    kind = "ViT with layer scale (as DINOv2)" if "init_values" in theirs else "ViT"
    assert (report.kind, report.fresh, report.left_out) == (kind, [], [])
    same(ours(clip(1)), reference(images()))
    assert not [text for text in report.warnings if "heads are" not in text and "classifier was loaded" not in text]


@torch.no_grad()
def test_hugging_face_vit_and_dinov2(tmp_path):
    config = transformers.ViTConfig(**HF, patch_size=PATCH, num_labels=CLASSES)
    theirs = randomised(transformers.ViTForImageClassification(config))
    ours = vit(pool="class", options={"norm_eps": 1e-12})
    assert complete(init_from(ours, saved(tmp_path / "a.safetensors", theirs)), ours).left_out == []
    same(ours(clip(1)), theirs(images()).logits)

    theirs = randomised(
        transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(**HF, patch_size=PATCH))
    )
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "register" in name:
                parameter.copy_(torch.full_like(parameter, 1e9))  # noticed if it came along
    ours = vit(pool="class")
    report = complete(init_from(ours, saved(tmp_path / "b.safetensors", theirs)), ours)
    assert report.kind == "ViT with layer scale (as DINOv2)"
    assert report.left_out == ["embeddings.mask_token", "embeddings.register_tokens"]
    assert "these were left out: embeddings.register_tokens" in " ".join(report.warnings)

    theirs = randomised(transformers.Dinov2Model(transformers.Dinov2Config(**HF, patch_size=PATCH)))
    init_from(ours, saved(tmp_path / "c.safetensors", theirs))
    same(ours.head.norm(all_tokens(ours, clip(1))), theirs(images()).last_hidden_state)

    theirs = randomised(
        transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**HF, patch_size=PATCH, mask_ratio=0.0))
    )
    ours = vit(pool="class", options={"norm_eps": 1e-12})
    report = complete(init_from(ours, saved(tmp_path / "d.safetensors", theirs)), ours)
    assert all(key.startswith("decoder.") for key in report.left_out)
    order = torch.arange(16.0).expand(2, -1)
    same(ours.head.norm(all_tokens(ours, clip(1))), theirs.vit(images(), noise=order).last_hidden_state)


@torch.no_grad()
def test_dinov3_goes_in_without_its_rotary_positions(tmp_path):
    theirs = transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**HF, patch_size=PATCH, num_register_tokens=4))
    ours = vit()
    before = ours.tokenizer.positions.clone()
    report = complete(init_from(ours, saved(tmp_path / "x.safetensors", randomised(theirs))), ours)
    assert report.kind == "DINOv3"
    assert report.left_out == ["embeddings.cls_token", "embeddings.mask_token", "embeddings.register_tokens"]
    assert report.fresh == ["tokenizer.positions", "head.linear.weight", "head.linear.bias"]
    assert torch.equal(before, ours.tokenizer.positions)
    assert "no table of positions" in " ".join(report.warnings)


def as_openai(state):
    """Turn Hugging Face's CLIP names into OpenAI's, with a text tower beside."""
    out = {"transformer.resblocks.0.ln_1.weight": torch.zeros(7), "positional_embedding": torch.zeros(7, 7)}
    names = {
        "embeddings.class_embedding": "class_embedding", "embeddings.patch_embedding": "conv1",
        "embeddings.position_embedding.weight": "positional_embedding", "pre_layrnorm": "ln_pre",
        "post_layernorm": "ln_post", "encoder.layers": "transformer.resblocks", "self_attn.out_proj": "attn.out_proj",
        "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    }  # fmt: skip
    for key, value in state.items():
        for old, new in names.items():
            key = key.replace(old, new)
        out[f"visual.{key.removeprefix('vision_model.')}"] = value
    for i in range(DEPTH):
        start = f"visual.transformer.resblocks.{i}."
        for kind in ("weight", "bias"):
            parts = [out.pop(f"{start}self_attn.{letter}_proj.{kind}") for letter in "qkv"]
            out[f"{start}attn.in_proj_{kind}"] = torch.cat(parts)
    return out


@pytest.mark.parametrize("naming", ["hugging_face", "openai"])
@torch.no_grad()
def test_clip(tmp_path, naming):
    theirs = randomised(transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**HF, patch_size=PATCH)))
    state = theirs.state_dict() if naming == "hugging_face" else as_openai(theirs.state_dict())
    ours = vit(pool="class", options={"norm_eps": 1e-5, "activation": "quick_gelu"})
    report = complete(init_from(ours, saved(tmp_path / "x.pt", state)), ours)
    assert report.kind == "CLIP"
    assert report.fresh == ["head.linear.weight", "head.linear.bias"]
    assert report.made == {"tokenizer.projection.bias": "zero, as the source has none"}
    assert "outputs differ from the source" in " ".join(report.warnings)
    assert "MODEL.ACTIVATION" not in " ".join(report.warnings)

    class WithPreNorm(nn.Module):  # what this project's ViT lacks
        def __init__(self):
            super().__init__()
            self.norm = getattr(theirs, "vision_model", theirs).pre_layrnorm
            self.block = ours.blocks[0]

        def forward(self, x):
            return self.block(self.norm(x))

    plain = vit(pool="class")
    assert "MODEL.ACTIVATION quick_gelu" in " ".join(init_from(plain, str(tmp_path / "x.pt")).warnings)
    ours.blocks[0] = WithPreNorm()
    same(ours.head.norm(all_tokens(ours, clip(1))[:, 0]), theirs(images()).pooler_output)


# --- images to video ---


@pytest.mark.parametrize("inflate", ["central", "average"])
@torch.no_grad()
def test_an_image_model_gives_a_static_clip_the_tokens_of_its_image(tmp_path, inflate):
    path = saved(tmp_path / "x.safetensors", randomised(VisionTransformer(**TIMM)))
    of_images, of_videos = vit(), vit(num_frames=6, tubelet=(3, PATCH, PATCH))
    init_from(of_images, path)
    report = complete(init_from(of_videos, path, inflate=inflate), of_videos)
    assert report.made == {"tokenizer.projection.weight": f"inflated: {inflate}"}
    assert report.resized == {"tokenizer.positions": "1x4x4 -> 2x4x4"}
    image, static = clip(1), clip(1).expand(-1, -1, 6, -1, -1)
    tokens = of_images.tokenizer(image)
    same(of_videos.tokenizer(static), torch.cat([tokens, tokens], dim=1))
    moving = static.clone()
    moving[:, :, [0, 2, 3, 5]] += 1  # all but the central frames 1 and 4
    changed = (of_videos.tokenizer(moving) - of_videos.tokenizer(static)).abs().max() > 0.01
    assert changed == (inflate == "average")
    with pytest.raises(ValueError, match="choose central or average"):
        init_from(of_videos, path, inflate="middle")


@torch.no_grad()
def test_positions_of_another_size_are_resized_in_space(tmp_path):
    theirs = randomised(VisionTransformer(**{**TIMM, "img_size": 32}))
    ours = vit(num_frames=4, tubelet=(2, PATCH, PATCH))
    report = complete(init_from(ours, saved(tmp_path / "x.pth", theirs)), ours)
    assert report.resized == {"tokenizer.positions": "1x8x8 -> 2x4x4"}
    places = theirs.pos_embed[:, 1:].transpose(1, 2).unflatten(2, (8, 8))
    expected = (
        nn.functional.interpolate(places, size=(4, 4), mode="bilinear", antialias=True).flatten(2).transpose(1, 2)
    )
    torch.testing.assert_close(ours.tokenizer.positions, torch.cat([expected, expected], dim=1))


@torch.no_grad()
def test_positions_of_a_video_are_resized_in_time(tmp_path):
    config = transformers.VivitConfig(**HF, num_frames=8, tubelet_size=[2, PATCH, PATCH])
    theirs = randomised(transformers.VivitModel(config))
    ours = vit(num_frames=4, tubelet=(2, PATCH, PATCH))
    report = complete(init_from(ours, saved(tmp_path / "x.pth", theirs)), ours)
    assert report.resized == {"tokenizer.positions": "4x4x4 -> 2x4x4"}
    expected = GridResize((4, 4, 4), (2, 4, 4))(theirs.embeddings.position_embeddings[:, 1:])
    torch.testing.assert_close(ours.tokenizer.positions, expected)


@pytest.mark.parametrize(
    ("n", "kernel", "model_grid", "expected"),
    [
        (196, (16, 16), (8, 14, 14), (1, 14, 14)),
        (576, (16, 16), (8, 14, 14), (1, 24, 24)),
        (1568, (2, 16, 16), (8, 14, 14), (8, 14, 14)),
        (3136, (2, 16, 16), (8, 14, 14), (16, 14, 14)),
        (1568, (2, 16, 16), (8, 7, 7), (8, 14, 14)),  # 32 x 7 x 7 would do, but 224 pixels are likelier
        (1568, (1, 16, 16), (16, 14, 14), (8, 14, 14)),
        (256, (2, 8, 8), (4, 4, 4), (16, 4, 4)),
    ],
)
def test_the_grid_of_positions_is_inferred(n, kernel, model_grid, expected):
    assert fitting._source_grid(n, kernel, model_grid) == expected


def test_a_grid_that_cannot_be_inferred_is_an_error(tmp_path):
    wide = saved(tmp_path / "x.safetensors", VisionTransformer(**{**TIMM, "img_size": (16, 20)}))
    with pytest.raises(ValueError, match="the source has 20 positions for kernels of 4x4: cannot infer their grid"):
        init_from(vit(), wide)


@pytest.mark.parametrize("theirs", [{"reg_tokens": 4}, {"reg_tokens": 4, "no_embed_class": True}, {"distilled": True}])
def test_positions_of_other_tokens_are_not_places(tmp_path, theirs):
    distilled = "distilled" in theirs
    network = timm.models.deit.VisionTransformerDistilled if distilled else VisionTransformer
    theirs = randomised(network(**TIMM, **({} if distilled else theirs)))
    ours = vit(pool="class")
    report = complete(init_from(ours, saved(tmp_path / "x.pth", theirs)), ours)
    assert "these were left out: " + ("dist_token" if distilled else "reg_token") in " ".join(report.warnings)
    assert torch.equal(ours.tokenizer.positions, theirs.pos_embed[:, -16:])
    first = theirs.pos_embed[:, :1] * (theirs.pos_embed.shape[1] > 16)
    assert torch.equal(ours.class_token, theirs.cls_token + first)


@torch.no_grad()
def test_a_kernel_of_another_size_sees_an_enlarged_patch_as_it_saw_the_patch(tmp_path):
    kernel, patch = torch.randn(DIM, 3, 2, 4, 4), torch.randn(5, 3, 2, 4, 4)
    larger = fitting.fit_kernel(kernel, (4, 8, 8), "central")
    enlarged = nn.functional.interpolate(patch, size=(4, 8, 8), mode="trilinear")
    before, after = (torch.einsum("bcthw,dcthw->bd", x, k) for x, k in ((patch, kernel), (enlarged, larger)))
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
    of_one_frame = fitting.fit_kernel(kernel, (1, 4, 4), "central")  # as if that frame stood still
    torch.testing.assert_close(of_one_frame, kernel.sum(2, keepdim=True))

    path = saved(tmp_path / "x.safetensors", randomised(VisionTransformer(**TIMM)))
    ours = vit(num_frames=4, tubelet=(2, 8, 8))
    report = complete(init_from(ours, path), ours)
    assert report.resized["tokenizer.projection.weight"] == "4x4 -> 2x8x8, inflated: central"
    assert report.resized["tokenizer.positions"] == "1x4x4 -> 2x2x2"
    assert not ours.tokenizer.projection.weight[:, :, 0].any()


# --- LookupViT ---


@pytest.mark.parametrize(
    ("source", "options"),
    [({}, {}), ({"init_values": 0.5}, {"layer_scale": 0.1}), ({"qk_norm": True}, {"qk_norm": True})],
)
@torch.no_grad()
def test_a_dense_vit_becomes_a_lookupvit(tmp_path, source, options):
    path = saved(tmp_path / "x.safetensors", randomised(VisionTransformer(**TIMM, **source)))
    dense = to_vit_names(read_state(path))[0]
    ours = lookupvit(options=options)
    fresh = {name: value.clone() for name, value in ours.state_dict().items()}
    report = complete(init_from(ours, path), ours)
    own = ours.state_dict()
    for i in range(DEPTH):
        block, cross = f"blocks.{i}.", f"blocks.{i}.cross_attention."
        for name in [name for name in dense if name.startswith(block)]:
            assert torch.equal(own[name.replace(block, f"{block}refine.")], dense[name]), name
        for kind in ("weight", "bias"):
            query, key, value = dense[f"{block}attention.qkv.{kind}"].chunk(3)
            assert torch.equal(own[f"{cross}query.{kind}"], query)
            assert torch.equal(own[f"{cross}key_value.{kind}"], torch.cat([key, value]))
            assert torch.equal(own[f"{cross}gather_projection.{kind}"], dense[f"{block}attention.projection.{kind}"])
            assert torch.equal(own[f"{cross}infuse_value.{kind}"], value)
            assert not own[f"{cross}infuse_projection.{kind}"].any()
            assert not own[f"{block}lookup_mlp.2.{kind}"].any()
            for norm in ("norm_gather_compressed", "norm_gather_lookup"):
                assert torch.equal(own[f"{block}{norm}.{kind}"], dense[f"{block}norm_attention.{kind}"])
            for name in ("norm_infuse", "norm_lookup_mlp", "lookup_mlp.0"):
                assert torch.equal(own[f"{block}{name}.{kind}"], fresh[f"{block}{name}.{kind}"])
                assert f"{block}{name}.{kind}" in report.fresh
        if "layer_scale" in options:
            assert torch.equal(own[f"{block}scale_gather.gamma"], dense[f"{block}scale_attention.gamma"])
        if "qk_norm" in options:
            for norm in ("norm_query.weight", "norm_key.bias"):
                assert torch.equal(own[f"{cross}{norm}"], dense[f"{block}attention.{norm}"])
    for head in ("compressed", "lookup"):
        assert torch.equal(own[f"heads.{head}.norm.weight"], dense["head.norm.weight"])
        assert torch.equal(own[f"heads.{head}.linear.weight"], fresh[f"heads.{head}.linear.weight"])
        assert f"heads.{head}.linear.bias" in report.fresh
    assert report.left_out == ["cls_token", "head.bias", "head.weight"]
    # At first the lookup tokens come out as they went in, and both directions learn.
    features = ours.forward_features(clip())
    assert torch.equal(features.tokens, ours.tokenizer(clip()))
    assert not torch.equal(features.compressed, ours.compress["1x2x2"](features.tokens))
    with torch.enable_grad():
        sum(logits.square().sum() for logits in ours.train()(clip())).backward()
    for name in ("cross_attention.infuse_projection", "lookup_mlp.2", "cross_attention.query"):
        assert ours.get_parameter(f"blocks.0.{name}.weight").grad.abs().sum() > 0


@torch.no_grad()
def test_layer_scale_is_folded_in_where_the_model_has_none(tmp_path):
    theirs = randomised(VisionTransformer(**TIMM, init_values=0.5))
    path = saved(tmp_path / "x.safetensors", theirs)
    ours, scaled = lookupvit(), lookupvit(options={"layer_scale": 0.1})
    report = complete(init_from(ours, path), ours)
    init_from(scaled, path)
    assert report.made["blocks.0.refine.mlp.2.weight"] == "layer scale folded in"
    same(ours(clip()), scaled(clip()))


@torch.no_grad()
def test_where_nothing_is_compressed_the_gather_attends_as_the_source_did(tmp_path):
    path = saved(tmp_path / "x.safetensors", randomised(VisionTransformer(**TIMM)))
    dense, ours = vit(depth=1), lookupvit(num_frames=1, tubelet=(1, PATCH, PATCH), compressed_grid=(1, 4, 4), depth=1)
    init_from(dense, path)
    init_from(ours, path)
    block, tokens = dense.blocks[0], dense.tokenizer(clip(1))
    after_gather = tokens + block.attention(block.norm_attention(tokens))
    same(ours.forward_features(clip(1)).compressed, block(after_gather))


@torch.no_grad()
def test_a_head_on_the_compressed_tokens_alone_needs_no_last_infusion(tmp_path):
    path = saved(tmp_path / "x.safetensors", randomised(VisionTransformer(**TIMM)))
    ours = lookupvit(heads=("compressed",), inference_head="compressed")
    report = complete(init_from(ours, path), ours)
    assert not [name for name in report.made if name.startswith(f"blocks.{DEPTH - 1}.") and "infuse" in name]
    assert f"blocks.{DEPTH - 2}.cross_attention.infuse_value.weight" in report.made
    assert report.left_out == ["cls_token", "head.bias", "head.weight"]


def checkpoint(path, *overrides, frames=4, size=32):
    sizes = (
        f"DATA.NUM_FRAMES {frames} DATA.TRAIN_CROP_SIZE {size} DATA.TEST_CROP_SIZE {size} MODEL.DIM 24 MODEL.DEPTH 2"
    )
    rest = "MODEL.NUM_HEADS 3 MODEL.NUM_CLASSES 5 MODEL.COMPRESSED_GRID [1,2,2] MODEL.TUBELET [2,8,8]"
    cfg = load_config(None, [*sizes.split(), *rest.split(), *overrides])
    torch.manual_seed(0)
    model = randomised(build_model(cfg))
    save_checkpoint(path, cfg=cfg, classes=list("abcde")[: cfg.MODEL.NUM_CLASSES], model=model)
    return model


@pytest.mark.parametrize("arch", ["lookupvit", "vit"])
@torch.no_grad()
def test_own_checkpoints_load_whole(tmp_path, arch):
    source = checkpoint(tmp_path / "a.pt", "MODEL.ARCH", arch)
    ours = checkpoint(tmp_path / "b.pt", "MODEL.ARCH", arch, "RNG_SEED", "1")
    for parameter in ours.parameters():
        parameter.add_(1)
    report = complete(init_from(ours, str(tmp_path / "a.pt")), ours)
    assert report.loaded == list(ours.state_dict())
    assert [text for text in report.warnings if "classifier was loaded" not in text] == []
    x = torch.randn(2, 3, 4, 32, 32)
    assert torch.equal(ours(x), source(x))


@torch.no_grad()
def test_own_checkpoints_from_before_a_key_load(tmp_path):
    source = checkpoint(tmp_path / "a.pt")
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    kept = [line for line in content["config"].splitlines() if "STREAM" not in line]
    assert len(kept) < len(content["config"].splitlines())
    torch.save(content | {"config": "\n".join(kept)}, tmp_path / "old.pt")
    ours = checkpoint(tmp_path / "b.pt", "RNG_SEED", "1")
    complete(init_from(ours, str(tmp_path / "old.pt")), ours)
    assert torch.equal(ours.tokenizer.positions, source.tokenizer.positions)


@torch.no_grad()
def test_a_convolutional_tokenizer_loads_into_its_own_kind_alone(tmp_path):
    stem = ("MODEL.TOKENIZER", "convolutional")
    source, path = checkpoint(tmp_path / "a.pt", *stem), str(tmp_path / "a.pt")
    ours = checkpoint(tmp_path / "b.pt", *stem, "MODEL.TUBELET", "[2,16,16]", frames=8, size=64)
    report = complete(init_from(ours, path), ours)
    assert report.resized == {"tokenizer.projection.weight": "2x2x2 -> 2x4x4", "tokenizer.positions": "2x4x4 -> 4x4x4"}
    assert torch.equal(ours.tokenizer.stem.layers[2].weight, source.tokenizer.stem.layers[2].weight)
    linear = checkpoint(tmp_path / "c.pt")
    with pytest.raises(
        ValueError, match=r"a\.pt: its tokenizer is convolutional, the model's linear; set MODEL\.TOKENIZ"
    ):
        init_from(linear, path)
    with pytest.raises(ValueError, match=r"c\.pt: its tokenizer is linear, the model's convolutional; set .* linear"):
        init_from(ours, str(tmp_path / "c.pt"))
    published = saved(tmp_path / "x.safetensors", VisionTransformer(**TIMM))
    with pytest.raises(
        ValueError, match=r"its tokenizer is linear, the model's convolutional; set MODEL\.TOKENIZER lin"
    ):
        init_from(ours, published)


@torch.no_grad()
def test_the_grid_of_a_convolutional_tokenizer_is_inferred_from_pixels(tmp_path):
    stem = ("MODEL.TOKENIZER", "convolutional")
    video = checkpoint(tmp_path / "a.pt", *stem, frames=2, size=224)  # 28 x 28 tubelets of 8 x 8 pixels
    ours = checkpoint(tmp_path / "b.pt", *stem)
    path = saved(tmp_path / "x.safetensors", video)
    report = init_from(ours, path)
    assert report.resized == {"tokenizer.positions": "1x28x28 -> 2x4x4"}
    found = settings_of(read_state(path), path)[1]
    assert (found["MODEL.TUBELET"], found["MODEL.TOKENIZER"]) == ("[2,8,8]", "convolutional")


@torch.no_grad()
def test_own_checkpoints_of_another_geometry_are_fitted(tmp_path):
    image = checkpoint(tmp_path / "image.pt", "MODEL.TUBELET", "[1,8,8]", frames=1, size=64)
    ours = checkpoint(tmp_path / "b.pt", "MODEL.NUM_CLASSES", "4", "MODEL.COMPRESSED_GRID", "[2,3,3]", frames=8)
    report = complete(init_from(ours, str(tmp_path / "image.pt")), ours)
    assert report.resized == {"tokenizer.positions": "1x8x8 -> 4x4x4"}
    assert report.made == {"tokenizer.projection.weight": "inflated: central"}
    linear = [f"heads.{head}.linear.{kind}" for head in ("compressed", "lookup") for kind in ("weight", "bias")]
    assert sorted(report.fresh) == report.left_out == sorted(linear)
    assert torch.equal(ours.blocks[1].lookup_mlp[2].weight, image.blocks[1].lookup_mlp[2].weight)
    # 64 positions are 1 x 8 x 8 and 4 x 4 x 4 alike: the checkpoint's own config says which
    video = checkpoint(tmp_path / "video.pt", frames=16)
    report = complete(init_from(ours, str(tmp_path / "video.pt")), ours)
    assert report.resized == {"tokenizer.positions": "8x4x4 -> 4x4x4"}
    expected = GridResize((8, 4, 4), (4, 4, 4))(video.tokenizer.positions)
    torch.testing.assert_close(ours.tokenizer.positions, expected)


@torch.no_grad()
def test_own_layer_scale_is_folded_in_and_warned_of_where_it_is_new(tmp_path):
    scaled = checkpoint(tmp_path / "a.pt", "MODEL.LAYER_SCALE", "0.1")
    plain = checkpoint(tmp_path / "b.pt", "RNG_SEED", "1")
    report = complete(init_from(plain, str(tmp_path / "a.pt")), plain)
    assert len(report.made) == 2 * 5 * 2
    assert report.left_out == []
    x = torch.randn(2, 3, 4, 32, 32)
    same(plain(x), scaled(x))


@torch.no_grad()
def test_own_vit_becomes_a_lookupvit_but_not_the_other_way(tmp_path):
    dense = checkpoint(tmp_path / "vit.pt", "MODEL.ARCH", "vit")
    ours = checkpoint(tmp_path / "lookupvit.pt")
    report = complete(init_from(ours, str(tmp_path / "vit.pt")), ours)
    assert report.kind == "this project's ViT"
    assert torch.equal(ours.blocks[1].refine.mlp[0].weight, dense.blocks[1].mlp[0].weight)
    assert torch.equal(ours.tokenizer.positions, dense.tokenizer.positions)
    with pytest.raises(ValueError, match=r"set MODEL\.ARCH lookupvit"):
        init_from(dense, str(tmp_path / "lookupvit.pt"))


@torch.no_grad()
def test_factorised_encoders(tmp_path):
    path = saved(tmp_path / "x.safetensors", theirs := randomised(VisionTransformer(**TIMM)))
    ours = vit(num_frames=4, tubelet=(2, PATCH, PATCH), encoder="factorised", temporal_depth=1)
    report = complete(init_from(ours, path), ours)
    assert torch.equal(ours.frame_norm.weight, theirs.norm.weight)
    assert {name.split(".")[0] for name in report.fresh} == {"temporal", "head"}
    assert "head.norm.weight" in report.fresh
    image = vit()
    init_from(image, path)
    static = clip(1).expand(-1, -1, 4, -1, -1)
    tokens = image.forward_features(clip(1)).tokens
    same(ours.forward_features(static).tokens, torch.cat([tokens, tokens], dim=1))

    randomised(ours)
    path = saved(tmp_path / "own.pt", ours)
    again = vit(num_frames=4, tubelet=(2, PATCH, PATCH), encoder="factorised", temporal_depth=1)
    assert complete(init_from(again, path), again).loaded == list(again.state_dict())
    same(again(clip()), ours(clip()))
    longer = vit(num_frames=8, tubelet=(2, PATCH, PATCH), encoder="factorised", temporal_depth=1)
    report = complete(init_from(longer, path), longer)
    assert report.resized == {"tokenizer.positions": "2x4x4 -> 4x4x4", "temporal.positions": "2x1x1 -> 4x1x1"}
    torch.testing.assert_close(longer.temporal.positions[:, 0], ours.temporal.positions[:, 0])
    looking = lookupvit(compressed_grid=(2, 2), encoder="factorised", temporal_depth=1)
    complete(init_from(looking, path), looking)
    assert torch.equal(looking.temporal.blocks[0].mlp[0].weight, ours.temporal.blocks[0].mlp[0].weight)
    assert torch.equal(looking.frame_norms["lookup"].weight, ours.frame_norm.weight)
    assert torch.equal(looking.heads["compressed"].norm.weight, ours.head.norm.weight)


# --- what does not fit ---


@torch.no_grad()
def test_more_and_fewer_blocks_and_other_classes(tmp_path):
    path = saved(tmp_path / "x.safetensors", randomised(VisionTransformer(**TIMM)))
    shallow, deep = vit(depth=2, num_classes=7), vit(depth=4)
    report = complete(init_from(shallow, path), shallow)
    assert len([key for key in report.left_out if key.startswith("blocks.2.")]) == 12
    assert {"cls_token", "head.weight", "head.bias"} <= set(report.left_out)
    assert report.fresh == ["head.linear.weight", "head.linear.bias"]
    assert "the source has 3 blocks, the model 2" in report.warnings
    report = complete(init_from(deep, path), deep)
    assert {name.rpartition("blocks.3.")[1] for name in report.fresh} == {"blocks.3."}


@torch.no_grad()
def test_options_that_the_source_does_not_have(tmp_path):
    path = saved(tmp_path / "x.safetensors", randomised(VisionTransformer(**TIMM)))
    ours = vit(options={"layer_scale": 0.1, "qk_norm": True})
    report = complete(init_from(ours, path), ours)
    assert len(report.fresh) == DEPTH * 6
    assert {"MODEL.LAYER_SCALE 0.0", "MODEL.QK_NORM False"} <= {text.split("set ")[-1] for text in report.warnings}
    normed = saved(tmp_path / "y.safetensors", randomised(VisionTransformer(**TIMM, qk_norm=True)))
    assert "MODEL.QK_NORM True" in str(init_from(vit(), normed))


def test_the_report_is_read_by_people(tmp_path):
    path = saved(tmp_path / "x.safetensors", randomised(VisionTransformer(**TIMM)))
    text = str(init_from(lookupvit(), path))
    assert text.startswith("initialized from ViT\n  loaded 4")
    assert "blocks.*.refine.mlp.0.weight x3" in text
    assert "blocks.*.cross_attention.infuse_projection.bias x3 (zero)" in text
    assert "tokenizer.projection.weight (inflated: central)" in text
    assert "tokenizer.positions (1x4x4 -> 2x4x4)" in text
    assert "left out 3: cls_token, head.bias, head.weight" in text
    assert len(text.splitlines()) < 12


def test_other_widths_and_shapes_are_refused(tmp_path):
    path = saved(tmp_path / "x.safetensors", VisionTransformer(**TIMM))
    with pytest.raises(ValueError, match=r"its width is 24, the model's 48; set MODEL.VARIANT .* or MODEL.DIM 24"):
        init_from(vit(dim=48), path)
    model = vit()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    narrow = saved(tmp_path / "y.safetensors", VisionTransformer(**TIMM, mlp_ratio=2))
    with pytest.raises(ValueError, match=r"blocks.0.mlp.0.weight has shape \(48, 24\), the model's has \(96, 24\)"):
        init_from(model, narrow)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    config = transformers.Dinov2Config(**HF, patch_size=PATCH, use_swiglu_ffn=True)
    gated = saved(tmp_path / "z.safetensors", transformers.Dinov2Model(config))
    with pytest.raises(ValueError, match=r"mlp\.\w+\.\w+ belongs to a gated MLP"):
        init_from(model, gated)
    with pytest.raises(ValueError, match=r"MODEL\.ARCH vit or lookupvit, not for a Linear"):
        init_from(nn.Linear(2, 2), path)
    grey = saved(tmp_path / "g.safetensors", VisionTransformer(**TIMM, in_chans=1))
    with pytest.raises(ValueError, match=r"has shape \(24, 1, 1, 4, 4\)"):
        init_from(model, grey)


def test_other_networks_are_refused(tmp_path):
    convolutions = timm.create_model("resnet10t", num_classes=2)
    with pytest.raises(ValueError, match=r"x\.pth: not a ViT with known parameter .* its keys are conv1.0.weight"):
        init_from(vit(), saved(tmp_path / "x.pth", convolutions))
    for content in ({}, {"model": {}}, [torch.zeros(2)], torch.zeros(2), {"epoch": 3}):
        with pytest.raises(ValueError, match=r"y\.pth: it holds no named tensors"):
            read_state(saved(tmp_path / "y.pth", content))


def test_a_hostile_file_is_not_run(tmp_path, monkeypatch):
    # what somebody may have set for another program, and what torch then does where nothing is asked for
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")

    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "was_run"), "w"))

    (tmp_path / "bad.bin").write_bytes(pickle.dumps(Payload()))
    torch.save({"model": Payload()}, tmp_path / "zip.pth")
    for name in ("bad.bin", "zip.pth"):
        with pytest.raises(ValueError, match=rf"{name}: these weights cannot be read \(it holds code"):
            read_state(str(tmp_path / name))
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth"])
@pytest.mark.parametrize("content", [b"", b"some text\n", b"PK\x03\x04 cut off"])
def test_unreadable_files_are_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}: these weights cannot be read"):
        read_state(str(tmp_path / name))


def test_folders_and_missing_files(tmp_path):
    with pytest.raises(ValueError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        read_state(str(tmp_path))
    saved(tmp_path / "pytorch_model.bin", {"x": torch.ones(2)})
    assert torch.equal(read_state(str(tmp_path))["x"], torch.ones(2))
    for source in (str(tmp_path / "none" / "x"), "weights/none.pth", "vit_base"):
        with pytest.raises(ValueError, match=r"no such file; MODEL\.INIT_FROM is"):
            read_state(source)


def test_the_hub(tmp_path, monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    asked = []

    def offline(repository, name):
        asked.append((repository, name))
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(ValueError, match=r"MCG-NJU/videomae-base: no such file, and it cannot be fetched .* network"):
        read_state("MCG-NJU/videomae-base")
    assert asked == [("MCG-NJU/videomae-base", name) for name in ("model.safetensors", "pytorch_model.bin")]

    def only_old(repository, name):
        if name == "model.safetensors":
            raise LocalEntryNotFoundError("none")
        return saved(tmp_path / name, {"x": torch.ones(2)})

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", only_old)
    assert set(read_state("org/name")) == {"x"}
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match="pip install huggingface_hub"):
        read_state("org/name")
