"""The dense baseline: a joint space-time ViT on the tokens of the same tokenizer (ViViT, arXiv 2103.15691, model 1).

Shape letters: B batch, C channels, T frames, H W pixels, N tokens, D width, K classes.
"""

from torch import Tensor, nn

from lookupvit_video.models.blocks import PooledClassifier, TransformerBlock, drop_path_rates, init_linear
from lookupvit_video.models.tokenizer import Grid, TubeletTokenizer


class ViT(nn.Module):
    """Every token attends to every token; average pooling and one head, no class token. Arguments as ``LookupViT``."""

    def __init__(
        self,
        *,
        num_classes: int,
        num_frames: int = 16,
        size: int = 224,
        tubelet: Grid = (2, 16, 16),
        dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        drop_path: float = 0.0,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.tokenizer = TubeletTokenizer(num_frames=num_frames, size=size, tubelet=tubelet, dim=dim)
        self.blocks = nn.ModuleList(
            TransformerBlock(dim, num_heads, rate) for rate in drop_path_rates(drop_path, depth)
        )
        self.head = PooledClassifier(dim, num_classes, dropout)
        self.blocks.apply(init_linear)

    def forward_features(self, clip_BCTHW: Tensor) -> Tensor:
        """Map a normalised clip (B, C, T, H, W) to tokens (B, N, D), before the head's norm."""
        tokens_BND = self.tokenizer(clip_BCTHW)
        for block in self.blocks:
            tokens_BND = block(tokens_BND)
        return tokens_BND

    def forward(self, clip_BCTHW: Tensor) -> tuple[Tensor, ...] | Tensor:
        """Classify a normalised clip: logits (B, K), in training mode as a tuple of one (see ``LookupViT``)."""
        logits_BK = self.head(self.forward_features(clip_BCTHW))
        return (logits_BK,) if self.training else logits_BK
