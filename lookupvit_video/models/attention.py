"""Self-attention, and the multi-head bidirectional cross-attention (MHBC) of LookupViT.

Shape letters: B batch, H heads (here only; elsewhere H is pixels), N lookup tokens, M compressed tokens, D width,
d = D / H width of a head.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lookupvit_video.errors import UserError
from lookupvit_video.models import kernels
from lookupvit_video.models.kernels.linear import Linear, has_fast_products

NORM_EPS = 1e-6  # as ViT, MAE and VideoMAE
REVERSE_WEIGHTS = ("transpose", "scaled", "softmax")
KERNELS = ("auto", "eager", "fused", "flex")


def _check_heads(dim: int, num_heads: int) -> None:
    if dim % num_heads:
        raise UserError(f"width {dim} cannot be split over {num_heads} heads")


def _head_norm(dim: int, num_heads: int, qk_norm: bool) -> nn.Module:
    return nn.LayerNorm(dim // num_heads, eps=NORM_EPS) if qk_norm else nn.Identity()


class SelfAttention(nn.Module):
    """Multi-head self-attention as in ViT (arXiv 2010.11929).

    Args:
        dim, num_heads: width D and number of heads.
        qk_norm: normalise queries and keys per head (ViT-22B, arXiv 2302.05442).

    ``kernel`` (see ``set_kernel``): "auto" takes what is faster on the device, all others are torch's SDPA.
    """

    kernel = "auto"

    def __init__(self, dim: int, num_heads: int, qk_norm: bool = False):
        super().__init__()
        _check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.qkv = Linear(dim, 3 * dim)
        self.norm_query = _head_norm(dim, num_heads, qk_norm)
        self.norm_key = _head_norm(dim, num_heads, qk_norm)
        self.projection = Linear(dim, dim)

    def forward(self, x_BND: Tensor) -> Tensor:
        """Map (B, N, D) to (B, N, D)."""
        return self.with_keys(x_BND)[0]

    def with_keys(self, x_BND: Tensor, key_bias_BN: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the output (B, N, D) and the keys (B, H, N, d).

        Args:
            key_bias_BN: added to the logits of each key (token merging weighs a key by the tokens in it).
        """
        q_BHNd, k_BHNd, v_BHNd = self.qkv(x_BND).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q_BHNd, k_BHNd = self.norm_query(q_BHNd), self.norm_key(k_BHNd)
        if key_bias_BN is None and self.kernel == "auto":
            out_BHNd = kernels.attention(q_BHNd, k_BHNd, v_BHNd)
        else:
            bias = None if key_bias_BN is None else key_bias_BN[:, None, None, :].to(q_BHNd.dtype)
            out_BHNd = F.scaled_dot_product_attention(q_BHNd, k_BHNd, v_BHNd, attn_mask=bias)
        return self.projection(out_BHNd.transpose(1, 2).flatten(2)), k_BHNd


class Lookup(NamedTuple):
    """What one gather leaves behind for the way back."""

    queries: Tensor
    """(B, H, M, d)"""
    keys: Tensor
    """(B, H, N, d)"""
    scores: Tensor | None = None
    """(B, H, M, N): the logits, kept by the eager kernel."""
    kept: Tensor | None = None
    """(B, H, M, N): the weights, kept by the eager kernel."""
    lse: Tensor | None = None
    """(B, H, M): the log-sum-exp of each row of the logits, from which the fused kernels get the weights again."""

    @property
    def weights(self) -> Tensor:
        """(B, H, M, N): each row sums to 1 over the lookup tokens; computed where they were not kept."""
        if self.kept is not None:
            return self.kept
        return _scores(self.queries, self.keys).softmax(dim=-1).to(self.keys.dtype)


def _scores(q_BHMd: Tensor, k_BHNd: Tensor) -> Tensor:
    """Return the logits (B, H, M, N). Scaling the M queries, not the M x N scores, is the same and cheaper."""
    return (q_BHMd * q_BHMd.shape[-1] ** -0.5) @ k_BHNd.transpose(-2, -1)


class BidirectionalCrossAttention(nn.Module):
    """MHBC: one attention matrix, used from lookup to compressed tokens and, turned round, back again.

    LookupViT (arXiv 2407.12753), section 3. ``gather`` has query, key, value and output projections; ``infuse`` has a
    value and an output projection of its own and no query or key: its weights come from those of ``gather``. So the
    projections weigh 6 D^2 and Q K^T is computed once.

    Args:
        dim, num_heads: width D and number of heads.
        reverse: what the infusion weighs with. "transpose": the gather weights A, transposed (the paper's text);
            "scaled": the same times N / M, so that a lookup token receives weights of mean sum 1 at any M; "softmax":
            the same logits, softmaxed over the compressed tokens (BiXT, arXiv 2402.12138).
        qk_norm: normalise queries and keys per head.
        infuse: whether there is a way back at all.

    ``kernel`` (see ``set_kernel``) says how: "eager" keeps the (B, H, M, N) weights and computes Q K^T once; "fused"
    never holds them and computes them again where it needs them, in SDPA or in ``kernels.py``; "flex" does so in
    FlexAttention; "auto" takes what is faster on the device.
    """

    kernel = "auto"

    def __init__(self, dim: int, num_heads: int, reverse: str = "softmax", qk_norm: bool = False, infuse: bool = True):
        super().__init__()
        _check_heads(dim, num_heads)
        if reverse not in REVERSE_WEIGHTS:
            raise UserError(f"reverse weights {reverse!r}: choose {', '.join(REVERSE_WEIGHTS)}")
        self.num_heads, self.reverse = num_heads, reverse
        self.query = Linear(dim, dim)
        self.key_value = Linear(dim, 2 * dim)
        self.norm_query = _head_norm(dim, num_heads, qk_norm)
        self.norm_key = _head_norm(dim, num_heads, qk_norm)
        self.gather_projection = Linear(dim, dim)
        if infuse:
            self.infuse_value = Linear(dim, dim)
            self.infuse_projection = Linear(dim, dim)

    def _heads(self, x: Tensor, norm: nn.Module | None = None) -> Tensor:
        x = x.unflatten(-1, (self.num_heads, -1))
        return (norm(x) if norm else x).transpose(1, 2)  # not after: torch 2.15 compiles norms of strided views wrongly

    def _choose(self, q_BHMd: Tensor) -> str:
        if self.kernel != "auto":
            return self.kernel
        if self.reverse == "softmax":
            return "fused" if q_BHMd.is_cuda or has_fast_products(q_BHMd) else "eager"
        if not q_BHMd.is_cuda:
            return "eager"
        if not torch.compiler.is_compiling():
            return "fused"
        # A compiler takes FlexAttention into its graph, whose kernels want such heads.
        return "flex" if q_BHMd.shape[-1] in (16, 32, 64, 128) else "eager"

    def gather(self, compressed_BMD: Tensor, lookup_BND: Tensor) -> tuple[Tensor, Lookup]:
        """Let compressed tokens look things up: (B, M, D), (B, N, D) -> update (B, M, D), what ``infuse`` needs."""
        q_BHMd = self._heads(self.query(compressed_BMD), self.norm_query)
        k_BND, v_BND = self.key_value(lookup_BND).chunk(2, dim=-1)
        out_BHMd, lookup = self.attend(q_BHMd, self._heads(k_BND, self.norm_key), self._heads(v_BND))
        return self.gather_projection(out_BHMd.transpose(1, 2).flatten(2)), lookup

    def infuse(self, compressed_BMD: Tensor, lookup: Lookup) -> Tensor:
        """Write back: refined compressed tokens (B, M, D) and what ``gather`` left -> update (B, N, D)."""
        out_BHNd = self.attend_back(self._heads(self.infuse_value(compressed_BMD)), lookup)
        return self.infuse_projection(out_BHNd.transpose(1, 2).flatten(2))

    def attend(self, q_BHMd: Tensor, k_BHNd: Tensor, v_BHNd: Tensor) -> tuple[Tensor, Lookup]:
        """Weigh the values (B, H, N, d) for each query: (B, H, M, d), and what ``attend_back`` needs."""
        kernel = self._choose(q_BHMd)
        if has_fast_products(k_BHNd):
            k_BHNd = k_BHNd.contiguous()  # once for both directions, which read it head by head
        if kernel == "eager":
            scores_BHMN = _scores(q_BHMd, k_BHNd)
            weights_BHMN = scores_BHMN.softmax(dim=-1).to(v_BHNd.dtype)  # autocast leaves softmax in float32
            return weights_BHMN @ v_BHNd, Lookup(q_BHMd, k_BHNd, scores_BHMN, weights_BHMN)
        if self.reverse == "softmax":
            return kernels.attention(q_BHMd, k_BHNd, v_BHNd), Lookup(q_BHMd, k_BHNd)
        gather = kernels.flex_gather if kernel == "flex" else kernels.gather
        out_BHMd, lse_BHM = gather(q_BHMd, k_BHNd, v_BHNd)
        return out_BHMd, Lookup(q_BHMd, k_BHNd, lse=lse_BHM)

    def attend_back(self, v_BHMd: Tensor, lookup: Lookup) -> Tensor:
        """Weigh values of the compressed tokens (B, H, M, d) for each lookup token: (B, H, N, d)."""
        if self.reverse == "scaled":
            v_BHMd = v_BHMd * (lookup.keys.shape[2] / lookup.queries.shape[2])
        if lookup.lse is not None:
            infuse = kernels.flex_infuse if self._choose(v_BHMd) == "flex" else kernels.infuse
            return infuse(lookup.queries, lookup.keys, lookup.lse, v_BHMd)
        if lookup.scores is None:
            return kernels.attention(lookup.keys, lookup.queries, v_BHMd)
        weights_BHMN = lookup.weights
        if self.reverse == "softmax":
            weights_BHMN = lookup.scores.softmax(dim=-2).to(v_BHMd.dtype)
        return weights_BHMN.transpose(-2, -1) @ v_BHMd


def set_kernel(model: nn.Module, kernel: str) -> None:
    """Have every ``SelfAttention`` and ``BidirectionalCrossAttention`` of a model use one of ``KERNELS``.

    Raises:
        UserError: there is no such kernel.
    """
    if kernel not in KERNELS:
        raise UserError(f"kernel {kernel!r}: choose {', '.join(KERNELS)}")
    for module in _attentions(model):
        module.kernel = kernel


@contextmanager
def using_kernel(model: nn.Module, kernel: str) -> Iterator[None]:
    """``set_kernel`` inside; afterwards each is what it was."""
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
        self.key_value = Linear(dim, 2 * dim)
        self.projection = Linear(dim, dim)
        nn.init.trunc_normal_(self.query, std=0.02)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        """Pool tokens (B, N, D) to (B, D)."""
        query_BHd = self.query.expand(tokens_BND.shape[0], -1, -1).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k_BHNd, v_BHNd = self.key_value(tokens_BND).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        out_BH1d = F.scaled_dot_product_attention(query_BHd.to(k_BHNd.dtype), k_BHNd, v_BHNd)
        return self.projection(out_BH1d.flatten(1))


def head_mean(weights_BHMN: Tensor) -> Tensor:
    """Average attention weights over the heads, in float32, for drawing: (B, H, M, N) -> (B, M, N)."""
    return weights_BHMN.detach().to(torch.float32).mean(dim=1)
