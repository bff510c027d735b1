"""Today's families against ours: small models of the real layouts, every weight random, the same features."""

import math
from functools import partial

import pytest
import torch
import transformers
from timm.layers import LayerNorm
from timm.models.eva import Eva
from torch import nn
from torch.nn import functional as F

from lookupvit_video.errors import UserError
from lookupvit_video.models.pretrained import init_from
from tests.models.pretrained.test_load import HF, all_tokens, clip, images, same
from tests.models.vits import DEPTH, DIM, HEADS, PATCH, SIZE, complete, lookupvit, randomised, saved, vit

VIDEO = {"num_frames": 4, "tubelet": (2, PATCH, PATCH)}
VJEPA = {"patch_size": PATCH, "crop_size": SIZE, "frames_per_clip": 4, "hidden_size": DIM, "num_attention_heads": HEADS,
         "num_hidden_layers": DEPTH, "pred_hidden_size": DIM, "pred_num_attention_heads": HEADS,
         "pred_num_hidden_layers": 1}  # fmt: skip


def rotary(form, **options):
    return {"rotary": form, **options}


def warned(report):
    """What the report says besides the width of heads."""
    return [text for text in report.warnings if "heads are" not in text]


@torch.no_grad()
def test_vjepa2(tmp_path):
    theirs = randomised(transformers.VJEPA2Model(transformers.VJEPA2Config(**VJEPA)))
    path = saved(tmp_path / "x.safetensors", theirs)
    ours = vit(**VIDEO, options=rotary("vjepa2"))
    report = complete(init_from(ours, path), ours)
    assert (report.kind, report.fresh) == ("V-JEPA 2", ["head.linear.weight", "head.linear.bias"])
    assert all(key.startswith("predictor.") for key in report.left_out)
    assert warned(report) == []
    tokens = theirs(clip().transpose(1, 2), skip_predictor=True).last_hidden_state
    same(ours.head.norm(ours.forward_features(clip()).tokens), tokens)
    assert "set MODEL.POSITIONS rotary MODEL.ROTARY vjepa2" in " ".join(init_from(vit(**VIDEO), path).warnings)

    # Its classifier reads what another network pools: it is not ours.
    theirs = randomised(transformers.VJEPA2ForVideoClassification(transformers.VJEPA2Config(**VJEPA, num_labels=5)))
    report = complete(init_from(ours, saved(tmp_path / "y.safetensors", theirs)), ours)
    assert "classifier.weight" in report.left_out
    tokens = theirs.vjepa2(clip().transpose(1, 2), skip_predictor=True).last_hidden_state
    same(ours.head.norm(ours.forward_features(clip()).tokens), tokens)


def as_released(state):
    """Turn the names of Hugging Face's V-JEPA 2 into those of its authors' files."""
    out = {}
    for key, value in state.items():
        if key.startswith("encoder."):
            key = key.removeprefix("encoder.").replace("embeddings.patch_embeddings", "patch_embed")
            key = key.replace("layer.", "blocks.").replace("attention.proj", "attn.proj").replace("layernorm", "norm")
            out[f"module.backbone.{key}"] = value
    for i in range(DEPTH):
        start = f"module.backbone.blocks.{i}."
        for kind in ("weight", "bias"):
            parts = [out.pop(f"{start}attention.{part}.{kind}") for part in ("query", "key", "value")]
            out[f"{start}attn.qkv.{kind}"] = torch.cat(parts)
    return out


@torch.no_grad()
def test_vjepa2_as_its_authors_released_it(tmp_path):
    theirs = randomised(transformers.VJEPA2Model(transformers.VJEPA2Config(**VJEPA)))
    wrong = {key: torch.zeros_like(value) for key, value in as_released(theirs.state_dict()).items()}
    content = {"encoder": wrong, "predictor": {"x": torch.zeros(1)}, "target_encoder": as_released(theirs.state_dict()),
               "epoch": 3}  # fmt: skip
    ours = vit(**VIDEO, options=rotary("vjepa2"))
    report = complete(init_from(ours, saved(tmp_path / "x.pt", content)), ours)
    assert (report.kind, report.left_out) == ("V-JEPA 2", [])
    tokens = theirs(clip().transpose(1, 2), skip_predictor=True).last_hidden_state
    same(ours.head.norm(ours.forward_features(clip()).tokens), tokens)
    # Some of its files have a table of positions that it does not read; so did V-JEPA's, which does.
    content["target_encoder"]["module.backbone.pos_embed"] = torch.randn(1, 32, DIM)
    path = saved(tmp_path / "y.pt", content)
    assert complete(init_from(ours, path), ours).left_out == ["module.backbone.pos_embed"]
    same(ours.head.norm(ours.forward_features(clip()).tokens), tokens)
    assert "MODEL.ROTARY vjepa2" in " ".join(init_from(vit(**VIDEO), path).warnings)


class VJEPA21(nn.Module):
    """The video path of facebookresearch/vjepa2, app/vjepa_2_1, in a few lines and with its names."""

    def __init__(self):
        super().__init__()
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv3d(3, DIM, (2, PATCH, PATCH), (2, PATCH, PATCH))
        self.patch_embed_img = nn.Module()
        self.patch_embed_img.proj = nn.Conv3d(3, DIM, (1, PATCH, PATCH), (1, PATCH, PATCH))
        self.img_mod_embed, self.video_mod_embed = (nn.Parameter(torch.zeros(1, 1, DIM)) for _ in range(2))
        self.norms_block = nn.ModuleList(nn.LayerNorm(DIM, eps=1e-6) for _ in range(4))
        self.blocks = nn.ModuleList()
        for _ in range(DEPTH):
            block = nn.Module()
            block.norm1, block.norm2 = nn.LayerNorm(DIM, eps=1e-6), nn.LayerNorm(DIM, eps=1e-6)
            block.attn, block.mlp = nn.Module(), nn.Module()
            block.attn.qkv, block.attn.proj = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
            block.mlp.fc1, block.mlp.fc2 = nn.Linear(DIM, 4 * DIM), nn.Linear(4 * DIM, DIM)
            self.blocks.append(block)

    def turned(self, x):
        """Turn (B, heads, 32, 12): axes t, h, w have four channels each, two pairs of neighbors."""
        number = torch.arange(32)
        places = (number // 16, number % 16 // 4 * (256 // PATCH - 1) / 3, number % 4 * (256 // PATCH - 1) / 3)
        parts = []
        for axis, place in enumerate(places):
            part = x[..., 4 * axis : 4 * axis + 4]
            angles = (place[:, None] * torch.tensor([1.0, 0.01])).repeat_interleave(2, dim=-1)
            across = torch.stack([-part[..., 1::2], part[..., ::2]], dim=-1).flatten(-2)
            parts.append(part * angles.cos() + across * angles.sin())
        return torch.cat(parts, dim=-1)

    def forward(self, clip):
        x = self.patch_embed.proj(clip).flatten(2).transpose(1, 2) + self.video_mod_embed
        for block in self.blocks:
            q, k, v = block.attn.qkv(block.norm1(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(self.turned(q), self.turned(k), v)
            x = x + block.attn.proj(y.transpose(1, 2).flatten(2))
            x = x + block.mlp.fc2(F.gelu(block.mlp.fc1(block.norm2(x))))
        return self.norms_block[-1](x)


@torch.no_grad()
def test_vjepa2_1(tmp_path):
    theirs = randomised(VJEPA21())
    state = {f"module.backbone.{key}": value for key, value in theirs.state_dict().items()}
    ours = vit(**VIDEO, options=rotary("vjepa2_1"))
    report = complete(init_from(ours, saved(tmp_path / "x.pt", {"ema_encoder": state, "predictor": {}})), ours)
    assert (report.kind, warned(report)) == ("V-JEPA 2.1", [])
    assert all("img" in key or "norms_block" in key for key in report.left_out)
    assert report.preprocessing == "DATA.MEAN [0.485,0.456,0.406] DATA.STD [0.229,0.224,0.225] DATA.TRAIN_CROP_SIZE 384"
    same(ours.head.norm(ours.forward_features(clip()).tokens), theirs(clip()))


@torch.no_grad()
def test_dinov3(tmp_path):
    theirs = randomised(
        transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**HF, patch_size=PATCH, num_register_tokens=4))
    )
    path = saved(tmp_path / "x.safetensors", theirs)
    expected = theirs(images()).last_hidden_state
    options = rotary("dinov3", norm_eps=1e-5)
    with_class = vit(pool="class", registers=4, options=options)
    report = complete(init_from(with_class, path), with_class)
    assert (report.kind, warned(report)) == ("DINOv3", [])
    assert report.left_out == ["embeddings.mask_token"]
    assert report.made["tokenizer.positions"] == "zero, as the source has rotary positions only"
    same(with_class.head.norm(all_tokens(with_class, clip(1))), expected[:, [0, *range(5, 21)]])
    pooled = vit(registers=5, options=options)  # the class token is a register then
    report = complete(init_from(pooled, path), pooled)
    assert report.made["registers"] == "the class token first"
    assert report.left_out == ["embeddings.mask_token"]
    same(pooled.head.norm(pooled.forward_features(clip(1)).tokens), expected[:, 5:])
    with pytest.raises(UserError, match=r"it has 5 tokens without a place, the model 4; MODEL\.REGISTERS 5"):
        init_from(vit(registers=4, options=options), path)
    frames = vit(**VIDEO | {"tubelet": (1, PATCH, PATCH)}, encoder="factorised", registers=5, options=options)
    init_from(frames, path)  # a video is its frames
    each = theirs(clip().transpose(1, 2).flatten(0, 1)).last_hidden_state[:, 5:]
    same(frames.frame_norm(frames.forward_features(clip()).tokens), each.reshape(2, -1, DIM))

    state = {}  # its authors' names
    swaps = {
        "patch_embeddings": "patch_embed.proj", "embeddings.": "", "model.layer": "blocks", "o_proj": "proj",
        "attention.proj": "attn.proj", "layer_scale": "ls", "lambda1": "gamma", "up_proj": "fc1", "down_proj": "fc2",
        "register_tokens": "storage_tokens", "layer.": "blocks.",
    }  # fmt: skip
    for key, value in theirs.state_dict().items():
        for old, new in swaps.items():
            key = key.replace(old, new)
        state[key] = value
    for i in range(DEPTH):
        start = f"blocks.{i}.attention."
        weights = [state.pop(f"{start}{part}_proj.weight") for part in "qkv"]
        q_bias, v_bias = state.pop(f"{start}q_proj.bias"), state.pop(f"{start}v_proj.bias")
        state[f"blocks.{i}.attn.qkv.weight"] = torch.cat(weights)
        state[f"blocks.{i}.attn.qkv.bias"] = torch.cat([q_bias, torch.ones(DIM), v_bias])
        state[f"blocks.{i}.attn.qkv.bias_mask"] = torch.full((3 * DIM,), math.nan)
    released = vit(pool="class", registers=4, options=options)
    report = complete(init_from(released, saved(tmp_path / "y.pth", state)), released)
    same(released.forward_features(clip(1)).tokens, with_class.forward_features(clip(1)).tokens)


def pe(**changed):
    return Eva(
        img_size=SIZE, patch_size=PATCH, embed_dim=DIM, depth=DEPTH, num_heads=HEADS, mlp_ratio=4.0, num_classes=0,
        attn_type="rope", use_pre_transformer_norm=True, use_rot_pos_emb=True, ref_feat_shape=(4, 4),
        rope_grid_offset=1.0, rope_grid_indexing="xy", norm_layer=partial(LayerNorm, eps=1e-5), **changed,
    )  # fmt: skip


@pytest.mark.parametrize(
    "theirs", [{"global_pool": "map", "attn_pool_num_heads": 2}, {"global_pool": "", "init_values": 0.1}]
)
@torch.no_grad()
def test_perception_encoder(tmp_path, theirs):
    """Its towers for images and text, and those tuned for language or places, which have layer scale."""
    theirs = randomised(pe(**theirs))
    path = saved(tmp_path / "x.safetensors", theirs)
    options = rotary("pe", norm_eps=1e-5, pre_norm=True)
    with_class, pooled = vit(pool="class", options=options), vit(registers=1, options=options)
    report = complete(init_from(with_class, path), with_class)
    assert (report.kind, warned(report)) == ("PE", [])
    assert report.preprocessing == "DATA.MEAN [0.5,0.5,0.5] DATA.STD [0.5,0.5,0.5] DATA.TRAIN_CROP_SIZE 16"
    assert all(key.startswith("attn_pool.") for key in report.left_out)
    expected = theirs.forward_features(images())
    same(with_class.head.norm(all_tokens(with_class, clip(1))), expected)
    init_from(pooled, path)
    same(pooled.head.norm(pooled.forward_features(clip(1)).tokens), expected[:, 1:])
    plain = vit(pool="class", options={"norm_eps": 1e-5})
    said = " ".join(init_from(plain, path).warnings)
    assert "norm_pre.weight; set MODEL.PRE_NORM True" in said
    assert "set MODEL.POSITIONS rotary MODEL.ROTARY pe" in said


@pytest.mark.parametrize("naflex", [False, True])
@torch.no_grad()
def test_siglip2(tmp_path, naflex):
    """Files for one size have SigLIP's layout; those for images of any shape have a linear layer on patches."""
    ours = vit(options={"activation": "gelu_tanh"})
    if naflex:
        config = transformers.Siglip2VisionConfig(**{**HF, "image_size": None}, patch_size=PATCH, num_patches=16)
        theirs = randomised(transformers.Siglip2VisionModel(config))
        patches = (
            images().unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH).permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2)
        )
        mask, shapes = torch.ones(2, 16, dtype=torch.long), torch.tensor([[4, 4], [4, 4]])
        expected = theirs(patches, mask, shapes).last_hidden_state
    else:
        theirs = randomised(transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**HF, patch_size=PATCH)))
        expected = theirs(images()).last_hidden_state
    report = complete(init_from(ours, saved(tmp_path / "x.safetensors", theirs)), ours)
    assert (report.kind, warned(report)) == ("SigLIP", [])
    assert all(".head." in f".{key}" for key in report.left_out)
    assert report.preprocessing == "DATA.MEAN [0.5,0.5,0.5] DATA.STD [0.5,0.5,0.5] DATA.TRAIN_CROP_SIZE 16"
    same(ours.head.norm(ours.forward_features(clip(1)).tokens), expected)
    pixels = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    said = " ".join(init_from(ours, str(tmp_path / "x.safetensors"), pixels=pixels).warnings)
    assert "clips are normalized otherwise than those of SigLIP: set DATA.MEAN [0.5,0.5,0.5]" in said


@torch.no_grad()
def test_clip_with_its_first_norm(tmp_path):
    theirs = randomised(transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**HF, patch_size=PATCH)))
    ours = vit(pool="class", options={"norm_eps": 1e-5, "activation": "quick_gelu", "pre_norm": True})
    report = complete(init_from(ours, saved(tmp_path / "x.pt", theirs)), ours)
    assert (report.kind, report.left_out, warned(report)) == ("CLIP", [], [])
    same(ours.head.norm(all_tokens(ours, clip(1))[:, 0]), theirs(images()).pooler_output)


@torch.no_grad()
def test_registers_of_dinov2_have_rows_in_no_table(tmp_path):
    config = transformers.Dinov2WithRegistersConfig(**HF, patch_size=PATCH, num_register_tokens=4)
    theirs = randomised(transformers.Dinov2WithRegistersModel(config))
    path = saved(tmp_path / "x.safetensors", theirs)
    ours = vit(pool="class", registers=4)
    assert complete(init_from(ours, path), ours).left_out == ["embeddings.mask_token"]
    expected = theirs(images()).last_hidden_state[:, [0, *range(5, 21)]]
    same(ours.head.norm(all_tokens(ours, clip(1))), expected)
    assert "register_tokens; set MODEL.REGISTERS 4" in " ".join(init_from(vit(pool="class"), path).warnings)
    assert "register_tokens; set MODEL.REGISTERS 5" in " ".join(init_from(vit(), path).warnings)


SOURCES = {
    "vjepa2": (lambda: transformers.VJEPA2Model(transformers.VJEPA2Config(**VJEPA)), rotary("vjepa2")),
    "vjepa2_1": (VJEPA21, rotary("vjepa2_1")),
    "dinov3": (lambda: transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**HF, patch_size=PATCH)),
               rotary("dinov3")),
    "pe": (lambda: pe(global_pool="map", attn_pool_num_heads=2), rotary("pe", norm_eps=1e-5, pre_norm=True)),
    "siglip2": (lambda: transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**HF, patch_size=PATCH)),
                {"activation": "gelu_tanh"}),
    "videomae": (lambda: transformers.VideoMAEModel(
        transformers.VideoMAEConfig(**HF, patch_size=PATCH, num_frames=4, tubelet_size=2)), {}),
}  # fmt: skip


@pytest.mark.parametrize("family", SOURCES)
@torch.no_grad()
def test_a_lookupvit_takes_attention_mlp_and_norms_of_each_family(tmp_path, family):
    """Where nothing is compressed, its gather attends as the source did, with the same turns."""
    make, options = SOURCES[family]
    theirs = make()
    path = saved(tmp_path / "x.safetensors", randomised(theirs))
    shape = {**VIDEO, "depth": 1, "options": {**options, "layer_scale": 0.0}}
    dense, ours = vit(**shape), lookupvit(**shape, compressed_grid=(2, 4, 4))
    init_from(dense, path)
    report = complete(init_from(ours, path), ours)
    assert [name for name in report.fresh if "refine" in name or "gather" in name or "query" in name] == []
    block, tokens, turns = dense.blocks[0], dense.tokenizer(clip()), dense.rotary() if "rotary" in options else None
    after_gather = tokens + block.attention(block.norm_attention(tokens), turns)
    same(ours.forward_features(clip()).compressed, block(after_gather, turns))
    assert torch.equal(ours.forward_features(clip()).tokens, ours.tokenizer(clip()))


def test_wrong_and_partial_files_are_refused_or_reported(tmp_path):
    hiera = transformers.HieraModel(transformers.HieraConfig(embed_dim=12, image_size=[64, 64], depths=[1, 1, 1, 1]))
    with pytest.raises(UserError, match=r"is of Hiera or another network that halves its grid .* does not fit"):
        init_from(vit(), saved(tmp_path / "hiera.safetensors", hiera))
    next_one = {"patch_embed.proj.weight": torch.zeros(DIM, 3, 1, 4, 4), "patch_embed.norm_before.weight":
                torch.zeros(48), "blocks.0.norm1.weight": torch.zeros(DIM)}  # fmt: skip
    with pytest.raises(UserError, match=r"is of InternVideo-Next, with RMS norms that the blocks here do not"):
        init_from(vit(), saved(tmp_path / "next.safetensors", next_one))
    theirs = randomised(transformers.VJEPA2Model(transformers.VJEPA2Config(**VJEPA))).state_dict()
    partial_file = {key: value for key, value in theirs.items() if not key.startswith(("encoder.layer.2", "predictor"))}
    ours = vit(**VIDEO, options=rotary("vjepa2"))
    report = complete(init_from(ours, saved(tmp_path / "partial.safetensors", partial_file)), ours)
    assert "the source has 2 blocks, the model 3" in report.warnings
    assert {name for name in report.fresh if "blocks.2" in name} == {
        key for key in ours.state_dict() if "blocks.2" in key
    }
