"""Multiply-accumulates (MACs, the field's "FLOPs") of one clip in eval mode: in closed form by part, and measured.

Reading order: the paper's two formulas; the cost of one layer; ``lookupvit_macs`` and ``vit_macs``, which count what
the models in ``lookupvit.py`` and ``vit.py`` run; ``measured_macs``. What counts is what torch's counter counts: matrix
products, convolutions and attention. Norms, activations, softmax, additions and pooling by the mean count nothing.
Letters: N lookup tokens, M compressed tokens, D width, K classes, r tokens merged away by a block.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from lookupvit_video.models.attention import using_kernel
from lookupvit_video.models.budget import tokens_kept
from lookupvit_video.models.lookupvit import HEADS
from lookupvit_video.models.token_reduction import merged_per_block
from lookupvit_video.models.tokenizer import STEM_CHANNELS, Grid

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode


def vit_block_macs(n: int, dim: int) -> int:
    """MACs of a ViT block on n tokens: 2 n^2 D + 12 n D^2."""
    return 2 * n * n * dim + 12 * n * dim * dim


def lookupvit_block_macs(n: int, m: int, dim: int) -> int:
    """MACs of a LookupViT block: (3NM + 2M^2) D + (4N + 15M) D^2 (LookupViT, section 3)."""
    return (3 * n * m + 2 * m * m) * dim + (4 * n + 15 * m) * dim * dim


def tokenizer_macs(grid: Grid, tubelet: Grid, dim: int, in_channels: int = 3, convolutional: bool = False) -> int:
    """MACs of the tubelet projection, and of the ``ConvolutionalStem`` before it."""
    channels, pixels, stem = in_channels, math.prod(grid) * math.prod(tubelet), 0
    for n_out in STEM_CHANNELS if convolutional else ():
        pixels //= 4
        stem += pixels * 9 * channels * n_out
        channels = n_out
    return stem + pixels * channels * dim


def resize_macs(grid_in: Sequence[int], grid_out: Sequence[int], dim: int) -> int:
    """MACs of the separable resize, one axis after the other; an axis of equal size is skipped."""
    total = 0
    for axis, (n_in, n_out) in enumerate(zip(grid_in, grid_out, strict=True)):
        if n_in != n_out:
            total += math.prod(grid_out[:axis]) * n_out * n_in * math.prod(grid_in[axis + 1 :]) * dim
    return total


def attention_macs(n: int, dim: int) -> int:
    """MACs of self-attention on n tokens: Q, K, V and output projections, Q K^T, A V."""
    return 4 * n * dim * dim + 2 * n * n * dim


def mlp_macs(n: int, dim: int, hidden_dim: int) -> int:
    """MACs of two linear layers on n tokens."""
    return 2 * n * dim * hidden_dim


def mixing_macs(n: int, channels: int, kernel: Sequence[int]) -> int:
    """MACs of a depthwise convolution over all n tokens of a grid; also where some of them were dropped."""
    return n * channels * math.prod(kernel) if kernel else 0


def matching_macs(n: int, head_dim: int) -> int:
    """MACs of ToMe's matching: each even token against each odd one, by keys averaged over the heads."""
    return (n + 1) // 2 * (n // 2) * head_dim


def head_macs(n: int, dim: int, num_classes: int, pool: str) -> int:
    """MACs of a classifier on n tokens: its linear layer, and attentive pooling (K, V, q K^T, A V, projection)."""
    pooling = 2 * n * dim * dim + 2 * n * dim + dim * dim if pool == "attentive" else 0
    return pooling + dim * num_classes


@dataclass(frozen=True)
class Shape:
    """What LookupViT and ViT have in common, as far as it costs; names and meanings are those of their arguments."""

    grid: Grid
    """t x h x w of the lookup tokens."""
    tubelet: Grid
    dim: int
    depth: int
    num_heads: int
    num_classes: int
    encoder: str = "joint"
    """Or "factorised", or "streaming", where only the last step of a clip is classified."""
    temporal_depth: int = 4
    pool: str = "average"
    lookup_conv: tuple[int, ...] = ()
    """See ``BlockOptions``."""
    convolutional_tokenizer: bool = False
    """See ``BlockOptions``."""
    registers: int = 0
    """Of a dense ViT."""
    adapter: str = "none"
    """Kind of the adapters in the blocks, see ``add_adapters``; LoRA costs as long as it is not merged."""
    adapter_width: int = 0
    temporal_adapter: bool = False
    """Whether the temporal encoder's blocks have them too."""

    @property
    def times(self) -> int:
        """How often the blocks run for a clip: factorized and streaming, once for each time index."""
        return 1 if self.encoder == "joint" else self.grid[0]

    @property
    def block_grid(self) -> Grid:
        """The grid of the lookup tokens that a block sees together."""
        return self.grid if self.encoder == "joint" else (1, *self.grid[1:])

    def tokenizer_macs(self) -> int:
        """MACs of the tokenizer."""
        return tokenizer_macs(self.grid, self.tubelet, self.dim, convolutional=self.convolutional_tokenizer)

    def temporal_macs(self) -> int:
        """MACs of the temporal encoder on one vector per time index; 0 where there is none."""
        return self.temporal_depth * vit_block_macs(self.grid[0], self.dim) if self.encoder == "factorised" else 0

    def block_adapter_macs(self, n: int, n_mlp: int) -> int:
        """MACs of the adapters in a dense block with attention on n tokens and MLP on n_mlp."""
        sides = {
            "adaptformer": 2 * n_mlp,
            "adaptformer_code": 2 * n_mlp,
            "lora": (4 + 2) * n + (5 + 5) * n_mlp,
        }  # LoRA: in and out of each layer
        return sides.get(self.adapter, 0) * self.dim * self.adapter_width

    def exchange_adapter_macs(self, n: int, m: int) -> tuple[int, int]:
        """MACs of the adapters in a LookupViT block without its dense block: on the way up, and on the way back."""
        up = {"lora": (2 + 2) * m * self.dim + 3 * n * self.dim}  # query, projection | key and value
        back = {"adaptformer": 2 * n * self.dim, "adaptformer_code": 2 * n * self.dim,
                "lora": 2 * m * self.dim + 2 * n * self.dim + 2 * n * (self.dim + self.dim // 2)}  # fmt: skip
        return up.get(self.adapter, 0) * self.adapter_width, back.get(self.adapter, 0) * self.adapter_width

    def temporal_adapter_macs(self) -> int:
        """MACs of the adapters in the temporal encoder, for each set of tokens that is read."""
        t = self.grid[0]
        if self.adapter == "connector":
            return 2 * t * self.dim * self.adapter_width
        return self.temporal_depth * self.block_adapter_macs(t, t) if self.temporal_adapter else 0

    def head_macs(self, n: int) -> int:
        """MACs of a classifier: on n tokens, factorized on one vector per time index."""
        return head_macs(self.grid[0] if self.encoder == "factorised" else n, self.dim, self.num_classes, self.pool)


def lookupvit_macs(
    shape: Shape,
    compressed_grid: Sequence[int],
    heads: Sequence[str] = HEADS,
    inference_head: str = "average",
    blocks: int = 0,
    keep: Sequence[float] = (),
    passed: Sequence[int] = (),
) -> dict[str, int]:
    """MACs of a LookupViT for one clip, by part.

    Args:
        compressed_grid: t x h x w, factorized h x w; all zeros for the floor that no compression goes below.
        heads, inference_head: as ``LookupViT``. Where no answer comes from "lookup" the last block does not write back.
        blocks, keep: see ``Budget``.
        passed: early exits on the way that classify too, as in training.
    """
    grid = (1, *compressed_grid) if len(compressed_grid) == 2 else tuple(compressed_grid)
    n, m, dim, times = math.prod(shape.block_grid), math.prod(grid), shape.dim, shape.times
    read = heads if inference_head == "average" else (inference_head,)
    counts = tokens_kept(keep, n, shape.depth)[: blocks or shape.depth]
    infused = counts if "lookup" in read else counts[:-1]
    pooled = {"compressed": m, "lookup": n}
    readers = len(read) * (1 + len(passed))
    gathering = times * len(counts)
    adapters = [shape.exchange_adapter_macs(count, m) for count in counts]
    return {
        "tokenizer": shape.tokenizer_macs(),
        "resize": times * resize_macs(shape.block_grid, grid, dim),
        "gather": times * sum(2 * (n + m) * dim * dim + 2 * n * m * dim for n in counts),  # K, V | Q, projection | ...
        "refine_attention": gathering * attention_macs(m, dim),
        "refine_mlp": gathering * mlp_macs(m, dim, 4 * dim),
        "infuse": times * sum((n + m) * dim * dim + n * m * dim for n in infused),  # projection | V' | A^T V'
        "narrow_mlp": times * sum(mlp_macs(n, dim, dim // 2) for n in infused),
        "local_mixing": times * len(infused) * mixing_macs(n, dim // 2, shape.lookup_conv),
        "adapters": times * sum(up + shape.block_adapter_macs(m, m) for up, _ in adapters)
        + times * sum(back for _, back in adapters[: len(infused)]),
        "temporal_encoder": readers * (shape.temporal_macs() + shape.temporal_adapter_macs()),
        "memory": times * (3 * m + 1) * dim * dim if shape.encoder == "streaming" else 0,
        "heads": (1 + len(passed)) * sum(shape.head_macs(pooled[name]) for name in read),
    }


READING = ("temporal_encoder", "heads")
"""The parts that turn the tokens of the last block into an answer."""


def vit_macs(
    shape: Shape,
    tokens: str = "all",
    compressed_grid: Sequence[int] = (),
    keep_tokens: int = 0,
    merge_tokens: int = 0,
) -> dict[str, int]:
    """MACs of a dense ViT for one clip, by part; arguments as ``ViT``."""
    n = n_all = math.prod(shape.block_grid)
    dim = shape.dim
    if tokens == "resize":
        n = math.prod(compressed_grid)
    elif tokens == "random":
        n = keep_tokens
    class_token = int(shape.pool == "class")
    n += class_token + shape.registers
    merged = merged_per_block(n, merge_tokens if tokens == "merge" else 0, shape.depth, class_token)
    attention = matching = mlp = adapters = 0
    for r in merged:
        attention += attention_macs(n, dim)
        matching += matching_macs(n, dim // shape.num_heads) if r else 0
        adapters += shape.block_adapter_macs(n, n - r)
        n -= r
        mlp += mlp_macs(n, dim, 4 * dim)
    return {
        "tokenizer": shape.tokenizer_macs(),
        "resize": resize_macs(shape.grid, compressed_grid, dim) if tokens == "resize" else 0,
        "attention": shape.times * attention,
        "matching": matching,
        "mlp": shape.times * mlp,
        "local_mixing": shape.times * shape.depth * mixing_macs(n_all, 4 * dim, shape.lookup_conv),
        "adapters": shape.times * adapters,
        "temporal_encoder": shape.temporal_macs() + shape.temporal_adapter_macs(),
        "heads": shape.head_macs(n),
    }


def tokens_within(budget: int, shape: Shape, tokens: str) -> int:
    """Return the number of tokens with which a joint ViT stays within a budget of MACs.

    Args:
        tokens: "random": the most tokens that may be kept; "merge": the fewest that each block must merge away.

    Returns:
        at least 1; 0 where even the cheapest (1 token, or half of them) costs more.
    """

    def cost(count: int) -> int:
        return sum(vit_macs(shape, tokens, keep_tokens=count, merge_tokens=count).values())

    # The cost rises with the tokens kept and falls with those merged, so that bisection finds the number.
    num_tokens = math.prod(shape.grid)
    if tokens == "random":
        return bisect_right(range(1, num_tokens + 1), budget, key=cost)
    counts = range(1, num_tokens // 2 + 1)
    too_expensive = bisect_left(counts, -budget, key=lambda count: -cost(count))
    return counts[too_expensive] if too_expensive < len(counts) else 0


def _cpu_attention_flops(
    query: Sequence[int], key: Sequence[int], value: Sequence[int], *args: object, **kwargs: object
) -> int:
    from torch.utils.flop_counter import sdpa_flop_count

    flops: int = sdpa_flop_count(query, key, value)
    return flops


def flop_counter() -> "FlopCounterMode":
    """Return torch's counter, which gives two operations to a multiply-accumulate.

    Its table lacks the CPU's fused attention in some releases (which would count it as nothing): it is added here.
    """
    from torch.utils.flop_counter import FlopCounterMode  # imports Triton

    custom = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention_flops}
    return FlopCounterMode(display=False, custom_mapping=custom)


def measured_macs(model: nn.Module, *inputs: object) -> int:
    """Count the MACs of one forward pass in eval mode by running it; on the meta device this takes no memory."""
    was_training, counter = model.training, flop_counter()
    try:
        # The eager kernel computes Q K^T once, as the formula has it; others compute it again to save memory.
        with using_kernel(model, "eager"), counter, torch.no_grad():
            model.eval()(*inputs)
    finally:
        model.train(was_training)
    return counter.get_total_flops() // 2


def count_parameters(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())
