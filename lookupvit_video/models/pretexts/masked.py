"""Masked pre-training: a model sees some of a clip's tubelets, and a narrow decoder predicts how the others change.

Sources: MAE (arXiv 2111.06377), whose encoder sees visible tokens only; VideoMAE (2203.12602), whose masks are tubes.
A decoder with the first frame and a short code is this project's; Genie (2402.15391) finds latent actions so.
Shape letters: B batch, C channels (of a code: its length), T frames, H W pixels, N lookup tokens, n visible and k
masked ones, M compressed tokens, S token sets, D width of the encoder, d of the decoder, P values of a tubelet, F of
its first frame.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lookupvit_video.models.blocks import TransformerBlock, init_linear
from lookupvit_video.models.budget import Budget, TokenState
from lookupvit_video.models.complexity import Shape, lookupvit_macs, mixing_macs, resize_macs, vit_block_macs, vit_macs
from lookupvit_video.models.contract import Features
from lookupvit_video.models.lookupvit import LookupViT
from lookupvit_video.models.pretexts.pretext import Pretext, mean_tokens
from lookupvit_video.models.tokenizer import (
    Grid,
    GridResize,
    TubeletTokenizer,
    chosen_rows,
    sine_cosine_positions,
)
from lookupvit_video.models.vit import ViT
from lookupvit_video.text import grid_name

CODE = 16  # numbers by which the encoder tells the decoder how a clip moves
DECODER_HEAD = 16  # width of one of the decoder's attention heads


class Prediction(NamedTuple):
    """What was predicted of a batch."""

    changes: Tensor
    """(B, k, P): pixels minus those of the clip's first frame at the same place."""
    masked: Tensor
    """(B, k): rows of the grid."""


def num_visible(grid: Grid, ratio: float) -> int:
    """Return how many places of a time index are visible: at least one, and at least one is masked."""
    places = grid[1] * grid[2]
    return min(max(1, round((1 - ratio) * places)), places - 1)


def tube_masks(grid: Grid, ratio: float, batch: int) -> tuple[Tensor, Tensor]:
    """Draw which rows of the grid are visible (B, n) and which masked (B, k): places, the same at all times.

    They are drawn on the CPU, so that a seed means the same on every device.

    Args:
        ratio: share of the places that are masked.
    """
    places, visible = grid[1] * grid[2], num_visible(grid, ratio)
    order_BP = torch.rand(batch, places).argsort(1)
    times_t1 = places * torch.arange(grid[0])[:, None]
    parts = (order_BP[:, :visible], order_BP[:, visible:])
    visible_Bn, masked_Bk = ((part.sort(1).values[:, None] + times_t1).flatten(1) for part in parts)
    return visible_Bn, masked_Bk


def compress_visible(resize: GridResize, tokens_BnD: Tensor, visible_Bn: Tensor, positions_1ND: Tensor) -> Tensor:
    """Return compressed tokens (B, M, D) of the visible lookup tokens, by the filters of ``resize`` renormalized.

    A compressed token that sees no visible one starts from its position.
    """
    seen_BnE = torch.cat([tokens_BnD, torch.ones_like(tokens_BnD[..., :1])], -1)
    grid_BNE = seen_BnE.new_zeros(len(seen_BnE), resize.num_in, seen_BnE.shape[-1])
    summed_BME = resize(grid_BNE.scatter(1, visible_Bn[..., None].expand_as(seen_BnE), seen_BnE))
    weight_BM1 = summed_BME[..., -1:]
    return torch.where(weight_BM1 > 1e-6, summed_BME[..., :-1] / weight_BM1.clamp(min=1e-6), resize(positions_1ND))


def first_frame(tokenizer: TubeletTokenizer, clip_BCTHW: Tensor) -> Tensor:
    """Return what is at the place of each tubelet (B, N, F) in the first frame of a clip: that of all times."""
    channels, (t, h, w) = tokenizer.clip_shape[0], tokenizer.tubelet
    first_BPC = tokenizer.fold(clip_BCTHW)[:, : tokenizer.grid[1] * tokenizer.grid[2]]
    frame_BPF: Tensor = first_BPC.unflatten(2, (channels, t, h, w))[:, :, :, 0].flatten(2)
    return frame_BPF.repeat(1, tokenizer.grid[0], 1)


class ChangeDecoder(nn.Module):
    """Predicts how masked tubelets change, from the clip's first frame and a short code of what the encoder made.

    The first frame shows what is where, so the code is left to tell how it moves: ``CODE`` numbers, in which little
    else has room. Each clip's code is read from one token set, drawn by chance, so that each of them has to know.

    Args:
        tokenizer: the encoder's.
        sets: how many token sets the encoder has.
        dim, width: D and d.
    """

    def __init__(self, tokenizer: TubeletTokenizer, sets: int, dim: int, *, width: int, depth: int):
        super().__init__()
        channels, (t, h, w) = tokenizer.clip_shape[0], tokenizer.tubelet
        self.first = nn.Linear(channels * h * w, width)
        self.positions = nn.Parameter(sine_cosine_positions(tokenizer.grid, width)[None])
        self.codes = nn.ModuleList(nn.Linear(dim, CODE) for _ in range(sets))
        self.spread = nn.Linear(CODE, width)
        self.blocks = nn.ModuleList(TransformerBlock(width, max(1, width // DECODER_HEAD)) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.predict = nn.Linear(width, channels * t * h * w)
        self.apply(init_linear)
        nn.init.zeros_(self.predict.weight)  # the first prediction: nothing changes

    def forward(self, sets_BD: Sequence[Tensor], first_BNF: Tensor, masked_Bk: Tensor) -> Tensor:
        """Return the changes (B, k, P) of the masked tubelets.

        Args:
            sets_BD: the mean token of each token set.
            first_BNF: pixels of the clip's first frame at the place of each tubelet.
        """
        codes_SBC = torch.stack([code(mean) for code, mean in zip(self.codes, sets_BD, strict=True)])
        chosen_B = torch.randint(len(codes_SBC), (len(first_BNF),)).to(first_BNF.device, non_blocking=True)
        code_BC = (codes_SBC * F.one_hot(chosen_B, len(codes_SBC)).T[..., None].to(codes_SBC)).sum(0)
        x_BNd = self.first(first_BNF) + self.positions + self.spread(code_BC)[:, None]
        for block in self.blocks:
            x_BNd = block(x_BNd)
        values_BkP: Tensor = self.predict(self.norm(chosen_rows(x_BNd, masked_Bk)))
        return values_BkP


class MaskedModel(Pretext):
    """A model, and the decoder of its masked pre-training.

    Args:
        encoder: see ``Pretext``.
        ratio: share of the tubes that are masked.
        width, depth: d and number of blocks of the decoder.
    """

    def __init__(self, encoder: LookupViT | ViT, *, ratio: float, width: int, depth: int):
        super().__init__(encoder)
        self.ratio = ratio
        dim, sets = encoder.tokenizer.projection.out_channels, 2 if isinstance(encoder, LookupViT) else 1
        self.decoder = ChangeDecoder(encoder.tokenizer, sets, dim, width=width, depth=depth)

    @property
    def parts(self) -> Sequence[nn.Module]:
        """The modules with blocks."""
        return self.encoder, self.decoder

    def encode(self, clip_BCTHW: Tensor, visible_Bn: Tensor, budget: Budget | Sequence[int] | None = None) -> Features:
        """Return what the encoder makes of the visible tubelets of a normalized clip: lookup tokens (B, n, D)."""
        encoder, tokenizer = self.encoder, self.encoder.tokenizer
        tokens_BnD = tokenizer(clip_BCTHW, visible_Bn)
        if isinstance(encoder, ViT):
            for block in encoder.blocks:
                tokens_BnD = block(tokens_BnD)
            return Features(tokens_BnD, None)
        budget = encoder.check_budget(budget)
        resize = encoder.compress[grid_name(budget.grid)]
        assert isinstance(resize, GridResize)
        assert tokenizer.positions is not None
        compressed_BMD = compress_visible(resize, tokens_BnD, visible_Bn, tokenizer.positions).to(tokens_BnD.dtype)
        state = encoder.advance(TokenState(compressed_BMD, tokens_BnD, kept=visible_Bn), budget)
        return Features(state.lookup, None, compressed=state.compressed, compressed_grid=resize.grid_out)

    def forward(self, clip_BCTHW: Tensor, budget: Budget | Sequence[int] | None = None) -> Prediction:  # type: ignore[override]
        """Predict the tubelets of a normalized clip (B, C, T, H, W) that a mask hides; each call draws another mask.

        Args:
            budget: of a LookupViT; all blocks and tokens are used.
        """
        device = clip_BCTHW.device
        masks = tube_masks(self.encoder.tokenizer.grid, self.ratio, len(clip_BCTHW))
        visible_Bn, masked_Bk = (rows.to(device, non_blocking=True) for rows in masks)
        sets_BD = mean_tokens(self.encode(clip_BCTHW, visible_Bn, budget))
        first_BNF = first_frame(self.encoder.tokenizer, clip_BCTHW)
        return Prediction(self.decoder(sets_BD, first_BNF, masked_Bk), masked_Bk)


def masked_macs(
    shape: Shape, ratio: float, width: int, depth: int, compressed_grid: Sequence[int] = (), heads: Sequence[str] = ()
) -> dict[str, int]:
    """MACs of ``MaskedModel`` for one clip, by part.

    Args:
        ratio, width, depth: as ``MaskedModel``.
        compressed_grid, heads: of a LookupViT; without a grid, a dense ViT.
    """
    grid, dim, mixing = shape.grid, shape.dim, shape.lookup_conv
    n_all, n = math.prod(grid), grid[0] * num_visible(grid, ratio)
    seen = Shape((n, 1, 1), shape.tubelet, dim, shape.depth, shape.num_heads, shape.num_classes)
    if compressed_grid:
        parts = lookupvit_macs(seen, compressed_grid, heads=heads)
        parts["resize"] = resize_macs(grid, compressed_grid, 2 * dim + 1)  # tokens with their weight, and positions
        writing = shape.depth if "lookup" in heads else shape.depth - 1
        parts["local_mixing"] = writing * mixing_macs(n_all, dim // 2, mixing)
    else:
        parts = vit_macs(seen)
    sets, frame = (2 if compressed_grid else 1), 3 * math.prod(shape.tubelet[1:])
    code = sets * dim * CODE + CODE * width
    pixels = n_all * frame * width + (n_all - n) * width * frame * shape.tubelet[0]
    decoder = depth * vit_block_macs(n_all, width) + code + pixels
    return {name: count for name, count in parts.items() if name != "heads"} | {"decoder": decoder}
