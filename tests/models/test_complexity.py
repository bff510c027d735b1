"""Measured multiply-accumulates = closed form = the paper's formula and the field's published figures."""

import logging
from collections import Counter

import pytest
import torch
from fvcore.nn import FlopCountAnalysis

from lookupvit_video.config import load_config
from lookupvit_video.models.blocks import LookupViTBlock, TransformerBlock
from lookupvit_video.models.build import build_model, model_spec
from lookupvit_video.models.complexity import (
    Shape,
    count_parameters,
    flop_counter,
    lookupvit_block_macs,
    lookupvit_macs,
    measured_macs,
    tokens_within,
    vit_block_macs,
    vit_macs,
)
from tests.small import call_tool

# Sides, widths and counts that differ, so that no two terms are alike: N = 75 on 3x5x5, M = 12.
SMALL = "DATA.NUM_FRAMES 6 DATA.TRAIN_CROP_SIZE 40 DATA.TEST_CROP_SIZE 40 MODEL.COMPRESSED_GRID [2,3,2] MODEL.DIM 24 \
         MODEL.DEPTH 3 MODEL.NUM_HEADS 3 MODEL.TUBELET [2,8,8] MODEL.NUM_CLASSES 5".split()
FACTORISED = "MODEL.ENCODER factorised MODEL.COMPRESSED_GRID [3,2] MODEL.TEMPORAL_DEPTH 2"
IMAGE = "DATA.NUM_FRAMES 1 MODEL.TUBELET [1,8,8] MODEL.COMPRESSED_GRID [1,3,2]"
VIT = "MODEL.ARCH vit"
# Base, 224 px, K400's classes, as the defaults have it; an image is a clip of one frame.
BASE_IMAGE = "MODEL.NUM_CLASSES 1000 DATA.NUM_FRAMES 1 MODEL.TUBELET [1,16,16] MODEL.COMPRESSED_GRID [1,5,5]"
BASE_384 = f"{BASE_IMAGE} DATA.TRAIN_CROP_SIZE 384 DATA.TEST_CROP_SIZE 384"
BASE_FACTORISED = "DATA.NUM_FRAMES 32 MODEL.ENCODER factorised MODEL.COMPRESSED_GRID [5,5]"


def small_config(changes=""):
    return load_config(None, [*SMALL, *changes.split()])


def clip_of(cfg, device="cpu"):
    return torch.zeros(1, 3, cfg.DATA.NUM_FRAMES, cfg.DATA.TEST_CROP_SIZE, cfg.DATA.TEST_CROP_SIZE, device=device)


@pytest.mark.parametrize("changes", [
    "", "MODEL.INFERENCE_HEAD compressed", "MODEL.INFERENCE_HEAD lookup",
    "MODEL.HEADS [compressed] ", "MODEL.HEADS [lookup]", "MODEL.HEADS [lookup] MODEL.INFERENCE_HEAD lookup",
    "MODEL.ADAPTER adaptformer_code", f"{FACTORISED} MODEL.ADAPTER connector MODEL.FREEZE_SPATIAL True",
    f"{VIT} MODEL.ADAPTER adaptformer_code MODEL.POSITIONS rotary MODEL.REGISTERS 3 MODEL.PRE_NORM True",
    "MODEL.LOOKUP_CONV [3,3,3]", "MODEL.LOOKUP_CONV [1,3,5] MODEL.HEADS [compressed]",
    f"{FACTORISED} MODEL.LOOKUP_CONV [1,3,3] MODEL.KEEP [1,0.5,0.5]",
    "MODEL.LOOKUP_CONV [3,1,1] MODEL.KEEP [1,0.5,0.1]", f"{VIT} MODEL.LOOKUP_CONV [3,3,3]",
    f"{VIT} {FACTORISED} MODEL.LOOKUP_CONV [1,3,3]",
    "MODEL.TOKENIZER convolutional", f"{VIT} MODEL.TOKENIZER convolutional MODEL.TUBELET [3,4,8]",
    f"{FACTORISED} MODEL.TOKENIZER convolutional MODEL.TUBELET [1,8,4] MODEL.INPUT changes",
    f"{VIT} MODEL.TOKENIZER convolutional MODEL.TOKENS random",
    "MODEL.POOL attentive", "MODEL.POOL average_norm", "MODEL.POOL attentive MODEL.INFERENCE_HEAD compressed",
    "MODEL.QK_NORM True MODEL.LAYER_SCALE 0.1 MODEL.ACTIVATION quick_gelu MODEL.RESIZE trilinear",
    "MODEL.REVERSE_WEIGHTS softmax", "MODEL.REVERSE_WEIGHTS scaled", "MODEL.DEPTH 1 MODEL.INFERENCE_HEAD compressed",
    "MODEL.COMPRESSED_GRID [3,5,5]", "MODEL.COMPRESSED_GRID [1,1,1]", "MODEL.DIM 15", "MODEL.TUBELET [3,4,8]",
    IMAGE, f"{IMAGE} MODEL.INFERENCE_HEAD compressed",
    FACTORISED, f"{FACTORISED} MODEL.INFERENCE_HEAD compressed", f"{FACTORISED} MODEL.INFERENCE_HEAD lookup",
    f"{FACTORISED} MODEL.HEADS [compressed] MODEL.POOL attentive", f"{FACTORISED} MODEL.POOL attentive",
    VIT, f"{VIT} MODEL.POOL class", f"{VIT} MODEL.POOL attentive", f"{VIT} MODEL.POOL average_norm",
    f"{VIT} MODEL.QK_NORM True MODEL.LAYER_SCALE 0.1", f"{VIT} {IMAGE}", f"{VIT} {IMAGE} MODEL.POOL class",
    f"{VIT} {FACTORISED}", f"{VIT} {FACTORISED} MODEL.POOL attentive",
    f"{VIT} MODEL.TOKENS resize", f"{VIT} MODEL.TOKENS resize MODEL.POOL class",
    f"{VIT} MODEL.TOKENS resize MODEL.POOL attentive", f"{VIT} MODEL.TOKENS random",
    f"{VIT} MODEL.TOKENS random MODEL.POOL class", f"{VIT} MODEL.TOKENS random MODEL.KEEP_TOKENS 7",
    f"{VIT} MODEL.TOKENS random MODEL.POOL attentive", f"{VIT} MODEL.TOKENS merge",
    f"{VIT} MODEL.TOKENS merge MODEL.POOL class", f"{VIT} MODEL.TOKENS merge MODEL.MERGE_TOKENS 9",
    f"{VIT} MODEL.TOKENS merge MODEL.MERGE_TOKENS 75 MODEL.DEPTH 9",
    f"{VIT} MODEL.TOKENS merge MODEL.MERGE_TOKENS 75 MODEL.POOL class MODEL.DEPTH 9",
    f"{VIT} MODEL.TOKENS merge MODEL.MERGE_TOKENS 10 MODEL.POOL attentive",
    *(f"{model} MODEL.ADAPTER {kind} MODEL.ADAPTER_WIDTH 7" for kind in ("lora", "adaptformer") for model in (
        "MODEL.DIM 15", "MODEL.INFERENCE_HEAD compressed", FACTORISED, f"{FACTORISED} MODEL.HEADS [compressed]",
        f"{VIT} MODEL.POOL attentive", f"{VIT} {FACTORISED}", f"{VIT} {FACTORISED} MODEL.FREEZE_SPATIAL True",
        f"{VIT} MODEL.TOKENS merge MODEL.MERGE_TOKENS 9",
    )), "MODEL.ADAPTER lora", "MODEL.ADAPTER adaptformer",
])  # fmt: skip
def test_closed_form_is_what_is_measured(changes):
    cfg = small_config(changes)
    closed = sum(model_spec(cfg).macs().values())
    assert measured_macs(build_model(cfg), clip_of(cfg)) == closed
    with torch.device("meta"):
        model = build_model(cfg)
    assert measured_macs(model, clip_of(cfg, "meta")) == closed


def by_module(cfg):
    """Count the MACs of each submodule (but not of methods other than forward)."""
    model, counter = build_model(cfg).eval(), flop_counter()
    with counter, torch.no_grad():
        model(clip_of(cfg))
    found = counter.get_flop_counts().items()
    return Counter({name.partition(".")[2]: sum(counts.values()) // 2 for name, counts in found})


@pytest.mark.parametrize("changes", [
    "MODEL.POOL attentive", "MODEL.INFERENCE_HEAD compressed", f"{FACTORISED} MODEL.POOL attentive",
    "MODEL.TOKENIZER convolutional",
])  # fmt: skip
def test_the_parts_of_lookupvit_are_what_its_modules_do(changes):
    cfg = small_config(changes)
    parts, modules, blocks = model_spec(cfg).macs(), by_module(cfg), [f"blocks.{i}" for i in range(3)]
    heads = ("compressed", "lookup")
    assert parts["tokenizer"] == modules["tokenizer"] > 0
    assert parts["resize"] == sum(n for name, n in modules.items() if name.startswith("compress.")) > 0
    assert parts["refine_attention"] == sum(modules[f"{block}.refine.attention"] for block in blocks) > 0
    assert parts["refine_mlp"] == sum(modules[f"{block}.refine.mlp"] for block in blocks) > 0
    assert parts["narrow_mlp"] == sum(modules[f"{block}.lookup_mlp"] for block in blocks) > 0
    assert parts["temporal_encoder"] == modules["temporal"]
    assert (modules["temporal"] > 0) == ("factorised" in changes)
    assert parts["heads"] == sum(modules[f"heads.{name}"] for name in heads) > 0
    rest = [modules[block] - modules[f"{block}.refine"] - modules[f"{block}.lookup_mlp"] for block in blocks]
    assert parts["gather"] + parts["infuse"] == sum(rest)
    if "compressed" in changes.split():
        assert parts["gather"] == 3 * rest[-1]  # the last block does nothing but gather and refine


@pytest.mark.parametrize("changes", [f"{VIT} MODEL.POOL class", f"{VIT} MODEL.TOKENS merge", f"{VIT} {FACTORISED}"])
def test_the_parts_of_vit_are_what_its_modules_do(changes):
    cfg = small_config(changes)
    parts, modules = model_spec(cfg).macs(), by_module(cfg)
    assert parts["mlp"] == sum(modules[f"blocks.{i}.mlp"] for i in range(3)) > 0
    assert parts["temporal_encoder"] == modules["temporal"]
    assert parts["heads"] == modules["head"] == 24 * 5
    # Merging calls methods of the attention: the counter leaves them without a name.
    assert parts["attention"] + parts["matching"] == modules[""] - sum(
        parts[part] for part in ("tokenizer", "mlp", "temporal_encoder", "heads")
    )
    assert (parts["matching"] > 0) == ("merge" in changes)


@pytest.mark.parametrize(("n", "m", "dim"), [(196, 25, 48), (75, 12, 24), (8, 8, 2)])
def test_the_parts_of_a_block_make_the_papers_formula(n, m, dim):
    shape = Shape(grid=(1, 1, n), tubelet=(1, 4, 4), dim=dim, depth=5, num_heads=2, num_classes=3)
    blocks = ("gather", "refine_attention", "refine_mlp", "infuse", "narrow_mlp")
    parts, unread = lookupvit_macs(shape, (1, 1, m)), lookupvit_macs(shape, (1, 1, m), inference_head="compressed")
    assert sum(parts[name] for name in blocks) == 5 * lookupvit_block_macs(n, m, dim)
    saved = 2 * n * dim**2 + n * m * dim + m * dim**2
    assert sum(parts[name] - unread[name] for name in blocks) == saved
    dense = vit_macs(shape)
    assert dense["attention"] + dense["mlp"] == 5 * vit_block_macs(n, dim)


def printed_rows(*arguments):
    """Return the words of each line that tools/flops.py prints, by the first."""
    done = call_tool("tools/flops.py", "--cfg", "tests/small.yaml", *arguments)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    return {words[0]: words[1:] for words in lines if words}


@pytest.mark.parametrize(("changes", "grids", "dense", "floor"), [
    (BASE_IMAGE, {"1x3x3": (6.7, None), "1x5x5": (8.5, 2.06), "1x7x7": (11.2, None), "1x10x10": (17.0, None)}, 17.5, 0),
    (BASE_384, {"1x3x3": (17.8, None), "1x5x5": (19.7, None), "1x7x7": (22.7, None), "1x10x10": (29.0, None)}, 55.4, 0),
    ("DATA.NUM_FRAMES 16", {
        "2x5x5": (53.8, 3.35), "2x7x7": (61.1, 2.95), "4x7x7": (76.3, 2.36), "8x7x7": (107.7, 1.67),
        "8x10x10": (178, None),
    }, 180.3, 46.2),
    ("DATA.NUM_FRAMES 32", {
        "4x5x5": (112, 4.0), "4x7x7": (131, 3.45), "8x7x7": (171, 2.64), "16x7x7": (255, 1.77),
    }, 451.3, 92.5),
    # The figures for the factorised encoder count a class token for each time index, which this one does not have.
    (BASE_FACTORISED, {"3x3": (109, 2.6), "5x5": (137.8, 2.06), "7x7": (181, None), "10x10": (274.5, None)}, 283.3, 0),
], ids=["image224", "image384", "joint16", "joint32", "factorised32"])  # fmt: skip
def test_whole_models_cost_what_the_arithmetic_of_the_paper_gives(changes, grids, dense, floor):
    """Each printed row, in GMACs, within 1 %; what is measured is the same. Without a floor, none is known."""
    rows = printed_rows("--grids", *grids, *changes.split())
    for grid, (gmacs, ratio) in grids.items():
        _, _, printed, measured, dense_ratio, *_ = rows[grid]
        assert float(printed) == pytest.approx(gmacs, rel=0.01), grid
        assert measured == printed
        if ratio:
            assert float(dense_ratio) == pytest.approx(ratio, rel=0.015), grid  # of two figures, each within 1 %
    assert float(rows["dense"][1]) == pytest.approx(dense, rel=0.01)
    if floor:
        assert float(rows["floor"][1]) == pytest.approx(floor, rel=0.01)
    dense_rows = printed_rows(*changes.split(), "MODEL.ARCH", "vit")
    assert dense_rows["total,"][-2:] == [rows["dense"][1], "100.0"]  # measured, the last line of that name


def test_a_class_token_for_each_time_is_what_parts_us_from_vivits_published_count():
    """ViViT's factorised encoder: 284.4 GMACs with 32 frames. Ours takes means instead: 281.8, 0.9 % below."""
    ours = sum(model_spec(load_config(None, [*BASE_FACTORISED.split(), "MODEL.ARCH", "vit"])).macs().values())
    tokens = 12 * 16 * (vit_block_macs(197, 768) - vit_block_macs(196, 768))
    tokens += 4 * (vit_block_macs(17, 768) - vit_block_macs(16, 768))
    assert ours / 1e9 == pytest.approx(281.84, rel=1e-4)
    assert (ours + tokens) / 1e9 == pytest.approx(284.4, rel=0.004)


@pytest.mark.parametrize("pool", ["average", "class", "attentive"])
@pytest.mark.parametrize("depth", [1, 2, 5])
@pytest.mark.parametrize("grid", [(3, 5, 5), (1, 2, 3), (1, 1, 1)])
def test_tokens_within_a_budget_are_those_that_trying_all_finds(pool, depth, grid):
    shape = Shape(grid=grid, tubelet=(2, 8, 8), dim=24, depth=depth, num_heads=3, num_classes=5, pool=pool)
    n = grid[0] * grid[1] * grid[2]
    kept = {k: sum(vit_macs(shape, "random", keep_tokens=k).values()) for k in range(1, n + 1)}
    merged = {r: sum(vit_macs(shape, "merge", merge_tokens=r).values()) for r in range(1, n // 2 + 1)}
    budgets = {cost + off for cost in (*kept.values(), *merged.values()) for off in (-1, 0, 1)}
    for budget in budgets:
        most = max((k for k, cost in kept.items() if cost <= budget), default=0)
        fewest = min((r for r, cost in merged.items() if cost <= budget), default=0)
        assert tokens_within(budget, shape, "random") == most
        assert tokens_within(budget, shape, "merge") == fewest


@pytest.mark.parametrize("pool", ["average", "class", "attentive"])
@pytest.mark.parametrize("head", ["average", "compressed"])
def test_controls_cost_what_the_lookupvit_costs(pool, head):
    """The tokens that a config leaves open come closest to its LookupViT's cost, from below."""
    changes = f"MODEL.POOL {pool} MODEL.INFERENCE_HEAD {head} MODEL.COMPRESSED_GRID [3,3,3]"
    lookupvit = small_config(changes.replace("class", "average"))
    budget = measured_macs(build_model(lookupvit), clip_of(lookupvit))
    for tokens, key, step in (("random", "KEEP_TOKENS", 1), ("merge", "MERGE_TOKENS", -1)):
        control = f"{changes} {VIT} MODEL.TOKENS {tokens}"
        model = build_model(small_config(control))
        chosen = model.reduce.keep if tokens == "random" else model.merged[0]
        closer = small_config(f"{control} MODEL.{key} {chosen + step}")
        assert measured_macs(model, clip_of(closer)) <= budget
        assert measured_macs(build_model(closer), clip_of(closer)) > budget


def test_a_control_that_cannot_be_as_cheap_is_told(caplog):
    cfg = small_config(f"{VIT} MODEL.TOKENS merge MODEL.COMPRESSED_GRID [1,1,1] MODEL.DEPTH 1")
    assert build_model(cfg).merged == [37]
    assert "MODEL.TOKENS merge" in caplog.text


def test_measured_counts_attention_and_leaves_the_mode_alone():
    block = TransformerBlock(24, 3).train()
    assert measured_macs(block, torch.zeros(1, 500, 24)) == vit_block_macs(500, 24)
    assert block.training


def test_fvcore_counts_the_lookup_block_alike():
    logging.getLogger("fvcore.nn.jit_analysis").setLevel(logging.ERROR)
    block = LookupViTBlock(48, 3).eval()
    analysis = FlopCountAnalysis(block, (torch.zeros(1, 16, 48), torch.zeros(1, 200, 48)))
    # fvcore counts norms, which the closed form leaves out, and not SDPA: 2 M^2 D for the refinement.
    analysis.set_op_handle("aten::layer_norm", lambda inputs, outputs: Counter())
    assert analysis.total() + 2 * 16 * 16 * 48 == lookupvit_block_macs(200, 16, 48)


def test_base_block_parameters():
    assert 19 * 12 * 768**2 == pytest.approx(134.5e6, rel=1e-3)
    assert count_parameters(TransformerBlock(768, 12)) * 12 == pytest.approx(84.9e6 + 12 * 13 * 768, rel=1e-3)
