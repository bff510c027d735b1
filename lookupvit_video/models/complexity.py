"""Multiply-accumulates (MACs, the field's "FLOPs") and parameters: in closed form, and measured.

Letters: N lookup tokens, M compressed tokens, D width, K classes. Attention is counted for every model.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from lookupvit_video.models.tokenizer import Grid


def vit_block_macs(n: int, dim: int) -> int:
    """MACs of a ViT block on n tokens: 2 n^2 D + 12 n D^2."""
    return 2 * n * n * dim + 12 * n * dim * dim


def lookupvit_block_macs(n: int, m: int, dim: int) -> int:
    """MACs of a LookupViT block: (3NM + 2M^2) D + (4N + 15M) D^2 (LookupViT, section 3)."""
    return (3 * n * m + 2 * m * m) * dim + (4 * n + 15 * m) * dim * dim


def tokenizer_macs(grid: Grid, tubelet: Grid, dim: int, in_channels: int = 3) -> int:
    """MACs of the tubelet projection."""
    return math.prod(grid) * in_channels * math.prod(tubelet) * dim


def resize_macs(grid_in: Sequence[int], grid_out: Sequence[int], dim: int) -> int:
    """MACs of the separable resize, one axis after the other; an axis of equal size is skipped."""
    total = 0
    for axis, (n_in, n_out) in enumerate(zip(grid_in, grid_out, strict=True)):
        if n_in != n_out:
            total += math.prod(grid_out[:axis]) * n_out * n_in * math.prod(grid_in[axis + 1 :]) * dim
    return total


def vit_macs(*, grid: Grid, tubelet: Grid, dim: int, depth: int, num_classes: int) -> int:
    """MACs of the dense joint ViT for one clip."""
    return tokenizer_macs(grid, tubelet, dim) + depth * vit_block_macs(math.prod(grid), dim) + dim * num_classes


def lookupvit_macs(
    *, grid: Grid, compressed_grid: Grid, tubelet: Grid, dim: int, depth: int, num_classes: int, num_heads_read: int = 2
) -> int:
    """MACs of a LookupViT for one clip; ``num_heads_read`` is 2 for the average of both classifiers, else 1."""
    blocks = depth * lookupvit_block_macs(math.prod(grid), math.prod(compressed_grid), dim)
    resize = resize_macs(grid, compressed_grid, dim)
    return tokenizer_macs(grid, tubelet, dim) + resize + blocks + num_heads_read * dim * num_classes


def _cpu_attention_flops(
    query: Sequence[int], key: Sequence[int], value: Sequence[int], *args: object, **kwargs: object
) -> int:
    return sdpa_flop_count(query, key, value)


def measured_macs(model: nn.Module, *inputs: Tensor) -> int:
    """Count the MACs of one forward pass in eval mode by running it: matrix products, convolutions, attention.

    Torch's counter gives two operations to a multiply-accumulate. Its table lacks the CPU's fused attention in some
    releases (which would count it as nothing), so that kernel is registered here.
    """
    was_training = model.training
    custom = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention_flops}
    counter = FlopCounterMode(display=False, custom_mapping=custom)
    try:
        with counter, torch.no_grad():
            model.eval()(*inputs)
    finally:
        model.train(was_training)
    return counter.get_total_flops() // 2


def count_parameters(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())
