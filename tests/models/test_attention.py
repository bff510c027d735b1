"""MHBC's way back and attentive pooling against their formulas. The whole block against loops: test_blocks.py."""

import contextlib
import math
from operator import attrgetter

import pytest
import torch

from lookupvit_video.models import kernels
from lookupvit_video.models.attention import (
    REVERSE_WEIGHTS,
    AttentivePooling,
    BidirectionalCrossAttention,
    SelfAttention,
    head_mean,
    set_kernel,
    using_kernel,
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
        sums = mhbc.write_back(double(2, m, DIM), lookup)
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
        updates.append(model.write_back(compressed, lookup) - model.infuse_projection.bias)
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
        mhbc = BidirectionalCrossAttention(DIM, HEADS, writes_back=infuse)
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


# Kernels and starts -----------------------------------------------------------------------------------------------


class Queries:
    """What the choice of a kernel looks at."""

    def __init__(self, on_gpu, width=64, length=M, dtype=torch.float32):
        self.is_cuda, self.shape, self.dtype = on_gpu, (2, HEADS, length, width), dtype


@pytest.mark.parametrize(
    ("reverse", "on_gpu", "wide", "compiling", "width", "wanted"),
    [
        ("softmax", True, False, False, 64, "fused"),
        ("softmax", False, True, False, 64, "fused"),
        ("softmax", False, False, False, 64, "eager"),
        ("softmax", True, False, True, 24, "fused"),
        ("scaled", False, True, False, 64, "eager"),
        ("transpose", False, False, True, 64, "eager"),
        ("scaled", True, False, False, 24, "fused"),
        ("transpose", True, False, True, 16, "flex"),
        ("transpose", True, False, True, 32, "flex"),
        ("scaled", True, False, True, 64, "flex"),
        ("scaled", True, False, True, 128, "flex"),
        ("scaled", True, False, True, 24, "eager"),
        ("scaled", True, False, True, 256, "eager"),
    ],
)
def test_the_kernel_is_chosen_by_device_and_way_back(monkeypatch, reverse, on_gpu, wide, compiling, width, wanted):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    q = Queries(on_gpu, width)
    assert kernels.choose("auto", reverse, q, q, wide) == wanted
    for kernel in ("eager", "fused", "flex"):
        assert kernels.choose(kernel, reverse, q, q, wide) == kernel


def test_training_on_a_cpu_keeps_weights_only_where_there_are_few():
    q, k, half = Queries(False, length=64), Queries(False, length=64), Queries(False, length=64, dtype=torch.bfloat16)
    assert kernels.choose("auto", "softmax", q, k, False) == "fused"
    assert kernels.choose("auto", "softmax", q, Queries(False, length=63), False) == "eager"
    assert kernels.choose("auto", "softmax", half, half, False) == "eager"
    assert kernels.choose("auto", "scaled", q, k, False) == "eager"
    with torch.no_grad():
        assert kernels.choose("auto", "softmax", q, k, False) == "eager"


def test_kernels_are_set_in_every_attention_and_put_back():
    model = torch.nn.ModuleList([SelfAttention(DIM, HEADS), BidirectionalCrossAttention(DIM, HEADS)])
    assert [part.kernel for part in model] == ["auto", "auto"]
    set_kernel(model[1], "fused")
    with contextlib.suppress(KeyError), using_kernel(model, "eager"):
        assert [part.kernel for part in model] == ["eager", "eager"]
        raise KeyError
    assert [part.kernel for part in model] == ["auto", "fused"]
    with pytest.raises(ValueError, match="kernel 'fast': choose auto, eager, fused, flex"):
        set_kernel(model, "fast")
    assert [part.kernel for part in model] == ["auto", "fused"]


@pytest.mark.parametrize("kernel", ["auto", "eager"])
def test_self_attention_is_torchs_own_layer(kernel):
    attention = sharpened(SelfAttention(DIM, HEADS))
    set_kernel(attention, kernel)
    theirs = torch.nn.MultiheadAttention(DIM, HEADS, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(attention.qkv.weight)
        theirs.in_proj_bias.copy_(attention.qkv.bias)
        theirs.out_proj.load_state_dict(attention.projection.state_dict())
        x = double(2, N, DIM)
        torch.testing.assert_close(attention(x), theirs(x, x, x, need_weights=False)[0])
        bias = double(2, N)  # of each key, for all heads and queries
        mask = bias[:, None, None].expand(2, HEADS, N, N).flatten(0, 1)
        biased, keys = attention.with_keys(x, bias)
        torch.testing.assert_close(biased, theirs(x, x, x, attn_mask=mask, need_weights=False)[0])
        torch.testing.assert_close(keys.transpose(1, 2).flatten(2), attention.qkv(x)[..., DIM : 2 * DIM])


@pytest.mark.parametrize("reverse", REVERSE_WEIGHTS)
def test_what_a_gather_leaves_behind_is_what_its_kernel_needs(reverse):
    for kernel, kept in (("eager", {"scores", "kept"}), ("fused", set() if reverse == "softmax" else {"lse"})):
        mhbc = BidirectionalCrossAttention(DIM, HEADS, reverse)
        set_kernel(mhbc, kernel)
        _, lookup = mhbc.gather(torch.randn(2, M, DIM), torch.randn(2, N, DIM))
        assert {name for name in ("scores", "kept", "lse") if getattr(lookup, name) is not None} == kept
        assert lookup.queries.shape == (2, HEADS, M, DIM // HEADS)
        assert lookup.keys.shape == (2, HEADS, N, DIM // HEADS)


def test_keys_are_laid_out_anew_only_where_that_is_faster(monkeypatch):
    """Both directions read them head by head."""
    values = torch.randn(2, N, HEADS, 4).transpose(1, 2)
    for wide in (True, False):
        monkeypatch.setattr(kernels.cpu, "has_fast_products", lambda _, wide=wide: wide)
        _, lookup = kernels.gather(torch.randn(2, HEADS, M, 4), values, values, "auto", "softmax")
        assert lookup.keys.is_contiguous() == wide


def test_norms_of_heads_have_vits_epsilon_and_exist_only_where_asked_for():
    for make in (SelfAttention, BidirectionalCrossAttention):
        plain, normed = make(DIM, HEADS), make(DIM, HEADS, qk_norm=True)
        for name in ("norm_query", "norm_key"):
            assert type(getattr(plain, name)) is torch.nn.Identity
            assert getattr(normed, name).eps == 1e-6
            assert getattr(normed, name).normalized_shape == (DIM // HEADS,)
    assert BidirectionalCrossAttention(DIM, HEADS).reverse == "softmax"
    assert hasattr(BidirectionalCrossAttention(DIM, HEADS), "infuse_value")


def test_the_query_of_attentive_pooling_begins_small():
    torch.manual_seed(0)
    query = AttentivePooling(600, 2).query
    assert query.shape == (1, 1, 600)
    assert 0.018 < query.std() < 0.022


def test_heads_are_averaged_in_float32_without_gradient():
    weights = torch.rand(2, HEADS, M, N, requires_grad=True)
    mean = head_mean(weights.bfloat16())
    assert mean.dtype == torch.float32
    assert not mean.requires_grad
    torch.testing.assert_close(mean, sum(weights.bfloat16().float().unbind(1)).detach() / HEADS)


def noted(monkeypatch, *names):
    """Note each call of a kernel by its name; those that need a GPU or a compiler are the plain ones here."""
    calls, plain = [], {name: attrgetter(name.replace("flex", "fused"))(kernels) for name in names}
    for name in names:
        module, function = name.split(".")
        replacement = lambda *given, name=name: calls.append(name) or plain[name](*given)  # noqa: E731
        monkeypatch.setattr(getattr(kernels, module), function, replacement)
    return calls


def test_self_attention_takes_the_devices_kernel_where_it_may_choose(monkeypatch):
    calls = noted(monkeypatch, "cpu.attention")
    attention, x = SelfAttention(DIM, HEADS), torch.randn(2, N, DIM)
    attention.with_keys(x, torch.zeros(2, N))  # with a bias of the keys there is one way only
    for kernel in ("eager", "fused", "flex"):
        set_kernel(attention, kernel)
        attention(x)
    assert calls == []
    set_kernel(attention, "auto")
    attention(x)
    assert calls == ["cpu.attention"]


@pytest.mark.parametrize(
    ("reverse", "kernel", "wanted"),
    [
        ("softmax", "eager", []), ("scaled", "eager", []), ("softmax", "fused", ["cpu.attention"] * 2),
        ("softmax", "flex", ["cpu.attention"] * 2), ("scaled", "fused", ["fused.gather", "fused.write_back"]),
        ("transpose", "fused", ["fused.gather", "fused.write_back"]),
        ("scaled", "flex", ["flex.gather", "flex.write_back"]),
        ("transpose", "flex", ["flex.gather", "flex.write_back"]),
    ],
)  # fmt: skip
def test_both_directions_go_through_the_kernel_that_was_set(monkeypatch, reverse, kernel, wanted):
    mhbc = sharpened(BidirectionalCrossAttention(DIM, HEADS, reverse))
    compressed, lookup_tokens = double(2, M, DIM), double(2, N, DIM)
    with torch.no_grad():
        set_kernel(mhbc, "eager")
        update, lookup = mhbc.gather(compressed, lookup_tokens)
        expected = update, mhbc.write_back(compressed, lookup), lookup.weights
        names = ("cpu.attention", "fused.gather", "fused.write_back", "flex.gather", "flex.write_back")
        calls = noted(monkeypatch, *names)
        set_kernel(mhbc, kernel)
        update, lookup = mhbc.gather(compressed, lookup_tokens)
        found = update, mhbc.write_back(compressed, lookup), lookup.weights
    assert calls == wanted
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
