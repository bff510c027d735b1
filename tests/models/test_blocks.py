"""The blocks against plain float64 loops written from the paper's formulas, sharing only the weights."""

import itertools
import math

import pytest
import torch
from torch import nn

from lookupvit_video.models.attention import REVERSE_WEIGHTS
from lookupvit_video.models.blocks import (
    ACTIVATIONS,
    BlockOptions,
    Classifier,
    DropPath,
    LayerScale,
    LocalMixing,
    LookupViTBlock,
    TemporalEncoder,
    TransformerBlock,
    drop_path_rates,
    init_linear,
    mixed_mlp,
)

DIM, HEADS = 12, 3


def norm(x, layer):
    if isinstance(layer, nn.Identity):
        return x
    out = torch.empty_like(x)
    for i, row in enumerate(x):
        mean = sum(row) / len(row)
        variance = sum((value - mean) ** 2 for value in row) / len(row)
        out[i] = (row - mean) / torch.sqrt(variance + 1e-6) * layer.weight + layer.bias
    return out


def linear(x, layer, rows=slice(None)):
    weight, bias = layer.weight[rows], layer.bias[rows]
    return torch.stack([torch.stack([sum(weight[o] * row) + bias[o] for o in range(len(weight))]) for row in x])


def mlp(x, layers):
    hidden = linear(x, layers[0])
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    return linear(hidden, layers[2])


def scaled(x, layer):
    return x if isinstance(layer, nn.Identity) else torch.stack([row * layer.gamma for row in x])


def logits(q, k):
    """Attention logits of one head."""
    return torch.stack([torch.stack([sum(a * b) / math.sqrt(q.shape[1]) for b in k]) for a in q])


def softmax_rows(scores):
    """Row m sums to 1."""
    return torch.stack([torch.stack([math.e**s for s in row]) / sum(math.e**s for s in row) for row in scores])


def head_slices():
    step = DIM // HEADS
    return [slice(i * step, (i + 1) * step) for i in range(HEADS)]


def head_logits(q, k, attention):
    return [logits(norm(q[:, s], attention.norm_query), norm(k[:, s], attention.norm_key)) for s in head_slices()]


def transformer_loop(block, x):
    y = norm(x, block.norm_attention)
    q, k, v = (linear(y, block.attention.qkv, slice(i * DIM, (i + 1) * DIM)) for i in range(3))
    weights = [softmax_rows(scores) for scores in head_logits(q, k, block.attention)]
    heads = [a @ v[:, s] for a, s in zip(weights, head_slices(), strict=True)]
    x = x + scaled(linear(torch.cat(heads, dim=1), block.attention.projection), block.scale_attention)
    return x + scaled(mlp(norm(x, block.norm_mlp), block.mlp), block.scale_mlp)


def lookup_loop(block, p, x):
    mhbc = block.cross_attention
    source = norm(x, block.norm_gather_lookup)
    q = linear(norm(p, block.norm_gather_compressed), mhbc.query)
    k, v = linear(source, mhbc.key_value, slice(0, DIM)), linear(source, mhbc.key_value, slice(DIM, 2 * DIM))
    scores = head_logits(q, k, mhbc)
    weights = [softmax_rows(s) for s in scores]
    gathered = [a @ v[:, s] for a, s in zip(weights, head_slices(), strict=True)]
    p = p + scaled(linear(torch.cat(gathered, dim=1), mhbc.gather_projection), block.scale_gather)
    p = transformer_loop(block.refine, p)
    own_value = linear(norm(p, block.norm_infuse), mhbc.infuse_value)
    back = {
        "transpose": [a.T for a in weights],
        "scaled": [a.T * len(x) / len(p) for a in weights],
        "softmax": [softmax_rows(s.T) for s in scores],
    }[mhbc.reverse]
    infused = [a @ own_value[:, s] for a, s in zip(back, head_slices(), strict=True)]
    x = x + scaled(linear(torch.cat(infused, dim=1), mhbc.infuse_projection), block.scale_infuse)
    x = x + scaled(mlp(norm(x, block.norm_lookup_mlp), block.lookup_mlp), block.scale_lookup_mlp)
    return p, x, torch.stack(weights)


def randomised(block):
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return block.double().eval()


OPTIONS = [{}, {"qk_norm": True}, {"layer_scale": 0.1}, {"qk_norm": True, "layer_scale": 0.1}]


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_transformer_block_equals_the_loop(options):
    block = randomised(TransformerBlock(DIM, HEADS, options=BlockOptions(**options)))
    x = torch.randn(2, 7, DIM, dtype=torch.float64)
    with torch.no_grad():
        got = block(x)
        for i in range(2):
            assert (got[i] - transformer_loop(block, x[i])).abs().max() < 1e-9


@pytest.mark.parametrize("reverse", REVERSE_WEIGHTS)
@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_lookupvit_block_equals_the_loop(options, reverse):
    block = randomised(LookupViTBlock(DIM, HEADS, options=BlockOptions(**options, reverse=reverse)))
    p, x = torch.randn(2, 4, DIM, dtype=torch.float64), torch.randn(2, 10, DIM, dtype=torch.float64)
    with torch.no_grad():
        got_p, got_x, found = block(p, x, return_lookup=True)
        for i in range(2):
            want_p, want_x, want_weights = lookup_loop(block, p[i], x[i])
            assert (got_p[i] - want_p).abs().max() < 1e-9
            assert (got_x[i] - want_x).abs().max() < 1e-9
            assert (found.weights[i] - want_weights).abs().max() < 1e-9


def test_without_infusion_lookup_tokens_stay_and_compressed_tokens_are_the_same():
    block, without = (
        randomised(LookupViTBlock(DIM, HEADS)),
        LookupViTBlock(DIM, HEADS, writes_back=False).double().eval(),
    )
    missing = without.load_state_dict(block.state_dict(), strict=False)
    assert not missing.missing_keys
    # The values' D^2 and the projection's, the narrow MLP's, the two norms: nothing of a way back is left.
    own = sum(p.numel() for p in block.parameters()) - sum(p.numel() for p in without.parameters())
    assert own == 3 * DIM**2 + (2 + 1.5) * DIM + 4 * DIM
    p, x = torch.randn(2, 4, DIM, dtype=torch.float64), torch.randn(2, 10, DIM, dtype=torch.float64)
    with torch.no_grad():
        want_p, changed, _ = block(p, x)
        assert not torch.allclose(changed, x)
        for got_p, got_x, _ in (block(p, x, writes_back=False), without(p, x), without(p, x, writes_back=False)):
            assert torch.equal(got_p, want_p)
            assert torch.equal(got_x, x)


def test_layer_scale_near_zero_leaves_a_block_near_the_identity():
    options = BlockOptions(layer_scale=1e-6)
    p, x = torch.randn(2, 4, DIM), torch.randn(2, 10, DIM)
    with torch.no_grad():
        got_p, got_x, _ = LookupViTBlock(DIM, HEADS, options=options)(p, x)
        for got, want in ((got_p, p), (got_x, x), (TransformerBlock(DIM, HEADS, options=options)(x), x)):
            torch.testing.assert_close(got, want, rtol=0, atol=1e-4)
            assert not torch.equal(got, want)


def test_activations_and_the_norms_epsilon_are_the_named_ones():
    x = torch.linspace(-4, 4, 33, dtype=torch.float64)
    tanh = x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    formulas = {
        "gelu": x / 2 * (1 + torch.erf(x / math.sqrt(2))), "gelu_tanh": tanh, "quick_gelu": x / (1 + (-1.702 * x).exp())
    }  # fmt: skip
    assert formulas.keys() == ACTIVATIONS.keys()
    for name, want in formulas.items():
        block = LookupViTBlock(DIM, HEADS, options=BlockOptions(activation=name, norm_eps=1e-3))
        for layers in (block.refine.mlp, block.lookup_mlp):
            torch.testing.assert_close(layers[1](x), want)
        assert {m.eps for m in block.modules() if isinstance(m, nn.LayerNorm)} == {1e-3}


def test_classifier_pools_as_it_says():
    tokens = torch.randn(2, 7, DIM, dtype=torch.float64)
    for pool in ("average", "average_norm", "class", "attentive"):
        head = randomised(Classifier(DIM, 5, dropout=0.5, pool=pool, num_heads=HEADS))
        with torch.no_grad():
            by_hand = {
                "average": lambda x, head=head: norm(x, head.norm).mean(0),
                "average_norm": lambda x, head=head: norm(x.mean(0)[None], head.norm)[0],
                "class": lambda x, head=head: norm(x[:1], head.norm)[0],
                "attentive": lambda x, head=head: head.attentive(norm(x, head.norm)[None])[0],
            }[pool]
            want = torch.cat([linear(by_hand(x)[None], head.linear) for x in tokens])
            torch.testing.assert_close(head(tokens), want)


def test_temporal_encoder_is_positions_and_blocks():
    encoder = randomised(TemporalEncoder(length=4, dim=DIM, depth=2, num_heads=HEADS))
    frames = torch.randn(2, 4, DIM, dtype=torch.float64)
    with torch.no_grad():
        for x, got in zip(frames, encoder(frames), strict=True):
            want = transformer_loop(encoder.blocks[1], transformer_loop(encoder.blocks[0], x + encoder.positions[0]))
            torch.testing.assert_close(got, want)


@pytest.mark.parametrize("dim", [24, 192])
def test_parameters_are_19_d2_plus_biases_and_norms(dim):
    block = LookupViTBlock(dim, HEADS)
    matrices = sum(p.numel() for p in block.parameters() if p.ndim == 2)
    vectors = sum(p.numel() for p in block.parameters() if p.ndim == 1)
    assert matrices == 19 * dim**2
    # biases: Q, K, V, O, V', O' 6; QKVO 4; MLP 4 + 1; narrow MLP 1/2 + 1; six norms of 2
    assert vectors == 16.5 * dim + 12 * dim
    dense = TransformerBlock(dim, HEADS)
    assert sum(p.numel() for p in dense.parameters() if p.ndim == 2) == 12 * dim**2


def test_drop_path_drops_whole_rows_and_only_in_training():
    torch.manual_seed(0)
    block = LookupViTBlock(DIM, HEADS, drop_path=0.999)
    p, x = torch.randn(3, 4, DIM), torch.randn(3, 10, DIM)
    dropped_p, dropped_x, _ = block.train()(p, x)
    assert torch.equal(dropped_p, p)
    assert torch.equal(dropped_x, x)
    kept_p, _, _ = block.eval()(p, x)
    assert not torch.allclose(kept_p, p)
    assert drop_path_rates(0.2, 3) == pytest.approx([0.0, 0.1, 0.2])


# Stochastic depth -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2000, 3, 4), (2000, 2), (2000, 1, 1, 2)])
@pytest.mark.parametrize("rate", [0.2, 0.75])
def test_a_kept_row_is_divided_by_the_share_of_kept_ones(shape, rate):
    """Stochastic depth (arXiv 1603.09382): all tokens of a clip together, and the mean stays."""
    torch.manual_seed(0)
    x = torch.rand(shape) + 1
    out = DropPath(rate).train()(x)
    rows = (out / x).flatten(1)
    assert torch.equal(rows.min(1).values == 0, rows.max(1).values == 0)  # a row is dropped as one
    kept = rows.min(1).values > 0
    torch.testing.assert_close(rows[kept], torch.full_like(rows[kept], 1 / (1 - rate)))
    assert kept.float().mean() == pytest.approx(1 - rate, abs=0.04)
    assert out.dtype == x.dtype


def test_nothing_is_dropped_in_eval_mode_or_at_a_rate_of_0():
    x = torch.randn(5, 3, 2)
    assert DropPath(0.5).eval()(x) is x
    assert DropPath(0.0).train()(x) is x
    assert not DropPath(0.5).state_dict()
    assert DropPath(0.5).train()(x.bfloat16()).dtype == torch.bfloat16


def test_every_branch_of_a_block_is_dropped_by_itself():
    """Residual branches that give 1 for each row: their sum says how many were kept."""

    class One(nn.Module):
        def forward(self, x):
            return torch.ones_like(x)

    torch.manual_seed(0)
    block = TransformerBlock(DIM, HEADS, drop_path=0.5).train()
    block.scale_attention = block.scale_mlp = One()
    out = block(torch.zeros(400, 2, DIM))[:, 0, 0] / 2
    assert [(out == n).float().mean().item() for n in range(3)] == pytest.approx([0.25, 0.5, 0.25], abs=0.08)
    block = LookupViTBlock(DIM, HEADS, drop_path=0.5).train()
    for part in (block, block.refine):
        for name in ("scale_gather", "scale_attention", "scale_mlp", "scale_infuse", "scale_lookup_mlp"):
            if hasattr(part, name):
                setattr(part, name, One())
    compressed, lookup, _ = block(torch.zeros(400, 2, DIM), torch.zeros(400, 4, DIM))
    for out, branches in ((compressed, 3), (lookup, 2)):
        found = out[:, 0, 0] / 2
        assert found.mean() == pytest.approx(branches / 2, abs=0.15)
        assert set(found.tolist()) == set(range(branches + 1))


def test_rates_by_depth():
    assert drop_path_rates(0.3, 4) == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert drop_path_rates(0.3, 2) == [0.0, 0.3]
    assert drop_path_rates(0.3, 1) == [0.0]
    assert drop_path_rates(0.0, 3) == [0.0] * 3


# How it begins ----------------------------------------------------------------------------------------------------


def test_a_plain_block_has_vits_epsilon_and_no_extras():
    options = BlockOptions()
    assert (options.activation, options.layer_scale, options.qk_norm, options.reverse) == (
        "gelu",
        0.0,
        False,
        "softmax",
    )
    assert options.norm_eps == options.norm(4).eps == 1e-6  # ViT's, MAE's and VideoMAE's
    assert type(options.scale(4)) is nn.Identity
    block = LookupViTBlock(DIM, HEADS)
    assert {m.eps for m in block.modules() if isinstance(m, nn.LayerNorm)} == {1e-6}
    assert [layer.out_features for layer in (block.refine.mlp[0], block.refine.mlp[2])] == [4 * DIM, DIM]
    assert [layer.out_features for layer in (block.lookup_mlp[0], block.lookup_mlp[2])] == [DIM // 2, DIM]
    assert not block.drop_path.drops
    assert not block.refine.drop_path.drops
    head_norms = TransformerBlock(DIM, HEADS, options=BlockOptions(qk_norm=True)).attention
    assert head_norms.norm_query.normalized_shape == head_norms.norm_key.normalized_shape == (DIM // HEADS,)
    assert head_norms.norm_query.eps == 1e-6


def test_layer_scale_begins_as_it_is_told():
    scale = BlockOptions(layer_scale=0.25).scale(5)
    assert isinstance(scale, LayerScale)
    assert scale.gamma.tolist() == [0.25] * 5
    assert scale.gamma.requires_grad
    scale.gamma.data = torch.arange(5.0)
    assert scale(torch.full((2, 3, 5), 2.0))[1, 2].tolist() == [0, 2, 4, 6, 8]


def test_activations_in_plain_numbers():
    for name, formula in {
        "gelu": lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
        "gelu_tanh": lambda x: x / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        "quick_gelu": lambda x: x / (1 + math.exp(-1.702 * x)),
    }.items():
        for x in (-3.0, -0.5, 0.0, 0.7, 2.5):
            assert ACTIVATIONS[name]()(torch.tensor(x, dtype=torch.float64)).item() == pytest.approx(formula(x)), name


def test_classifiers_begin_with_even_answers():
    torch.manual_seed(0)
    head = Classifier(400, 300)
    assert 0.019 < head.linear.weight.std() < 0.021
    assert not head.linear.bias.any()
    assert head.pool == "average"
    assert head.dropout.p == 0
    assert not hasattr(head, "attentive")
    assert Classifier(12, 2, pool="attentive", num_heads=3).attentive.num_heads == 3
    assert Classifier(12, 2, pool="attentive").attentive.num_heads == 1


def test_dropout_lies_between_pooling_and_the_linear_layer():
    torch.manual_seed(0)
    head = Classifier(DIM, 5, dropout=0.5).train()
    tokens = torch.randn(1, 7, DIM)
    draws = torch.cat([head(tokens) for _ in range(2000)])
    torch.testing.assert_close(draws.mean(0), head.eval()(tokens)[0], atol=0.01, rtol=0)
    assert draws.std(0).min() > 0.005


def test_only_linear_layers_are_initialised():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(300, 100), nn.LayerNorm(100), nn.Conv1d(2, 2, 1))
    before = {name: value.clone() for name, value in layers.state_dict().items()}
    nn.init.ones_(layers[0].bias)
    layers.apply(init_linear)
    bound = math.sqrt(6 / 400)
    assert 0.99 * bound < layers[0].weight.abs().max() <= bound
    assert layers[0].weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)  # uniform
    assert not layers[0].bias.any()
    for name in ("1.weight", "1.bias", "2.weight", "2.bias"):
        assert torch.equal(layers.state_dict()[name], before[name])


def test_a_temporal_encoder_begins_with_positions_of_its_times_and_blocks_without_bias():
    torch.manual_seed(0)
    encoder = TemporalEncoder(length=4, dim=DIM, depth=3, num_heads=HEADS)
    assert encoder.positions.shape == (1, 4, DIM)
    torch.testing.assert_close(encoder.positions[0, :, 0], torch.arange(4.0).sin())
    assert encoder.positions.requires_grad
    assert len(encoder.blocks) == 3
    options = BlockOptions(layer_scale=0.5, qk_norm=True, norm_eps=1e-3)
    for block in TemporalEncoder(length=4, dim=DIM, depth=2, num_heads=HEADS, options=options).blocks:
        assert block.scale_mlp.gamma.eq(0.5).all()
        assert block.norm_mlp.eps == 1e-3
        assert block.attention.norm_key.normalized_shape == (DIM // HEADS,)
        assert block.attention.num_heads == HEADS
    assert not any(m.bias.any() for m in encoder.modules() if isinstance(m, nn.Linear))


def randomised_mixing(grid, kernel):
    mixing = LocalMixing(4, grid, kernel)
    for parameter in mixing.parameters():
        nn.init.normal_(parameter)
    return mixing.double()


def test_local_mixing_trains_in_float32_under_bfloat16_autocast_on_a_cpu():
    """oneDNN's own gradient in bfloat16 reads past its input."""
    grid = (2, 4, 4)
    mixing = LocalMixing(96, grid, (3, 3, 3))
    nn.init.trunc_normal_(mixing.weight)
    x_BNC = torch.randn(3, 32, 96).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        out_BNC = mixing(x_BNC)
    out_BNC.sum().backward()
    assert out_BNC.dtype == torch.bfloat16
    got = mixing.weight.grad.clone()
    mixing.double().zero_grad()
    mixing(x_BNC.double()).sum().backward()
    torch.testing.assert_close(got, mixing.weight.grad.float())


@pytest.mark.parametrize("kernel", [(3, 3, 3), (1, 3, 3), (3, 1, 1), (1, 1, 5)])
def test_local_mixing_is_a_weighted_sum_of_the_neighbors_on_the_grid(kernel):
    grid = (2, 3, 4)
    mixing, x = randomised_mixing(grid, kernel), torch.randn(2, 24, 4, dtype=torch.float64)
    places = list(itertools.product(*map(range, grid)))
    kept = torch.tensor([[0, 3, 4, 9, 22], [1, 2, 7, 11, 23]])
    few = x.gather(1, kept[..., None].expand(-1, -1, 4))
    with torch.no_grad():
        for number in range(2):
            for present, found in ((range(24), mixing(x)), (kept[number].tolist(), mixing(few, kept))):
                for row, n in enumerate(present):
                    wanted = mixing.bias.clone()
                    for other in present:
                        step = [b - a + k // 2 for a, b, k in zip(places[n], places[other], kernel, strict=True)]
                        if all(0 <= at < k for at, k in zip(step, kernel, strict=True)):
                            wanted += mixing.weight[(slice(None), 0, *step)] * x[number, other]
                    torch.testing.assert_close(found[number, row], wanted)


def test_local_mixing_begins_as_the_plain_block_and_draws_nothing():
    plain, mixed = (torch.manual_seed(3) and LookupViTBlock(DIM, HEADS, options=options, grid=(2, 1, 5))
                    for options in (BlockOptions(), BlockOptions(lookup_conv=(3, 1, 3))))  # fmt: skip
    p, x = torch.randn(2, 4, DIM), torch.randn(2, 10, DIM)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, mixed.state_dict()[name])
    assert torch.equal(plain(p, x)[1], mixed(p, x)[1])
    assert mixed.mixing.weight.shape == (DIM // 2, 1, 3, 1, 3)
    nn.init.normal_(mixed.mixing.weight)
    assert not torch.allclose(plain(p, x)[1], mixed(p, x)[1])
    hidden = mixed.lookup_mlp[:2](x)
    wanted = mixed.lookup_mlp[2](hidden + mixed.mixing(hidden))
    torch.testing.assert_close(mixed_mlp(mixed.lookup_mlp, mixed.mixing, x), wanted)
    assert LookupViTBlock(DIM, HEADS, options=BlockOptions(lookup_conv=(3, 1, 3)), writes_back=False).mixing is None


def test_local_mixing_of_a_dense_block_begins_as_the_plain_block_and_acts_on_its_mlp():
    plain, mixed = (torch.manual_seed(3) and TransformerBlock(DIM, HEADS, options=options, grid=(2, 1, 5))
                    for options in (BlockOptions(), BlockOptions(lookup_conv=(3, 1, 3))))  # fmt: skip
    x = torch.randn(2, 10, DIM)
    assert torch.equal(plain(x), mixed(x))
    assert mixed.mixing.weight.shape == (4 * DIM, 1, 3, 1, 3)
    nn.init.normal_(mixed.mixing.weight)
    attended, hidden = plain.scale_attention(plain.attention(plain.norm_attention(x))) + x, mixed.mlp[:2]
    hidden = hidden(mixed.norm_mlp(attended))
    torch.testing.assert_close(mixed(x), attended + mixed.mlp[2](hidden + mixed.mixing(hidden)))
    assert TransformerBlock(DIM, HEADS, options=BlockOptions(lookup_conv=(3, 1, 3))).mixing is None
