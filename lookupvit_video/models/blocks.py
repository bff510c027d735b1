"""The dense transformer block and the LookupViT block.

Shape letters: B batch, N lookup tokens, M compressed tokens, D width.
"""

from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from lookupvit_video.models.attention import BidirectionalCrossAttention, SelfAttention

NORM_EPS = 1e-6  # as ViT, MAE and VideoMAE


def mlp(dim: int, hidden_dim: int) -> nn.Sequential:
    """Two linear layers with a GELU between them."""
    return nn.Sequential(nn.Linear(dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, dim))


class TransformerBlock(nn.Module):
    """Pre-norm ViT block: self-attention, then an MLP of ratio 4, each with a residual (arXiv 2010.11929)."""

    def __init__(self, dim: int, num_heads: int, drop_path: float = 0.0):
        super().__init__()
        self.norm_attention = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attention = SelfAttention(dim, num_heads)
        self.norm_mlp = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = mlp(dim, 4 * dim)
        self.drop_path = StochasticDepth(drop_path, mode="row")

    def forward(self, x_BND: Tensor) -> Tensor:
        """Map (B, N, D) to (B, N, D)."""
        x_BND = x_BND + self.drop_path(self.attention(self.norm_attention(x_BND)))
        return x_BND + self.drop_path(self.mlp(self.norm_mlp(x_BND)))


class LookupViTBlock(nn.Module):
    """LookupViT block (arXiv 2407.12753, section 3): gather, refine, infuse, narrow MLP; a residual around each.

    Costs (3NM + 2M^2) D + (4N + 15M) D^2 multiply-accumulates and weighs 19 D^2 parameters plus biases and norms.
    """

    def __init__(self, dim: int, num_heads: int, drop_path: float = 0.0):
        super().__init__()
        self.norm_gather_compressed = nn.LayerNorm(dim, eps=NORM_EPS)
        self.norm_gather_lookup = nn.LayerNorm(dim, eps=NORM_EPS)
        self.cross_attention = BidirectionalCrossAttention(dim, num_heads)
        self.refine = TransformerBlock(dim, num_heads, drop_path)
        self.norm_infuse = nn.LayerNorm(dim, eps=NORM_EPS)
        self.norm_lookup_mlp = nn.LayerNorm(dim, eps=NORM_EPS)
        self.lookup_mlp = mlp(dim, dim // 2)
        self.drop_path = StochasticDepth(drop_path, mode="row")

    def forward(self, compressed_BMD: Tensor, lookup_BND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Update both token sets.

        Returns:
            compressed tokens (B, M, D), lookup tokens (B, N, D), and the attention weights (B, heads, M, N) that the
            two directions share.
        """
        update_BMD, weights = self.cross_attention.gather(
            self.norm_gather_compressed(compressed_BMD), self.norm_gather_lookup(lookup_BND)
        )
        compressed_BMD = self.refine(compressed_BMD + self.drop_path(update_BMD))
        update_BND = self.cross_attention.infuse(self.norm_infuse(compressed_BMD), weights)
        lookup_BND = lookup_BND + self.drop_path(update_BND)
        lookup_BND = lookup_BND + self.drop_path(self.lookup_mlp(self.norm_lookup_mlp(lookup_BND)))
        return compressed_BMD, lookup_BND, weights


class PooledClassifier(nn.Module):
    """A final norm, global average pooling over the tokens, dropout and a linear classifier."""

    def __init__(self, dim: int, num_classes: int, dropout: float = 0.0):
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(dim, num_classes)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)  # small, so that training starts from even probabilities
        nn.init.zeros_(self.linear.bias)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        """Map tokens (B, N, D) to logits (B, K)."""
        return self.linear(self.dropout(self.norm(tokens_BND).mean(dim=1)))


def drop_path_rates(highest: float, depth: int) -> list[float]:
    """Return each block's stochastic depth: from 0 at the first block to ``highest`` at the last, linearly."""
    return [highest * i / max(depth - 1, 1) for i in range(depth)]


def init_linear(module: nn.Module) -> None:
    """Initialise a linear layer as ViT's JAX code and MAE do (Xavier, uniform; biases 0); for ``Module.apply``.

    The normal distribution of deviation 0.02 that is common in PyTorch suits a width of 768. In narrow models it leaves
    each branch nearly linear and attention nearly even, and what takes products to tell apart is learned much later.
    """
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
