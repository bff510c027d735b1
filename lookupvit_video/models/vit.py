"""Dense baselines on the tokens of the same tokenizer: joint and factorized space-time ViT, and ViTs on fewer tokens.

Sources: ViViT (arXiv 2103.15691), models 1 and 2; for the reductions see ``token_reduction.py``.
Shape letters: B batch, C channels, T frames, H W pixels, N tokens, D width, K classes.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lookupvit_video.errors import UserError
from lookupvit_video.models.blocks import (
    PLAIN,
    POOLS,
    BlockOptions,
    Classifier,
    TemporalEncoder,
    TransformerBlock,
    drop_path_rates,
    init_linear,
)
from lookupvit_video.models.contract import Features, Output, VideoModel
from lookupvit_video.models.kernels.rotary import RotaryTable
from lookupvit_video.models.token_reduction import MergingBlock, RandomTokens, merged_per_block
from lookupvit_video.models.tokenizer import Grid, GridResize, TubeletTokenizer

TOKENS = ("all", "resize", "random", "merge")


class ViT(VideoModel):
    """Every token attends to every token.

    Args:
        num_classes, num_frames, size, tubelet, dim, depth, num_heads, drop_path, dropout, encoder, temporal_depth,
            options: as ``LookupViT``.
        pool: see ``Classifier``; "class" adds a class token.
        tokens: "all"; "resize": only the tokens that a LookupViT would call compressed; "random": ``keep_tokens`` of
            them at random; "merge": each block merges ``merge_tokens`` away (ToMe).
        registers: how many learned tokens without a place stand next to the others and are dropped at the end (arXiv
            2309.16588); those of published weights, and their class token where ``pool`` has no use for it.
        compressed_grid: for "resize".
        resize: as ``LookupViT``.
    """

    tokenizer: TubeletTokenizer
    blocks: nn.ModuleList

    def __init__(
        self,
        *,
        num_classes: int,
        num_frames: int = 16,
        size: int = 224,
        tubelet: Grid = (2, 16, 16),
        input: str = "frames",
        encoder: str = "joint",
        temporal_depth: int = 4,
        dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        pool: str = "average",
        tokens: str = "all",
        compressed_grid: Grid = (4, 7, 7),
        keep_tokens: int = 0,
        merge_tokens: int = 0,
        registers: int = 0,
        resize: str = "triangle",
        drop_path: float = 0.0,
        dropout: float = 0.0,
        options: BlockOptions = PLAIN,
    ):
        super().__init__()
        self.options = options
        _check_tokens(pool, tokens, encoder, options, registers)
        self.tokenizer = options.tokenizer(num_frames=num_frames, size=size, tubelet=tubelet, dim=dim, input=input)
        self.token_grid: Grid | None = self.tokenizer.grid
        self.reduce: nn.Module = nn.Identity()
        num_tokens = self.tokenizer.num_tokens
        if tokens == "resize":
            self.reduce, self.token_grid = GridResize(self.tokenizer.grid, compressed_grid, resize), compressed_grid
        elif tokens == "random":
            self.reduce, self.token_grid = RandomTokens(num_tokens, keep_tokens), None
        elif tokens == "merge":
            self.token_grid = None
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim)) if pool == "class" else None
        if self.class_token is not None:
            nn.init.trunc_normal_(self.class_token, std=0.02)
        protected = int(pool == "class")
        self.merged = (
            merged_per_block(num_tokens + protected, merge_tokens, depth, protected) if tokens == "merge" else None
        )
        block = MergingBlock if tokens == "merge" else TransformerBlock
        times = 1 if encoder == "factorised" else self.tokenizer.grid[0]
        grid = (times, *self.tokenizer.grid[1:])
        make = partial(block, dim, num_heads, options=options, grid=grid)
        self.registers = _learned_tokens(registers, dim) if registers else None
        table = partial(RotaryTable, options.rotary, grid, dim // num_heads, tubelet[1:])
        self.rotary = table(prefix=protected + registers) if options.rotary else None
        self.blocks = nn.ModuleList(make(rate) for rate in drop_path_rates(drop_path, depth))
        self.head = Classifier(dim, num_classes, dropout, pool, num_heads, options)
        self.blocks.apply(init_linear)
        self.temporal: TemporalEncoder | None = None
        if encoder == "factorised":
            self.frame_norm = options.norm(dim)
            self.temporal = TemporalEncoder(
                length=self.tokenizer.grid[0], dim=dim, depth=temporal_depth, num_heads=num_heads, options=options
            )

    def forward_features(self, clip_BCTHW: Tensor, by_block: bool = False) -> Features:
        """Run tokenizer and blocks on a normalized clip (B, C, T, H, W).

        Args:
            by_block: return the tokens after each block as well; only where all are kept.
        """
        x_BND = self.tokenizer(clip_BCTHW)
        x_BND = self.reduce(x_BND).to(x_BND.dtype)  # autocast would keep a resized stream in bfloat16
        batch, _, dim = x_BND.shape
        if self.temporal is not None:
            x_BND = x_BND.unflatten(1, (self.tokenizer.grid[0], -1)).flatten(0, 1)  # a block sees one time index
        first = [token for token in (self.class_token, self.registers) if token is not None]
        if self.tokenizer.norm is not None:
            first = [self.tokenizer.norm(token) for token in first]
        if first:
            groups = x_BND.shape[0]
            x_BND = torch.cat([*(token.expand(groups, -1, -1).to(x_BND.dtype) for token in first), x_BND], dim=1)
        rotary = () if self.rotary is None else (self.rotary(),)
        prefix = sum(token.shape[1] for token in first)
        found: list[tuple[Tensor, Tensor | None]] = []
        if self.merged is not None:
            sizes_BN = torch.ones_like(x_BND[..., 0])
            for block, r in zip(self.blocks, self.merged, strict=True):
                x_BND, sizes_BN = block.forward_merging(x_BND, sizes_BN, r, int(self.class_token is not None))  # type: ignore[operator]
        else:
            for block in self.blocks:
                x_BND = block(x_BND, *rotary)
                if by_block:
                    found.append((x_BND[:, prefix:], None))
        class_token = None if self.class_token is None else x_BND[:, :1]
        tokens_BND = x_BND[:, prefix:]
        return Features(tokens_BND.reshape(batch, -1, dim), self.token_grid, class_token, by_block=found)

    def normed_tokens(self, features: Features, name: str) -> Tensor:
        """See `VideoModel.normed_tokens`: (B, N, D); all tokens of a dense model are lookup tokens."""
        if name != "lookup":
            raise UserError(f"{name} tokens: a dense ViT has lookup tokens only")
        norm: Any = self.head.norm if self.temporal is None else self.frame_norm
        normed: Tensor = norm(features.tokens)
        return normed

    def forward_head(self, features: Features) -> Output:
        """Classify what ``forward_features`` returned, by way of the temporal transformer where there is one."""
        if self.temporal is not None:
            frames_BtnD = self.frame_norm(features.tokens).unflatten(1, (self.tokenizer.grid[0], -1))
            features = Features(self.temporal(frames_BtnD.mean(dim=2)), features.grid)
        return super().forward_head(features)


def _learned_tokens(count: int, dim: int) -> nn.Parameter:
    with torch.random.fork_rng(devices=[]):  # all other weights start as they do without
        return nn.Parameter(nn.init.trunc_normal_(torch.empty(1, count, dim), std=0.02))


def _check_tokens(pool: str, tokens: str, encoder: str, options: BlockOptions, registers: int) -> None:
    if pool not in (*POOLS, "attentive"):
        raise UserError(f"pool {pool!r}: choose {', '.join((*POOLS, 'attentive'))}")
    if tokens not in TOKENS:
        raise UserError(f"tokens {tokens!r}: choose {', '.join(TOKENS)}")
    if encoder == "factorised" and (pool == "class" or tokens != "all"):
        raise UserError("a factorized encoder takes all tokens and has no class token")
    if options.lookup_conv and (pool == "class" or tokens != "all" or registers):
        raise UserError("a convolution in the MLP takes all tokens and no class token or registers")
    if tokens != "all" and (options.rotary or registers):
        raise UserError("rotary positions and registers are for all tokens; set MODEL.TOKENS all")


# Tubelets of 16 x 16 pixels and 2 frames; further arguments as those of the class.
vit_tiny_16x2 = partial(ViT, dim=192, depth=12, num_heads=3)
vit_small_16x2 = partial(ViT, dim=384, depth=12, num_heads=6)
vit_base_16x2 = partial(ViT, dim=768, depth=12, num_heads=12)
vit_large_16x2 = partial(ViT, dim=1024, depth=24, num_heads=16)
