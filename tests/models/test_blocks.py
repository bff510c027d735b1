"""The blocks against plain float64 loops written from the paper's formulas, sharing only the weights."""

import math

import pytest
import torch
from torch import nn

from lookupvit_video.models.attention import REVERSE_WEIGHTS
from lookupvit_video.models.blocks import (
    ACTIVATIONS,
    BlockOptions,
    Classifier,
    LookupViTBlock,
    TemporalEncoder,
    TransformerBlock,
    drop_path_rates,
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
        got_p, got_x, weights = block(p, x, return_attention=True)
        for i in range(2):
            want_p, want_x, want_weights = lookup_loop(block, p[i], x[i])
            assert (got_p[i] - want_p).abs().max() < 1e-9
            assert (got_x[i] - want_x).abs().max() < 1e-9
            assert (weights[i] - want_weights).abs().max() < 1e-9


def test_without_infusion_lookup_tokens_stay_and_compressed_tokens_are_the_same():
    block, without = randomised(LookupViTBlock(DIM, HEADS)), LookupViTBlock(DIM, HEADS, infuse=False).double().eval()
    missing = without.load_state_dict(block.state_dict(), strict=False)
    assert not missing.missing_keys
    # The values' D^2 and the projection's, the narrow MLP's, the two norms: nothing of a way back is left.
    own = sum(p.numel() for p in block.parameters()) - sum(p.numel() for p in without.parameters())
    assert own == 3 * DIM**2 + (2 + 1.5) * DIM + 4 * DIM
    p, x = torch.randn(2, 4, DIM, dtype=torch.float64), torch.randn(2, 10, DIM, dtype=torch.float64)
    with torch.no_grad():
        want_p, changed, _ = block(p, x)
        assert not torch.allclose(changed, x)
        for got_p, got_x, _ in (block(p, x, infuse=False), without(p, x), without(p, x, infuse=False)):
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
