"""Clip -> lookup tokens on a (t, h, w) grid, and the resize of that grid that makes the compressed tokens.

Shape letters: B batch, C channels, T frames, H W pixels, t h w grid, N lookup tokens, M compressed tokens, D width.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from lookupvit_video.errors import UserError
from lookupvit_video.models import kernels

Grid = tuple[int, int, int]
_CHANGES = 3.0  # factor of input "changes"
STEM_CHANNELS = (16, 64)  # of the convolutions before the projection, each of which halves height and width
STEM_STRIDE = 2 ** len(STEM_CHANNELS)


class ConvolutionalStem(nn.Module):
    """3 x 3 convolutions with stride 2 over the pixels of each frame, with a GELU after each.

    Source: Early convolutions help transformers see better (arXiv 2106.14881): a few such layers, then a
    projection to the width. Batch norm is left out: a clip's tokens would depend on the other clips of its batch.
    """

    def __init__(self, in_channels: int = 3):
        super().__init__()
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise((in_channels, *STEM_CHANNELS)):
            layer = nn.Conv2d(n_in, n_out, kernel_size=3, stride=2, padding=1)
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")  # keeps the scale of the pixels
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
            layers += [layer, nn.GELU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, clip_BCTHW: Tensor) -> Tensor:
        """Map (B, C, T, H, W) to (B, 64, T, H / 4, W / 4)."""
        clip_BTCHW = clip_BCTHW.transpose(1, 2)
        features_RChw = self.layers(clip_BTCHW.flatten(0, 1))  # R = B T; conv3d over one frame takes longer
        features_BTChw: Tensor = features_RChw.unflatten(0, clip_BTCHW.shape[:2])
        return features_BTChw.transpose(1, 2)


class TubeletTokenizer(nn.Module):
    """Cuts a clip into tubelets and projects each to a token; learnable positions are added on the same grid.

    Source: ViViT (arXiv 2103.15691), section 3.2, tubelet embedding; positions as in LookupViT (arXiv 2407.12753).

    Args:
        input: "frames", or "changes": three times each frame's difference from the clip's average frame, so that few
            videos show what moves, and not where it does.
        positions: whether there are positions to add; models that turn queries and keys may do without.
        norm: of the tokens with their positions, which CLIP has before its first block; None: none.
        convolutional: a ``ConvolutionalStem`` comes first, and its features are cut and projected, not the pixels;
            height and width of the tubelet must be multiples of 4.
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
        convolutional: bool = False,
    ):
        super().__init__()
        self.changes = input == "changes"
        extent = (num_frames, size, size)
        if any(side % part for side, part in zip(extent, tubelet, strict=True)):
            raise UserError(f"a clip of {extent} (frames, height, width) cannot be cut into tubelets of {tubelet}")
        self.clip_shape = (in_channels, *extent)
        self.grid: Grid = (num_frames // tubelet[0], size // tubelet[1], size // tubelet[2])
        self.num_tokens = math.prod(self.grid)
        self.tubelet = tubelet
        self.projection = _projection(in_channels, dim, tubelet)
        # Learned, but from a start in which places differ as clearly as pixels do: from small random numbers, motion is
        # learned later (the order of tokens is nearly invisible next to their content).
        self.positions = nn.Parameter(sine_cosine_positions(self.grid, dim)[None]) if positions else None
        self.norm = norm
        self.stem: ConvolutionalStem | None = None
        if convolutional:
            self._add_stem(in_channels, dim)

    def _add_stem(self, in_channels: int, dim: int) -> None:
        t, h, w = self.tubelet
        if h % STEM_STRIDE or w % STEM_STRIDE:
            raise UserError(f"tubelet {self.tubelet}: convolutions need a height and width divisible by {STEM_STRIDE}")
        with torch.random.fork_rng(devices=[]):  # all other weights start as they do without
            self.stem = ConvolutionalStem(in_channels)
            self.projection = _projection(STEM_CHANNELS[-1], dim, (t, h // STEM_STRIDE, w // STEM_STRIDE))

    def forward(self, clip_BCTHW: Tensor, rows_Bn: Tensor | None = None) -> Tensor:
        """Turn a normalized float clip (B, C, T, H, W) into lookup tokens (B, N, D), rows in t, h, w order.

        Args:
            rows_Bn: make only these of the N tokens (B, n, D).

        Raises:
            UserError: the clip has another shape than this tokenizer was built for.
        """
        if tuple(clip_BCTHW.shape[1:]) != self.clip_shape:
            raise UserError(
                f"expected clips of shape (B, {', '.join(map(str, self.clip_shape))}), got {tuple(clip_BCTHW.shape)}"
            )
        weight_DC = self.projection.weight.flatten(1)
        pixels_BNC: Tensor = in_rows(self._shown(clip_BCTHW), self.grid)
        positions_BND: Tensor | None = self.positions
        if rows_Bn is not None:
            pixels_BNC = chosen_rows(pixels_BNC, rows_Bn)
            positions_BND = None if positions_BND is None else chosen_rows(positions_BND, rows_Bn)
        tokens_BND = kernels.linear(pixels_BNC, weight_DC, self.projection.bias)
        if positions_BND is None:
            tokens_BND = tokens_BND.to(weight_DC.dtype)  # autocast would keep this stream in bfloat16
        else:
            tokens_BND = tokens_BND + positions_BND
        return tokens_BND if self.norm is None else self.norm(tokens_BND)

    def unfold(self, pixels_BNC: Tensor) -> Tensor:
        """Return the clip (B, C, T, H, W) whose tubelets' pixels these are."""
        (t, h, w), (dt, dh, dw) = self.grid, self.tubelet
        parts = pixels_BNC.reshape(len(pixels_BNC), t, h, w, self.clip_shape[0], dt, dh, dw)
        return parts.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(len(parts), *self.clip_shape)

    @property
    def added_positions(self) -> Tensor | float:
        """What of the tokens is their position alone, (1, N, D); 0 where there is none, or it cannot be taken apart."""
        return 0.0 if self.positions is None or self.norm is not None else self.positions

    def pixel_variance(self, clip_BCTHW: Tensor) -> Tensor:
        """Return the variance (B, N) of each tubelet's pixels around their mean, averaged over the channels."""
        pixels_BNCP = self.fold(clip_BCTHW).unflatten(2, (self.clip_shape[0], -1))
        variance_BN: Tensor = pixels_BNCP.var(-1, correction=0).mean(-1)
        return variance_BN

    def fold(self, clip_BCTHW: Tensor) -> Tensor:
        """Lay each tubelet's pixels out in a row (B, N, C * its volume)."""
        return in_rows(self._input(clip_BCTHW), self.grid)

    def _input(self, clip_BCTHW: Tensor) -> Tensor:
        return _CHANGES * (clip_BCTHW - clip_BCTHW.mean(2, keepdim=True)) if self.changes else clip_BCTHW

    def _shown(self, clip_BCTHW: Tensor) -> Tensor:
        """Return what the projection sees: the pixels, or the stem's features."""
        clip_BCTHW = self._input(clip_BCTHW)
        return clip_BCTHW if self.stem is None else self.stem(clip_BCTHW)


def _projection(in_channels: int, dim: int, sides: Grid) -> nn.Conv3d:
    projection = nn.Conv3d(in_channels, dim, kernel_size=sides, stride=sides)
    # As a linear layer on the flattened tubelet (what it is), not as a convolution with its fan-in rules.
    nn.init.xavier_uniform_(projection.weight.view(dim, -1))
    nn.init.zeros_(projection.bias)  # type: ignore[arg-type]
    return projection


def in_rows(clip_BCTHW: Tensor, grid: Grid) -> Tensor:
    """Lay each tubelet out in a row (B, N, C * its volume): then a convolution over it is one matrix product."""
    batch, channels, *sides = clip_BCTHW.shape
    (t, h, w), (dt, dh, dw) = grid, (side // count for side, count in zip(sides, grid, strict=True))
    parts = clip_BCTHW.reshape(batch, channels, t, dt, h, dh, w, dw)
    return parts.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(batch, t * h * w, -1)


def chosen_rows(tokens_BND: Tensor, rows_Bn: Tensor) -> Tensor:
    """Return some rows (B, n, D) of tokens (B, N, D) or (1, N, D)."""
    tokens_BND = tokens_BND.expand(len(rows_Bn), -1, -1)
    return tokens_BND.gather(1, rows_Bn[..., None].expand(-1, -1, tokens_BND.shape[-1]))


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
