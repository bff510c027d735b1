"""Clip -> lookup tokens on a (t, h, w) grid, and the resize of that grid that makes the compressed tokens.

Shape letters: B batch, C channels, T frames, H W pixels, t h w grid, N lookup tokens, M compressed tokens, D width.
"""

import math

import torch
from torch import Tensor, nn

from lookupvit_video.errors import UserError
from lookupvit_video.models import kernels

Grid = tuple[int, int, int]
_CHANGES = 3.0  # factor of input "changes"


class TubeletTokenizer(nn.Module):
    """Cuts a clip into tubelets and projects each to a token; learnable positions are added on the same grid.

    Source: ViViT (arXiv 2103.15691), section 3.2, tubelet embedding; positions as in LookupViT (arXiv 2407.12753).

    Args:
        input: "frames", or "changes": three times each frame's difference from the clip's average frame, so that few
            videos show what moves, and not where it does.
        positions: whether there are positions to add; models that turn queries and keys may do without.
        norm: of the tokens with their positions, which CLIP has before its first block; None: none.
    """

    def __init__(
        self,
        *,
        num_frames: int,
        size: int,
        tubelet: Grid,
        dim: int,
        in_channels: int = 3,
        input: str = "frames",
        positions: bool = True,
        norm: nn.Module | None = None,
    ):
        super().__init__()
        self.changes = input == "changes"
        extent = (num_frames, size, size)
        if any(side % part for side, part in zip(extent, tubelet, strict=True)):
            raise UserError(f"a clip of {extent} (frames, height, width) cannot be cut into tubelets of {tubelet}")
        self.clip_shape = (in_channels, *extent)
        self.grid: Grid = (num_frames // tubelet[0], size // tubelet[1], size // tubelet[2])
        self.num_tokens = math.prod(self.grid)
        self.projection = nn.Conv3d(in_channels, dim, kernel_size=tubelet, stride=tubelet)
        # Learned, but from a start in which places differ as clearly as pixels do: from small random numbers, motion is
        # learned later (the order of tokens is nearly invisible next to their content).
        self.positions = nn.Parameter(sine_cosine_positions(self.grid, dim)[None]) if positions else None
        self.norm = norm
        # As a linear layer on the flattened tubelet (what it is), not as a convolution with its fan-in rules.
        nn.init.xavier_uniform_(self.projection.weight.view(dim, -1))
        nn.init.zeros_(self.projection.bias)  # type: ignore[arg-type]

    def forward(self, clip_BCTHW: Tensor) -> Tensor:
        """Turn a normalized float clip (B, C, T, H, W) into lookup tokens (B, N, D), rows in t, h, w order.

        Raises:
            UserError: the clip has another shape than this tokenizer was built for.
        """
        if tuple(clip_BCTHW.shape[1:]) != self.clip_shape:
            raise UserError(
                f"expected clips of shape (B, {', '.join(map(str, self.clip_shape))}), got {tuple(clip_BCTHW.shape)}"
            )
        weight_DC = self.projection.weight.flatten(1)
        tokens_BND = kernels.linear(self._fold(clip_BCTHW), weight_DC, self.projection.bias)
        if self.positions is None:
            tokens_BND = tokens_BND.to(weight_DC.dtype)  # autocast would keep this stream in bfloat16
        else:
            tokens_BND = tokens_BND + self.positions
        return tokens_BND if self.norm is None else self.norm(tokens_BND)

    @property
    def added_positions(self) -> Tensor | float:
        """What of the tokens is their position alone, (1, N, D); 0 where there is none, or it cannot be taken apart."""
        return 0.0 if self.positions is None or self.norm is not None else self.positions

    def pixel_variance(self, clip_BCTHW: Tensor) -> Tensor:
        """Return the variance (B, N) of each tubelet's pixels around their mean, averaged over the channels."""
        pixels_BNCP = self._fold(clip_BCTHW).unflatten(2, (self.clip_shape[0], -1))
        variance_BN: Tensor = pixels_BNCP.var(-1, correction=0).mean(-1)
        return variance_BN

    def _fold(self, clip_BCTHW: Tensor) -> Tensor:
        """Lay each tubelet's pixels out in a row (B, N, C * its volume): then the convolution is one matrix product."""
        if self.changes:
            clip_BCTHW = _CHANGES * (clip_BCTHW - clip_BCTHW.mean(2, keepdim=True))
        batch, channels = clip_BCTHW.shape[:2]
        (t, h, w), (dt, dh, dw) = self.grid, self.projection.kernel_size
        parts = clip_BCTHW.reshape(batch, channels, t, dt, h, dh, w, dw)
        return parts.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(batch, t * h * w, -1)


def _is_shape_only() -> bool:
    """Whether a model is built on the meta device, where torch would import its compiler for arithmetic."""
    return torch.get_default_device().type == "meta"


def sine_cosine_positions(grid: Grid, dim: int) -> Tensor:
    """Return (N, D) positions: a third of the width for each of t, h and w, sines and cosines of falling frequency.

    As the fixed positions of MAE (arXiv 2111.06377) and of VideoMAE, in three axes; what D leaves over is 0.
    """
    if _is_shape_only():
        return torch.empty(math.prod(grid), dim)
    n = dim // 6
    frequencies = 10000.0 ** -(torch.arange(n) / max(n, 1))
    axes = []
    for axis, length in enumerate(grid):
        angles = torch.arange(length)[:, None] * frequencies
        shape = [1, 1, 1, 2 * n]
        shape[axis] = length
        axes.append(torch.cat([angles.sin(), angles.cos()], dim=1).view(shape).expand(*grid, 2 * n))
    return nn.functional.pad(torch.cat(axes, dim=-1).flatten(0, 2), (0, dim - 6 * n))


def interpolation_matrix(n_in: int, n_out: int, *, antialias: bool) -> Tensor:
    """Return the (n_out, n_in) float64 matrix that resizes one axis linearly; each row sums to 1.

    With ``antialias`` the triangle filter widens with the reduction (as ``jax.image.resize`` and torch's 2-D
    ``antialias=True``); without, it is plain linear interpolation (torch's ``align_corners=False``).
    """
    if _is_shape_only():
        return torch.empty(n_out, n_in, dtype=torch.float64)
    scale = n_in / n_out
    width = max(scale, 1.0) if antialias else 1.0
    centers = (torch.arange(n_out, dtype=torch.float64) + 0.5) * scale - 0.5
    if not antialias:
        centers = centers.clamp(0, n_in - 1)  # beyond the first and last sample, those samples themselves
    distance = (torch.arange(n_in, dtype=torch.float64) - centers[:, None]).abs() / width
    weights = (1 - distance).clamp(min=0)
    return weights / weights.sum(1, keepdim=True)


class GridResize(nn.Module):
    """Resizes tokens from one (t, h, w) grid to another; not learned (LookupViT, section 3: the resize T).

    ``kind`` is "triangle" (antialiased) or "trilinear" (plain). It is linear and separable, hence three small
    matrix products, exact for any pair of sizes.
    """

    def __init__(self, grid_in: Grid, grid_out: Grid, kind: str = "triangle"):
        super().__init__()
        if kind not in ("triangle", "trilinear"):
            raise UserError(f"resize kind {kind!r}: choose triangle or trilinear")
        self.grid_in, self.grid_out = grid_in, grid_out
        self.num_in = math.prod(grid_in)
        for axis, (n_in, n_out) in enumerate(zip(grid_in, grid_out, strict=True)):
            matrix = interpolation_matrix(n_in, n_out, antialias=kind == "triangle").float()
            self.register_buffer(f"matrix_{axis}", matrix, persistent=False)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        """Resize (B, N, D) on ``grid_in`` to (B, M, D) on ``grid_out``."""
        batch, _, dim = tokens_BND.shape
        out = tokens_BND
        done = 1  # product of the axes already resized: they join the batch, so that no axis moves
        for axis, (n_in, n_out) in enumerate(zip(self.grid_in, self.grid_out, strict=True)):
            if n_in != n_out:
                matrix = self.get_buffer(f"matrix_{axis}").to(tokens_BND.dtype)
                out = matrix @ out.reshape(batch * done, n_in, math.prod(self.grid_in[axis + 1 :]) * dim)
            done *= n_out
        return out.reshape(batch, done, dim)
