"""MHBC's kernels against a float64 reference, in value and gradient; torch.compile without breaks or recompilations."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from lookupvit_video.models import kernels
from lookupvit_video.models.attention import REVERSE_WEIGHTS, BidirectionalCrossAttention, set_kernel, using_kernel
from lookupvit_video.models.budget import Budget
from lookupvit_video.models.kernels import cpu
from lookupvit_video.models.lookupvit import LookupViT
from tests.small import ROOT

SHAPES = [(1, 1, 1, 1, 4), (2, 3, 5, 37, 16), (1, 2, 70, 130, 20), (2, 4, 16, 64, 64)]  # B, H, M, N, d
NAMES = ("queries", "keys", "values", "infused values")


def reference(q, k, v, u):
    """Gather, its log-sum-exp and the infusion with the same weights, transposed."""
    scores = q @ k.mT / q.shape[-1] ** 0.5
    weights = scores.softmax(-1)
    return weights @ v, scores.logsumexp(-1), weights.mT @ u


def inputs(shape, dtype, sharp=2.0):
    """Queries, keys, values, infused values that lie in memory as projections leave them: heads side by side."""
    batch, num_heads, m, n, head_dim = shape
    generator = torch.Generator().manual_seed(sum(shape))

    def make(length):
        x = torch.randn(batch, length, num_heads, head_dim, generator=generator, dtype=torch.float64)
        return x.to(dtype).transpose(1, 2).detach()

    return [x.requires_grad_() for x in (make(m) * sharp, make(n), make(n), make(m))]


def values_and_gradients(function, tensors):
    """Return the results and the gradients of a sum over all of them, weighed so that no part can hide."""
    results = function(*tensors)
    generator = torch.Generator().manual_seed(7)
    total = sum(
        (result.double() * torch.randn(result.shape, generator=generator, dtype=torch.float64)).sum()
        for result in results
    )
    return results, torch.autograd.grad(total, tensors)


def fused(q, k, v, u):
    out, lse = kernels.fused.gather(q, k, v)
    return out, lse, kernels.fused.write_back(q, k, lse, u)


@pytest.mark.parametrize("chunk", [1, 2**20])  # one head at a time, several
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_fused_kernels_equal_the_reference_in_value_and_gradient(shape, chunk, monkeypatch):
    monkeypatch.setattr(kernels.fused, "CHUNK", chunk)
    exact = values_and_gradients(reference, inputs(shape, torch.float64))
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 3e-5)):
        results, gradients = values_and_gradients(fused, inputs(shape, dtype))
        for found, wanted in zip((*results, *gradients), (*exact[0], *exact[1]), strict=True):
            torch.testing.assert_close(found.double(), wanted, rtol=tolerance, atol=tolerance * 10)


def test_gradients_are_those_of_finite_differences():
    tensors = inputs((1, 2, 3, 5, 4), torch.float64, sharp=1.0)
    assert torch.autograd.gradcheck(fused, tensors)


def test_half_precision_is_as_near_as_its_digits():
    shape = (2, 3, 20, 90, 32)
    exact = values_and_gradients(reference, inputs(shape, torch.float64, sharp=1.0))
    results, gradients = values_and_gradients(fused, inputs(shape, torch.bfloat16, sharp=1.0))
    assert {x.dtype for x in (*results, *gradients)} <= {torch.bfloat16, torch.float32}
    for found, wanted in zip((*results, *gradients), (*exact[0], *exact[1]), strict=True):
        assert (found.double() - wanted).abs().mean() < 0.02 * wanted.abs().mean() + 1e-3


def test_flex_attention_equals_the_reference_in_value():
    q, k, v, u = (x.detach() for x in inputs((2, 3, 5, 37, 16), torch.float32))
    want, want_lse, want_infused = reference(*(x.double() for x in (q, k, v, u)))
    out, lse = kernels.flex.gather(q, k, v, compiled=False)  # compiled on the CPU it needs a C++ compiler
    infused = kernels.flex.write_back(q, k, lse, u, compiled=False)
    for found, wanted in ((out, want), (lse, want_lse), (infused, want_infused)):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


TRITON = """
import sys, torch
from lookupvit_video.models.kernels.flash import sweep_triton
from lookupvit_video.models.kernels.fused import _sweep_torch
from tests.models.kernels.test_kernels import inputs
for shape in ((1, 1, 1, 1, 16), (2, 3, 5, 37, 16), (1, 2, 70, 130, 20)):
    q, k, column, row = (x.detach() for x in inputs(shape, torch.float32))
    lse, shift = (q @ k.mT / q.shape[-1] ** 0.5).logsumexp(-1), torch.randn(q.shape[:3])
    exact = [x.double() for x in (q, k, lse, row, column, shift)]
    for wanted in (
        {"gradients": True, "weights_times_rows": True}, {"gradients": True, "weights_times_columns": True},
        {"weights_times_rows": True},
    ):
        found, want = sweep_triton(q, k, lse, row, column, shift, **wanted), _sweep_torch(*exact, **wanted)
        for a, b in zip(found, want):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)
    found = sweep_triton(q, k, lse, row, weights_times_rows=True)
    want = _sweep_torch(*exact[:4], weights_times_rows=True)
    torch.testing.assert_close(found.weights_times_rows.double(), want.weights_times_rows, rtol=1e-4, atol=1e-4)
print("equal")
"""


def test_triton_kernels_equal_the_plain_sweep():
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}  # read when Triton is imported
    done = subprocess.run(
        [sys.executable, "-c", TRITON], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.stdout.strip() == "equal", done.stderr


@pytest.mark.parametrize("reverse", REVERSE_WEIGHTS)
def test_kernels_of_the_module_agree_in_value_and_gradient(reverse):
    torch.manual_seed(0)
    mhbc = BidirectionalCrossAttention(32, 2, reverse, qk_norm=True).double()
    compressed, lookup_tokens = torch.randn(2, 6, 32).double(), torch.randn(2, 50, 32).double()
    found = {}
    for kernel in ("eager", "fused"):
        set_kernel(mhbc, kernel)
        mhbc.zero_grad()
        update, lookup = mhbc.gather(compressed, lookup_tokens)
        assert (lookup.scores is not None) == (kernel == "eager")
        infused = mhbc.write_back(compressed + update, lookup)
        (update.square().sum() + infused.square().sum()).backward()
        found[kernel] = [update, infused, lookup.weights, *(p.grad for p in mhbc.parameters())]
    for eager, fused_one in zip(*found.values(), strict=True):
        torch.testing.assert_close(eager, fused_one, rtol=1e-9, atol=1e-9)


def test_fused_kernels_keep_nothing_of_size_m_times_n():
    q, k, v, u = inputs((1, 2, 40, 300, 16), torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.shape) or x, lambda x: x):
        fused(q, k, v, u)
        torch.nn.functional.scaled_dot_product_attention(k, q, u)
    assert kept
    assert not any(40 in shape[-2:] and 300 in shape[-2:] for shape in kept)


def test_unknown_kernels_are_named():
    with pytest.raises(ValueError, match="kernel 'fast': choose auto, eager, fused, flex"):
        set_kernel(torch.nn.Linear(1, 1), "fast")


def small_model(**arguments):
    return LookupViT(
        num_classes=5, num_frames=4, size=32, tubelet=(2, 8, 8), compressed_grid=(1, 2, 2),
        grids=[(2, 2, 2), (1, 3, 3)], dim=32, num_heads=2, **{"depth": 1, **arguments},
    )  # fmt: skip


@pytest.mark.parametrize(("training", "kernel"), [(False, "fused"), (True, "fused"), (True, "eager")])
def test_compiles_without_a_graph_break_and_once_for_each_grid(training, kernel):
    torch._dynamo.reset()
    model = small_model().train(training)
    set_kernel(model, kernel)
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True, dynamic=False)
    clips = torch.randn(2, 3, 4, 32, 32)
    grids = [(1, 2, 2), (2, 2, 2), (1, 3, 3)]
    with torch.set_grad_enabled(training):
        for grid in grids * 3:
            found, wanted = compiled(clips, grid), model(clips, grid)
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert counter.frame_count == len(grids)
    torch._dynamo.reset()


@pytest.mark.parametrize("kernel", ["fused", "eager"])
def test_compiles_without_a_graph_break_and_once_for_each_budget(kernel):
    torch._dynamo.reset()
    model = small_model(depth=2, exits=[1]).eval()
    set_kernel(model, kernel)
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True, dynamic=False)
    clips = torch.randn(2, 3, 4, 32, 32)
    budgets = [Budget((1, 2, 2)), Budget((1, 2, 2), 1), Budget((1, 2, 2), 0, (1, 0.5)), Budget((2, 2, 2), 0, (1, 0.5))]
    with torch.no_grad():
        for budget in budgets * 2:
            torch.testing.assert_close(compiled(clips, budget), model(clips, budget), rtol=1e-4, atol=1e-5)
    assert counter.frame_count == len(budgets)
    torch._dynamo.reset()


@pytest.mark.parametrize("reverse", ["softmax", "transpose", "scaled"])
def test_the_mass_of_a_lookup_token_is_its_share_of_the_weights_with_each_kernel(reverse):
    q, k, v = (torch.randn(2, 3, count, 16) for count in (5, 9, 9))
    expected = ((q / 4) @ k.transpose(-2, -1)).softmax(-1).mean((1, 2))
    for kernel in ("eager", "fused"):
        mass = kernels.gather(q, k, v, kernel, reverse)[1].mass
        torch.testing.assert_close(mass, expected)
        torch.testing.assert_close(mass.sum(1), torch.ones(2))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("training", [False, True])
def test_steady_state_neither_waits_for_the_gpu_nor_compiles(training):
    from torch.profiler import ProfilerActivity, profile

    torch._dynamo.reset()
    model = small_model().cuda().train(training)
    compiled = torch.compile(model, dynamic=False)
    clips = torch.randn(2, 3, 4, 32, 32, device="cuda")

    def step():
        with torch.set_grad_enabled(training), torch.autocast("cuda", torch.bfloat16):
            out = compiled(clips)
        if training:
            sum(logits.float().square().sum() for logits in out).backward()

    for _ in range(3):
        step()
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
        for _ in range(3):
            step()
    waits = [event.key for event in trace.key_averages() if "Synchronize" in event.key or "Memcpy DtoH" in event.key]
    assert waits in ([], ["cudaDeviceSynchronize"])  # the profiler's own, when it ends
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kernel", ["eager", "fused", "flex"])
@pytest.mark.parametrize("reverse", REVERSE_WEIGHTS)
def test_kernels_on_a_gpu_equal_float64(reverse, kernel):
    torch.manual_seed(0)
    mhbc = BidirectionalCrossAttention(128, 2, reverse)
    compressed, lookup_tokens = torch.randn(2, 50, 128), torch.randn(2, 300, 128)

    def run(module, *tensors):
        module.zero_grad()
        update, lookup = module.gather(*tensors)
        infused = module.write_back(tensors[0] + update, lookup)
        (update.square().sum() + infused.square().sum()).backward()
        return [x.detach().double().cpu() for x in (update, infused, *(p.grad for p in module.parameters()))]

    set_kernel(mhbc, "eager")
    exact = run(mhbc.double(), compressed.double(), lookup_tokens.double())
    set_kernel(mhbc, kernel)
    found = run(mhbc.float().cuda(), compressed.cuda(), lookup_tokens.cuda())
    for a, b in zip(found, exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()))


def test_weights_that_were_kept_are_not_computed_again():
    q, k, v, u = (x.detach() for x in inputs((2, 3, 5, 37, 16), torch.float32))
    want, _, infused = reference(*(x.double() for x in (q, k, v, u)))
    weights = (q.double() @ k.double().mT / 16**0.5).softmax(-1)
    for kernel in ("eager", "fused"):
        out, lookup = kernels.gather(q, k, v, kernel, "transpose")
        assert (lookup.kept is not None) == (lookup.lse is None) == (kernel == "eager")
        assert kernel == "fused" or lookup.weights is lookup.kept
        for found, wanted in ((out, want), (kernels.write_back(u, lookup), infused), (lookup.weights, weights)):
            torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


def test_a_bias_is_added_to_the_logits_of_each_key():
    q, k, v, _ = (x.detach() for x in inputs((2, 3, 5, 37, 16), torch.float32))
    bias = torch.randn(2, 37, generator=torch.Generator().manual_seed(1))
    weights = (q @ k.mT / 4 + bias[:, None, None]).softmax(-1)
    for kernel in ("auto", "eager"):
        torch.testing.assert_close(kernels.self_attention(q, k, v, kernel, bias), weights @ v, rtol=1e-4, atol=1e-5)
        plain = kernels.self_attention(q, k, v, kernel)
        torch.testing.assert_close(plain, (q @ k.mT / 4).softmax(-1) @ v, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 200])  # logits of one query, or of several
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_attention_without_gradients_equals_the_reference(shape, chunk, monkeypatch):
    monkeypatch.setattr(cpu, "ENOUGH", 0)  # small heads too go one after the other where the processor is wide
    monkeypatch.setattr(cpu, "CHUNK", chunk)
    q, k, v, u = (x.detach() for x in inputs(shape, torch.float32))
    want, _, _ = reference(*(x.double() for x in (q, k, v, u)))
    back = (k.double() @ q.double().mT / q.shape[-1] ** 0.5).softmax(-1) @ u.double()
    with torch.inference_mode():
        for found, wanted in ((kernels.self_attention(q, k, v), want), (kernels.self_attention(k, q, u), back)):
            torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


def far_apart(q, k, far):
    """The same, but one lookup token of head 0 is further from all queries than weights can tell, and one less far."""
    q, k = q.clone(), k.clone()
    q[..., 0] = 8 * q.shape[-1] ** 0.5
    k[:, :, 1 - far, 0], k[:, 0, far, 0] = -4, -40
    return q, k


@pytest.mark.skipif(not cpu._is_wide(), reason="needs oneDNN on an AVX-512 processor")
@pytest.mark.parametrize("by_channel", [False, True])
@pytest.mark.parametrize("far", [None, 0, 1])  # the log-sum-exp is read off token 0
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_both_directions_of_a_lookup_from_one_product_equal_float64(shape, far, by_channel, monkeypatch):
    monkeypatch.setattr(cpu, "ENOUGH", 0)
    again, attention = [], cpu.attention
    monkeypatch.setattr(cpu, "attention", lambda *given: again.append(given[0].shape) or attention(*given))
    q, k, v, u = (x.detach() for x in inputs(shape, torch.float32))
    apart = far is not None and shape[3] > 2
    if apart:
        q, k = far_apart(q, k, far)
    if by_channel:
        k, v = (x.mT.contiguous().mT for x in (k, v))
    with torch.inference_mode():
        found, lookup = kernels.gather(q, k, v, "auto", "softmax")
        infused = kernels.write_back(u, lookup)
    assert lookup.scores is None
    exact_q, exact_k, exact_v, exact_u = (x.double() for x in (q, k, v, u))
    want, want_lse, _ = reference(exact_q, exact_k, exact_v, exact_u)
    back = (exact_k @ exact_q.mT / q.shape[-1] ** 0.5).softmax(-1) @ exact_u
    for one, other in ((found, want), (lookup.lse, want_lse), (infused, back)):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-4 if apart else 1e-5)
    torch.testing.assert_close(lookup.weights, lookup._replace(kept=None).weights, rtol=1e-4, atol=1e-7)
    assert again == ([(1, 1, *k.shape[2:])] * shape[0] if apart else [])  # the head 0 of each clip


@pytest.mark.skipif(not cpu._is_wide(), reason="needs oneDNN on an AVX-512 processor")
@pytest.mark.parametrize("batch", [1, 3])
def test_keys_and_values_lie_as_a_gather_reads_them_and_hooks_see_the_layer(batch, monkeypatch):
    monkeypatch.setattr(cpu, "ENOUGH", 0)
    torch.manual_seed(0)
    mhbc, tokens = BidirectionalCrossAttention(32, 2).eval(), (torch.randn(batch, 6, 32), torch.randn(batch, 50, 32))
    nn.init.normal_(mhbc.key_value.bias)
    exact = copy.deepcopy(mhbc).double()
    want, want_lookup = exact.gather(*(x.double() for x in tokens))
    kernels.optimize(mhbc)
    seen = []
    for hooked in (False, True):
        with torch.inference_mode():
            found, lookup = mhbc.gather(*tokens)
            infused = mhbc.write_back(tokens[0], lookup)
        assert cpu.is_by_channel(lookup.keys) == (not hooked)
        assert len(seen) == hooked
        back = exact.write_back(tokens[0].double(), want_lookup)
        for one, other in ((found, want), (lookup.keys, want_lookup.keys), (infused, back)):
            torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)
        mhbc.key_value.register_forward_hook(lambda *given: seen.append(given))
    with torch.inference_mode(), using_kernel(mhbc, "eager"):
        assert not cpu.is_by_channel(mhbc.gather(*tokens)[1].keys)


@pytest.mark.parametrize(("threads", "enough"), [(1, cpu.ENOUGH), (2, cpu.ENOUGH), (4, 12 * cpu.ENOUGH)])
def test_weights_are_kept_for_the_way_back_where_there_are_enough_and_not_too_many(threads, enough, monkeypatch):
    q, k = torch.zeros(1, 2, 100, 4), torch.zeros(1, 2, enough // 100, 4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    length = k.shape[2]
    assert cpu.shares_logits(q, length, True)
    assert not cpu.shares_logits(q, length, False)
    assert not cpu.shares_logits(q[:, :, 1:], length, True)
    monkeypatch.setattr(cpu, "MOST_KEPT", 2 * enough - 1)
    assert not cpu.shares_logits(q, length, True)


@pytest.mark.skipif(not cpu._is_wide(), reason="needs oneDNN on an AVX-512 processor")
def test_the_memory_of_weights_is_used_again_once_nobody_reads_them(monkeypatch):
    monkeypatch.setattr(cpu, "ENOUGH", 0)
    q, k, v, _ = (x.detach() for x in inputs((2, 3, 5, 37, 16), torch.float32))

    def gather(q=q):
        out, lookup = kernels.gather(q, k, v, "auto", "softmax")
        return out, lookup, lookup.kept.data_ptr()

    with torch.inference_mode():
        (want, first, place), (_, second, other) = gather(), gather()
        assert place != other  # both are still read
        kernels.done(first)
        out, third, found = gather()
        assert (found, out.tolist()) == (place, want.tolist())
        assert gather()[2] not in (place, other)  # that memory was given once
        kernels.done(second)
        assert gather(q[:, :, :4])[1].kept.shape == (2, 3, 4, 37)  # too large for these
        kernels.done(third)
        kernels.done()
        assert not cpu._spares.weights
        kernels.done(third)
    with torch.no_grad():  # tensors made in inference mode cannot be written to here
        assert gather()[0].tolist() == want.tolist()


@pytest.mark.skipif(not cpu._is_wide(), reason="needs oneDNN on an AVX-512 processor")
def test_a_model_in_reused_memory_answers_the_same_and_keeps_none_of_it(monkeypatch):
    monkeypatch.setattr(cpu, "ENOUGH", 0)
    torch.manual_seed(0)
    model, clips = small_model(depth=4).eval(), torch.randn(2, 3, 4, 32, 32)
    left, reuse = [], cpu.reuse
    with torch.inference_mode():
        monkeypatch.setattr(cpu, "reuse", lambda weights: None)
        want, features = model(clips), model.forward_features(clips, return_attention=True)
        monkeypatch.setattr(cpu, "reuse", lambda weights: left.append(weights is not None) or reuse(weights))
        found, others = model(clips), model.forward_features(clips, return_attention=True)
    assert left == [True] * 4 + [False] * 2  # weights that are returned are not overwritten
    assert cpu._spares.weights is None
    assert found.tolist() == want.tolist()
    for one, other in zip(others.attention, features.attention, strict=True):
        assert one.tolist() == other.tolist()


def test_linear_layers_without_gradients_equal_float64_whatever_lies_how():
    torch.manual_seed(0)
    layer, wide = cpu.Linear(48, 80), torch.randn(3, 7, 96)
    exact = nn.Linear(48, 80).double()
    exact.load_state_dict(layer.state_dict())
    with torch.inference_mode():
        for x in (wide[..., :48].contiguous(), wide[..., :48], wide[..., ::2], wide[:0, :, :48], wide[0, 0, :48]):
            torch.testing.assert_close(layer(x).double(), exact(x.double()), rtol=1e-5, atol=1e-5)
        transposed = torch.randn(48, 80).t()
        x = wide[..., :48].contiguous()
        torch.testing.assert_close(cpu.linear(x, transposed), x @ transposed.t(), rtol=1e-5, atol=1e-5)
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
        with torch.backends.mkldnn.flags(enabled=False):
            assert not cpu.has_fast_products(x)
    y = torch.randn(2, 48, requires_grad=True)
    layer(y).sum().backward()
    torch.testing.assert_close(y.grad, layer.weight.sum(0).expand(2, -1))


@pytest.mark.parametrize("enough", [cpu.ENOUGH, 0])  # 0: one head after the other, however few logits it has
def test_whole_models_agree_with_and_without_gradients(enough, monkeypatch):
    monkeypatch.setattr(cpu, "ENOUGH", enough)
    torch.manual_seed(0)
    model, clips = small_model().eval(), torch.randn(2, 3, 4, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(clips), model.double()(clips.double()).float(), rtol=1e-4, atol=1e-5)
    model = model.float()
    with torch.no_grad():
        found = model(clips)
    torch.testing.assert_close(found, model(clips).detach(), rtol=1e-4, atol=1e-5)
    exported = torch.export.export(model, (clips,)).module()
    with torch.no_grad():
        torch.testing.assert_close(exported(clips), found, rtol=1e-4, atol=1e-5)


def test_a_kernel_is_put_back():
    mhbc = BidirectionalCrossAttention(32, 2)

    def fail():
        with using_kernel(mhbc, "eager"):
            raise KeyError(mhbc.kernel)

    with pytest.raises(KeyError, match="eager"):
        fail()
    assert mhbc.kernel == "auto"


def test_a_model_is_optimized_but_for_its_classifiers_and_keeps_its_names():
    torch.manual_seed(0)
    model, clips = small_model(pool="attentive").eval(), torch.randn(2, 3, 4, 32, 32)
    names = list(model.state_dict())
    with torch.no_grad():
        before = model(clips)
        assert kernels.optimize(model) is model
        torch.testing.assert_close(model(clips), before, rtol=1e-4, atol=1e-5)
    assert list(model.state_dict()) == names
    kinds = {name: type(module) for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert {name for name, kind in kinds.items() if kind is nn.Linear} == {
        "heads.compressed.linear",
        "heads.lookup.linear",
    }
    assert set(kinds.values()) == {nn.Linear, cpu.Linear}


@pytest.mark.parametrize("reverse", REVERSE_WEIGHTS)
def test_the_kernel_is_chosen_once_for_both_directions(reverse, monkeypatch):
    asked = []
    monkeypatch.setattr(cpu, "has_fast_products", lambda x: asked.append(x.shape) or False)
    mhbc = BidirectionalCrossAttention(32, 2, reverse)
    _, lookup = mhbc.gather(torch.randn(2, 6, 32), torch.randn(2, 50, 32))
    mhbc.write_back(torch.randn(2, 6, 32), lookup)
    assert asked == [(2, 2, 6, 16)]
