"""Rotary positions over two or three axes (RoFormer, arXiv 2104.09864): queries and keys turn with their place.

Each axis of the grid turns its own part of a head's channels, pair by pair, at frequencies that fall from 1. What is
known of the published models is one line of ``FORMS``; what they compute is the same ``rotate``.
Shape letters: B batch, H heads, n tokens, d width of a head, t h w grid.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lookupvit_video.errors import UserError

Place = Callable[[Tensor, int, int], Tensor]
"""Token numbers (n,) along an axis, 0 to length - 1, its length, that length in pre-training -> what is turned by."""


def _number(at_n: Tensor, length: int, reference: int) -> Tensor:
    return at_n


def _from_one(at_n: Tensor, length: int, reference: int) -> Tensor:
    return at_n + 1


def _stretched(at_n: Tensor, length: int, reference: int) -> Tensor:
    return at_n * (reference - 1) / max(length - 1, 1)


def _centered(at_n: Tensor, length: int, reference: int) -> Tensor:
    return 2 * math.pi * ((at_n + 0.5) * 2 / length - 1)


class Form(NamedTuple):
    """How a family of models turns its queries and keys."""

    axes: tuple[int, ...]
    """In the order of their channels: 0 is time, 1 height, 2 width."""
    base: float
    """The lowest frequency is about 1 / base."""
    layout: str
    """Which channels are a pair: "pairs": neighbors; "halves": one of each half of the head; "tiled": neighbors, but
    the two are turned by different frequencies, as V-JEPA 2 does."""
    place: Place
    """Of the axes of an image."""
    time: Place = _number

    @property
    def has_table(self) -> bool:
        """Whether a learned table of positions is added to the tokens too: two axes do not say what time it is."""
        return 0 not in self.axes


FORMS = {
    "vjepa2": Form((0, 1, 2), 1e4, "tiled", _number),  # facebookresearch/vjepa2, src/models/utils/modules.py
    "vjepa2_1": Form((0, 1, 2), 1e4, "pairs", _stretched),  # the same, app/vjepa_2_1/models/utils/modules.py
    "dinov3": Form((1, 2), 100.0, "halves", _centered),  # arXiv 2508.10104; transformers, dinov3_vit
    "pe": Form((2, 1), 1e4, "pairs", _from_one),  # Perception Encoder, arXiv 2504.13181; timm, eva.py
}
PRETRAINING_SIZE = 256  # pixels: V-JEPA 2.1 stretches every image to the places of this one


class Rotary(NamedTuple):
    """By what n tokens are turned."""

    cosine: Tensor
    """(n, d), or (B, 1, n, d) where clips differ."""
    sine: Tensor
    halves: bool

    def of(self, rows_Bn: Tensor | None) -> "Rotary":
        """Return that of some of the tokens, which differ from clip to clip; None: all."""
        if rows_Bn is None:
            return self
        return self._replace(cosine=self.cosine[rows_Bn][:, None], sine=self.sine[rows_Bn][:, None])


class RotaryTable(nn.Module):
    """The turns of the tokens on a grid, or of coarser tokens at the centers of their cells of it.

    Args:
        form: one of ``FORMS``.
        grid: t x h x w of the tokens that places are numbered by.
        cells: t x h x w of the tokens; None: as ``grid``.
        dim: d.
        patch: pixels of a token's height and width.
        prefix: how many tokens without a place come first; they are not turned.

    Raises:
        UserError: there is no such form, or heads are too narrow for it.
    """

    def __init__(
        self,
        form: str,
        grid: Sequence[int],
        dim: int,
        patch: Sequence[int],
        cells: Sequence[int] | None = None,
        prefix: int = 0,
    ):
        super().__init__()
        if form not in FORMS:
            raise UserError(f"rotary positions {form!r}: choose {', '.join(FORMS)}")
        self.halves = FORMS[form].layout == "halves"
        if dim % 2 or dim < 2 * len(FORMS[form].axes):
            raise UserError(f"rotary positions: heads of {dim} channels are too narrow; set MODEL.NUM_HEADS to fewer")
        angles_nd = _angles(FORMS[form], grid, cells or grid, dim, patch)
        angles_nd = F.pad(angles_nd, (0, 0, prefix, 0))
        self.register_buffer("cosine", angles_nd.cos().float(), persistent=False)
        self.register_buffer("sine", angles_nd.sin().float(), persistent=False)

    def forward(self) -> Rotary:
        """Return the turns, (n, d)."""
        return Rotary(self.get_buffer("cosine"), self.get_buffer("sine"), self.halves)


def _angles(form: Form, grid: Sequence[int], cells: Sequence[int], dim: int, patch: Sequence[int]) -> Tensor:
    """Return by what each channel is turned, (n, d)."""
    if torch.get_default_device().type == "meta":  # see ``tokenizer.sine_cosine_positions``
        return torch.empty(math.prod(cells), dim, dtype=torch.float64)
    pairs = dim // (2 * len(form.axes))
    frequencies = form.base ** -(torch.arange(pairs, dtype=torch.float64) / pairs)
    parts = []
    for axis in form.axes:
        length, count = grid[axis], cells[axis]
        at = (torch.arange(count, dtype=torch.float64) + 0.5) * length / count - 0.5
        place = form.place(at, length, PRETRAINING_SIZE // patch[axis - 1]) if axis else form.time(at, length, length)
        angles = place[:, None] * frequencies
        if form.layout != "halves":
            angles = angles.tile(2) if form.layout == "tiled" else angles.repeat_interleave(2, dim=-1)
        shape = [1, 1, 1, angles.shape[1]]
        shape[axis] = count
        parts.append(angles.view(shape).expand(*cells, angles.shape[1]))
    angles_nd = torch.cat(parts, dim=-1).flatten(0, 2)
    if form.layout == "halves":
        return F.pad(angles_nd, (0, dim // 2 - angles_nd.shape[1])).tile(2)
    return F.pad(angles_nd, (0, dim - angles_nd.shape[1]))  # channels that are left over are not turned


def rotate(x_BHnd: Tensor, rotary: Rotary | None) -> Tensor:
    """Turn queries or keys (B, H, n, d) by their places; None: leave them as they are."""
    if rotary is None:
        return x_BHnd
    if rotary.halves:
        first, second = x_BHnd.chunk(2, dim=-1)
        across = torch.cat([-second, first], dim=-1)
    else:
        first, second = x_BHnd.unflatten(-1, (-1, 2)).unbind(-1)
        across = torch.stack([-second, first], dim=-1).flatten(-2)
    return (x_BHnd * rotary.cosine + across * rotary.sine).to(x_BHnd.dtype)
