"""Self-attention, and the multi-head bidirectional cross-attention (MHBC) of LookupViT.

Shape letters: B batch, H heads (here only; elsewhere H is pixels), N lookup tokens, M compressed tokens, D width,
d = D / H width of a head.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lookupvit_video.errors import UserError
from lookupvit_video.models import kernels
from lookupvit_video.models.kernels import KERNELS, Lookup
from lookupvit_video.models.kernels.rotary import Rotary, rotate

NORM_EPS = 1e-6  # as ViT, MAE and VideoMAE
REVERSE_WEIGHTS = ("transpose", "scaled", "softmax")


def _check_heads(dim: int, num_heads: int) -> None:
    if dim % num_heads:
        raise UserError(f"width {dim} cannot be split over {num_heads} heads")


def _head_norm(dim: int, num_heads: int, qk_norm: bool) -> nn.Module:
    return nn.LayerNorm(dim // num_heads, eps=NORM_EPS) if qk_norm else nn.Identity()


class SelfAttention(nn.Module):
    """Multi-head self-attention as in ViT (arXiv 2010.11929).

    Args:
        dim, num_heads: width D and number of heads.
        qk_norm: normalize queries and keys per head (ViT-22B, arXiv 2302.05442).

    ``kernel`` (see ``set_kernel``): "auto" takes what is faster on the device, all others torch's SDPA.
    """

    kernel = "auto"

    def __init__(self, dim: int, num_heads: int, qk_norm: bool = False):
        super().__init__()
        _check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.norm_query = _head_norm(dim, num_heads, qk_norm)
        self.norm_key = _head_norm(dim, num_heads, qk_norm)
        self.projection = nn.Linear(dim, dim)

    def forward(self, x_BND: Tensor, rotary: Rotary | None = None) -> Tensor:
        """Map (B, N, D) to (B, N, D)."""
        return self.with_keys(x_BND, rotary=rotary)[0]

    def with_keys(
        self, x_BND: Tensor, key_bias_BN: Tensor | None = None, rotary: Rotary | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the output (B, N, D) and the keys (B, H, N, d).

        Args:
            key_bias_BN: added to the logits of each key (token merging weighs a key by the tokens in it).
            rotary: by what queries and keys are turned; None: by nothing.
        """
        q_BHNd, k_BHNd, v_BHNd = self.qkv(x_BND).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q_BHNd, k_BHNd = rotate(self.norm_query(q_BHNd), rotary), rotate(self.norm_key(k_BHNd), rotary)
        out_BHNd = kernels.self_attention(q_BHNd, k_BHNd, v_BHNd, self.kernel, key_bias_BN)
        return self.projection(out_BHNd.transpose(1, 2).flatten(2)), k_BHNd


class BidirectionalCrossAttention(nn.Module):
    """MHBC: one attention matrix, used from lookup to compressed tokens and, transposed, back again.

    LookupViT (arXiv 2407.12753), section 3. ``gather`` has query, key, value and output projections; ``write_back``
    (the paper's infusion) has a value and an output projection and takes its weights from ``gather``. So the
    projections weigh 6 D^2 and Q K^T is computed once.

    Args:
        dim, num_heads: width D and number of heads.
        reverse: the weights of the way back. "transpose": the gather weights A, transposed (the paper's text);
            "scaled": the same times N / M, so that a lookup token receives weights of mean sum 1 at any M; "softmax":
            the same logits, softmaxed over the compressed tokens (BiXT, arXiv 2402.12138).
        qk_norm: normalize queries and keys per head.
        writes_back: whether there is a way back.

    ``kernel`` (see ``set_kernel``): "eager" keeps the (B, H, M, N) weights and computes Q K^T once; "fused" never holds
    them and recomputes them where needed; "flex" does so in FlexAttention; "auto" takes what is faster on the device.
    """

    kernel = "auto"

    def __init__(
        self, dim: int, num_heads: int, reverse: str = "softmax", qk_norm: bool = False, writes_back: bool = True
    ):
        super().__init__()
        _check_heads(dim, num_heads)
        if reverse not in REVERSE_WEIGHTS:
            raise UserError(f"reverse weights {reverse!r}: choose {', '.join(REVERSE_WEIGHTS)}")
        self.num_heads, self.reverse = num_heads, reverse
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.norm_query = _head_norm(dim, num_heads, qk_norm)
        self.norm_key = _head_norm(dim, num_heads, qk_norm)
        self.gather_projection = nn.Linear(dim, dim)
        if writes_back:
            self.infuse_value = nn.Linear(dim, dim)
            self.infuse_projection = nn.Linear(dim, dim)

    def _heads(self, x: Tensor, norm: nn.Module | None = None) -> Tensor:
        x = x.unflatten(-1, (self.num_heads, -1))
        return (norm(x) if norm else x).transpose(1, 2)  # not after: torch 2.15 compiles norms of strided views wrongly

    def gather(
        self, compressed_BMD: Tensor, lookup_BND: Tensor, rotary: tuple[Rotary, Rotary] | None = None
    ) -> tuple[Tensor, Lookup]:
        """Look up: compressed (B, M, D) and lookup tokens (B, N, D) -> update (B, M, D), what ``write_back`` needs.

        Args:
            rotary: by what queries (of the compressed tokens) and keys (of the lookup tokens) are turned.
        """
        of_queries, of_keys = rotary or (None, None)
        q_BHMd = rotate(self._heads(self.query(compressed_BMD), self.norm_query), of_queries)
        k_BHNd, v_BHNd = self._keys_and_values(lookup_BND, q_BHMd, of_keys)
        out_BHMd, lookup = kernels.gather(q_BHMd, k_BHNd, v_BHNd, self.kernel, self.reverse)
        return self.gather_projection(out_BHMd.transpose(1, 2).flatten(2)), lookup

    def _keys_and_values(self, lookup_BND: Tensor, q_BHMd: Tensor, rotary: Rotary | None) -> tuple[Tensor, Tensor]:
        if rotary is None and isinstance(self.norm_key, nn.Identity):
            found = kernels.key_value(self.key_value, lookup_BND, q_BHMd, self.kernel, self.reverse)
            if found is not None:
                return found
        k_BND, v_BND = self.key_value(lookup_BND).chunk(2, dim=-1)
        return rotate(self._heads(k_BND, self.norm_key), rotary), self._heads(v_BND)

    def write_back(self, compressed_BMD: Tensor, lookup: Lookup) -> Tensor:
        """Write back: refined compressed tokens (B, M, D) and what ``gather`` returned -> update (B, N, D)."""
        out_BHNd = kernels.write_back(self._heads(self.infuse_value(compressed_BMD)), lookup)
        update_BND: Tensor = self.infuse_projection(out_BHNd.transpose(1, 2).flatten(2))
        return update_BND


def set_kernel(model: nn.Module, kernel: str) -> None:
    """Set the kernel of every ``SelfAttention`` and ``BidirectionalCrossAttention`` of a model, one of ``KERNELS``.

    Raises:
        UserError: there is no such kernel.
    """
    if kernel not in KERNELS:
        raise UserError(f"kernel {kernel!r}: choose {', '.join(KERNELS)}")
    for module in _attentions(model):
        module.kernel = kernel


@contextmanager
def using_kernel(model: nn.Module, kernel: str) -> Iterator[None]:
    """``set_kernel`` while the block is active; afterwards each kernel is what it was."""
    before = [(module, module.kernel) for module in _attentions(model)]
    set_kernel(model, kernel)
    try:
        yield
    finally:
        for module, own in before:
            module.kernel = own


def _attentions(model: nn.Module) -> list[SelfAttention | BidirectionalCrossAttention]:
    return [module for module in model.modules() if isinstance(module, (SelfAttention, BidirectionalCrossAttention))]


class AttentivePooling(nn.Module):
    """One learned query that looks at all tokens, as attentive probes do (arXiv 2202.03026; V-JEPA, 2404.08471)."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        _check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.query = nn.Parameter(torch.zeros(1, 1, dim))
        self.key_value = nn.Linear(dim, 2 * dim)
        self.projection = nn.Linear(dim, dim)
        nn.init.trunc_normal_(self.query, std=0.02)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        """Pool tokens (B, N, D) to (B, D)."""
        query_BHd = self.query.expand(tokens_BND.shape[0], -1, -1).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k_BHNd, v_BHNd = self.key_value(tokens_BND).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        out_BH1d = F.scaled_dot_product_attention(query_BHd.to(k_BHNd.dtype), k_BHNd, v_BHNd)
        pooled_BD: Tensor = self.projection(out_BH1d.flatten(1))
        return pooled_BD


def head_mean(weights_BHMN: Tensor) -> Tensor:
    """Average attention weights over the heads, in float32, for drawing: (B, H, M, N) -> (B, M, N)."""
    return weights_BHMN.detach().to(torch.float32).mean(dim=1)
