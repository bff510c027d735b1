"""The blocks against plain float64 loops written from the paper's formulas, sharing only the weights."""

import math

import pytest
import torch

from lookupvit_video.models.blocks import LookupViTBlock, TransformerBlock, drop_path_rates

DIM, HEADS = 12, 3


def norm(x, layer):
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


def softmax_rows(q, k):
    """Attention weights of one head: row m sums to 1 over the keys."""
    weights = torch.empty(len(q), len(k), dtype=q.dtype)
    for m in range(len(q)):
        scores = [sum(q[m] * k[n]) / math.sqrt(q.shape[1]) for n in range(len(k))]
        total = sum(math.exp(s) for s in scores)
        for n, s in enumerate(scores):
            weights[m, n] = math.exp(s) / total
    return weights


def head_slices(width):
    step = width // HEADS
    return [slice(i * step, (i + 1) * step) for i in range(HEADS)]


def transformer_loop(block, x):
    y = norm(x, block.norm_attention)
    q, k, v = (linear(y, block.attention.qkv, slice(i * DIM, (i + 1) * DIM)) for i in range(3))
    heads = [softmax_rows(q[:, s], k[:, s]) @ v[:, s] for s in head_slices(DIM)]
    x = x + linear(torch.cat(heads, dim=1), block.attention.projection)
    return x + mlp(norm(x, block.norm_mlp), block.mlp)


def lookup_loop(block, p, x):
    mhbc = block.cross_attention
    source = norm(x, block.norm_gather_lookup)
    q = linear(norm(p, block.norm_gather_compressed), mhbc.query)
    k, v = linear(source, mhbc.key_value, slice(0, DIM)), linear(source, mhbc.key_value, slice(DIM, 2 * DIM))
    weights = [softmax_rows(q[:, s], k[:, s]) for s in head_slices(DIM)]
    gathered = [a @ v[:, s] for a, s in zip(weights, head_slices(DIM), strict=True)]
    p = p + linear(torch.cat(gathered, dim=1), mhbc.gather_projection)
    p = transformer_loop(block.refine, p)
    own_value = linear(norm(p, block.norm_infuse), mhbc.infuse_value)
    infused = [a.T @ own_value[:, s] for a, s in zip(weights, head_slices(DIM), strict=True)]
    x = x + linear(torch.cat(infused, dim=1), mhbc.infuse_projection)
    return p, x + mlp(norm(x, block.norm_lookup_mlp), block.lookup_mlp), torch.stack(weights)


def randomised(block):
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return block.double().eval()


def test_transformer_block_equals_the_loop():
    block = randomised(TransformerBlock(DIM, HEADS))
    x = torch.randn(2, 7, DIM, dtype=torch.float64)
    with torch.no_grad():
        got = block(x)
        for i in range(2):
            assert (got[i] - transformer_loop(block, x[i])).abs().max() < 1e-9


def test_lookupvit_block_equals_the_loop():
    block = randomised(LookupViTBlock(DIM, HEADS))
    p, x = torch.randn(2, 4, DIM, dtype=torch.float64), torch.randn(2, 10, DIM, dtype=torch.float64)
    with torch.no_grad():
        got_p, got_x, got_weights = block(p, x)
        for i in range(2):
            want_p, want_x, want_weights = lookup_loop(block, p[i], x[i])
            assert (got_p[i] - want_p).abs().max() < 1e-9
            assert (got_x[i] - want_x).abs().max() < 1e-9
            assert (got_weights[i] - want_weights).abs().max() < 1e-9


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
