"""A dense ViT on fewer tokens: the controls to compare every LookupViT figure with.

Random dropping is what most learned token selection fails to beat at equal cost (LITE); token merging is the best known
training-free reduction (ToMe, arXiv 2210.09461).

Shape letters: B batch, N tokens, D width, d width of a head, r tokens merged away by a block.
"""

import torch
from torch import Tensor, nn

from lookupvit_video.errors import UserError
from lookupvit_video.models.blocks import TransformerBlock


class RandomTokens(nn.Module):
    """Keeps a random subset of the tokens: a new one for each clip in training, a fixed one in eval mode.

    Positions are in the tokens already, so those that are kept still have theirs.
    """

    def __init__(self, num_tokens: int, keep: int):
        super().__init__()
        if not 1 <= keep <= num_tokens:
            raise UserError(f"{keep} of {num_tokens} tokens cannot be kept")
        self.keep = keep
        generator = torch.Generator().manual_seed(0)
        fixed_n = torch.randperm(num_tokens, generator=generator)[:keep].sort().values
        self.register_buffer("fixed", fixed_n, persistent=False)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        """Map (B, N, D) to (B, keep, D)."""
        if not self.training:
            return tokens_BND[:, self.get_buffer("fixed")]
        batch, n, dim = tokens_BND.shape
        kept_Bn = torch.rand(batch, n, device=tokens_BND.device).argsort(dim=1)[:, : self.keep]
        return tokens_BND.gather(1, kept_Bn[..., None].expand(-1, -1, dim))


def merge_tokens(x_BND: Tensor, sizes_BN: Tensor, metric_BNd: Tensor, r: int, protected: int) -> tuple[Tensor, Tensor]:
    """Merge the r most similar pairs by bipartite soft matching (ToMe, section 3).

    Even tokens are matched to odd ones by the cosine of ``metric``; the r best even tokens join their match as a mean
    weighed by size.

    Args:
        sizes_BN: how many tokens each has absorbed.
        protected: number of first tokens (class token: 1) that are never merged away.

    Returns:
        tokens (B, N - r, D) and their sizes.
    """
    metric_BNd = metric_BNd / metric_BNd.norm(dim=-1, keepdim=True)
    similarity = metric_BNd[:, ::2] @ metric_BNd[:, 1::2].transpose(-1, -2)
    if protected:  # the class token is even token 0: its row cannot be chosen, and it lies in no column
        similarity = torch.cat([torch.full_like(similarity[:, :1], -torch.inf), similarity[:, 1:]], dim=1)
    best, match = similarity.max(dim=-1)
    order = best.argsort(dim=-1, descending=True)
    gone, kept = order[:, :r, None], order[:, r:].sort(dim=-1).values[..., None]
    target = match[..., None].gather(1, gone)
    dim = x_BND.shape[-1]
    # Sums and sizes travel together, so that one scatter makes the weighed means.
    mass = torch.cat([x_BND * sizes_BN[..., None], sizes_BN[..., None]], dim=-1)
    even, odd = mass[:, ::2], mass[:, 1::2]
    odd = odd.scatter_add(1, target.expand(-1, -1, dim + 1), even.gather(1, gone.expand(-1, -1, dim + 1)))
    merged = torch.cat([even.gather(1, kept.expand(-1, -1, dim + 1)), odd], dim=1)
    return merged[..., :dim] / merged[..., dim:], merged[..., dim]


class MergingBlock(TransformerBlock):
    """A transformer block that merges ``r`` tokens away between attention and MLP (ToMe)."""

    def forward_merging(self, x_BND: Tensor, sizes_BN: Tensor, r: int, protected: int = 0) -> tuple[Tensor, Tensor]:
        """Map (B, N, D) and sizes (B, N) to (B, N - r, D) and their sizes; attention weighs a key by its size."""
        update_BND, keys_BHNd = self.attention.with_keys(self.norm_attention(x_BND), sizes_BN.log())
        x_BND = x_BND + self.drop_path(self.scale_attention(update_BND))
        if r:
            x_BND, sizes_BN = merge_tokens(x_BND, sizes_BN, keys_BHNd.mean(dim=1), r, protected)
        return self.add_mlp(x_BND), sizes_BN


def merged_per_block(num_tokens: int, r: int, depth: int, protected: int = 0) -> list[int]:
    """Return how many tokens each block merges away: r, or as many as bipartite matching can (half of what is left)."""
    counts = []
    for _ in range(depth):
        counts.append(max(0, min(r, (num_tokens - protected) // 2)))
        num_tokens -= counts[-1]
    return counts
