"""Products and attention that use all of an AVX-512 processor in inference.

Torch hands float32 matrix products to MKL, which keeps to AVX2 on AMD's processors: oneDNN, which torch includes and
which ``torch.compile`` calls through the same operator, is twice as fast there. docs/performance.md has figures.
"""

import threading
from functools import cache
from itertools import product
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.jit._trace import is_tracing
from torch.nn import functional as F
from torch.utils._python_dispatch import _get_current_dispatch_mode

Model = TypeVar("Model", bound=nn.Module)
ENOUGH = 3 * 10**4  # logits of a head, below which SDPA's division of the work wins on one or two threads
CHUNK = 2**20  # logits that are held at a time; a few MB stay in the processor's cache
MOST_KEPT = 2**25  # weights kept from a gather for its write-back, 128 MiB
LEAST_SUM = 1e-28  # of a lookup token's weights; terms below the smallest float, 1e-38, are then too small to matter
LEAST_WEIGHT = 1e-30  # far from the smallest float, so that its logarithm has all digits


@cache
def _is_wide() -> bool:
    has_operator = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return has_operator and torch.backends.cpu.get_cpu_capability() == "AVX512"


def has_fast_products(x: Tensor) -> bool:
    """Whether ``linear`` is faster than torch's matrix products for tensors like this one, here and now.

    The operator has no gradient, hence inference only; and what traces or counts operations gets the usual ones.
    """
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or x.device.type != "cpu" or x.dtype != torch.float32:
        return False
    ours = _is_wide() and bool(torch.backends.mkldnn.enabled) and not torch.is_autocast_enabled("cpu")
    return ours and not is_tracing() and _get_current_dispatch_mode() is None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``torch.nn.functional.linear``: (..., in) to (..., out)."""
    if _is_plain(x, weight) and has_fast_products(x):
        return _product(x, weight, bias)
    return F.linear(x, weight, bias)


def _is_plain(x: Tensor, weight: Tensor) -> bool:
    plain = type(weight) in (Tensor, nn.Parameter) and weight.dtype == x.dtype  # not quantized
    return plain and x.is_contiguous() and weight.is_contiguous() and x.numel() > 0  # else oneDNN is very slow


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


class Linear(nn.Linear):
    """``torch.nn.Linear``, by ``linear``."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        return linear(x, self.weight, self.bias)


def key_value(layer: Linear, x_BND: Tensor, num_heads: int) -> tuple[Tensor, Tensor] | None:
    """Return keys and values (B, H, N, d) by a layer of width 2 D, for ``gather``; None: it takes a call of the layer.

    With the sides of the product swapped, all tokens of a channel lie together: each head is a matrix without a copy.
    """
    has_hooks = layer._forward_hooks or layer._forward_pre_hooks  # these are to see a call
    if has_hooks or layer.bias is None or not _is_plain(x_BND, layer.weight):
        return None
    bias_C1 = layer.bias[:, None]
    if len(x_BND) == 1:
        kv_BCN = _product(layer.weight, x_BND[0]).add_(bias_C1)[None]
    else:
        kv_BCN = x_BND.new_empty(x_BND.shape[0], layer.out_features, x_BND.shape[1])
        for x_ND, kv_CN in zip(x_BND, kv_BCN, strict=True):
            torch.add(_product(layer.weight, x_ND), bias_C1, out=kv_CN)
    k_BHNd, v_BHNd = kv_BCN.unflatten(1, (2, num_heads, -1)).mT.unbind(1)
    return k_BHNd, v_BHNd


def optimize(model: Model) -> Model:
    """Make the linear layers of a model use ``linear``, in place; weights and their names stay. Return the model.

    The classifiers are left as they are: they see one vector a clip.
    """
    for name, module in model.named_modules():
        if type(module) is nn.Linear and name.rpartition(".")[2] != "linear":
            module.__class__ = Linear
    return model


def empty_heads(x_BHMd: Tensor, length: int) -> Tensor:
    """Return an empty (B, H, length, d) that lies in memory as (B, length, H, d), so that heads join without a copy."""
    batch, num_heads, _, head_dim = x_BHMd.shape
    return x_BHMd.new_empty(batch, length, num_heads, head_dim).transpose(1, 2)


def _is_large(q_BHMd: Tensor, length: int) -> bool:
    """Whether each head has enough logits to compute one head after the other.

    On more than two threads that was not measured; three times as many for each thread are on the safe side.
    """
    threads = torch.get_num_threads()
    return q_BHMd.shape[2] * length >= (ENOUGH if threads <= 2 else 3 * ENOUGH * threads)


def attention(q_BHMd: Tensor, k_BHNd: Tensor, v_BHNd: Tensor, fast: bool) -> Tensor:
    """Softmax attention: queries (B, H, M, d), keys and values (B, H, N, d) -> (B, H, M, d).

    Torch's SDPA, or one head after the other where that is faster.

    Args:
        fast: what ``has_fast_products`` says of these tensors.
    """
    if not fast or not _is_large(q_BHMd, k_BHNd.shape[2]):
        return F.scaled_dot_product_attention(q_BHMd, k_BHNd, v_BHNd)
    out_BHMd, scale = empty_heads(q_BHMd, q_BHMd.shape[2]), q_BHMd.shape[-1] ** -0.5
    q_BHMd, k_BHNd, v_BHNd = (x.contiguous() for x in (q_BHMd, k_BHNd, v_BHNd))
    if q_BHMd.shape[2] < k_BHNd.shape[2]:
        q_BHMd = q_BHMd * scale
    else:
        k_BHNd = k_BHNd * scale
    step = max(1, CHUNK // k_BHNd.shape[2])
    for b, head in product(*map(range, q_BHMd.shape[:2])):
        k_Nd, v_dN = k_BHNd[b, head], v_BHNd[b, head].mT  # this view is as fast as a copy of it
        for m in range(0, q_BHMd.shape[2], step):
            weights_mN = _product(q_BHMd[b, head, m : m + step], k_Nd).softmax(dim=-1)
            out_BHMd[b, head, m : m + step] = _product(weights_mN, v_dN)
    return out_BHMd


def shares_logits(q_BHMd: Tensor, length: int, fast: bool) -> bool:
    """Whether ``gather`` and ``write_back`` are to compute the logits once for both directions; ``length``: N."""
    return fast and _is_large(q_BHMd, length) and q_BHMd.shape[:3].numel() * length <= MOST_KEPT


def is_by_channel(x_BHNd: Tensor) -> bool:
    """Whether the tokens of a channel lie together in memory, as ``key_value`` leaves them, in each head."""
    return x_BHNd.stride()[2:] == (1, x_BHNd.shape[2])


_spares = threading.local()


def _spare(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return an empty tensor like ``x``, in the memory that was last left to ``reuse`` where that fits."""
    left: Tensor | None = _spares.__dict__.pop("weights", None)
    fits = left is not None and left.shape == shape and left.is_inference() == torch.is_inference_mode_enabled()
    return left if left is not None and fits else x.new_empty(shape)


def reuse(weights_BHMN: Tensor | None) -> None:
    """Leave the memory of weights that nobody reads any more to this thread's next ``gather``; None: free it.

    Fresh memory of such a size is given page by page, which costs more than the products that kept weights save.
    """
    _spares.weights = weights_BHMN


def gather(q_BHMd: Tensor, k_BHNd: Tensor, v_BHNd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the attention (B, H, M, d) to the lookup tokens, its weights (B, H, M, N) and log-sum-exp (B, H, M).

    Keys and values lie as ``key_value`` leaves them, or are brought into some order that is as fast.
    """
    batch, num_heads, m, head_dim = q_BHMd.shape
    weights_BHMN = _spare(q_BHMd, (batch, num_heads, m, k_BHNd.shape[2]))
    lse_BHM, out_BHMd = q_BHMd.new_empty(batch, num_heads, m), empty_heads(q_BHMd, m)
    q_BHMd = (q_BHMd * head_dim**-0.5).contiguous()
    k_BHNd, v_BHNd = (x if is_by_channel(x) else x.contiguous() for x in (k_BHNd, v_BHNd))
    for b, head in product(range(batch), range(num_heads)):
        logits_MN, weights_MN = _product(q_BHMd[b, head], k_BHNd[b, head]), weights_BHMN[b, head]
        torch.softmax(logits_MN, -1, out=weights_MN)
        # A weight is exp(logit - lse): any lookup token tells the lse, the first one without another look at all.
        logit_M, weight_M = logits_MN[:, 0], weights_MN[:, 0]
        if not bool(weight_M.amin() >= LEAST_WEIGHT):
            logit_M, weight_M = logits_MN.amax(-1), weights_MN.amax(-1)
        torch.sub(logit_M, weight_M.log(), out=lse_BHM[b, head])
        out_BHMd[b, head] = _product(weights_MN, v_BHNd[b, head].mT)
    return out_BHMd, weights_BHMN, lse_BHM


def write_back(v_BHMd: Tensor, q_BHMd: Tensor, k_BHNd: Tensor, weights_BHMN: Tensor, lse_BHM: Tensor) -> Tensor:
    """Return the attention (B, H, N, d) of the lookup tokens to the compressed ones, by what ``gather`` returned.

    exp(logit) is weight times exp(lse): this softmax over M needs neither the logits nor another exponential of each.
    Where a lookup token is so far from all queries that its weights have vanished, the attention is computed again.
    """
    out_BHNd = empty_heads(v_BHMd, k_BHNd.shape[2])
    factor_BH1M = (lse_BHM - lse_BHM.amax(-1, keepdim=True)).exp()[:, :, None]
    values_BHdM = torch.cat([v_BHMd.mT * factor_BH1M, factor_BH1M], dim=2)
    for b, head in product(*map(range, v_BHMd.shape[:2])):
        sums_dN = _product(values_BHdM[b, head], weights_BHMN[b, head].mT)
        if bool(sums_dN[-1].amin() >= LEAST_SUM):
            torch.mul(sums_dN[:-1].mT, sums_dN[-1, :, None].reciprocal(), out=out_BHNd[b, head])
        else:
            one = (slice(b, b + 1), slice(head, head + 1))
            out_BHNd[one] = attention(k_BHNd[one], q_BHMd[one], v_BHMd[one], True)
    return out_BHNd
