"""How a LookupViT is put together; what it then does: test_models.py and test_blocks.py."""

import math

import pytest
import torch
from torch import nn

from lookupvit_video.config import load_config
from lookupvit_video.models.blocks import BlockOptions
from lookupvit_video.models.budget import Budget
from lookupvit_video.models.build import build_model
from lookupvit_video.models.lookupvit import LookupViT
from tests.models.test_models import clips, small_model

SMALL = {"num_classes": 2, "num_frames": 4, "size": 32, "tubelet": (2, 8, 8), "dim": 24, "depth": 4, "num_heads": 3,
         "compressed_grid": (1, 2, 2)}  # fmt: skip
FACTORISED = {**SMALL, "encoder": "factorised", "compressed_grid": (2, 2)}


@pytest.mark.parametrize("arch", ["lookupvit", "vit"])
@pytest.mark.parametrize(("variant", "heads"), [("Ti", 3), ("S", 6), ("B", 12), ("L", 16)])
def test_every_attention_has_the_variants_heads_each_64_wide(arch, variant, heads):
    temporal = "MODEL.ENCODER factorised MODEL.COMPRESSED_GRID [7,7] MODEL.POOL attentive MODEL.DEPTH 1".split()
    with torch.device("meta"):
        model = build_model(load_config(None, ["MODEL.ARCH", arch, "MODEL.VARIANT", variant, *temporal]))
    attentions = [module for module in model.modules() if hasattr(module, "num_heads")]
    assert len(attentions) == (1 + 1 + 4 + 2 if arch == "lookupvit" else 1 + 4 + 1)
    assert {module.num_heads for module in attentions} == {heads}
    assert model.tokenizer.projection.out_channels == 64 * heads


def test_what_is_not_given_is_as_the_config_has_it():
    with torch.device("meta"):
        model, built = LookupViT(num_classes=400), build_model(load_config(None, []))
    assert repr(model) == repr(built)
    assert [(n, p.shape) for n, p in model.named_parameters()] == [(n, p.shape) for n, p in built.named_parameters()]
    assert model.tokenizer.clip_shape == (3, 16, 224, 224)
    assert model.tokenizer.grid == (8, 14, 14)
    assert model.grids[0] == (4, 7, 7)
    assert len(model.blocks) == 12
    assert [part.kernel for part in model.modules() if hasattr(part, "num_heads")] == ["auto"] * 24
    assert [part.reverse for part in model.modules() if hasattr(part, "reverse")] == ["softmax"] * 12
    assert {part.drops for part in model.modules() if hasattr(part, "drops")} == {False}
    assert {part.p for part in model.modules() if isinstance(part, nn.Dropout)} == {0.0}
    assert model.inference_heads == ("compressed", "lookup")
    assert len(LookupViT(**FACTORISED).temporal.blocks) == 4  # as ViViT's factorised encoder


def test_rates_rise_from_the_first_block_to_the_last_and_act_in_both_halves():
    model = LookupViT(**FACTORISED, drop_path=0.3, dropout=0.25)
    for block, rate in zip(model.blocks, (0.0, 0.1, 0.2, 0.3), strict=True):
        for part in (block, block.refine):
            assert part.drop_path.kept.item() == pytest.approx(1 - rate)
            assert part.drop_path.drops == (rate > 0)
    assert not any(block.drop_path.drops for block in model.temporal.blocks)
    assert {head.dropout.p for head in model.heads.values()} == {0.25}


@pytest.mark.parametrize(
    ("heads", "infusing"), [(("compressed",), [True, True, True, False]), (("lookup",), [True] * 4)]
)
def test_the_last_block_writes_back_where_a_head_reads_it(heads, infusing):
    model = LookupViT(**SMALL, heads=heads)
    assert [block.writes_back for block in model.blocks] == infusing
    assert [hasattr(block, "lookup_mlp") for block in model.blocks] == infusing
    assert list(model.heads) == list(heads)
    assert model.inference_heads == heads


def test_options_reach_every_part():
    options = BlockOptions(activation="quick_gelu", norm_eps=1e-3, layer_scale=0.5, qk_norm=True, reverse="scaled")
    model = LookupViT(**FACTORISED, options=options)
    parts = list(model.modules())
    head_norms = {id(part) for name, part in model.named_modules() if "norm_query" in name or "norm_key" in name}
    assert len(head_norms) == 2 * (4 + 4 + 4)
    for part in parts:
        if isinstance(part, nn.LayerNorm) and id(part) not in head_norms:
            assert part.eps == 1e-3
        assert not isinstance(part, nn.GELU)
    assert sum(hasattr(part, "gamma") for part in parts) == 4 * 5 + 4 * 2
    assert all(part.gamma.eq(0.5).all() for part in parts if hasattr(part, "gamma"))


@pytest.mark.parametrize("make", [SMALL, FACTORISED], ids=["joint", "factorised"])
def test_linear_layers_begin_as_vits(make):
    """Xavier, uniform, biases 0, as ViT's JAX code and MAE; the classifiers small, so that answers begin even."""
    torch.manual_seed(0)
    model = LookupViT(**make)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.startswith(("blocks.", "temporal.")):
            bound = math.sqrt(6 / (module.in_features + module.out_features))
            assert 0.95 * bound < module.weight.abs().max() <= bound, name
            assert not module.bias.any()
        elif isinstance(module, nn.Linear):
            assert 0.005 < module.weight.std() < 0.04, name
            assert not module.bias.any()


def test_a_grid_may_be_as_large_as_the_lookup_tokens_and_no_larger():
    assert LookupViT(**{**SMALL, "compressed_grid": (2, 4, 4)}).compress["2x4x4"].num_in == 32
    assert LookupViT(**{**FACTORISED, "compressed_grid": (4, 4)}).compress["4x4"].grid_out == (1, 4, 4)
    for grid in ((3, 1, 1), (1, 5, 1), (1, 1, 5)):
        with pytest.raises(ValueError, match="is larger than the grid of lookup tokens"):
            LookupViT(**{**SMALL, "compressed_grid": grid})
        with pytest.raises(ValueError, match="is larger than the grid of lookup tokens"):
            LookupViT(**SMALL, grids=[(1, 1, 1), grid])
    with pytest.raises(ValueError, match="is larger than the grid of lookup tokens"):
        LookupViT(**{**FACTORISED, "compressed_grid": (2, 2, 2)})  # a block sees one time index


def test_kinds_of_resize_reach_every_grid():
    for kind in ("triangle", "trilinear"):
        model = LookupViT(**SMALL, grids=[(1, 3, 3)], resize=kind)
        for grid, resize in model.compress.items():
            t, h, w = (int(n) for n in grid.split("x"))
            own = [resize.get_buffer(f"matrix_{axis}") for axis in range(3)]
            assert [tuple(matrix.shape) for matrix in own] == [(t, 2), (h, 4), (w, 4)]
            # 4 to 2: the triangle filter looks at all four, plain interpolation at the two in the middle of each half.
            if grid == "1x2x2":
                assert ((own[1] > 0).sum(1) == (3 if kind == "triangle" else 2)).all()


@pytest.mark.parametrize("name", ["lookupvit", "read compressed", "factorised", "read lookup"])
@pytest.mark.parametrize("training", [True, False])
def test_features_returned_with_the_answer_are_those_of_all_blocks(name, training):
    model = small_model(name).train(training)
    with torch.no_grad():
        answer, features = model(clips(), with_features=True)
        torch.testing.assert_close(answer, model(clips()))
        whole = model.forward_features(clips())
        for name in ("tokens", "compressed"):
            torch.testing.assert_close(getattr(features, name), getattr(whole, name))
        assert (features.grid, features.compressed_grid) == (whole.grid, whole.compressed_grid)
        read = model.forward_features(clips(), heads=("compressed",))
        torch.testing.assert_close(read.compressed, whole.compressed)
        assert not torch.allclose(read.tokens, whole.tokens)  # the last block wrote nothing back


@pytest.mark.parametrize(("make", "changes", "budget", "shapes"), [
    (SMALL, {}, None, [(3, 32)] * 4),
    (FACTORISED, {}, None, [(6, 16)] * 4),
    (SMALL, {"heads": ("compressed",)}, None, [(3, 32)] * 3),  # the last block changes no lookup tokens
    (SMALL, {"exits": (2,)}, None, [(3, 32)] * 4),
    (SMALL, {"exits": (2,)}, Budget((1, 2, 2), 2), [(3, 32)] * 2),
    (SMALL, {"exits": (2,), "heads": ("compressed",)}, Budget((1, 2, 2), 2), [(3, 32)]),
    (SMALL, {"exits": (1,)}, Budget((1, 2, 2), 0, (1, 0.5)), [(3, 32)] * 2 + [(3, 16)] * 2),
    (FACTORISED, {"keep": (1, 0.5)}, None, [(6, 16)] * 2 + [(6, 8)] * 2),
])  # fmt: skip
def test_features_of_training_have_the_lookup_tokens_after_each_block(make, changes, budget, shapes):
    torch.manual_seed(0)
    model, after = LookupViT(**make, **changes), []
    for block in model.blocks:
        block.register_forward_hook(lambda block, given, found: after.append((found[1], given[4])))
    features = model.train()(clips(), budget, with_features=True)[1]
    assert [tuple(tokens.shape[:2]) for tokens, _ in features.by_block] == shapes
    for (tokens, kept), (found, given) in zip(features.by_block, after, strict=False):
        assert torch.equal(tokens, found)
        assert kept is given or torch.equal(kept, given)
        assert (kept is None) == (tokens.shape[1] == math.prod(model.block_grid))
    with torch.no_grad():
        assert not model.eval()(clips(), budget, with_features=True)[1].by_block


def test_the_head_that_answers():
    both = {"heads": ("compressed", "lookup")}
    assert LookupViT(**SMALL, **both).inference_heads == ("compressed", "lookup")
    for name in ("compressed", "lookup"):
        assert LookupViT(**SMALL, **both, inference_head=name).inference_heads == (name,)
        assert LookupViT(**SMALL, heads=(name,)).inference_heads == (name,)


@pytest.mark.parametrize(("make", "grid"), [(SMALL, (1, 2, 3)), (SMALL, (2, 3, 1)), (FACTORISED, (2, 3)),
                                            (FACTORISED, (3, 1))])  # fmt: skip
def test_features_say_their_grids(make, grid):
    model = LookupViT(**{**make, "compressed_grid": grid}).eval()
    features = model.forward_features(clips(), return_attention=True)
    wanted = grid if len(grid) == 3 else (2, *grid)
    assert features.compressed_grid == wanted
    assert features.grid == (2, 4, 4)
    assert features.compressed.shape == (3, math.prod(wanted), 24)
    assert features.tokens.shape == (3, 32, 24)
    times = 2 if len(grid) == 2 else 1  # factorised, a block sees one time index
    shape = (3 * times, 3, math.prod(wanted) // times, 32 // times)
    assert [tuple(weights.shape) for weights in features.attention] == [shape] * 4
    assert model.forward_features(clips()).attention == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"heads": ()}, "choose from compressed, lookup"), ({"heads": ("lookup", "both")}, "choose from compressed, look"),
     ({"heads": ("lookup",), "inference_head": "compressed"}, "inference head 'compressed': choose average, lookup"),
     ({"pool": "class"}, "there is no class token")],
)  # fmt: skip
def test_mistakes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        LookupViT(**SMALL, **arguments)
