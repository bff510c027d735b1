"""Budgets: which grid, how many blocks, how many lookup tokens; what a model computes within them, and its cost."""

import math
import random
from itertools import pairwise

import pytest
import torch

from lookupvit_video.errors import UserError
from lookupvit_video.models.attention import set_kernel, using_kernel
from lookupvit_video.models.budget import (
    Budget,
    all_budgets,
    as_budget,
    continues,
    keep_mistake,
    parse_budget,
    tokens_kept,
)
from lookupvit_video.models.build import model_spec
from lookupvit_video.models.complexity import READING, flop_counter, measured_macs
from lookupvit_video.models.lookupvit import LookupViT
from tests.models.test_models import clips, config, small_model

DEEP = "MODEL.DEPTH 6 MODEL.EXITS [2,4] MODEL.COMPRESSED_GRIDS [[1,2,2],[2,3,3]]"
FACTORISED = f"{DEEP} MODEL.COMPRESSED_GRIDS [[2,2],[3,3]]"
KEEPS = [(), (1.0, 0.5), (1.0, 0.7, 0.3), (1.0, 1.0, 1.0, 0.6, 0.6, 0.1)]


@pytest.mark.parametrize(("budget", "text"), [
    (Budget((4, 7, 7)), "4x7x7"), (Budget((7, 7), 8), "7x7,b8"), (Budget((4, 7, 7), 0, (1, 0.5)), "4x7x7,k1-0.5"),
    (Budget((4, 7, 7), 12, (1, 0.75, 0.125)), "4x7x7,b12,k1-0.75-0.125"),
])  # fmt: skip
def test_a_budget_has_a_name_that_can_be_read_again(budget, text):
    assert budget.name == text
    assert parse_budget(text) == budget
    assert as_budget(budget) is budget
    assert as_budget(budget.bare) == budget
    assert isinstance(budget.bare, Budget) == ("," in text)


def test_a_bare_grid_is_a_budget_with_all_blocks_and_tokens_whatever_the_models_own():
    assert as_budget([1, 2, 2]) == Budget((1, 2, 2))
    model = small_model("keep")
    assert model.check_budget(None) == Budget((1, 2, 2), 0, (1, 0.5))
    assert model.check_budget((1, 2, 2)) == Budget((1, 2, 2))
    assert parse_budget("1x2x2,k1") == Budget((1, 2, 2))


@pytest.mark.parametrize("text", ["", "4x7", "4x7x7,", "4x7x7,8", "4x7x7,b", "4x7x7,b1.5", "4x7x7,b-1", "4x7x7,binf",
                                  "4x7x7,b1-2", "4x7x7,k0.5", "4x7x7,k1-0.5-0.7", "4x7x7,k1-0", "4x7x7,knan",
                                  "4x7x7,z3", "4x7x7x7"])  # fmt: skip
def test_what_is_no_budget_is_refused(text):
    if text == "4x7":
        assert parse_budget(text) == Budget((4, 7))
        return
    with pytest.raises(ValueError, match="write"):
        parse_budget(text)


def test_shares_are_of_equal_parts_of_the_depth():
    assert tokens_kept((), 10, 3) == [10, 10, 10]
    assert tokens_kept((1, 0.7, 0.5), 100, 6) == [100, 100, 70, 70, 50, 50]
    assert tokens_kept((1, 0.5), 100, 5) == [100, 100, 100, 50, 50]
    assert tokens_kept((1, 0.001), 100, 2) == [100, 1]
    assert keep_mistake((1, 1, 0.5, 0.5)) == keep_mistake(()) == ""
    assert "begin" not in keep_mistake((0.5,)) != ""
    for keep in ((1, 0.5, 0.6), (1, 0), (1, -1)):
        assert "must not rise" in keep_mistake(keep)


def test_a_pass_continues_another_where_it_works_on_the_same_tokens_up_to_there():
    grid, small = (1, 2, 2), Budget((1, 2, 2), 2)
    for after, expected in (
        (Budget(grid), True), (Budget(grid, 4), True), (Budget(grid, 2), False), (Budget((2, 2, 2)), False),
        (Budget(grid, 0, (1, 0.5)), True), (Budget(grid, 4, (1, 0.9, 0.5)), True),
        (Budget(grid, 0, (1, 0.9, 0.9, 0.5, 0.5, 0.5)), False),
    ):  # fmt: skip
        assert continues(small, after, 32, 6) == expected, after
    assert not continues(Budget(grid), small, 32, 6)
    assert continues(Budget(grid, 4, (1, 0.5)), Budget(grid, 0, (1, 0.5)), 32, 6)
    assert not continues(Budget(grid, 4, (1, 0.5)), Budget(grid), 32, 6)


def test_budgets_of_a_model_are_its_computations_each_once():
    found = all_budgets([(1, 2, 2), (2, 2, 2)], [2, 4], [(1.0, 0.5), (1.0,), ()], 32, 6)
    one = [((1, 2, 2), 0, (1.0, 0.5)), ((1, 2, 2), 4, (1.0, 0.5)), ((1, 2, 2), 2, ()), ((1, 2, 2), 0, ()),
           ((1, 2, 2), 4, ())]  # fmt: skip
    assert list(found) == [*one, *(((2, 2, 2), *rest) for _, *rest in one)]
    spec = model_spec(config("lookupvit", f"{DEEP} MODEL.KEEPS [[1,0.5]] TEST.GRIDS [[1,1,1]]"))
    assert len(spec.budgets) == 3 * 5
    assert spec.budgets[0] == Budget((1, 2, 2))
    assert model_spec(config("vit")).budgets == ()


@pytest.mark.parametrize("name", ["lookupvit", "factorised", "adaptformer", "attentive", "compressed only"])
def test_exits_change_neither_the_weights_of_the_rest_nor_the_full_models_answer(name):
    plain, model = (small_model(name, f"MODEL.DEPTH 3 {more}") for more in ("", "MODEL.EXITS [1,2]"))
    with torch.no_grad():  # small_model moves biases, the exits' after the others
        for key, value in model.state_dict().items():
            assert key.startswith("exits.") or torch.equal(value, plain.state_dict()[key]), key
        assert torch.equal(model.eval()(clips()), plain.eval()(clips()))
        assert torch.equal(model(clips(), Budget(model.grids[0], 3, (1.0, 1.0))), plain(clips()))
        outputs, expected = model.train()(clips()), plain.train()(clips())
    assert all(map(torch.equal, outputs, expected))  # the first are those of the last block
    assert len(outputs) == 3 * len(expected)


def by_hand(model, clip, grid, blocks, keep):
    """Return both token sets after some blocks, one block after the other, in plain indexing; one clip."""
    lookup = model.tokenizer(clip)
    compressed, everything, kept = model.compress["x".join(map(str, grid))](lookup), lookup[0].clone(), None
    for block, count in zip(model.blocks[:blocks], tokens_kept(keep, lookup.shape[1], len(model.blocks)), strict=False):
        index = torch.arange(lookup.shape[1]) if kept is None else kept
        if kept is not None and count < len(index):
            best = sorted(sorted(range(len(index)), key=lambda i: -mass[i])[:count])
            lookup, index = lookup[:, best], index[best]
        compressed, lookup, found = block(compressed, lookup, return_lookup=True)
        mass, kept = found.weights.mean((0, 1, 2)).tolist(), index
        everything[index] = lookup[0]
    return compressed, everything[None]


@pytest.mark.parametrize("reverse", ["softmax", "transpose", "scaled"])
@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("blocks", [0, 2, 4])
def test_tokens_that_most_is_gathered_from_stay_and_the_others_keep_their_state(reverse, keep, blocks):
    model = small_model(overrides=f"{DEEP} MODEL.KEEP_BY mass MODEL.REVERSE_WEIGHTS {reverse}").double().eval()
    budget = Budget((1, 2, 2), blocks, keep)
    with torch.no_grad():
        features = model.forward_features(clips().double(), budget)
        for i, clip in enumerate(clips().double()):
            compressed, everything = by_hand(model, clip[None], budget.grid, blocks or 6, keep)
            torch.testing.assert_close(features.compressed[i], compressed[0], rtol=0, atol=1e-11)
            torch.testing.assert_close(features.tokens[i], everything[0], rtol=0, atol=1e-11)
        heads = model.exits[str(blocks)].heads if blocks else model.heads
        logits = [heads["compressed"](features.compressed), heads["lookup"](features.tokens)]
        torch.testing.assert_close(model(clips().double(), budget), sum(logits) / 2, rtol=0, atol=1e-11)
        for kernel in ("fused", "eager"):
            with using_kernel(model, kernel):
                torch.testing.assert_close(model(clips().double(), budget), sum(logits) / 2, rtol=0, atol=1e-9)


def test_random_tokens_stay_as_a_control():
    model = small_model("keep random", "MODEL.EXITS [1]").double()
    budget, batch = Budget((1, 2, 2), 0, (1, 0.5)), clips().double()
    with torch.no_grad():
        eager = [model.train().forward_features(batch, budget).tokens for _ in range(2)]
        fixed = [model.eval().forward_features(batch, budget).tokens for _ in range(2)]
        first = model.forward_features(batch, Budget((1, 2, 2), 1)).tokens
    assert not torch.equal(*eager)
    assert torch.equal(*fixed)
    stay = ((fixed[0] - first).abs().amax(-1) > 0).long()
    assert stay.sum(1).tolist() == [16] * 3
    assert torch.equal(stay[0], stay[1])


@pytest.mark.parametrize(("name", "deep"), [
    ("lookupvit", DEEP), ("lookupvit", f"{DEEP} MODEL.INPUT changes"), ("factorised", FACTORISED),
])  # fmt: skip
def test_tokens_whose_pixels_vary_most_stay(name, deep):
    model = small_model(name, f"{deep} MODEL.KEEP_BY pixels").double().eval()
    budget, batch = Budget(model.grids[0], 0, (1, 0.5, 0.25)), clips().double()
    seen = 3 * (batch - batch.mean(2, keepdim=True)) if "changes" in deep else batch
    tubelets = seen.unfold(2, 2, 2).unfold(3, 8, 8).unfold(4, 8, 8).flatten(5)  # (B, C, t, h, w, pixels)
    order = tubelets.var(-1).mean(1).reshape(-1, math.prod(model.block_grid))
    with torch.no_grad():
        state = model.start(model.tokenizer(batch), budget, model.pixel_order(batch, [budget]))
        for blocks, share in ((2, 1), (4, 0.5), (6, 0.25)):
            state = model.advance(state, budget, blocks, continues=True)
            kept = torch.arange(order.shape[1]).expand(order.shape) if state.kept is None else state.kept
            assert torch.equal(kept, order.topk(int(share * order.shape[1])).indices.sort().values)
        assert torch.equal(model(batch, budget), model.forward_head(model.features(state, budget)))
    for pass_, is_needed in ((Budget(model.grids[0]), False), (budget, True)):
        assert (model.pixel_order(batch, [pass_]) is not None) == is_needed  # where all tokens stay it costs nothing
    with pytest.raises(UserError, match="keep_by 'size': choose pixels, mass, random"):
        LookupViT(num_classes=2, keep_by="size")


@pytest.mark.parametrize("keep_by", ["pixels", "mass"])
@pytest.mark.parametrize("name", ["lookupvit", "factorised", "read compressed", "keep transpose", "compressed only"])
def test_a_pass_in_parts_is_a_pass_in_one_and_runs_no_block_twice(name, keep_by):
    grid = (2, 2) if name == "factorised" else (1, 2, 2)
    model = (
        small_model(name, f"{DEEP} MODEL.COMPRESSED_GRIDS [] MODEL.KEEP [1,0.5,0.25] MODEL.KEEP_BY {keep_by}")
        .double()
        .eval()
    )
    runs, writes = [], []
    for number, block in enumerate(model.blocks):
        block.register_forward_hook(lambda *_, number=number: runs.append(number))
        if block.writes_back:
            block.lookup_mlp.register_forward_hook(lambda *_, number=number: writes.append(number))
    budget, writes_back = model.check_budget(Budget(grid, 0, (1, 0.5, 0.25))), "lookup" in model.inference_heads
    with torch.no_grad():
        separate = [model(clips().double(), budget._replace(blocks=blocks)) for blocks in (2, 4, 6)]
        runs.clear()
        writes.clear()
        state = model.start(model.tokenizer(clips().double()), budget, model.pixel_order(clips().double(), [budget]))
        for blocks, expected in zip((2, 4, 0), separate, strict=True):
            state = model.advance(state, budget, blocks, writes_back=writes_back, continues=True)
            answer = model.forward_head(model.features(state, budget))
            torch.testing.assert_close(answer, expected, rtol=0, atol=1e-12)
            assert writes == list(range(state.blocks if writes_back else state.blocks - 1))  # put off until it is read
    assert runs == list(range(6))


def test_mistakes_are_named():
    model = small_model(overrides=DEEP)
    for budget, message in (
        (Budget((1, 1, 1)), "compressed grid 1x1x1: this model was made with 1x2x2, 2x3x3"),
        (Budget((1, 2, 2), 3), "3 blocks: this model's early exits are 2, 4"),
        (Budget((1, 2, 2), 0, (0.5,)), "shares of lookup tokens .0.5.: the first share must be 1"),
    ):
        with pytest.raises(ValueError, match=message):
            model(clips(), budget)
    with pytest.raises(ValueError, match=r"3 blocks: this model's early exits are none; see MODEL.EXITS"):
        small_model(overrides="MODEL.DEPTH 4")(clips(), Budget((1, 2, 2), 3))


@pytest.mark.parametrize(("kernel", "keep_by"), [("eager", "pixels"), ("fused", "pixels"), ("fused", "mass")])
@pytest.mark.parametrize(("name", "deep", "grids"), [
    ("lookupvit", DEEP, [(1, 2, 2), (2, 3, 3)]), ("read compressed", DEEP, [(1, 2, 2), (2, 3, 3)]),
    ("factorised attentive", FACTORISED, [(2, 2), (3, 3)]), ("lora factorised", FACTORISED, [(2, 2), (3, 3)]),
])  # fmt: skip
def test_measured_macs_of_random_budgets_are_the_closed_form(kernel, keep_by, name, deep, grids):
    deep += f" MODEL.KEEP_BY {keep_by}"
    cfg, draw = config(name, deep), random.Random(0)
    spec, model = model_spec(cfg), small_model(name, deep).eval()
    n = spec.shape.grid[0] * 16 // spec.shape.times
    for _ in range(50 // 4 + 1):
        budget = Budget(draw.choice(grids), draw.choice([0, 2, 4]), draw.choice(KEEPS))
        closed = sum(spec.budget_macs(budget).values())
        assert measured_macs(model, clips(batch=1), budget) == closed, budget
        if kernel == "eager":
            continue
        set_kernel(model, kernel)
        with flop_counter() as counter, torch.no_grad():
            model(clips(batch=1), budget)
        counts = tokens_kept(budget.keep, n, 6)[: budget.blocks or 6]
        read = "lookup" in model.inference_heads
        again = sum(counts if read else counts[:-1])  # for the way back, and where tokens leave by their mass
        again += sum(before for before, after in pairwise(counts) if after < before) if keep_by == "mass" else 0
        m = math.prod(budget.grid)
        assert counter.get_total_flops() // 2 == closed + spec.shape.times * again * m * 24, budget


def test_training_counts_the_heads_of_all_exits_that_it_passes():
    cfg = config("factorised", FACTORISED)
    spec, model = model_spec(cfg), small_model("factorised", FACTORISED).train()
    with using_kernel(model, "eager"), flop_counter() as counter, torch.no_grad():
        model(clips(batch=1), (3, 3))
    parts = spec.macs(compressed_grid=(3, 3), passed=(2, 4))
    assert counter.get_total_flops() // 2 == sum(parts.values())
    alone = spec.macs(compressed_grid=(3, 3))
    assert {part for part, macs in parts.items() if macs != alone[part]} == set(READING)


def test_each_output_weighs_by_its_depth():
    model = small_model(overrides=DEEP)
    assert model.output_weights == pytest.approx([0.25, 0.25, 2 / 24, 2 / 24, 4 / 24, 4 / 24])
    assert small_model().output_weights is None


def test_a_fresh_classifier_is_one_at_each_exit():
    model = small_model("exits factorised")
    model.reset_classifier(7)
    assert [tuple(logits.shape) for logits in model.train()(clips())] == [(3, 7)] * 4
