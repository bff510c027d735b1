"""MHBC without its weights in memory: gather and infusion, with gradients that compute the weights again.

With s_mn = q_m . k_n / sqrt(d), lse_m = log sum_n exp(s_mn) and the weights A_mn = exp(s_mn - lse_m):

    gather    y_m = sum_n A_mn v_n
    infusion  x_n = sum_m A_mn u_m     (the paper's: the same weights, transposed)

A is known from queries, keys and lse, so nobody keeps it (FlashAttention, arXiv 2205.14135). With dX for the gradient
that arrives at or leaves X:

    gather    ds_mn = A_mn (dy_m . v_n - dy_m . y_m + dlse_m),  dv_n = sum_m A_mn dy_m
    infusion  ds_mn = A_mn (u_m . dx_n),  du_m = sum_n A_mn dx_n,  dlse_m = -sum_n ds_mn = -u_m . du_m

and dq, dk follow from ds as in any attention. Both are one sweep over A with a vector for each row m and each column n:
(dy, v) or (u, dx). ``_sweep_torch`` is that sweep in plain torch, a few heads at a time; ``flash.py`` has it in Triton.

Shape letters: B batch, H heads, N lookup tokens, M compressed tokens, d width of a head.
"""

from collections.abc import Iterator
from functools import cache
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.attention.flex_attention import AuxRequest, flex_attention

from lookupvit_video.models.kernels.linear import has_fast_products, linear

ENOUGH = 10**5  # logits of a head for each thread, below which SDPA's division of the work among threads wins
CHUNK = 2**20  # logits that are held at a time on the CPU; a few MB stay in its cache


def attention(q_BHMd: Tensor, k_BHNd: Tensor, v_BHNd: Tensor) -> Tensor:
    """Softmax attention: queries (B, H, M, d), keys and values (B, H, N, d) -> (B, H, M, d).

    Torch's SDPA, or one head after the other where ``linear`` has matrix products that SDPA on the CPU has not.
    """
    logits = q_BHMd.shape[2] * k_BHNd.shape[2]
    if not has_fast_products(q_BHMd) or logits < ENOUGH * torch.get_num_threads():
        return F.scaled_dot_product_attention(q_BHMd, k_BHNd, v_BHNd)
    out_BHMd, scale = _like(q_BHMd, q_BHMd.shape[2]), q_BHMd.shape[-1] ** -0.5
    q_BHMd, k_BHNd, v_BHNd = (x.contiguous() for x in (q_BHMd, k_BHNd, v_BHNd))
    if q_BHMd.shape[2] < k_BHNd.shape[2]:
        q_BHMd = q_BHMd * scale
    else:
        k_BHNd = k_BHNd * scale
    step = max(1, CHUNK // k_BHNd.shape[2])
    for b, head in product(*map(range, q_BHMd.shape[:2])):
        k_Nd, v_dN = k_BHNd[b, head], v_BHNd[b, head].mT.contiguous()
        for m in range(0, q_BHMd.shape[2], step):
            weights_mN = linear(q_BHMd[b, head, m : m + step], k_Nd).softmax(dim=-1)
            out_BHMd[b, head, m : m + step] = linear(weights_mN, v_dN)
    return out_BHMd


class Sweep(NamedTuple):
    """What one sweep over the weights A gives; None for what nobody asked for."""

    d_queries: Tensor | None
    """(B, H, M, d): gradient of the queries."""
    d_keys: Tensor | None
    """(B, H, N, d)."""
    at_rows: Tensor | None
    """(B, H, M, d): sum over n of A_mn column_n."""
    at_columns: Tensor | None
    """(B, H, N, d): sum over m of A_mn row_m."""


def parts(q_BHMd: Tensor, k_BHNd: Tensor) -> Iterator[tuple[int, slice]]:
    """Yield (b, heads) of parts that have at most ``CHUNK`` logits, or one head."""
    batch, num_heads, m, _ = q_BHMd.shape
    step = max(1, min(num_heads, CHUNK // (m * k_BHNd.shape[2])))
    for b in range(batch):
        for head in range(0, num_heads, step):
            yield b, slice(head, head + step)


def _like(x_BHMd: Tensor, length: int) -> Tensor:
    """Return an empty (B, H, length, d) that lies in memory as (B, length, H, d), so that heads join without a copy."""
    batch, num_heads, _, head_dim = x_BHMd.shape
    return x_BHMd.new_empty(batch, length, num_heads, head_dim).transpose(1, 2)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _sweep_torch(
    q_BHMd: Tensor,
    k_BHNd: Tensor,
    lse_BHM: Tensor,
    row_BHMd: Tensor,
    column_BHNd: Tensor | None = None,
    shift_BHM: Tensor | None = None,
    *,
    gradients: bool = False,
    at_rows: bool = False,
    at_columns: bool = False,
) -> Sweep:
    """Sweep over A; with ``gradients``, ds_mn = A_mn (row_m . column_n - shift_m)."""
    m, n, dtype, scale = q_BHMd.shape[2], k_BHNd.shape[2], q_BHMd.dtype, q_BHMd.shape[-1] ** -0.5
    found = Sweep(
        _like(q_BHMd, m) if gradients else None,
        _like(k_BHNd, n) if gradients else None,
        _like(row_BHMd, m) if at_rows else None,
        _like(row_BHMd, n) if at_columns else None,
    )
    for part in parts(q_BHMd, k_BHNd):
        q_hMd, k_hNd, row_hMd = q_BHMd[part] * scale, k_BHNd[part], row_BHMd[part]
        weights_hMN = (q_hMd @ k_hNd.mT).to(lse_BHM.dtype).sub_(lse_BHM[part][..., None]).exp_()
        if found.at_columns is not None:
            found.at_columns[part] = weights_hMN.to(dtype).mT @ row_hMd
        if column_BHNd is None:
            continue
        column_hNd = column_BHNd[part]
        if found.at_rows is not None:
            found.at_rows[part] = weights_hMN.to(dtype) @ column_hNd
        if found.d_queries is not None and found.d_keys is not None:
            d_weights_hMN = (row_hMd @ column_hNd.mT).to(weights_hMN.dtype)
            if shift_BHM is not None:
                d_weights_hMN.sub_(shift_BHM[part][..., None])
            d_scores_hMN = d_weights_hMN.mul_(weights_hMN).to(dtype)
            found.d_queries[part] = (d_scores_hMN @ k_hNd).mul_(scale)
            found.d_keys[part] = d_scores_hMN.mT @ q_hMd
    return found


def _sweep(*tensors: Any, **wanted: Any) -> Sweep:
    """Sweep where the tensors are: Triton on GPUs, plain torch elsewhere."""
    if tensors[0].is_cuda and tensors[0].dtype != torch.float64:
        from lookupvit_video.models.kernels.flash import sweep_triton  # here, since Triton is not everywhere

        return sweep_triton(*tensors, **wanted)
    return _sweep_torch(*tensors, **wanted)


def _attend(q_BHMd: Tensor, k_BHNd: Tensor, v_BHNd: Tensor) -> tuple[Tensor, Tensor]:
    """Return softmax attention (B, H, M, d) and its log-sum-exp (B, H, M), from the operators behind torch's SDPA."""
    ops = torch.ops.aten
    if q_BHMd.is_cuda and q_BHMd.dtype in (torch.float16, torch.bfloat16):
        out_BHMd, lse_BHM = ops._scaled_dot_product_flash_attention(q_BHMd, k_BHNd, v_BHNd)[:2]
    elif q_BHMd.is_cuda and q_BHMd.dtype == torch.float32:
        out_BHMd, lse_BHM = ops._scaled_dot_product_efficient_attention(q_BHMd, k_BHNd, v_BHNd, None, True)[:2]
        lse_BHM = lse_BHM[..., : q_BHMd.shape[2]]  # it comes padded
    elif q_BHMd.device.type == "cpu":
        out_BHMd, lse_BHM = ops._scaled_dot_product_flash_attention_for_cpu(q_BHMd, k_BHNd, v_BHNd)[:2]
    else:
        scores_BHMN = ((q_BHMd * q_BHMd.shape[-1] ** -0.5) @ k_BHNd.mT).to(_wide(q_BHMd.dtype))
        lse_BHM = scores_BHMN.logsumexp(-1)
        out_BHMd = (scores_BHMN - lse_BHM[..., None]).exp().to(v_BHNd.dtype) @ v_BHNd
    return out_BHMd, lse_BHM


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_BHMd: Tensor, k_BHNd: Tensor, v_BHNd: Tensor) -> tuple[Tensor, Tensor]:
        out_BHMd, lse_BHM = _attend(q_BHMd, k_BHNd, v_BHNd)
        ctx.save_for_backward(q_BHMd, k_BHNd, v_BHNd, out_BHMd, lse_BHM)
        return out_BHMd, lse_BHM

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out_BHMd: Tensor, d_lse_BHM: Tensor) -> tuple[Tensor | None, ...]:
        q_BHMd, k_BHNd, v_BHNd, out_BHMd, lse_BHM = ctx.saved_tensors
        shift_BHM = (d_out_BHMd.to(lse_BHM.dtype) * out_BHMd).sum(-1) - d_lse_BHM
        found = _sweep(q_BHMd, k_BHNd, lse_BHM, d_out_BHMd, v_BHNd, shift_BHM, gradients=True, at_columns=True)
        return found.d_queries, found.d_keys, found.at_columns


class _Infuse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_BHMd: Tensor, k_BHNd: Tensor, lse_BHM: Tensor, u_BHMd: Tensor) -> Tensor:
        ctx.save_for_backward(q_BHMd, k_BHNd, lse_BHM, u_BHMd)
        out_BHNd = _sweep(q_BHMd, k_BHNd, lse_BHM, u_BHMd, at_columns=True).at_columns
        assert out_BHNd is not None
        return out_BHNd

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out_BHNd: Tensor) -> tuple[Tensor | None, ...]:
        q_BHMd, k_BHNd, lse_BHM, u_BHMd = ctx.saved_tensors
        found = _sweep(q_BHMd, k_BHNd, lse_BHM, u_BHMd, d_out_BHNd, gradients=True, at_rows=True)
        assert found.at_rows is not None
        d_lse_BHM = -(u_BHMd * found.at_rows).sum(-1, dtype=lse_BHM.dtype)
        return found.d_queries, found.d_keys, d_lse_BHM, found.at_rows


def gather(q_BHMd: Tensor, k_BHNd: Tensor, v_BHNd: Tensor) -> tuple[Tensor, Tensor]:
    """Attend: queries (B, H, M, d), keys and values (B, H, N, d) -> (B, H, M, d), log-sum-exp (B, H, M).

    Gradients flow through both results; backward recomputes the weights.
    """
    return _Gather.apply(q_BHMd, k_BHNd, v_BHNd)


def infuse(q_BHMd: Tensor, k_BHNd: Tensor, lse_BHM: Tensor, u_BHMd: Tensor) -> Tensor:
    """Weigh values u (B, H, M, d) with the transposed weights of ``gather`` -> (B, H, N, d); backward recomputes."""
    return _Infuse.apply(q_BHMd, k_BHNd, lse_BHM, u_BHMd)


@cache
def _flex(compiled: bool) -> Any:
    return torch.compile(flex_attention, dynamic=False) if compiled else flex_attention


def flex_gather(q_BHMd: Tensor, k_BHNd: Tensor, v_BHNd: Tensor, compiled: bool = True) -> tuple[Tensor, Tensor]:
    """``gather`` as FlexAttention (arXiv 2412.05496) says it."""
    out_BHMd, aux = _flex(compiled and not torch.compiler.is_compiling())(
        q_BHMd, k_BHNd, v_BHNd, return_aux=AuxRequest(lse=True)
    )
    return out_BHMd, aux.lse


def flex_infuse(q_BHMd: Tensor, k_BHNd: Tensor, lse_BHM: Tensor, u_BHMd: Tensor, compiled: bool = True) -> Tensor:
    """``infuse`` as FlexAttention says it: keys ask queries, with the bias -lse; its own normalisation is undone."""

    def biased(score: Tensor, b: Tensor, head: Tensor, n: Tensor, m: Tensor) -> Tensor:
        return score - lse_BHM[b, head, m]

    out_BHNd, aux = _flex(compiled and not torch.compiler.is_compiling())(
        k_BHNd, q_BHMd, u_BHMd, score_mod=biased, return_aux=AuxRequest(lse=True)
    )
    return out_BHNd * aux.lse.exp()[..., None].to(out_BHNd.dtype)
