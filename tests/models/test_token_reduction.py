"""Random dropping, and token merging against bipartite soft matching in plain Python (ToMe, section 3)."""

import math

import pytest
import torch

from lookupvit_video.models.attention import SelfAttention
from lookupvit_video.models.blocks import TransformerBlock
from lookupvit_video.models.token_reduction import MergingBlock, RandomTokens, merge_tokens, merged_per_block
from tests.models.test_models import small_model

DIM, HEADS = 12, 3


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def clip_tokens(batch, n):
    """Return tokens (batch, n, 2) that say their clip and their number."""
    return torch.stack(torch.meshgrid(torch.arange(batch), torch.arange(n), indexing="ij"), dim=-1).double()


def test_random_tokens_keep_so_many_of_each_clip():
    torch.manual_seed(0)
    reduce = RandomTokens(40, 9)
    tokens = clip_tokens(3, 40)
    draws = [reduce.train()(tokens) for _ in range(200)]
    for kept in draws:
        assert kept.shape == (3, 9, 2)
        assert (kept[..., 0] == torch.arange(3)[:, None]).all()  # tokens of the own clip, none twice
        assert all(len(clip[:, 1].unique()) == 9 for clip in kept)
    first, second = (kept[..., 1].sort().values for kept in draws[:2])
    assert not torch.equal(first, second)  # other ones at each call
    assert not torch.equal(first[0], first[1])  # and for each clip
    share = torch.cat([kept[..., 1].flatten() for kept in draws]).long().bincount(minlength=40) / 600
    assert (share - 9 / 40).abs().max() < 0.08  # each token as often as any other


def test_random_tokens_are_fixed_in_eval():
    reduce, other = RandomTokens(40, 9).eval(), RandomTokens(40, 9).eval()
    tokens = clip_tokens(3, 40)
    assert torch.equal(reduce(tokens), other(tokens))
    numbers = reduce(tokens)[..., 1]
    assert (numbers == numbers[0]).all()
    assert len(numbers[0].unique()) == 9
    assert not reduce.state_dict()
    assert torch.equal(RandomTokens(5, 5).eval()(tokens[:, :5]), tokens[:, :5])
    for keep in (0, 41):
        with pytest.raises(ValueError, match=f"{keep} of 40 tokens cannot be kept"):
            RandomTokens(40, keep)


def test_the_fixed_tokens_are_the_same_in_every_version():
    """Else a checkpoint would answer otherwise than when it was tested."""
    assert RandomTokens(40, 9).get_buffer("fixed").tolist() == [4, 5, 11, 14, 16, 17, 21, 29, 39]


def merge_loop(x, sizes, metric, r, protected):
    """Return the merged (token, size) pairs of one clip, in no particular order."""
    cosine = lambda a, b: sum(a * b) / math.sqrt(sum(a * a) * sum(b * b))  # noqa: E731
    even, odd = range(0, len(x), 2), range(1, len(x), 2)
    edges = []  # one from each even token, to the odd token that is most similar
    for i in even:
        if i >= protected:
            edges.append(max((float(cosine(metric[i], metric[j])), i, j) for j in odd))
    groups = {i: [i] for i in range(len(x))}
    for _, i, j in sorted(edges, reverse=True)[:r]:
        groups[j].append(i)
        del groups[i]
    merged = []
    for members in groups.values():
        size = sum(sizes[i] for i in members)
        merged.append((sum(sizes[i] * x[i] for i in members) / size, size))
    return merged


def by_first_channel(x, sizes):
    order = x[:, 0].argsort()
    return x[order], sizes[order]


@pytest.mark.parametrize("protected", [0, 1])
@pytest.mark.parametrize(("n", "r"), [(11, 4), (11, 5), (12, 1), (12, 5), (12, 6), (2, 1)])
def test_merging_is_bipartite_soft_matching(n, r, protected):
    r = min(r, (n - protected) // 2)
    x, metric = double(3, n, DIM), double(3, n, 4)
    sizes = torch.randint(1, 5, (3, n)).double()
    merged, merged_sizes = merge_tokens(x, sizes, metric, r, protected)
    assert merged.shape == (3, n - r, DIM)
    torch.testing.assert_close(merged_sizes.sum(1), sizes.sum(1))
    torch.testing.assert_close((merged * merged_sizes[..., None]).sum(1), (x * sizes[..., None]).sum(1))
    for i in range(3):
        want = merge_loop(x[i], sizes[i], metric[i], r, protected)
        want = by_first_channel(torch.stack([t for t, _ in want]), torch.stack([s for _, s in want]))
        torch.testing.assert_close(by_first_channel(merged[i], merged_sizes[i]), want)
        if protected:
            torch.testing.assert_close(merged[i, 0], x[i, 0])
            assert merged_sizes[i, 0] == sizes[i, 0]


def test_the_class_token_stays_first_though_it_is_the_most_similar():
    metric = double(1, 9, 4)
    metric[:, 1] = metric[:, 0]
    x = double(1, 9, DIM)
    for r in (1, 4):
        merged, _ = merge_tokens(x, torch.ones(1, 9, dtype=torch.float64), metric, r, protected=1)
        assert torch.equal(merged[0, 0], x[0, 0])
    merged, sizes = merge_tokens(x, torch.ones(1, 9, dtype=torch.float64), metric, 1, protected=0)
    assert any(torch.allclose(token, (x[0, 0] + x[0, 1]) / 2) for token in merged[0])  # unprotected, it would go
    assert sizes.max() == 2


def test_a_token_of_size_two_acts_as_two_equal_tokens():
    attention = SelfAttention(DIM, HEADS, qk_norm=True).double()
    x = double(2, 6, DIM)
    sizes = torch.tensor([[1.0, 2, 1, 3, 1, 1], [2.0, 2, 2, 2, 2, 2]], dtype=torch.float64)
    with torch.no_grad():
        got, keys = attention.with_keys(x, sizes.log())
        assert keys.shape == (2, HEADS, 6, DIM // HEADS)
        for i in range(2):
            repeats = sizes[i].long()
            want = attention(x[i].repeat_interleave(repeats, dim=0)[None])[0]
            torch.testing.assert_close(got[i].repeat_interleave(repeats, dim=0), want)
        assert not torch.allclose(got[0], attention(x)[0])
        torch.testing.assert_close(got[1], attention(x)[1])  # alike for all: no difference


def test_a_merging_block_is_a_transformer_block_with_the_merge_between_attention_and_mlp():
    block, plain = MergingBlock(DIM, HEADS).double(), TransformerBlock(DIM, HEADS).double()
    plain.load_state_dict(block.state_dict(), strict=True)
    x, ones = double(2, 8, DIM), torch.ones(2, 8, dtype=torch.float64)
    with torch.no_grad():
        unmerged, sizes = block.forward_merging(x, ones, 0)
        torch.testing.assert_close(unmerged, plain(x))
        assert torch.equal(sizes, ones)
        merged, sizes = block.forward_merging(x, ones, 3)
        update, keys = plain.attention.with_keys(plain.norm_attention(x))
        between, want_sizes = merge_tokens(x + update, ones, keys.mean(1), 3, 0)
        torch.testing.assert_close(merged, between + plain.mlp(plain.norm_mlp(between)))
        assert torch.equal(sizes, want_sizes)
        assert sizes.sum(1).tolist() == [8, 8]
        # What was merged before weighs as much in attention as the tokens that went into it.
        again, _ = block.forward_merging(x, torch.cat([2 * ones[:, :1], ones[:, 1:]], dim=1), 0)
        want = plain(torch.cat([x[:, :1], x[:, :1], x[:, 1:]], dim=1))[:, 1:]
        torch.testing.assert_close(again, want)


def test_a_merging_vit_passes_sizes_on_and_keeps_its_class_token():
    model = small_model("vit merge class", "MODEL.MERGE_TOKENS 100").double().eval()
    assert model.merged == [16, 8]  # of 33 tokens and of 17: all that can be matched but the class token
    clip = double(2, 3, 4, 32, 32)
    with torch.no_grad():
        x = torch.cat([model.class_token.expand(2, 1, 24), model.tokenizer(clip)], dim=1)
        sizes = torch.ones(2, 33, dtype=torch.float64)
        for block, r in zip(model.blocks, (16, 8), strict=True):
            x, sizes = block.forward_merging(x, sizes, r, protected=1)
        assert (sizes[:, 0] == 1).all()
        torch.testing.assert_close(model(clip), model.head(x))
        torch.testing.assert_close(model.forward_features(clip).tokens, x[:, 1:])


@pytest.mark.parametrize(
    ("num_tokens", "r", "depth", "protected", "counts"),
    [
        (32, 9, 2, 0, [9, 9]),
        (32, 16, 3, 0, [16, 8, 4]),  # more than half cannot be matched
        (33, 16, 3, 1, [16, 8, 4]),  # 33 with a class token: the same
        (32, 100, 6, 0, [16, 8, 4, 2, 1, 0]),
        (2, 1, 2, 1, [0, 0]),  # a class token and one other
        (32, 0, 2, 0, [0, 0]),
    ],
)
def test_merged_per_block(num_tokens, r, depth, protected, counts):
    assert merged_per_block(num_tokens, r, depth, protected) == counts
    x, sizes = double(1, num_tokens, DIM), torch.ones(1, num_tokens, dtype=torch.float64)
    for count in counts:  # as many as that can indeed be merged
        if count:
            x, sizes = merge_tokens(x, sizes, x, count, protected)
    assert sizes.shape == (1, num_tokens - sum(counts))
    assert sizes.sum() == num_tokens
