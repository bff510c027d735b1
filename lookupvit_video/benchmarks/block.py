"""A roofline account of one LookupViT block and one dense block in inference.

For each part: its multiply-accumulates, the bytes that must move at least (inputs, weights and results once each, no
matrix of attention weights), the time it takes alone, and the floor below which the machine cannot get: the larger of
operations over the machine's fastest matrix product and bytes over its fastest copy, both measured here.
Also: the memory that each block keeps for the backward pass.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lookupvit_video.benchmarks.machine import seconds_per_run
from lookupvit_video.distributed.parallel import checkpoint_activations
from lookupvit_video.distributed.precision import autocast
from lookupvit_video.models import kernels
from lookupvit_video.models.attention import set_kernel
from lookupvit_video.models.blocks import LookupViTBlock, TransformerBlock
from lookupvit_video.text import markdown_table


@dataclass(frozen=True)
class Part:
    """One step of a block; counts are for one clip, but ``weights`` (elements) are read once a batch."""

    name: str
    macs: int
    elements: int
    weights: int
    run: Callable[[], Any]


@dataclass(frozen=True)
class Machine:
    """What a device does at most, as measured."""

    macs_per_second: float
    bytes_per_second: float
    torch_macs_per_second: float
    """Of torch's own linear layer, where this project's is another."""


def seconds(run: Callable[[], Any], device: torch.device, rounds: int, at_least: float = 0.05) -> float:
    """Return the median over the rounds of the seconds of one run; a round repeats until it takes ``at_least``."""
    seconds_per_run(run, 1, device)
    times = max(1, round(at_least / seconds_per_run(run, 1, device)))
    return median(seconds_per_run(run, times, device) for _ in range(rounds))


def machine_limits(device: torch.device, dtype: torch.dtype, rounds: int) -> Machine:
    """Measure the fastest of some large matrix products and a copy that fits in no cache."""
    own: list[float] = []
    plain: list[float] = []
    for n, k, m in ((2048, 2048, 2048), (4096, 768, 3072), (4096, 3072, 768)):
        a, b = torch.randn(n, k, device=device, dtype=dtype), torch.randn(m, k, device=device, dtype=dtype)
        for rates, product in ((own, kernels.linear), (plain, F.linear)):
            once = seconds(lambda a=a, b=b, product=product: product(a, b), device, rounds)  # type: ignore[misc]
            rates.append(n * k * m / once)
    source = torch.ones(2**26, device=device)
    target = torch.empty_like(source)
    copied = 2 * source.numel() * 4 / seconds(lambda: target.copy_(source), device, rounds)
    return Machine(max(*own, *plain), copied, max(plain))


def lookup_parts(block: LookupViTBlock, compressed_BMD: Tensor, lookup_BND: Tensor) -> list[Part]:
    """Return the parts of a LookupViT block, in order."""
    (m, dim), n = compressed_BMD.shape[1:], lookup_BND.shape[1]
    mhbc = block.cross_attention
    update_BMD, lookup = mhbc.gather(compressed_BMD, lookup_BND)
    keys_values = mhbc.key_value(lookup_BND)
    q, k = lookup.queries, lookup.keys
    v = keys_values[..., dim:].unflatten(-1, (mhbc.num_heads, -1)).transpose(1, 2)
    _, left = kernels.gather(q, k, v, mhbc.kernel, mhbc.reverse)
    square = dim * dim
    return [
        Part("norm of lookup tokens", 0, 2 * n * dim, 0, lambda: block.norm_gather_lookup(lookup_BND)),
        Part("keys, values", 2 * n * square, 3 * n * dim, 2 * square, lambda: mhbc.key_value(lookup_BND)),
        Part("norm, queries", m * square, 4 * m * dim, square,
             lambda: mhbc.query(block.norm_gather_compressed(compressed_BMD))),
        Part("gather", 2 * n * m * dim, 2 * (n + m) * dim, 0,
             lambda: kernels.gather(q, k, v, mhbc.kernel, mhbc.reverse)),
        Part("gather projection, residual", m * square, 5 * m * dim, square,
             lambda: compressed_BMD + mhbc.gather_projection(update_BMD)),
        Part("refinement", 12 * m * square + 2 * m * m * dim, 26 * m * dim, 12 * square,
             lambda: block.refine(compressed_BMD)),
        Part("norm, infused values", m * square, 4 * m * dim, square,
             lambda: mhbc.infuse_value(block.norm_infuse(compressed_BMD))),
        Part("infusion", n * m * dim, 2 * (n + m) * dim, 0, lambda: kernels.write_back(q, left)),
        Part("infusion projection, residual", n * square, 5 * n * dim, square,
             lambda: lookup_BND + mhbc.infuse_projection(lookup_BND)),
        Part("narrow MLP with norm, residual", n * square, 8 * n * dim, square,
             lambda: lookup_BND + block.lookup_mlp(block.norm_lookup_mlp(lookup_BND))),
    ]  # fmt: skip


def dense_parts(block: TransformerBlock, x_BND: Tensor) -> list[Part]:
    """Return the parts of a dense block, in order."""
    n, dim = x_BND.shape[1:]
    square, attention = dim * dim, block.attention
    qkv = attention.qkv(x_BND)
    q, k, v = qkv.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    return [
        Part("norm", 0, 2 * n * dim, 0, lambda: block.norm_attention(x_BND)),
        Part("queries, keys, values", 3 * n * square, 4 * n * dim, 3 * square, lambda: attention.qkv(x_BND)),
        Part("attention", 2 * n * n * dim, 4 * n * dim, 0, lambda: kernels.self_attention(q, k, v)),
        Part("projection, residual", n * square, 5 * n * dim, square, lambda: x_BND + attention.projection(x_BND)),
        Part("MLP with norm, residual", 8 * n * square, 23 * n * dim, 8 * square, lambda: block.add_mlp(x_BND)),
    ]


def account(title: str, parts: list[Part], block: Callable[[], Any], limits: Machine, x: Tensor, rounds: int) -> str:
    """Return a Markdown table: each part, their sum, and the complete block."""
    batch, size = x.shape[0], x.element_size()
    rows: list[tuple[object, ...]] = []

    def add(name: str, macs: int, moved: float, ms: float, floor: float) -> None:
        rows.append((
            name, f"{macs * batch / 1e6:.0f}", f"{moved / 1e6:.1f}", f"{macs * batch / moved:.0f}", f"{ms:.2f}",
            f"{floor:.2f}", f"{macs * batch / ms / 1e6:.0f}" if macs else "-",
        ))  # fmt: skip

    total_ms = total_floor = total_bytes = 0.0
    for part in parts:
        moved = size * (part.elements * batch + part.weights)
        floor = 1000 * max(part.macs * batch / limits.macs_per_second, moved / limits.bytes_per_second)
        ms = 1000 * seconds(part.run, x.device, rounds)
        add(part.name, part.macs, moved, ms, floor)
        total_ms, total_floor, total_bytes = total_ms + ms, total_floor + floor, total_bytes + moved
    macs = sum(part.macs for part in parts)
    add("sum of the parts", macs, total_bytes, total_ms, total_floor)
    add("the block", macs, total_bytes, 1000 * seconds(block, x.device, rounds), total_floor)
    return markdown_table((title, "MMACs", "MB at least", "MACs a byte", "ms", "floor, ms", "GMACs/s"), rows)


def kept_bytes(block: nn.Module, inputs: list[Tensor], dtype: torch.dtype, compiled: bool) -> int:
    """Return what one forward pass under autocast keeps for backward, without weights and their copies in ``dtype``."""
    torch._dynamo.reset()
    run = torch.compile(block.forward, backend="aot_eager_decomp_partition", dynamic=False) if compiled else block
    weights = {parameter.shape for parameter in block.parameters() if parameter.ndim == 2}
    weights |= {shape[::-1] for shape in weights}
    kept: dict[int, Tensor] = {}  # the tensors too, so that no address is used twice

    def note(tensor: Tensor) -> Tensor:
        if tensor.shape not in weights and not isinstance(tensor, nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), autocast(inputs[0].device, dtype):
        out = run(*inputs)
    del out
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def kept_table(batch: int, n: int, m: int, dim: int, num_heads: int, dtype: torch.dtype, device: torch.device) -> str:
    """Return a Markdown table: bytes for each lookup token, of one block in training, with and without a compiler."""
    rows = []
    x, p = (torch.randn(batch, length, dim, device=device, requires_grad=True) for length in (n, m))
    base: list[int] = []
    for name, kind in (("dense", ""), ("LookupViT", "none"), ("LookupViT, write_back recomputed", "write_back"),
                       ("LookupViT, full recomputed", "full")):  # fmt: skip
        cells = []
        for i, compiled in enumerate((False, True)):
            block = (LookupViTBlock if kind else TransformerBlock)(dim, num_heads).to(device).train()
            set_kernel(block, "fused")  # as on GPUs; eager would keep M x N weights
            checkpoint_activations(block, kind or "none")
            found = kept_bytes(block, [p, x] if kind else [x], dtype, compiled)
            base += [] if kind else [found]
            cells += [f"{found / (1e3 * batch * n):.1f}", f"{found / base[i]:.2f}"]
        rows.append([name, *cells])
    titles = ("block", "kB a lookup token", "of the dense block", "compiled, kB", "of the dense block")
    return markdown_table(titles, rows)


@torch.inference_mode()
def time_blocks(
    batch: int, n: int, m: int, dim: int, num_heads: int, dtype: torch.dtype, device: torch.device, rounds: int
) -> str:
    """Return the machine's limits, and the account of a LookupViT block and of a dense block."""
    limits = machine_limits(device, dtype, rounds)
    lookup = kernels.optimize(LookupViTBlock(dim, num_heads)).to(device, dtype).eval()
    dense = kernels.optimize(TransformerBlock(dim, num_heads)).to(device, dtype).eval()
    x = torch.randn(batch, n, dim, device=device, dtype=dtype)
    p = torch.randn(batch, m, dim, device=device, dtype=dtype)
    parts = lookup_parts(lookup, p, x)
    return (
        f"torch {torch.__version__}: at most {limits.macs_per_second / 1e9:.0f} GMACs/s in a matrix product "
        f"({limits.torch_macs_per_second / 1e9:.0f} in torch's own), {limits.bytes_per_second / 1e9:.0f} GB/s in a "
        f"copy\nD = {dim}, N = {n}, M = {m}, {batch} clips\n\n"
        f"{account('LookupViT block', parts, lambda: lookup(p, x), limits, x, rounds)}\n"
        f"{account('dense block', dense_parts(dense, x), lambda: dense(x), limits, x, rounds)}"
    )
