"""Patch kernels and positions of another size than the model's.

Shape letters: D width, C channels, t h w the grid of tokens or the sides of a tubelet, n positions in the source.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lookupvit_video.errors import UserError
from lookupvit_video.models.pretrained.families import FAMILIES, Family
from lookupvit_video.models.pretrained.report import Report, State
from lookupvit_video.models.tokenizer import Grid, GridResize, TubeletTokenizer, interpolation_matrix
from lookupvit_video.text import grid_name


def fit_tokenizer(
    values: State, tokenizer: TubeletTokenizer, own_grid: Grid | None, inflate: str, rotary: bool, report: Report
) -> None:
    """Bring the kernel to the model's tubelet and positions to its grid, in ``values``, and report it."""
    name, tubelet = "tokenizer.projection.weight", tokenizer.projection.kernel_size
    source = tuple(values[name].shape[2:])
    image = source[:-2] in ((), (1,))  # ours may be images' too: tubelets of one frame
    values[name] = fit_kernel(values[name], tubelet, inflate)
    inflated = f"inflated: {inflate}" if image and tubelet[0] > 1 else ""
    if source[-2:] != tubelet[1:] or (not image and source[0] != tubelet[0]):
        report.resized[name] = ", ".join(filter(None, (f"{grid_name(source)} -> {grid_name(tubelet)}", inflated)))
    elif inflated:
        report.made[name] = inflated

    name, grid = "tokenizer.positions", tokenizer.grid
    if name in values and tokenizer.positions is not None:
        n = values[name].shape[1]
        stride = tokenizer.tubelet[-1] // tubelet[-1]  # of convolutions before the kernel
        patch = (*source[:-2], *(side * stride for side in source[-2:]))
        known = own_grid if own_grid and math.prod(own_grid) == n else _source_grid(n, patch, grid)
        _fit_positions(values, name, known, grid, report)
    elif tokenizer.positions is None:
        pass
    elif FAMILIES.get(report.kind, Family()).rotary and rotary:  # two axes: the table is for what they do not say
        values[name] = torch.zeros_like(tokenizer.positions)
        report.made[name] = "zero, as the source has rotary positions only"
    elif report.kind == "VideoMAE":
        values[name] = videomae_positions(math.prod(grid), tokenizer.projection.out_channels)
        report.made[name] = "VideoMAE's fixed sines and cosines"
    name = "temporal.positions"
    if name in values:
        _fit_positions(values, name, (values[name].shape[1], 1, 1), (grid[0], 1, 1), report)


def _fit_positions(values: State, name: str, grid_in: Grid, grid_out: Grid, report: Report) -> None:
    if grid_in != grid_out:
        values[name] = GridResize(grid_in, grid_out)(values[name])  # from t = 1 it repeats them over time, as ViViT
        report.resized[name] = f"{grid_name(grid_in)} -> {grid_name(grid_out)}"


def fit_kernel(kernel: Tensor, tubelet: Sequence[int], inflate: str) -> Tensor:
    """Turn a patch kernel (D, C, p, p) or a tubelet kernel (D, C, t, p, p) into (D, C, *tubelet).

    Where the sides differ it is FlexiViT's resize (arXiv 2212.08013, section 3.4): as far as possible, the kernel gives
    for a resized patch what it gave for the patch.
    """
    if kernel.dim() == 4:
        kernel = kernel[:, :, None]
    for axis, n_out in enumerate(tubelet, start=2):
        n_in = kernel.shape[axis]
        if n_in != n_out and not (axis == 2 and n_in == 1):
            resize = torch.linalg.pinv(interpolation_matrix(n_in, n_out, antialias=True).T).float()
            kernel = torch.tensordot(kernel, resize, dims=([axis], [1])).movedim(-1, axis)
    if (t := tubelet[0]) > 1 and kernel.shape[2] == 1:
        weights = torch.full((t,), 1 / t) if inflate == "average" else torch.eye(t)[t // 2]
        kernel = kernel * weights[:, None, None]
    return kernel


def image_size(names: State) -> int:
    """Return the pixels of height and width that an image model's table of positions is for; 0 if unknown."""
    kernel, positions = names.get("tokenizer.projection.weight"), names.get("tokenizer.positions")
    if kernel is None or positions is None or kernel.dim() != 4:
        return 0
    side: int = math.isqrt(positions.shape[1]) * kernel.shape[-1]
    return side


def _source_grid(n: int, kernel: Sequence[int], grid: Grid) -> Grid:
    """Infer the grid of n positions, which is not in the file.

    An image's is square. A video's is the model's where that has n tokens, else that of 224 pixels, the size of most
    published models, else that of the model's own height and width.
    """
    if len(kernel) == 2:
        if (side := math.isqrt(n)) ** 2 == n:
            return (1, side, side)
    elif math.prod(grid) == n:
        return grid
    else:
        for side in (224 // kernel[-1], grid[1]):
            if side and n % side**2 == 0:
                return (n // side**2, side, side)
    raise UserError(f"the source has {n} positions for kernels of {grid_name(kernel)}: cannot infer their grid")


def videomae_positions(n: int, dim: int) -> Tensor:
    """Return VideoMAE's fixed table (1, n, D): sines and cosines of the token's number in t, h, w order."""
    angles = torch.arange(n).double()[:, None] / 10000 ** (torch.arange(dim).double() // 2 * 2 / dim)
    even = torch.arange(dim) % 2 == 0
    return torch.where(even, angles.sin(), angles.cos()).float()[None]
