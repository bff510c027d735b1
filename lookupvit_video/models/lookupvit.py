"""LookupViT for video: heavy work on few compressed tokens, which look things up in many lookup tokens.

Paper: LookupViT: Compressing visual information to a limited number of tokens (ECCV 2024, arXiv 2407.12753).
Shape letters: B batch, C channels, T frames, H W pixels, N lookup tokens, M compressed tokens, D width, K classes.
"""

from typing import NamedTuple

from torch import Tensor, nn

from lookupvit_video.models.blocks import LookupViTBlock, PooledClassifier, drop_path_rates, init_linear
from lookupvit_video.models.tokenizer import Grid, GridResize, TubeletTokenizer

# name -> (width D, blocks, heads): the sizes of ViT, which LookupViT keeps
VARIANTS: dict[str, tuple[int, int, int]] = {
    "Ti": (192, 12, 3),
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
}
HEADS = ("compressed", "lookup")


class LookupFeatures(NamedTuple):
    """What the blocks of a LookupViT make of a clip."""

    compressed: Tensor
    """(B, M, D), before the head's norm."""
    lookup: Tensor
    """(B, N, D), before the head's norm."""
    attention: list[Tensor]
    """Per block (B, heads, M, N), where asked for; else empty."""


class LookupViT(nn.Module):
    """Video classifier of LookupViT blocks with one head on each token set.

    Args:
        num_classes: K.
        num_frames: T; a multiple of ``tubelet[0]``.
        size: H and W in pixels; a multiple of ``tubelet[1]`` and ``tubelet[2]``.
        tubelet: frames x height x width of one lookup token.
        compressed_grid: t x h x w of the compressed tokens, at most the grid of the lookup tokens.
        dim, depth, num_heads: width D, number of blocks, attention heads.
        resize: "triangle" (antialiased) or "trilinear", see ``GridResize``.
        inference_head: "average" (of both heads' logits), "compressed" or "lookup".
        drop_path: stochastic depth of the last block; it rises linearly from 0.
        dropout: before each classifier.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        num_frames: int = 16,
        size: int = 224,
        tubelet: Grid = (2, 16, 16),
        compressed_grid: Grid = (4, 7, 7),
        dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        resize: str = "triangle",
        inference_head: str = "average",
        drop_path: float = 0.0,
        dropout: float = 0.0,
    ):
        super().__init__()
        if inference_head not in ("average", *HEADS):
            raise ValueError(f"inference head {inference_head!r}: choose average, compressed or lookup")
        self.inference_head = inference_head
        self.tokenizer = TubeletTokenizer(num_frames=num_frames, size=size, tubelet=tubelet, dim=dim)
        self.compress = GridResize(self.tokenizer.grid, compressed_grid, resize)
        self.blocks = nn.ModuleList(LookupViTBlock(dim, num_heads, rate) for rate in drop_path_rates(drop_path, depth))
        self.heads = nn.ModuleDict({name: PooledClassifier(dim, num_classes, dropout) for name in HEADS})
        self.blocks.apply(init_linear)

    def forward_features(self, clip_BCTHW: Tensor, return_attention: bool = False) -> LookupFeatures:
        """Run tokenizer and blocks on a normalised clip (B, C, T, H, W), without the heads."""
        lookup_BND = self.tokenizer(clip_BCTHW)
        # The resize is linear: one resize of tokens plus positions equals the paper's sum of two.
        compressed_BMD = self.compress(lookup_BND)
        attention = []
        for block in self.blocks:
            compressed_BMD, lookup_BND, weights_BHMN = block(compressed_BMD, lookup_BND)
            if return_attention:
                attention.append(weights_BHMN)
        return LookupFeatures(compressed_BMD, lookup_BND, attention)

    def forward(self, clip_BCTHW: Tensor) -> tuple[Tensor, ...] | Tensor:
        """Classify a normalised clip (B, C, T, H, W).

        Returns:
            in training mode the logits (B, K) of each head, for the loss that averages over heads;
            in eval mode one (B, K), of ``inference_head``.
        """
        features = self.forward_features(clip_BCTHW)
        if self.training:
            return self.heads["compressed"](features.compressed), self.heads["lookup"](features.lookup)
        if self.inference_head == "compressed":
            return self.heads["compressed"](features.compressed)
        if self.inference_head == "lookup":
            return self.heads["lookup"](features.lookup)
        return (self.heads["compressed"](features.compressed) + self.heads["lookup"](features.lookup)) / 2
