"""LookupViT for video: heavy work on few compressed tokens, which look up what they need in many lookup tokens.

Paper: LookupViT: Compressing visual information to a limited number of tokens (ECCV 2024, arXiv 2407.12753).
Reading order: ``LookupViT.forward``, ``forward_features``, ``forward_head``.
Shape letters: B batch, C channels, T frames, H W pixels, N lookup tokens, M compressed tokens, D width, K classes.
"""

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from lookupvit_video.errors import UserError
from lookupvit_video.models.blocks import (
    PLAIN,
    BlockOptions,
    Classifier,
    LookupViTBlock,
    TemporalEncoder,
    drop_path_rates,
    init_linear,
)
from lookupvit_video.models.contract import Features, Output, VideoModel
from lookupvit_video.models.tokenizer import Grid, GridResize, TubeletTokenizer
from lookupvit_video.text import grid_name

HEADS = ("compressed", "lookup")


class LookupViT(VideoModel):
    """Video (or, with one frame, image) classifier of LookupViT blocks with one head on each token set.

    Args:
        num_classes: K.
        num_frames: T; a multiple of ``tubelet[0]``. One frame and a tubelet (1, p, p): the paper's image model.
        size: H and W in pixels; a multiple of ``tubelet[1]`` and ``tubelet[2]``.
        tubelet: frames x height x width of one lookup token.
        input: "frames" or "changes", see ``TubeletTokenizer``.
        compressed_grid: t x h x w of the compressed tokens, at most the grid of the lookup tokens; h x w of every time
            index where the encoder is factorized. The default of ``forward``.
        grids: further grids that ``forward`` takes: one set of weights serves them all.
        encoder: "joint": tokens of all times together; "factorised": the blocks see one time index at a time, and a
            temporal transformer sees one vector per time index (ViViT, arXiv 2103.15691, model 2).
        temporal_depth: blocks of that temporal transformer.
        dim, depth, num_heads: width D, number of blocks, attention heads.
        resize: "triangle" (antialiased) or "trilinear", see ``GridResize``.
        heads: which token sets have a classifier; the loss averages over them.
        inference_head: "average" (of the heads' logits), or one of ``heads``.
        pool: "average", "average_norm" or "attentive", see ``Classifier``.
        drop_path: stochastic depth of the last block; it rises linearly from 0.
        dropout: before each classifier.
        options: see ``BlockOptions``.
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
        compressed_grid: tuple[int, ...] = (4, 7, 7),
        grids: Sequence[tuple[int, ...]] = (),
        encoder: str = "joint",
        temporal_depth: int = 4,
        dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        resize: str = "triangle",
        heads: Sequence[str] = HEADS,
        inference_head: str = "average",
        pool: str = "average",
        drop_path: float = 0.0,
        dropout: float = 0.0,
        options: BlockOptions = PLAIN,
    ):
        super().__init__()
        if not heads or not set(heads) <= set(HEADS):
            raise UserError(f"heads {list(heads)}: choose from {', '.join(HEADS)}")
        if inference_head not in ("average", *heads):
            raise UserError(f"inference head {inference_head!r}: choose {', '.join(('average', *heads))}")
        if pool not in ("average", "average_norm", "attentive"):
            raise UserError(f"pool {pool!r}: choose average, average_norm or attentive (there is no class token)")
        self.inference_heads = tuple(heads) if inference_head == "average" else (inference_head,)
        self.tokenizer = TubeletTokenizer(num_frames=num_frames, size=size, tubelet=tubelet, dim=dim, input=input)
        t, h, w = self.tokenizer.grid
        self.block_grid: Grid = (1, h, w) if encoder == "factorised" else (t, h, w)
        self.grids = tuple(dict.fromkeys(map(tuple, (compressed_grid, *grids))))
        self.compress = nn.ModuleDict({grid_name(grid): self._resize(grid, resize) for grid in self.grids})
        lookup_is_read = "lookup" in heads
        self.blocks = nn.ModuleList(
            LookupViTBlock(dim, num_heads, rate, options, writes_back=lookup_is_read or i < depth - 1)
            for i, rate in enumerate(drop_path_rates(drop_path, depth))
        )
        self.heads = nn.ModuleDict(
            {name: Classifier(dim, num_classes, dropout, pool, num_heads, options) for name in heads}
        )
        self.blocks.apply(init_linear)
        self.temporal: TemporalEncoder | None = None
        if encoder == "factorised":
            self.frame_norms = nn.ModuleDict({name: options.norm(dim) for name in heads})
            self.temporal = TemporalEncoder(
                length=t, dim=dim, depth=temporal_depth, num_heads=num_heads, options=options
            )

    def _resize(self, grid: tuple[int, ...], kind: str) -> GridResize:
        t, h, w = (1, *grid) if len(grid) == 2 else grid
        if any(out > side for out, side in zip((t, h, w), self.block_grid, strict=True)):
            raise UserError(f"compressed grid {grid} is larger than the grid of lookup tokens {self.block_grid}")
        return GridResize(self.block_grid, (t, h, w), kind)

    def forward_features(
        self,
        clip_BCTHW: Tensor,
        grid: tuple[int, ...] | None = None,
        return_attention: bool = False,
        heads: Sequence[str] = HEADS,
    ) -> Features:
        """Run tokenizer and blocks on a normalized clip (B, C, T, H, W), without the heads.

        Args:
            grid: of the compressed tokens, one that the model was made with; None: ``compressed_grid``.
            return_attention: keep every block's attention weights.
            heads: the token sets that heads will read; without "lookup" the last block does not write back.

        Raises:
            UserError: the model was not made with this grid.
        """
        grid = self.grids[0] if grid is None else tuple(grid)
        if grid_name(grid) not in self.compress:
            known = ", ".join(self.compress)
            raise UserError(f"compressed grid {grid_name(grid)}: this model was made with {known}")
        compress = self.compress[grid_name(grid)]
        assert isinstance(compress, GridResize)
        tokens_BND = self.tokenizer(clip_BCTHW)
        batch, _, dim = tokens_BND.shape
        # Factorized: time joins the batch, so that a block sees one time index.
        lookup = tokens_BND.reshape(-1, compress.num_in, dim)
        # The resize is linear: one resize of tokens plus positions equals the paper's sum of two.
        compressed = compress(lookup).to(lookup.dtype)  # autocast would keep this stream in bfloat16
        attention = []
        for i, block in enumerate(self.blocks):
            writes_back = "lookup" in heads or i < len(self.blocks) - 1
            compressed, lookup, weights = block(compressed, lookup, writes_back, return_attention)
            if return_attention:
                attention.append(weights)
        t, h, w = self.tokenizer.grid
        steps = t if self.temporal is not None else compress.grid_out[0]
        return Features(
            tokens=lookup.reshape(batch, -1, dim),
            grid=(t, h, w),
            compressed=compressed.reshape(batch, -1, dim),
            compressed_grid=(steps, *compress.grid_out[1:]),
            attention=attention,
        )

    def _logits(self, name: str, features: Features) -> Tensor:
        tokens = features.compressed if name == "compressed" else features.tokens
        assert tokens is not None
        if self.temporal is not None:
            frames_Btnd = self.frame_norms[name](tokens).unflatten(1, (self.tokenizer.grid[0], -1))
            tokens = self.temporal(frames_Btnd.mean(dim=2))
        logits_BK: Tensor = self.heads[name](tokens)
        return logits_BK

    def forward_head(self, features: Features) -> Output:
        """Classify what ``forward_features`` returned: in training mode by each head, else by ``inference_head``."""
        if self.training:
            return tuple(self._logits(name, features) for name in self.heads)
        first, *others = (self._logits(name, features) for name in self.inference_heads)
        return sum(others, first) / len(self.inference_heads)

    def forward(
        self, clip_BCTHW: Tensor, grid: tuple[int, ...] | None = None, *, with_features: bool = False
    ) -> Output | tuple[Output, Features]:
        """Classify a normalized clip (B, C, T, H, W) with the compressed tokens on a grid.

        Args:
            grid: see ``forward_features``.
            with_features: see ``VideoModel.forward``.
        """
        names = tuple(self.heads) if self.training or with_features else self.inference_heads
        features = self.forward_features(clip_BCTHW, grid, heads=names)
        output = self.forward_head(features)
        return (output, features) if with_features else output


# Tubelets of 16 x 16 pixels and 2 frames; further arguments as those of the class.
lookupvit_tiny_16x2 = partial(LookupViT, dim=192, depth=12, num_heads=3)
lookupvit_small_16x2 = partial(LookupViT, dim=384, depth=12, num_heads=6)
lookupvit_base_16x2 = partial(LookupViT, dim=768, depth=12, num_heads=12)
lookupvit_large_16x2 = partial(LookupViT, dim=1024, depth=24, num_heads=16)
