"""Linear layers that use all of an AVX-512 processor in inference.

Torch hands float32 matrix products to MKL, which keeps to AVX2 on AMD's processors: oneDNN, which torch brings along
and which ``torch.compile`` calls through the same operator, is twice as fast there. docs/performance.md has figures.
"""

from functools import cache

import torch
from torch import Tensor, nn
from torch.jit._trace import is_tracing
from torch.nn import functional as F
from torch.utils._python_dispatch import _get_current_dispatch_mode


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
    plain = type(weight) in (Tensor, nn.Parameter) and weight.dtype == x.dtype  # not quantised
    dense = x.is_contiguous() and weight.is_contiguous() and x.numel() > 0  # else oneDNN takes a very slow path
    if plain and dense and has_fast_products(x):
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return out
    return F.linear(x, weight, bias)


class Linear(nn.Linear):
    """``torch.nn.Linear``, by ``linear``."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        return linear(x, self.weight, self.bias)
