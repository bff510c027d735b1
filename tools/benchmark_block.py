"""`tools/benchmark.py block`: a roofline account of one LookupViT block and one dense block in inference.

For each part: its multiply-accumulates, the bytes that must move at least (inputs, weights and results once each, no
matrix of attention weights), the time it takes alone, and the floor below which the machine cannot get: the larger of
operations over the machine's fastest matrix product and bytes over its fastest copy, both measured here.
With --kept instead: the memory that each block keeps for the backward pass.
"""

import argparse
import runpy
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lookupvit_video.data.loader import keep_freed_memory
from lookupvit_video.distributed.parallel import checkpoint_activations
from lookupvit_video.errors import UserError
from lookupvit_video.models import kernels
from lookupvit_video.models.attention import set_kernel
from lookupvit_video.models.blocks import LookupViTBlock, TransformerBlock
from lookupvit_video.models.kernels.linear import linear
from lookupvit_video.registry import VIT_SIZES

EXAMPLES = """examples:
  python tools/benchmark.py block --tokens 1568 --compressed 196
  python tools/benchmark.py block --tokens 3136 --compressed 98 --threads 2 --rounds 9
  python tools/benchmark.py block --batch 32 --precision bfloat16 --device cuda
  python tools/benchmark.py block --kept --precision bfloat16
"""


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

    def once(times: int) -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(times):
            run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / times

    once(1)
    times = max(1, round(at_least / once(1)))
    return median(once(times) for _ in range(rounds))


def machine_limits(device: torch.device, dtype: torch.dtype, rounds: int) -> Machine:
    """Measure the fastest of some large matrix products and a copy that fits in no cache."""
    own: list[float] = []
    plain: list[float] = []
    for n, k, m in ((2048, 2048, 2048), (4096, 768, 3072), (4096, 3072, 768)):
        a, b = torch.randn(n, k, device=device, dtype=dtype), torch.randn(m, k, device=device, dtype=dtype)
        for rates, product in ((own, linear), (plain, F.linear)):
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
    _, left = mhbc.attend(q, k, v)
    square = dim * dim
    return [
        Part("norm of lookup tokens", 0, 2 * n * dim, 0, lambda: block.norm_gather_lookup(lookup_BND)),
        Part("keys, values", 2 * n * square, 3 * n * dim, 2 * square, lambda: mhbc.key_value(lookup_BND)),
        Part("norm, queries", m * square, 4 * m * dim, square,
             lambda: mhbc.query(block.norm_gather_compressed(compressed_BMD))),
        Part("gather", 2 * n * m * dim, 2 * (n + m) * dim, 0, lambda: mhbc.attend(q, k, v)),
        Part("gather projection, residual", m * square, 5 * m * dim, square,
             lambda: compressed_BMD + mhbc.gather_projection(update_BMD)),
        Part("refinement", 12 * m * square + 2 * m * m * dim, 26 * m * dim, 12 * square,
             lambda: block.refine(compressed_BMD)),
        Part("norm, infused values", m * square, 4 * m * dim, square,
             lambda: mhbc.infuse_value(block.norm_infuse(compressed_BMD))),
        Part("infusion", n * m * dim, 2 * (n + m) * dim, 0, lambda: mhbc.attend_back(q, left)),
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
        Part("attention", 2 * n * n * dim, 4 * n * dim, 0, lambda: kernels.attention(q, k, v)),
        Part("projection, residual", n * square, 5 * n * dim, square, lambda: x_BND + attention.projection(x_BND)),
        Part("MLP with norm, residual", 8 * n * square, 23 * n * dim, 8 * square, lambda: block.add_mlp(x_BND)),
    ]


def account(title: str, parts: list[Part], whole: Callable[[], Any], limits: Machine, x: Tensor, rounds: int) -> str:
    """Return a Markdown table: each part, their sum, and the block as it runs."""
    batch, size = x.shape[0], x.element_size()
    lines = [f"| {title} | MMACs | MB at least | MACs a byte | ms | floor, ms | GMACs/s |", "|" + "---|" * 7]
    total_ms = total_floor = total_bytes = 0.0

    def line(name: str, macs: int, moved: float, ms: float, floor: float) -> None:
        rate = f"{macs * batch / ms / 1e6:.0f}" if macs else "-"
        lines.append(
            f"| {name} | {macs * batch / 1e6:.0f} | {moved / 1e6:.1f} | {macs * batch / moved:.0f} | {ms:.2f} "
            f"| {floor:.2f} | {rate} |"
        )

    for part in parts:
        moved = size * (part.elements * batch + part.weights)
        floor = 1000 * max(part.macs * batch / limits.macs_per_second, moved / limits.bytes_per_second)
        ms = 1000 * seconds(part.run, x.device, rounds)
        line(part.name, part.macs, moved, ms, floor)
        total_ms, total_floor, total_bytes = total_ms + ms, total_floor + floor, total_bytes + moved
    macs = sum(part.macs for part in parts)
    line("sum of the parts", macs, total_bytes, total_ms, total_floor)
    line("the block", macs, total_bytes, 1000 * seconds(whole, x.device, rounds), total_floor)
    return "\n".join(lines) + "\n"


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

    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast(inputs[0].device.type, dtype, enabled=dtype != torch.float32),
    ):
        out = run(*inputs)
    del out
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def kept_table(batch: int, n: int, m: int, dim: int, num_heads: int, dtype: torch.dtype, device: torch.device) -> str:
    """Return a Markdown table: bytes for each lookup token, of one block in training, with and without a compiler."""
    lines = ["| block | kB a lookup token | of the dense block | compiled, kB | of the dense block |", "|" + "---|" * 5]
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
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def add_arguments(parser: argparse.ArgumentParser, at_least_one: Callable[[str], int]) -> None:
    """Add the options of `tools/benchmark.py block`."""
    for name, default, what in (
        ("--tokens", 1568, "lookup tokens N"), ("--compressed", 196, "compressed tokens M"), ("--batch", 1, "clips"),
        ("--rounds", 7, "medians are over so many rounds"), ("--threads", torch.get_num_threads(), "of the processor"),
    ):  # fmt: skip
        parser.add_argument(name, type=at_least_one, default=default, metavar="N", help=f"{what} (default {default})")
    parser.add_argument("--kept", action="store_true", help="memory that training keeps for backward, instead of time")
    parser.add_argument("--variant", choices=list(VIT_SIZES), default="B", help="width and heads")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")


def benchmark(arguments: argparse.Namespace, machine: dict[str, Any]) -> int:
    """Run `tools/benchmark.py block`."""
    if torch.device(arguments.device).type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {arguments.device}: this machine shows no GPU to torch")
    keep_freed_memory()  # as in `model`
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    device, dtype = torch.device(arguments.device), getattr(torch, arguments.precision)
    dim, _, num_heads = VIT_SIZES[arguments.variant]
    if arguments.kept:
        print(f"{arguments.precision}, D = {dim}, N = {arguments.tokens}, M = {arguments.compressed}\n")
        print(
            kept_table(arguments.batch, arguments.tokens, arguments.compressed, dim, num_heads, dtype, device), end=""
        )
        return 0
    with torch.inference_mode():
        return _time(arguments, machine, device, dtype)


def _time(arguments: argparse.Namespace, machine: dict[str, Any], device: torch.device, dtype: torch.dtype) -> int:
    dim, _, num_heads = VIT_SIZES[arguments.variant]
    limits = machine_limits(device, dtype, arguments.rounds)
    lookup = LookupViTBlock(dim, num_heads).to(device, dtype).eval()
    dense = TransformerBlock(dim, num_heads).to(device, dtype).eval()
    x = torch.randn(arguments.batch, arguments.tokens, dim, device=device, dtype=dtype)
    p = torch.randn(arguments.batch, arguments.compressed, dim, device=device, dtype=dtype)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else machine["processor"]
    print(
        f"{name}, {arguments.threads} threads, {arguments.precision}, torch {torch.__version__}: at most "
        f"{limits.macs_per_second / 1e9:.0f} GMACs/s in a matrix product "
        f"({limits.torch_macs_per_second / 1e9:.0f} in torch's own), {limits.bytes_per_second / 1e9:.0f} GB/s in a "
        f"copy\nD = {dim}, N = {arguments.tokens}, M = {arguments.compressed}, {arguments.batch} clips\n"
    )
    parts = lookup_parts(lookup, p, x)
    print(account("LookupViT block", parts, lambda: lookup(p, x), limits, x, arguments.rounds))
    print(account("dense block", dense_parts(dense, x), lambda: dense(x), limits, x, arguments.rounds), end="")
    return 0


if __name__ == "__main__":  # the same as tools/benchmark.py block
    sys.argv[0:1] = [str(Path(__file__).with_name("benchmark.py")), "block"]
    runpy.run_path(sys.argv[0], run_name="__main__")
