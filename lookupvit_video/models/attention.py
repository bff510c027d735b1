"""Self-attention, and the multi-head bidirectional cross-attention (MHBC) of LookupViT.

Shape letters: B batch, H heads (here only; elsewhere H is pixels), N lookup tokens, M compressed tokens, D width,
d = D / H width of a head.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _check_heads(dim: int, num_heads: int) -> None:
    if dim % num_heads:
        raise ValueError(f"width {dim} cannot be split over {num_heads} heads")


class SelfAttention(nn.Module):
    """Multi-head self-attention as in ViT (arXiv 2010.11929)."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        _check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.projection = nn.Linear(dim, dim)

    def forward(self, x_BND: Tensor) -> Tensor:
        """Map (B, N, D) to (B, N, D)."""
        q_BHNd, k_BHNd, v_BHNd = self.qkv(x_BND).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        out_BHNd = F.scaled_dot_product_attention(q_BHNd, k_BHNd, v_BHNd)
        return self.projection(out_BHNd.transpose(1, 2).flatten(2))


class BidirectionalCrossAttention(nn.Module):
    """MHBC: one attention matrix, used from lookup to compressed tokens and, transposed, back again.

    LookupViT (arXiv 2407.12753), section 3. ``gather`` has query, key, value and output projections; ``infuse`` has a
    value and an output projection of its own and no query or key: its weights are those of ``gather``. So the
    projections weigh 6 D^2 and Q K^T is computed once.
    """

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        _check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.gather_projection = nn.Linear(dim, dim)
        self.infuse_value = nn.Linear(dim, dim)
        self.infuse_projection = nn.Linear(dim, dim)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def gather(self, compressed_BMD: Tensor, lookup_BND: Tensor) -> tuple[Tensor, Tensor]:
        """Let compressed tokens look things up: (B, M, D), (B, N, D) -> update (B, M, D), weights (B, H, M, N).

        Each row of the weights sums to 1 over the N lookup tokens.
        """
        q_BHMd = self._heads(self.query(compressed_BMD))
        k_BHNd, v_BHNd = (self._heads(x) for x in self.key_value(lookup_BND).chunk(2, dim=-1))
        # Scaling the M queries, not the M x N scores, is the same and cheaper.
        scores_BHMN = (q_BHMd * q_BHMd.shape[-1] ** -0.5) @ k_BHNd.transpose(-2, -1)
        weights_BHMN = scores_BHMN.softmax(dim=-1).to(v_BHNd.dtype)  # autocast leaves softmax in float32
        out_BMD = (weights_BHMN @ v_BHNd).transpose(1, 2).flatten(2)
        return self.gather_projection(out_BMD), weights_BHMN

    def infuse(self, compressed_BMD: Tensor, weights_BHMN: Tensor) -> Tensor:
        """Write back: refined compressed tokens (B, M, D) and the weights of ``gather`` -> update (B, N, D)."""
        v_BHMd = self._heads(self.infuse_value(compressed_BMD))
        out_BND = (weights_BHMN.transpose(-2, -1) @ v_BHMd).transpose(1, 2).flatten(2)
        return self.infuse_projection(out_BND)


def head_mean(weights_BHMN: Tensor) -> Tensor:
    """Average attention weights over the heads, in float32, for drawing: (B, H, M, N) -> (B, M, N)."""
    return weights_BHMN.detach().to(torch.float32).mean(dim=1)
