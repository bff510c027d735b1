"""MHBC without its weights in memory: gather and write-back, with gradients that compute the weights again.

With s_mn = q_m . k_n / sqrt(d), lse_m = log sum_n exp(s_mn) and the weights A_mn = exp(s_mn - lse_m):

    gather      y_m = sum_n A_mn v_n
    write-back  x_n = sum_m A_mn u_m     (the paper's: the same weights, transposed)

A follows from queries, keys and lse, so it need not be kept (FlashAttention, arXiv 2205.14135). With dX for the
gradient that arrives at or leaves X:

    gather      ds_mn = A_mn (dy_m . v_n - dy_m . y_m + dlse_m),  dv_n = sum_m A_mn dy_m
    write-back  ds_mn = A_mn (u_m . dx_n),  du_m = sum_n A_mn dx_n,  dlse_m = -sum_n ds_mn = -u_m . du_m

and dq, dk follow from ds as in any attention. Both are one sweep over A with a vector for each row m and each column n:
(dy, v) or (u, dx). ``_sweep_torch`` is that sweep in plain torch, a few heads at a time; ``flash.py`` has it in Triton.

Shape letters: B batch, H heads, N lookup tokens, M compressed tokens, d width of a head.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lookupvit_video.errors import UserError
from lookupvit_video.models.kernels.cpu import empty_heads

CHUNK = 2**20  # logits that are held at a time on the CPU; a few MB stay in its cache


class Sweep(NamedTuple):
    """What one sweep over the weights A gives; None for what was not requested."""

    d_queries: Tensor | None
    """(B, H, M, d): gradient of the queries."""
    d_keys: Tensor | None
    """(B, H, N, d)."""
    weights_times_columns: Tensor | None
    """(B, H, M, d): sum over n of A_mn column_n."""
    weights_times_rows: Tensor | None
    """(B, H, N, d): sum over m of A_mn row_m."""


def parts(q_BHMd: Tensor, k_BHNd: Tensor) -> Iterator[tuple[int, slice]]:
    """Yield (b, heads) of parts that have at most ``CHUNK`` logits, or one head."""
    batch, num_heads, m, _ = q_BHMd.shape
    step = max(1, min(num_heads, CHUNK // (m * k_BHNd.shape[2])))
    for b in range(batch):
        for head in range(0, num_heads, step):
            yield b, slice(head, head + step)


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
    weights_times_columns: bool = False,
    weights_times_rows: bool = False,
) -> Sweep:
    """Sweep over A; with ``gradients``, ds_mn = A_mn (row_m . column_n - shift_m)."""
    m, n, dtype, scale = q_BHMd.shape[2], k_BHNd.shape[2], q_BHMd.dtype, q_BHMd.shape[-1] ** -0.5
    found = Sweep(
        empty_heads(q_BHMd, m) if gradients else None,
        empty_heads(k_BHNd, n) if gradients else None,
        empty_heads(row_BHMd, m) if weights_times_columns else None,
        empty_heads(row_BHMd, n) if weights_times_rows else None,
    )
    for part in parts(q_BHMd, k_BHNd):
        q_hMd, k_hNd, row_hMd = q_BHMd[part] * scale, k_BHNd[part], row_BHMd[part]
        weights_hMN = (q_hMd @ k_hNd.mT).to(lse_BHM.dtype).sub_(lse_BHM[part][..., None]).exp_()
        if found.weights_times_rows is not None:
            found.weights_times_rows[part] = weights_hMN.to(dtype).mT @ row_hMd
        if column_BHNd is None:
            continue
        column_hNd = column_BHNd[part]
        if found.weights_times_columns is not None:
            found.weights_times_columns[part] = weights_hMN.to(dtype) @ column_hNd
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
        try:  # here, since Triton is not everywhere
            from lookupvit_video.models.kernels.flash import sweep_triton
        except ImportError:
            raise UserError(
                "the fused kernel needs Triton on this GPU: pip install triton, or another kernel"
            ) from None
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
        found = _sweep(q_BHMd, k_BHNd, lse_BHM, d_out_BHMd, v_BHNd, shift_BHM, gradients=True, weights_times_rows=True)
        return found.d_queries, found.d_keys, found.weights_times_rows


class _WriteBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_BHMd: Tensor, k_BHNd: Tensor, lse_BHM: Tensor, u_BHMd: Tensor) -> Tensor:
        ctx.save_for_backward(q_BHMd, k_BHNd, lse_BHM, u_BHMd)
        out_BHNd = _sweep(q_BHMd, k_BHNd, lse_BHM, u_BHMd, weights_times_rows=True).weights_times_rows
        assert out_BHNd is not None
        return out_BHNd

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out_BHNd: Tensor) -> tuple[Tensor | None, ...]:
        q_BHMd, k_BHNd, lse_BHM, u_BHMd = ctx.saved_tensors
        found = _sweep(q_BHMd, k_BHNd, lse_BHM, u_BHMd, d_out_BHNd, gradients=True, weights_times_columns=True)
        assert found.weights_times_columns is not None
        d_lse_BHM = -(u_BHMd * found.weights_times_columns).sum(-1, dtype=lse_BHM.dtype)
        return found.d_queries, found.d_keys, d_lse_BHM, found.weights_times_columns


def gather(q_BHMd: Tensor, k_BHNd: Tensor, v_BHNd: Tensor) -> tuple[Tensor, Tensor]:
    """Attend: queries (B, H, M, d), keys and values (B, H, N, d) -> (B, H, M, d), log-sum-exp (B, H, M).

    Gradients flow through both results; backward recomputes the weights.
    """
    out_and_lse: tuple[Tensor, Tensor] = _Gather.apply(q_BHMd, k_BHNd, v_BHNd)
    return out_and_lse


def write_back(q_BHMd: Tensor, k_BHNd: Tensor, lse_BHM: Tensor, u_BHMd: Tensor) -> Tensor:
    """Weigh values u (B, H, M, d) with the transposed weights of ``gather`` -> (B, H, N, d); backward recomputes."""
    out_BHNd: Tensor = _WriteBack.apply(q_BHMd, k_BHNd, lse_BHM, u_BHMd)
    return out_BHNd
