"""MHBC's way back and attentive pooling against their formulas. The whole block against loops: test_blocks.py."""

import math

import pytest
import torch

from lookupvit_video.models.attention import (
    REVERSE_WEIGHTS,
    AttentivePooling,
    BidirectionalCrossAttention,
    SelfAttention,
    head_mean,
    set_kernel,
)

DIM, HEADS, M, N = 12, 3, 4, 10


def double(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def sharpened(module):
    """Return the module in float64 with weights so large that attention is far from even."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return module.double()


@pytest.mark.parametrize("m", [1, M])
@pytest.mark.parametrize("reverse", REVERSE_WEIGHTS)
def test_sums_of_the_weights_that_a_lookup_token_receives(reverse, m):
    mhbc = sharpened(BidirectionalCrossAttention(DIM, HEADS, reverse))
    with torch.no_grad():
        # With all values 1 and no projection, the update of a lookup token is the sum of its weights.
        mhbc.infuse_value.weight.zero_()
        mhbc.infuse_value.bias.fill_(1)
        mhbc.infuse_projection.weight.copy_(torch.eye(DIM))
        mhbc.infuse_projection.bias.zero_()
        _, lookup = mhbc.gather(double(2, m, DIM), double(2, N, DIM))
        sums = mhbc.infuse(double(2, m, DIM), lookup)
    mean = sums.mean(dim=1)
    torch.testing.assert_close(mean, torch.full_like(mean, m / N if reverse == "transpose" else 1.0))
    assert (sums.std(dim=1) < 1e-12).all() == (reverse == "softmax")  # exactly 1 for each token, or on average only


@pytest.mark.parametrize("kernel", ["eager", "fused"])
def test_gather_leaves_the_weights_for_the_way_back(kernel):
    mhbc = sharpened(BidirectionalCrossAttention(DIM, HEADS))
    set_kernel(mhbc, kernel)
    _, lookup = mhbc.gather(double(2, M, DIM), double(2, N, DIM))
    scores = lookup.queries @ lookup.keys.mT / math.sqrt(DIM // HEADS)
    assert lookup.weights.shape == scores.shape == (2, HEADS, M, N)
    torch.testing.assert_close(lookup.weights, scores.exp() / scores.exp().sum(-1, keepdim=True))
    torch.testing.assert_close(head_mean(lookup.weights), lookup.weights.float().sum(1) / HEADS)


def test_the_ways_back_differ_and_gather_does_not():
    models = [BidirectionalCrossAttention(DIM, HEADS, reverse).double() for reverse in REVERSE_WEIGHTS]
    compressed, lookup_tokens = double(2, M, DIM), double(2, N, DIM)
    sharpened(models[0])
    updates = []
    for model in models:
        model.load_state_dict(models[0].state_dict())
        update, lookup = model.gather(compressed, lookup_tokens)
        torch.testing.assert_close(update, models[0].gather(compressed, lookup_tokens)[0], rtol=0, atol=0)
        updates.append(model.infuse(compressed, lookup) - model.infuse_projection.bias)
    torch.testing.assert_close(updates[1], updates[0] * (N / M))
    assert not torch.allclose(updates[2], updates[1])


def test_with_qk_norm_attention_does_not_see_the_scale_of_queries_and_keys():
    tokens = double(2, N, DIM)
    for qk_norm in (True, False):
        mhbc = sharpened(BidirectionalCrossAttention(DIM, HEADS, qk_norm=qk_norm))
        attention = sharpened(SelfAttention(DIM, HEADS, qk_norm))
        for projection, rows in (  # first the queries', then the keys'
            *((layer, slice(0, DIM)) for layer in (mhbc.query, mhbc.key_value)),
            *((attention.qkv, slice(i * DIM, (i + 1) * DIM)) for i in range(2)),
        ):
            with torch.no_grad():
                run = attention if projection is attention.qkv else lambda x, mhbc=mhbc: mhbc.gather(x[:, :M], x)[0]
                before = run(tokens)
                projection.weight[rows] *= 50
                projection.bias[rows] *= 50
                after = run(tokens)
                projection.weight[rows] /= 50
                projection.bias[rows] /= 50
            assert torch.allclose(before, after, rtol=1e-3, atol=1e-3) == qk_norm


def test_weights_are_six_projections_or_four_without_the_way_back():
    for infuse, count in ((True, 6), (False, 4)):
        mhbc = BidirectionalCrossAttention(DIM, HEADS, infuse=infuse)
        assert sum(p.numel() for p in mhbc.parameters()) == count * (DIM**2 + DIM)


def test_attentive_pooling_equals_the_loop():
    pooling = sharpened(AttentivePooling(DIM, HEADS))
    tokens = double(2, N, DIM)
    with torch.no_grad():
        k, v = pooling.key_value(tokens).split(DIM, dim=-1)
        for i in range(2):
            heads = []
            for h in range(HEADS):
                part = slice(h * DIM // HEADS, (h + 1) * DIM // HEADS)
                scores = [pooling.query[0, 0, part] @ k[i, n, part] / math.sqrt(DIM // HEADS) for n in range(N)]
                total = sum(math.exp(score) for score in scores)
                heads.append(sum(math.exp(score) / total * v[i, n, part] for n, score in enumerate(scores)))
            torch.testing.assert_close(pooling(tokens)[i], pooling.projection(torch.cat(heads)))


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="'forward': choose transpose, scaled, softmax"):
        BidirectionalCrossAttention(DIM, HEADS, "forward")
    for make in (SelfAttention, BidirectionalCrossAttention, AttentivePooling):
        with pytest.raises(ValueError, match="width 12 cannot be split over 5 heads"):
            make(DIM, 5)
