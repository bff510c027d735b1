"""``fused`` in FlexAttention (arXiv 2412.05496), which a compiler takes into its graph."""

from functools import cache
from typing import Any

import torch
from torch import Tensor


@cache
def _flex(compiled: bool) -> Any:
    from torch.nn.attention.flex_attention import flex_attention  # half a second, which few runs need

    return torch.compile(flex_attention, dynamic=False) if compiled else flex_attention


def gather(q_BHMd: Tensor, k_BHNd: Tensor, v_BHNd: Tensor, compiled: bool = True) -> tuple[Tensor, Tensor]:
    """``fused.gather``."""
    from torch.nn.attention.flex_attention import AuxRequest

    out_BHMd, aux = _flex(compiled and not torch.compiler.is_compiling())(
        q_BHMd, k_BHNd, v_BHNd, return_aux=AuxRequest(lse=True)
    )
    return out_BHMd, aux.lse


def write_back(q_BHMd: Tensor, k_BHNd: Tensor, lse_BHM: Tensor, u_BHMd: Tensor, compiled: bool = True) -> Tensor:
    """``fused.write_back``: the keys query the queries, with the bias -lse; the normalization is undone."""
    from torch.nn.attention.flex_attention import AuxRequest

    def biased(score: Tensor, b: Tensor, head: Tensor, n: Tensor, m: Tensor) -> Tensor:
        return score - lse_BHM[b, head, m]

    out_BHNd, aux = _flex(compiled and not torch.compiler.is_compiling())(
        k_BHNd, q_BHMd, u_BHMd, score_mod=biased, return_aux=AuxRequest(lse=True)
    )
    sums_BHNd: Tensor = out_BHNd * aux.lse.exp()[..., None].to(out_BHNd.dtype)
    return sums_BHNd
