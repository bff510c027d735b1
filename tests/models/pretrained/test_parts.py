"""What others' weights become, function by function; with their real classes: test_load.py."""

import math

import pytest
import torch

from lookupvit_video.errors import UserError
from lookupvit_video.models.adapters import add_adapters, is_adapter
from lookupvit_video.models.pretrained import Report, families, fitting, init_from, load, places, to_vit_names
from lookupvit_video.models.pretrained import names as naming
from tests.models.vits import DEPTH, DIM, PATCH, complete, lookupvit, randomised, saved, vit

# --- what the files cannot tell ---


def said_of(kind, *, names=(), state=(), options=None, model=None, **lists):
    """Return what is said of a source of a kind in a model whose heads are 64 wide."""
    model = model or vit(dim=128, num_heads=2, options=options)
    report = Report(kind, **{"made": {}, **lists})
    names = {f"blocks.{n}.x": torch.zeros(1) for n in range(DEPTH)} | dict.fromkeys(names, torch.zeros(1))
    return " ".join(load.advice(report, model, names, dict.fromkeys(state, torch.zeros(1))))


@pytest.mark.parametrize(
    ("kind", "activation", "eps", "pixels"),
    [  # OpenAI's CLIP, SigLIP's and ViViT's published settings; else those of ViT and MAE on ImageNet's pixels
        ("CLIP", "quick_gelu", 1e-5, "DATA.MEAN [0.4815,0.4578,0.4082] DATA.STD [0.2686,0.2613,0.2758]"),
        ("SigLIP", "gelu_tanh", 1e-6, "DATA.MEAN [0.5,0.5,0.5] DATA.STD [0.5,0.5,0.5]"),
        ("ViViT", "gelu_tanh", 1e-6, "DATA.MEAN [0.5,0.5,0.5] DATA.STD [0.5,0.5,0.5]"),
        *((kind, "gelu", 1e-6, "DATA.MEAN [0.485,0.456,0.406] DATA.STD [0.229,0.224,0.225]")
          for kind in ("VideoMAE", "ViT", "ViT with layer scale (as DINOv2)")),
    ],
)  # fmt: skip
def test_the_settings_of_each_family_are_asked_for_where_they_are_not_set(kind, activation, eps, pixels):
    assert said_of(kind, options={"activation": activation, "norm_eps": eps}) == ""
    report, mean = Report(kind), ((0.1, 0.5, 0.5), (0.2, 0.2, 0.2))
    assert load._of_pixels(report, {}, None) == []
    assert report.preprocessing == f"{pixels} DATA.TRAIN_CROP_SIZE 224"
    assert load._of_pixels(report, {}, families.FAMILIES.get(kind, families.Family()).pixels) == []
    assert f"set {pixels}" in load._of_pixels(report, {}, mean)[0]
    other = "gelu" if activation != "gelu" else "quick_gelu"
    assert f"{kind} is mostly trained with MODEL.ACTIVATION {activation}" in said_of(
        kind, options={"activation": other, "norm_eps": eps}
    )
    wrong = 1e-6 if eps == 1e-5 else 1e-5
    told = said_of(kind, options={"activation": activation, "norm_eps": wrong})
    assert f"{kind} is mostly trained with MODEL.NORM_EPS {eps}" in told
    smaller = said_of(kind, options={"activation": activation, "norm_eps": 1e-12})  # as good as 1e-6
    assert ("NORM_EPS" in smaller) == (eps == 1e-5)


def test_rotary_positions_are_for_weights_that_have_them():
    turned = vit(dim=128, num_heads=2, options={"rotary": "pe", "norm_eps": 1e-5})
    assert "has learned positions alone: set MODEL.POSITIONS learned" in said_of("ViViT", model=turned)
    assert said_of("PE", model=turned) == ""
    assert "set MODEL.POSITIONS rotary MODEL.ROTARY dinov3" in said_of("DINOv3", model=turned)
    assert "learned positions alone" not in said_of("video ViT", model=turned)


def test_own_weights_need_no_advice():
    for kind in (families.OWN_VIT, families.OWN_LOOKUPVIT):
        assert said_of(kind, options={"activation": "quick_gelu", "norm_eps": 1e-3}) == ""
        assert said_of(kind, model=vit()) == ""  # heads of any width


def test_heads_of_another_width_are_told():
    for dim, heads, told in ((128, 2, False), (128, 4, True), (192, 3, False)):
        assert ("64 in most published models" in said_of("ViT", model=vit(dim=dim, num_heads=heads))) == told
        assert (f"heads are {dim // heads} wide" in said_of("ViT", model=vit(dim=dim, num_heads=heads))) == told


@pytest.mark.parametrize(
    ("names", "state", "pool"),
    [(("class_token",), (), "class"), ((), ("fc_norm.weight",), "average_norm"), ((), (), "average"),
     (("class_token",), ("fc_norm.bias",), "average_norm")],
)  # fmt: skip
def test_a_classifier_wants_the_pooling_it_was_trained_with(names, state, pool):
    for own in ("class", "average_norm", "average"):
        model = vit(dim=128, num_heads=2, pool=own)
        told = said_of("ViT", names=names, state=state, model=model, loaded=["head.linear.weight"])
        assert "the classifier was loaded: DATA.CLASS_LIST" in told
        assert (f"the classifier was trained with MODEL.POOL {pool}" in told) == (own != pool)
        assert said_of("ViT", names=names, state=state, model=model, fresh=["head.linear.weight"]) == ""
    looking = lookupvit(dim=128, num_heads=2)
    told = said_of("ViT", names=names, state=state, model=looking, loaded=["heads.lookup.linear.weight"])
    assert "MODEL.POOL" not in told


@pytest.mark.parametrize(
    ("lists", "told"),
    [
        (
            {"left_out": ["norm_pre.weight"]},
            "outputs differ from the source's, as these were left out: norm_pre.weight",
        ),
        ({"left_out": ["reg_token", "decoder.x"]}, "as these were left out: reg_token"),
        ({"left_out": ["decoder.x"]}, ""),
        ({"fresh": ["tokenizer.positions"]}, "no table of positions"),
        ({"fresh": ["blocks.0.scale_attention.gamma"]}, "set MODEL.LAYER_SCALE 0.0"),
        ({"fresh": ["blocks.0.attention.norm_key.weight"]}, "set MODEL.QK_NORM False"),
        ({"left_out": ["blocks.0.attn.k_norm.weight"]}, "set MODEL.QK_NORM True"),
        ({"left_out": ["blocks.0.attention.norm_key.bias"]}, "set MODEL.QK_NORM True"),
        ({"made": {"tokenizer.positions": "VideoMAE's"}}, "whose published weights have 56x56 per time"),
        ({"loaded": ["tokenizer.positions"]}, ""),
    ],
)
def test_what_makes_the_model_another_one_is_told(lists, told):
    found = said_of("ViT", **lists)
    assert told in found
    assert bool(found) == bool(told)


def test_positions_numbered_as_in_the_source_are_not_spoken_of():
    model = vit(dim=128, num_heads=2, size=224, tubelet=(1, 16, 16))
    assert said_of("VideoMAE", model=model, made={"tokenizer.positions": "VideoMAE's"}) == ""


def test_a_different_number_of_blocks_is_told():
    assert "the source has 4 blocks, the model 3" in said_of("ViT", names=("blocks.3.x",))


# --- formulas ---


def test_videomaes_positions_are_the_sinusoids_of_attention_is_all_you_need():
    """arXiv 1706.03762, section 3.5: sin and cos of n / 10000^(2i / D), in turn."""
    table = fitting.videomae_positions(7, 8)
    assert table.shape == (1, 7, 8)
    for n in range(7):
        for i in range(4):
            angle = n / 10000 ** (2 * i / 8)
            assert table[0, n, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[0, n, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)


@pytest.mark.parametrize(("frames", "central"), [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2)])
def test_an_image_kernel_goes_to_the_central_frame_or_is_shared_out(frames, central):
    """ViViT (arXiv 2103.15691), section 3.4, equations 8 and 9."""
    kernel = torch.randn(DIM, 3, 4, 4)
    found = fitting.fit_kernel(kernel, (frames, 4, 4), "central")
    assert found.shape == (DIM, 3, frames, 4, 4)
    assert torch.equal(found[:, :, central], kernel)
    assert not found[:, :, [t for t in range(frames) if t != central]].any()
    shared = fitting.fit_kernel(kernel[:, :, None], (frames, 4, 4), "average")
    torch.testing.assert_close(shared, (kernel / frames)[:, :, None].expand(-1, -1, frames, -1, -1))
    video = torch.randn(DIM, 3, frames, 4, 4)
    assert torch.equal(fitting.fit_kernel(video, (frames, 4, 4), "average"), video / (frames if frames == 1 else 1))


@pytest.mark.parametrize(
    ("n", "class_token", "others", "video", "extra"),
    [
        (197, True, 0, False, 1), (196, False, 0, False, 0), (196, True, 0, False, 0), (201, True, 4, False, 5),
        (197, True, 4, False, 1), (196, True, 4, False, 0), (198, True, 1, False, 2), (3137, True, 0, True, 1),
        (1568, False, 0, True, 0), (196, True, 0, True, 1), (20, True, 0, False, 1), (1, True, 0, False, 0),
        (3, True, 4, False, 1), (257, True, 0, False, 1), (200, False, 4, False, 4),
    ],
)  # fmt: skip
def test_rows_of_tokens_without_a_place(n, class_token, others, video, extra):
    assert naming._extra_rows(n, class_token, others, video) == extra


def test_queries_keys_and_values_become_one_and_what_is_missing_is_zero():
    ones = torch.ones(2, 2)
    names = {"blocks.0.attention.q.weight": ones, "blocks.0.attention.k.weight": 2 * ones,
             "blocks.0.attention.v.weight": 3 * ones, "blocks.0.attention.q.bias": ones[0],
             "blocks.0.attention.v.bias": 3 * ones[0], "blocks.1.attention.qkv.weight": 5 * ones}  # fmt: skip
    naming._stack_qkv(names)
    assert names.keys() == {f"blocks.{end}" for end in ("0.attention.qkv.weight", "0.attention.qkv.bias",
                                                        "1.attention.qkv.weight")}  # fmt: skip
    assert names["blocks.0.attention.qkv.weight"][:, 0].tolist() == [1, 1, 2, 2, 3, 3]
    assert names["blocks.0.attention.qkv.bias"].tolist() == [1, 1, 0, 0, 3, 3]


def test_layer_scale_folds_into_the_rows_of_the_layer_before_it():
    names = {"blocks.0.attention.projection.weight": torch.ones(2, 3), "blocks.0.scale_attention.gamma":
             torch.tensor([2.0, 5.0]), "blocks.0.attention.projection.bias": torch.tensor([1.0, 10.0])}  # fmt: skip
    how = places._fold_layer_scale(names)
    assert names["blocks.0.attention.projection.weight"].tolist() == [[2, 2, 2], [5, 5, 5]]
    assert names["blocks.0.attention.projection.bias"].tolist() == [2, 50]
    assert set(how) == set(names)
    assert set(how.values()) == {"layer scale folded in"}


def test_whose_weights_they_are():
    five, four = torch.zeros(2, 3, 2, 4, 4), torch.zeros(2, 3, 4, 4)
    kernel, positions, bias = "tokenizer.projection.weight", "tokenizer.positions", "blocks.0.attention.k.bias"
    cases = (
        ({kernel: five, "class_token": 0}, "", "ViViT"), ({kernel: five, bias: 0, positions: 0}, "", "video ViT"),
        ({kernel: five, "blocks.0.attention.qkv.bias": 0}, "", "V-JEPA 2"), ({kernel: five}, "", "VideoMAE"),
        ({kernel: four, positions: 0, "tokenizer.norm.weight": 0}, "visual.proj", "CLIP"),
        ({kernel: four, positions: 0, "tokenizer.norm.weight": 0}, "attn_pool.probe", "PE"),
        ({kernel: four, positions: 0, "tokenizer.norm.weight": 0, "blocks.0.scale_mlp.gamma": 0}, "", "PE"),
        ({kernel: four, positions: 0}, "head.probe", "SigLIP"),
        ({kernel: four, positions: 0}, "attn_pool.latent", "SigLIP"),
        ({kernel: four}, "", "DINOv3"), ({kernel: four, positions: 0}, "", "ViT"),
        ({kernel: four, positions: 0, "blocks.0.scale_mlp.gamma": 0}, "", "ViT with layer scale (as DINOv2)"),
        ({positions: 0}, "", "ViT"),
    )  # fmt: skip
    for found, left_out, kind in cases:
        assert families.kind_of({}, found, left_out) == kind
    own = {"x.tokenizer.projection.weight": four}
    assert families.kind_of(own, {}, "") == "this project's ViT"
    assert families.kind_of(own, {"blocks.0.cross_attention.query.weight": four}, "") == "this project's LookupViT"


# --- weights that are incomplete without their adapters ---


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "fix"),
    [
        ("lora", "put them into the weights first: lookupvit merge-lora {} --out merged.pt"),
        ("adaptformer", "set MODEL.ADAPTER adaptformer, and its width and scale as they were trained"),
    ],
)
def test_weights_with_adapters_that_the_model_lacks_are_refused(tmp_path, kind, fix):
    source, ours = vit(), vit()
    add_adapters(source.blocks, kind, 3)
    path = saved(tmp_path / "x.pt", randomised(source))
    count = sum(is_adapter(name) for name in source.state_dict())
    with pytest.raises(UserError, match=rf"x\.pt: it has adapters \(blocks\.0\..* and {count - 1} more\)") as error:
        init_from(ours, path)
    assert str(error.value).endswith("its weights are incomplete; " + fix.format(path))
    add_adapters(ours.blocks, kind, 3)
    report = complete(init_from(ours, path), ours)
    assert sorted(report.loaded) == sorted(source.state_dict())
    other = vit()
    add_adapters(other.blocks, kind, 2)
    with pytest.raises(UserError, match=r"has shape .*; set MODEL\.ADAPTER_WIDTH to that of the source"):
        init_from(other, path)


# --- names ---


def test_of_two_keys_for_one_place_the_first_counts():
    """VideoMAE's files may have both a norm of all tokens and one of their mean."""
    state = {"norm.weight": torch.ones(2), "fc_norm.weight": torch.zeros(2), "mask_token": torch.zeros(1)}
    assert naming.rename(state) == {"norm.weight": "head.norm.weight", "fc_norm.weight": "", "mask_token": ""}
    backwards = dict(reversed(state.items()))
    assert naming.rename(backwards)["fc_norm.weight"] == "head.norm.weight"
    names, _, left_out = to_vit_names(state)
    assert names["head.norm.weight"].tolist() == [1, 1]
    assert left_out == ["fc_norm.weight", "mask_token"]


def test_only_what_stands_before_a_name_is_taken_off():
    for key in ("blocks.2.norm1.weight", "module.encoder.blocks.2.norm1.weight", "vit.encoder.layer.2.ln_1.weight"):
        assert naming._vit_name(key) == "blocks.2.norm_attention.weight"
    assert naming._vit_name("module.model.patch_embed.proj.bias") == "tokenizer.projection.bias"
    for key in ("blocks.2.module.norm1.weight", "decoder.blocks.2.norm1.weight", "text.blocks.2.norm1.weight", "norm"):
        assert naming._vit_name(key) == ""


def test_own_files_keep_their_names_whatever_wrapped_them():
    own = {"module._orig_mod.tokenizer.projection.weight": torch.ones(1), "_orig_mod.anything.else": torch.ones(1)}
    assert list(naming.rename(own).values()) == ["tokenizer.projection.weight", "anything.else"]


def test_weights_in_half_precision_become_float32():
    state = {"patch_embed.proj.weight": torch.ones(2, 3, 4, 4).half(), "pos_embed": torch.ones(1, 16, 2).bfloat16()}
    names, kind, _ = to_vit_names(state)
    assert kind == "ViT"
    assert {value.dtype for value in names.values()} == {torch.float32}


def test_layer_scale_folds_where_there_is_no_bias():
    names = {"blocks.0.mlp.2.weight": torch.ones(2, 3), "blocks.0.scale_mlp.gamma": torch.tensor([2.0, 5.0])}
    assert set(places._fold_layer_scale(names)) == set(names) == {"blocks.0.mlp.2.weight"}


@torch.no_grad()
def test_a_kernel_is_reported_as_resized_only_where_it_was(tmp_path):
    path = saved(tmp_path / "x.pt", randomised(vit(num_frames=4, tubelet=(2, PATCH, PATCH))))
    name = "tokenizer.projection.weight"
    for frames, tubelet, resized in (
        (4, (2, 4, 4), None), (8, (4, 4, 4), "2x4x4 -> 4x4x4"), (4, (2, 8, 4), "2x4x4 -> 2x8x4"),
        (4, (2, 4, 8), "2x4x4 -> 2x4x8"), (2, (1, 4, 4), "2x4x4 -> 1x4x4"),
    ):  # fmt: skip
        ours = vit(num_frames=frames, tubelet=tubelet)
        report = complete(init_from(ours, path), ours)
        assert report.resized.get(name) == resized
        assert (name in report.loaded) == (resized is None)
        assert report.made == {}
        assert ("tokenizer.positions" in report.resized) == (tubelet[1:] != (4, 4))
    image = saved(tmp_path / "y.pt", randomised(vit()))
    for tubelet, made, resized in (
        ((1, 4, 4), {}, {}), ((2, 4, 4), {name: "inflated: average"}, {}),
        ((2, 8, 8), {}, {name: "1x4x4 -> 2x8x8, inflated: average"}), ((1, 8, 8), {}, {name: "1x4x4 -> 1x8x8"}),
    ):  # fmt: skip
        ours = vit(num_frames=2, tubelet=tubelet)
        report = complete(init_from(ours, image, inflate="average"), ours)
        assert report.made == made
        assert {key: text for key, text in report.resized.items() if key == name} == resized
