"""The sweep of ``fused.py`` in Triton: one kernel walks along the keys for each block of queries, one the other way.

Each tile of the weights lives in registers: A = exp(q k^T / sqrt(d) - lse). Nothing of size M x N is written, and no
sum is shared between programs, so that results do not depend on the order in which they run.
Letters as in ``fused.py``; P is one tile of A, dS of the gradient of the logits.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator,import-untyped"

import torch
import triton
import triton.language as tl
from torch import Tensor

from lookupvit_video.models.kernels.cpu import empty_heads
from lookupvit_video.models.kernels.fused import Sweep


@triton.jit
def _pointers(base, strides, batch, head, places, dims):
    """Point at rows ``places`` of one head of a (B, H, length, d) tensor whose last stride is 1."""
    return base + batch * strides[0] + head * strides[1] + places[:, None] * strides[2] + dims[None, :]


@triton.jit
def _tiles(q, k, row, column, lse, shift, scale, inside, GRADIENTS: tl.constexpr, PRECISION: tl.constexpr):
    """Return P and dS for a block of queries and a block of keys; 0 outside."""
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scale * 1.4426950408889634)
    p = tl.where(inside, tl.exp2(scores - lse[:, None] * 1.4426950408889634), 0.0)
    ds = p
    if GRADIENTS:
        ds = p * (tl.dot(row, tl.trans(column), input_precision=PRECISION) - shift[:, None])
    return p, ds


@triton.jit
def _row_kernel(
    q_ptr, k_ptr, lse_ptr, row_ptr, column_ptr, shift_ptr, d_queries_ptr, times_columns_ptr,
    q_strides, k_strides, row_strides, column_strides, out_strides, num_heads, M, N, scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    GRADIENTS: tl.constexpr, TIMES_COLUMNS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """For a block of queries, all keys: d_queries = sum dS k / sqrt(d), times_columns = sum P column."""
    ms = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    pair = tl.program_id(1).to(tl.int64)
    batch, head = pair // num_heads, pair % num_heads
    dims = tl.arange(0, BLOCK_D)
    m_inside = (ms < M)[:, None] & (dims < D)[None, :]
    q = tl.load(_pointers(q_ptr, q_strides, batch, head, ms, dims), mask=m_inside, other=0.0)
    row = tl.load(_pointers(row_ptr, row_strides, batch, head, ms, dims), mask=m_inside, other=0.0)
    lse = tl.load(lse_ptr + pair * M + ms, mask=ms < M, other=0.0)
    shift = tl.load(shift_ptr + pair * M + ms, mask=ms < M, other=0.0)
    d_queries = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    times_columns = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for start in range(0, N, BLOCK_N):
        ns = start + tl.arange(0, BLOCK_N)
        n_inside = (ns < N)[:, None] & (dims < D)[None, :]
        k = tl.load(_pointers(k_ptr, k_strides, batch, head, ns, dims), mask=n_inside, other=0.0)
        column = tl.load(_pointers(column_ptr, column_strides, batch, head, ns, dims), mask=n_inside, other=0.0)
        inside = (ms < M)[:, None] & (ns < N)[None, :]
        p, ds = _tiles(q, k, row, column, lse, shift, scale, inside, GRADIENTS, PRECISION)
        if GRADIENTS:
            d_queries += tl.dot(ds.to(k.dtype), k, input_precision=PRECISION)
        if TIMES_COLUMNS:
            times_columns += tl.dot(p.to(column.dtype), column, input_precision=PRECISION)
    if GRADIENTS:
        d_queries = (d_queries * scale).to(q.dtype)
        tl.store(_pointers(d_queries_ptr, out_strides, batch, head, ms, dims), d_queries, mask=m_inside)
    if TIMES_COLUMNS:
        tl.store(
            _pointers(times_columns_ptr, out_strides, batch, head, ms, dims), times_columns.to(q.dtype), mask=m_inside
        )


@triton.jit
def _column_kernel(
    q_ptr, k_ptr, lse_ptr, row_ptr, column_ptr, shift_ptr, d_keys_ptr, times_rows_ptr,
    q_strides, k_strides, row_strides, column_strides, out_strides, num_heads, M, N, scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    GRADIENTS: tl.constexpr, TIMES_ROWS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """For a block of keys, all queries: d_keys = sum dS^T q / sqrt(d), times_rows = sum P^T row."""
    ns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    pair = tl.program_id(1).to(tl.int64)
    batch, head = pair // num_heads, pair % num_heads
    dims = tl.arange(0, BLOCK_D)
    n_inside = (ns < N)[:, None] & (dims < D)[None, :]
    k = tl.load(_pointers(k_ptr, k_strides, batch, head, ns, dims), mask=n_inside, other=0.0)
    column = k
    if GRADIENTS:
        column = tl.load(_pointers(column_ptr, column_strides, batch, head, ns, dims), mask=n_inside, other=0.0)
    d_keys = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    times_rows = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for start in range(0, M, BLOCK_M):
        ms = start + tl.arange(0, BLOCK_M)
        m_inside = (ms < M)[:, None] & (dims < D)[None, :]
        q = tl.load(_pointers(q_ptr, q_strides, batch, head, ms, dims), mask=m_inside, other=0.0)
        row = tl.load(_pointers(row_ptr, row_strides, batch, head, ms, dims), mask=m_inside, other=0.0)
        lse = tl.load(lse_ptr + pair * M + ms, mask=ms < M, other=0.0)
        shift = tl.load(shift_ptr + pair * M + ms, mask=ms < M, other=0.0)
        inside = (ms < M)[:, None] & (ns < N)[None, :]
        p, ds = _tiles(q, k, row, column, lse, shift, scale, inside, GRADIENTS, PRECISION)
        if GRADIENTS:
            d_keys += tl.dot(tl.trans(ds).to(q.dtype), q, input_precision=PRECISION)
        if TIMES_ROWS:
            times_rows += tl.dot(tl.trans(p).to(row.dtype), row, input_precision=PRECISION)
    if GRADIENTS:
        d_keys = (d_keys * scale).to(k.dtype)
        tl.store(_pointers(d_keys_ptr, out_strides, batch, head, ns, dims), d_keys, mask=n_inside)
    if TIMES_ROWS:
        tl.store(_pointers(times_rows_ptr, out_strides, batch, head, ns, dims), times_rows.to(k.dtype), mask=n_inside)


def blocks(head_dim: int, dtype: torch.dtype) -> dict[str, int | str]:
    """Return the constants of both kernels for a width of head and a dtype.

    A side of a tile is as large as registers and the 99 KiB of shared memory of consumer GPUs allow.
    """
    wide = max(16, triton.next_power_of_2(head_dim))
    side = max(16, min(64, 8192 // (wide * dtype.itemsize)))
    precision = "ieee" if dtype == torch.float32 else "tf32"
    return {"D": head_dim, "BLOCK_D": wide, "BLOCK_M": side, "BLOCK_N": side, "PRECISION": precision}


def sweep_triton(
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
    """Sweep over the weights, as ``fused._sweep_torch``; float16, bfloat16 or float32, sums in float32."""
    batch, num_heads, m, head_dim = q_BHMd.shape
    n = k_BHNd.shape[2]
    column_BHNd = k_BHNd if column_BHNd is None else column_BHNd
    # A gradient of a sum comes expanded, with strides of 0: the kernels read rows whose last stride is 1.
    q_BHMd, k_BHNd, row_BHMd, column_BHNd = (
        x if x.stride(-1) == 1 else x.contiguous() for x in (q_BHMd, k_BHNd, row_BHMd, column_BHNd)
    )
    lse_BHM = lse_BHM.contiguous()
    shift_BHM = torch.zeros_like(lse_BHM) if shift_BHM is None else shift_BHM.to(lse_BHM.dtype).contiguous()
    m_out, n_out = (empty_heads(q_BHMd, length).stride()[:3] for length in (m, n))
    found = Sweep(
        empty_heads(q_BHMd, m) if gradients else None,
        empty_heads(q_BHMd, n) if gradients else None,
        empty_heads(q_BHMd, m) if weights_times_columns else None,
        empty_heads(q_BHMd, n) if weights_times_rows else None,
    )
    inputs = (q_BHMd, k_BHNd, lse_BHM, row_BHMd, column_BHNd, shift_BHM)
    strides = tuple(x.stride()[:3] for x in (q_BHMd, k_BHNd, row_BHMd, column_BHNd))
    sizes = (num_heads, m, n, head_dim**-0.5)
    constants = {**blocks(head_dim, q_BHMd.dtype), "GRADIENTS": gradients}
    empty = q_BHMd  # in place of what is not written
    if gradients or weights_times_columns:
        outputs = (empty if x is None else x for x in (found.d_queries, found.weights_times_columns))
        grid = (triton.cdiv(m, constants["BLOCK_M"]), batch * num_heads)
        _row_kernel[grid](*inputs, *outputs, *strides, m_out, *sizes, TIMES_COLUMNS=weights_times_columns, **constants)
    if gradients or weights_times_rows:
        outputs = (empty if x is None else x for x in (found.d_keys, found.weights_times_rows))
        grid = (triton.cdiv(n, constants["BLOCK_N"]), batch * num_heads)
        _column_kernel[grid](*inputs, *outputs, *strides, n_out, *sizes, TIMES_ROWS=weights_times_rows, **constants)
    return found
