"""Products and attention that use all of an AVX-512 processor in inference.

Torch hands float32 matrix products to MKL, which keeps to AVX2 on AMD's processors: oneDNN, which torch includes and
which ``torch.compile`` calls through the same operator, is twice as fast there. docs/performance.md has figures.
"""

from functools import cache
from itertools import product
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.jit._trace import is_tracing
from torch.nn import functional as F
from torch.utils._python_dispatch import _get_current_dispatch_mode

Model = TypeVar("Model", bound=nn.Module)
ENOUGH = 10**5  # logits of a head for each thread, below which SDPA's division of the work among threads wins
CHUNK = 2**20  # logits that are held at a time; a few MB stay in the processor's cache


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
    plain = type(weight) in (Tensor, nn.Parameter) and weight.dtype == x.dtype  # not quantized
    dense = x.is_contiguous() and weight.is_contiguous() and x.numel() > 0  # else oneDNN takes a very slow path
    if plain and dense and has_fast_products(x):
        return _product(x, weight, bias)
    return F.linear(x, weight, bias)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


class Linear(nn.Linear):
    """``torch.nn.Linear``, by ``linear``."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        return linear(x, self.weight, self.bias)


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


def attention(q_BHMd: Tensor, k_BHNd: Tensor, v_BHNd: Tensor, fast: bool) -> Tensor:
    """Softmax attention: queries (B, H, M, d), keys and values (B, H, N, d) -> (B, H, M, d).

    Torch's SDPA, or one head after the other where that is faster.

    Args:
        fast: what ``has_fast_products`` says of these tensors.
    """
    logits = q_BHMd.shape[2] * k_BHNd.shape[2]
    if not fast or logits < ENOUGH * torch.get_num_threads():
        return F.scaled_dot_product_attention(q_BHMd, k_BHNd, v_BHNd)
    out_BHMd, scale = empty_heads(q_BHMd, q_BHMd.shape[2]), q_BHMd.shape[-1] ** -0.5
    q_BHMd, k_BHNd, v_BHNd = (x.contiguous() for x in (q_BHMd, k_BHNd, v_BHNd))
    if q_BHMd.shape[2] < k_BHNd.shape[2]:
        q_BHMd = q_BHMd * scale
    else:
        k_BHNd = k_BHNd * scale
    step = max(1, CHUNK // k_BHNd.shape[2])
    for b, head in product(*map(range, q_BHMd.shape[:2])):
        k_Nd, v_dN = k_BHNd[b, head], v_BHNd[b, head].mT.contiguous()
        for m in range(0, q_BHMd.shape[2], step):
            weights_mN = _product(q_BHMd[b, head, m : m + step], k_Nd).softmax(dim=-1)
            out_BHMd[b, head, m : m + step] = _product(weights_mN, v_dN)
    return out_BHMd
