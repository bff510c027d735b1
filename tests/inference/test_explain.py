import numpy as np
import pytest
import torch

from lookupvit_video.checkpoints.checkpoint import save_checkpoint
from lookupvit_video.config import load_config
from lookupvit_video.data.manifest import read_manifest
from lookupvit_video.evaluation.probes import reordered
from lookupvit_video.inference.explain import (
    ORDERS,
    Attention,
    Mixing,
    _rollout,
    accuracy_without_time,
    explain_attention,
    heat_maps,
    mixing,
    watched,
    without_time,
)
from lookupvit_video.inference.predictor import load_model
from lookupvit_video.models.attention import using_kernel
from lookupvit_video.models.budget import Budget
from lookupvit_video.models.build import build_model
from tests.models.test_models import SMALL
from tests.small import make_videos

CLASSES = list("abcde")
FACTORISED = "MODEL.ENCODER factorised MODEL.COMPRESSED_GRID [2,2] MODEL.TEMPORAL_DEPTH 1"


def predictor(folder, overrides=""):
    cfg = load_config(None, [*SMALL, *overrides.split()])
    torch.manual_seed(3)
    model = build_model(cfg)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # far from even attention
    classes = CLASSES[: cfg.MODEL.NUM_CLASSES]
    save_checkpoint(folder / "model.pt", cfg=cfg, classes=classes, model=model)
    return load_model(folder / "model.pt", "cpu")


def some_clip(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, 4, 32, 32), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("reverse", ["softmax", "transpose", "scaled"])
def test_the_weights_are_those_that_the_blocks_mix_with(tmp_path, reverse):
    # With one head, what goes into an output projection is the weights times the values.
    model = predictor(tmp_path, f"MODEL.NUM_HEADS 1 MODEL.QK_NORM True MODEL.REVERSE_WEIGHTS {reverse}").model
    block, seen = model.blocks[0], {}
    parts = {
        "gathered": block.cross_attention.gather_projection,
        "infused": block.cross_attention.infuse_projection,
        "refined": block.refine.attention.projection,
    }
    for name, module in parts.items():
        module.register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs[0]}))
    with torch.no_grad(), watched(model.blocks) as kept:
        model(torch.randn(1, 3, 4, 32, 32))
    with torch.no_grad(), using_kernel(model, "eager"):
        weights, notes = mixing(block, kept[0], 32), kept[0]
    values = notes["key_value"].chunk(2, -1)[1], notes["refine"].chunk(3, -1)[2], notes["infuse"]
    for found, matrix, value in zip(("gathered", "refined", "infused"), weights, values, strict=True):
        torch.testing.assert_close(seen[found], matrix @ value, rtol=1e-3, atol=1e-4)
    assert not block.cross_attention.query._forward_hooks  # nothing stays behind


def test_the_rollout_of_a_small_example():
    # Two lookup tokens, one compressed token that starts as their mean.
    gather, refine, infuse = [[[1.0, 0.0]]], [[[1.0]]], [[[1.0], [0.5]]]
    block = Mixing(*map(torch.tensor, (gather, refine, infuse)))
    last = Mixing(torch.tensor(gather), torch.tensor(refine), None)
    after, lookup = _rollout([block, last], torch.tensor([[[0.5, 0.5]]]), torch.eye(2)[None])
    assert after[0].tolist() == [[[0.75, 0.25]]]  # half its own, half of the first lookup token
    first, second = [0.875, 0.125], [0.5 * 0.75 / 1.5, (1 + 0.5 * 0.25) / 1.5]
    assert torch.allclose(lookup, torch.tensor([[first, second]]))
    assert torch.allclose(after[1], torch.tensor([[[0.8125, 0.1875]]]))


@pytest.mark.parametrize("overrides", ["MODEL.COMPRESSED_GRID [2,2,3]", FACTORISED, "MODEL.HEADS ['compressed']"])
def test_maps_are_shares_of_the_clip(tmp_path, overrides):
    model = predictor(tmp_path, overrides)
    clip = some_clip()
    found = explain_attention(model, clip)
    assert len(found.gather) == len(found.compressed_rollout) == 2
    assert found.lookup_grid == (2, 4, 4)
    for shares in (*found.gather, *found.compressed_rollout, found.lookup_rollout):
        assert shares.min() >= 0
        torch.testing.assert_close(shares.sum(1), torch.ones(len(shares)))
    with torch.no_grad():
        weights = model.model.forward_features(model.inputs(clip[None]), return_attention=True).attention[-1]
    looked_GN = weights.mean((1, 2)) / len(weights)
    torch.testing.assert_close(found.gather_map(), looked_GN.view(2, 4, 4), rtol=1e-3, atol=1e-5)
    for heat in (found.rollout_map(), found.lookup_map(), found.answer_map(), found.gather_map(0, (1, 1, 1)) if
                 found.compressed_grid[0] > 1 else found.gather_map(0, (0, 1, 1))):  # fmt: skip
        assert heat.shape == (2, 4, 4)
        assert float(heat.sum()) == pytest.approx(1, abs=1e-5)
    read = [found.rollout_map()] + [found.lookup_map()] * ("lookup" in found.inference_heads)
    torch.testing.assert_close(found.answer_map(), torch.stack(read).mean(0))
    assert found.rollout_map((0, 0, 1)).tolist() != found.rollout_map((0, 1, 0)).tolist()


def test_gather_maps_of_a_factorized_encoder_have_every_time(tmp_path):
    model = predictor(tmp_path, FACTORISED)
    clip = torch.randint(0, 256, (3, 4, 32, 32), dtype=torch.uint8)
    maps = explain_attention(model, clip).gather_map()
    assert maps.shape == model.model.tokenizer.grid == (2, 4, 4)
    assert maps.min() >= 0
    assert maps.sum() == pytest.approx(1, abs=1e-5)
    assert maps.sum((1, 2)).tolist() == pytest.approx([0.5, 0.5], abs=1e-5)
    clip[:, 2:] = 0  # the second time index sees black, the first what it saw
    dark = explain_attention(model, clip).gather_map()
    torch.testing.assert_close(dark[0], maps[0])
    assert not torch.allclose(dark[1], maps[1])


def test_a_compressed_token_of_a_factorized_encoder_sees_its_own_time_only(tmp_path):
    found = explain_attention(predictor(tmp_path, FACTORISED), some_clip())
    assert found.compressed_grid == (2, 2, 2)
    for heat in (found.gather_map(0, (1, 0, 0)), found.rollout_map((1, 0, 0)), found.lookup_map((1, 2, 2))):
        assert heat[0].abs().max() == 0
        assert float(heat[1].sum()) == pytest.approx(1, abs=1e-5)


def test_what_cannot_be_explained_is_a_clear_error(tmp_path):
    model = predictor(tmp_path)
    found = explain_attention(model, some_clip())
    with pytest.raises(ValueError, match=r"token 1,0,0: give t,h,w on the grid 1x2x2, counted from 0"):
        found.gather_map(0, (1, 0, 0))
    with pytest.raises(ValueError, match="token 0,1"):
        found.rollout_map((0, 1))
    with pytest.raises(ValueError, match=r"compressed grid 2x2x2: this model was made with 1x2x2"):
        explain_attention(model, some_clip(), (2, 2, 2))
    with pytest.raises(ValueError, match=r"MODEL.ARCH vit: this model has no compressed tokens to explain"):
        explain_attention(predictor(tmp_path, "MODEL.ARCH vit"), some_clip())


def test_frames_in_other_orders():
    clips = torch.arange(8, dtype=torch.uint8).view(1, 1, 8, 1, 1).expand(2, 3, 8, 2, 2)
    assert torch.equal(reordered(clips, "real"), clips)
    assert reordered(clips, "frozen")[0, 0, :, 0, 0].tolist() == [4] * 8
    orders = {tuple(reordered(clips, "shuffled", seed)[0, 0, :, 0, 0].tolist()) for seed in range(6)}
    assert len(orders) > 4
    assert all(sorted(order) == list(range(8)) and order != tuple(range(8)) for order in orders)
    assert torch.equal(reordered(clips, "shuffled", 3), reordered(clips, "shuffled", 3))
    assert reordered(clips[:, :, :2], "shuffled")[0, 0, :, 0, 0].tolist() == [1, 0]  # never the real order
    assert torch.equal(reordered(clips[:, :, :1], "shuffled"), clips[:, :, :1])
    with pytest.raises(ValueError, match="order 'backwards': choose one of real, shuffled, frozen"):
        reordered(clips, "backwards")


def test_the_diagnosis_of_a_clip_and_of_a_list(tmp_path):
    make_videos(tmp_path / "data", count=7)
    (tmp_path / "data" / "3.mp4").write_bytes(b"")
    model = predictor(tmp_path, "MODEL.NUM_CLASSES 3 DATA_LOADER.NUM_WORKERS 0 DATA.SAMPLING_RATE 2 TEST.BATCH_SIZE 3")
    videos = read_manifest(tmp_path / "data" / "test.csv", model.classes)
    results = accuracy_without_time(model, videos)
    assert list(results) == ["real", "shuffled", "frozen"]
    for order, found in results.items():
        assert [row for row, _ in found.bad] == [3]
        assert found.probabilities[3].sum() == 0
        for row in (0, 6):
            clip = model.predict(videos[row].path, num_views=1, num_crops=1).clip
            answer = model.predict_clips(reordered(clip[None], order, seed=row))[0].numpy()
            np.testing.assert_allclose(found.probabilities[row], answer, atol=1e-5)
    clip = model.predict(videos[0].path, num_views=1, num_crops=1).clip
    answers = without_time(model, clip)
    np.testing.assert_allclose(answers["real"], results["real"].probabilities[0], atol=1e-5)
    np.testing.assert_allclose(answers["frozen"], results["frozen"].probabilities[0], atol=1e-5)
    several = [model.predict_clips(reordered(clip[None], "shuffled", seed))[0] for seed in range(8)]
    torch.testing.assert_close(answers["shuffled"], torch.stack(several).mean(0))


# Maps of a made-up clip, and a sheet of them --------------------------------------------------------------------------


def numbered(depth, read=("compressed", "lookup")):
    """Attention whose rows tell block and token: on a compressed grid of 2x3x2 and a lookup grid of 2x2x4."""

    def shares(rows, first):
        return first + torch.arange(rows).view(-1, 1) + torch.arange(16) / 100

    gather = [shares(12, 1000 * (block + 1)) for block in range(depth)]
    rollout = [shares(12, 1000 * (block + 1) + 500) for block in range(depth)]
    return Attention(gather, rollout, shares(16, 100), (2, 3, 2), (2, 2, 4), read)


def first(heat):
    """Which row of which matrix a map is."""
    assert heat.shape == (2, 2, 4)
    torch.testing.assert_close(heat - heat[0, 0, 0], torch.arange(16).view(2, 2, 4) / 100, atol=2e-3, rtol=0)
    return pytest.approx(heat[0, 0, 0].item(), abs=1e-3)


def test_a_token_is_found_by_its_place_on_the_grid():
    found = numbered(3)
    for token, row in (((0, 0, 0), 0), ((0, 0, 1), 1), ((0, 1, 0), 2), ((1, 0, 0), 6), ((1, 2, 1), 11)):
        assert first(found.gather_map(0, token)) == 1000 + row
        assert first(found.rollout_map(token)) == 3500 + row
        assert first(found.rollout_map(token, 1)) == 2500 + row
    for token, row in (((0, 0, 3), 3), ((0, 1, 0), 4), ((1, 0, 0), 8), ((1, 1, 3), 15)):
        assert first(found.lookup_map(token)) == 100 + row
    assert first(found.gather_map(-1)) == 3000 + 5.5
    assert first(found.rollout_map()) == 3500 + 5.5
    assert first(found.lookup_map()) == 100 + 7.5
    assert first(found.answer_map()) == (3505.5 + 107.5) / 2
    assert first(numbered(3, ("lookup",)).answer_map()) == 107.5


@pytest.mark.parametrize("token", [(2, 0, 0), (0, 3, 0), (0, 0, 2), (-1, 0, 0), (0, 0), (0, 0, 0, 0)])
def test_a_token_beside_the_grid_is_told(token):
    with pytest.raises(ValueError, match="give t,h,w on the grid 2x3x2, counted from 0"):
        numbered(1).gather_map(0, token)


@pytest.mark.parametrize(
    ("depth", "blocks"),
    [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (4, [1, 2, 3, 4]), (5, [1, 2, 4, 5]), (12, [1, 5, 8, 12])],
)
def test_a_sheet_shows_up_to_four_blocks_and_the_tokens_asked_for(depth, blocks):
    rows = heat_maps(numbered(depth), tokens=[(1, 0, 1)], lookups=[(0, 1, 2)])
    assert [(name, first(heat)) for name, heat in rows] == [
        *((f"block {block} of {depth}: looked up", 1000 * block + 5.5) for block in blocks),
        ("rolled out: what the compressed tokens hold", 1000 * depth + 505.5),
        ("rolled out: what the lookup tokens hold", 107.5),
        (f"compressed token 1,0,1: looked up in block {depth}", 1000 * depth + 7),
        ("compressed token 1,0,1: rolled out", 1000 * depth + 507),
        ("lookup token 0,1,2: rolled out", 106),
    ]
    assert len(heat_maps(numbered(depth))) == len(blocks) + 2


def test_a_model_of_several_grids_is_explained_on_the_one_asked_for(tmp_path):
    model = predictor(tmp_path, "MODEL.COMPRESSED_GRIDS [[1,1,1],[1,2,2],[2,4,4]]")
    for grid, expected in ((None, (1, 2, 2)), ((2, 4, 4), (2, 4, 4)), ((1, 1, 1), (1, 1, 1))):
        found = explain_attention(model, some_clip(), grid)
        assert found.compressed_grid == expected
        assert found.gather[0].shape == (int(np.prod(expected)), 32)
        assert found.compressed_rollout[-1].shape == found.gather[0].shape


def test_a_budget_is_explained_by_the_blocks_that_ran_and_the_tokens_they_saw(tmp_path):
    several = "MODEL.DEPTH 4 MODEL.EXITS [2,3] MODEL.KEEPS [[1],[1,0.5]]"
    for encoder, tokens, groups in (("joint", 32, 1), ("factorised MODEL.COMPRESSED_GRID [2,2]", 16, 2)):
        model = predictor(tmp_path, f"{several} MODEL.ENCODER {encoder}")
        grid = model.model.grids[0]
        full, early, few = (
            explain_attention(model, some_clip(), Budget(grid, *options)) for options in ((), (3,), (3, (1, 0.5)))
        )
        assert [len(found.gather) for found in (full, early, few)] == [4, 3, 3]
        torch.testing.assert_close(full.gather[:3], early.gather)
        torch.testing.assert_close(few.gather[:2], early.gather[:2])
        assert few.gather[2].shape == early.gather[2].shape
        seen = (few.gather[2] > 0).sum(1)
        assert seen.tolist() == [tokens // 2] * len(seen)
        for shares in (*few.gather, *few.compressed_rollout, few.lookup_rollout):
            torch.testing.assert_close(shares.sum(1), torch.ones(len(shares)))
        left = (few.gather[2] > 0).sum(0) == 0  # these stay as two blocks left them
        two_blocks = explain_attention(model, some_clip(), Budget(grid, 2)).lookup_rollout
        torch.testing.assert_close(few.lookup_rollout[left], two_blocks[left])
        assert not torch.allclose(few.lookup_rollout[~left], two_blocks[~left])
        assert int(left.sum()) == groups * tokens // 2


def test_the_orders_that_a_clip_is_shown_in(monkeypatch):
    assert ORDERS == ("real", "shuffled", "frozen")

    class Model:
        def predict_clips(self, clips):
            seen.append(clips[:, 0, :, 0, 0])
            return torch.arange(float(len(clips)))[:, None]

    clip = torch.arange(6, dtype=torch.uint8).view(1, 6, 1, 1).expand(3, 6, 2, 2)
    for options, orders in (({}, 8), ({"num_orders": 3}, 3)):
        seen = []
        answers = without_time(Model(), clip, **options)
        (rows,) = seen
        assert rows[0].tolist() == list(range(6))
        assert rows[1].tolist() == [3] * 6
        assert [sorted(row) for row in rows[2:].tolist()] == [list(range(6))] * orders
        assert rows[2:].tolist() == [
            reordered(clip[None], "shuffled", seed)[0, 0, :, 0, 0].tolist() for seed in range(orders)
        ]
        assert {name: float(answer) for name, answer in answers.items()} == {
            "real": 0, "frozen": 1, "shuffled": 2 + (orders - 1) / 2,
        }  # fmt: skip
    assert torch.equal(reordered(clip[None], "shuffled"), reordered(clip[None], "shuffled", 0))
