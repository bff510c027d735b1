"""Every way to compute the attentions, behind one dispatch that is asked once per call.

``self_attention``, ``gather`` and ``write_back`` take projected heads; the model code does not know what computes them:
``cpu`` (torch's SDPA, or the faster products of wide processors), ``fused`` (no weights in memory; ``flash`` is its
Triton), ``flex`` (FlexAttention), or the weights themselves ("eager").
Shape letters: B batch, H heads, N lookup tokens, M compressed tokens, d width of a head.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lookupvit_video.models.kernels import cpu, flex, fused
from lookupvit_video.models.kernels.cpu import linear, optimize

__all__ = ["KERNELS", "Lookup", "choose", "done", "gather", "key_value", "linear", "optimize", "self_attention",
           "write_back"]  # fmt: skip
KERNELS = ("auto", "eager", "fused", "flex")
LARGE = 2**12  # logits of a head from which SDPA, forward and backward, takes less CPU time than "eager"


class Lookup(NamedTuple):
    """What one gather leaves for the way back."""

    queries: Tensor
    """(B, H, M, d)"""
    keys: Tensor
    """(B, H, N, d)"""
    kernel: str
    reverse: str
    """Weights of the way back, see ``BidirectionalCrossAttention``."""
    fast: bool = False
    """Whether ``cpu.attention`` has fast products for these tensors."""
    scores: Tensor | None = None
    """(B, H, M, N): the logits, kept by the eager kernel."""
    kept: Tensor | None = None
    """(B, H, M, N): the weights, kept by the eager kernel and by ``cpu.gather``."""
    lse: Tensor | None = None
    """(B, H, M): the log-sum-exp of each row of the logits, from which all weights follow again."""

    @property
    def weights(self) -> Tensor:
        """(B, H, M, N): each row sums to 1 over the lookup tokens; computed where they were not kept."""
        if self.kept is not None:
            return self.kept
        return _scores(self.queries, self.keys).softmax(dim=-1).to(self.keys.dtype)

    @property
    def mass(self) -> Tensor:
        """(B, N): the share of all that was gathered that came from each lookup token, without a gradient.

        Where the weights were not kept they are computed again, a head at a time.
        """
        wide = torch.promote_types(self.keys.dtype, torch.float32)
        with torch.no_grad():
            if self.kept is not None:
                return self.kept.mean(dim=(1, 2), dtype=wide)
            heads = zip(self.queries.unbind(1), self.keys.unbind(1), strict=True)
            return torch.stack([_scores(q, k).softmax(dim=-1).mean(dim=1, dtype=wide) for q, k in heads]).mean(dim=0)


def _scores(q_BHMd: Tensor, k_BHNd: Tensor) -> Tensor:
    """Return the logits (B, H, M, N), or of one head. Scaling the M queries, not the M x N scores, is the same."""
    scores_BHMN: Tensor = (q_BHMd * q_BHMd.shape[-1] ** -0.5) @ k_BHNd.transpose(-2, -1)
    return scores_BHMN


def choose(kernel: str, reverse: str, q_BHMd: Tensor, k_BHNd: Tensor, fast: bool) -> str:
    """Return what computes a cross-attention: ``kernel``, or for "auto" what is faster on the device."""
    if kernel != "auto":
        return kernel
    if reverse == "softmax":
        trains = torch.is_grad_enabled() and q_BHMd.dtype == k_BHNd.dtype == torch.float32
        large = trains and q_BHMd.shape[2] * k_BHNd.shape[2] >= LARGE
        return "fused" if q_BHMd.is_cuda or fast or large else "eager"
    if not q_BHMd.is_cuda:
        return "eager"
    if not torch.compiler.is_compiling():
        return "fused"
    # A compiler takes FlexAttention into its graph, whose kernels need such heads.
    return "flex" if q_BHMd.shape[-1] in (16, 32, 64, 128) else "eager"


def self_attention(
    q_BHNd: Tensor, k_BHNd: Tensor, v_BHNd: Tensor, kernel: str = "auto", key_bias_BN: Tensor | None = None
) -> Tensor:
    """Softmax attention -> (B, H, N, d); ``key_bias_BN`` is added to the logits of each key."""
    if key_bias_BN is None and kernel == "auto":
        return cpu.attention(q_BHNd, k_BHNd, v_BHNd, cpu.has_fast_products(q_BHNd))
    bias = None if key_bias_BN is None else key_bias_BN[:, None, None, :].to(q_BHNd.dtype)
    return F.scaled_dot_product_attention(q_BHNd, k_BHNd, v_BHNd, attn_mask=bias)


def key_value(
    layer: nn.Module, x_BND: Tensor, q_BHMd: Tensor, kernel: str, reverse: str
) -> tuple[Tensor, Tensor] | None:
    """Return keys and values (B, H, N, d) by a layer of width 2 D, in memory as ``gather`` reads them fastest.

    None: the layer is not a plain one, or ``gather`` has no such order for these tensors and queries.
    """
    if type(layer) is not cpu.Linear or kernel not in ("auto", "fused") or reverse != "softmax":
        return None
    if not cpu.shares_logits(q_BHMd, x_BND.shape[1], cpu.has_fast_products(x_BND)):
        return None
    return cpu.key_value(layer, x_BND, q_BHMd.shape[1])


def gather(q_BHMd: Tensor, k_BHNd: Tensor, v_BHNd: Tensor, kernel: str, reverse: str) -> tuple[Tensor, Lookup]:
    """Weigh the values (B, H, N, d) for each query: (B, H, M, d), and what ``write_back`` needs."""
    fast = cpu.has_fast_products(q_BHMd)
    kernel = choose(kernel, reverse, q_BHMd, k_BHNd, fast)
    shares = reverse == "softmax" and cpu.shares_logits(q_BHMd, k_BHNd.shape[2], fast)
    if fast and not (shares and cpu.is_by_channel(k_BHNd)):
        k_BHNd = k_BHNd.contiguous()  # once for both directions, which read it head by head
    lookup = Lookup(q_BHMd, k_BHNd, kernel, reverse, fast)
    if kernel == "eager":
        scores_BHMN = _scores(q_BHMd, k_BHNd)
        weights_BHMN = scores_BHMN.softmax(dim=-1).to(v_BHNd.dtype)  # autocast leaves softmax in float32
        return weights_BHMN @ v_BHNd, lookup._replace(scores=scores_BHMN, kept=weights_BHMN)
    if shares:
        out_BHMd, weights_BHMN, lse_BHM = cpu.gather(q_BHMd, k_BHNd, v_BHNd)
        return out_BHMd, lookup._replace(kept=weights_BHMN, lse=lse_BHM)
    if reverse == "softmax":
        return cpu.attention(q_BHMd, k_BHNd, v_BHNd, fast), lookup
    out_BHMd, lse_BHM = (flex if kernel == "flex" else fused).gather(q_BHMd, k_BHNd, v_BHNd)
    return out_BHMd, lookup._replace(lse=lse_BHM)


def write_back(v_BHMd: Tensor, lookup: Lookup) -> Tensor:
    """Weigh values of the compressed tokens (B, H, M, d) for each lookup token: (B, H, N, d)."""
    if lookup.reverse == "scaled":
        v_BHMd = v_BHMd * (lookup.keys.shape[2] / lookup.queries.shape[2])
    if lookup.lse is not None and lookup.kept is not None:
        return cpu.write_back(v_BHMd, lookup.queries, lookup.keys, lookup.kept, lookup.lse)
    if lookup.lse is not None:
        module = flex if lookup.kernel == "flex" else fused
        out_BHNd: Tensor = module.write_back(lookup.queries, lookup.keys, lookup.lse, v_BHMd)
        return out_BHNd
    if lookup.scores is None:
        return cpu.attention(lookup.keys, lookup.queries, v_BHMd, lookup.fast)
    weights_BHMN = lookup.weights
    if lookup.reverse == "softmax":
        weights_BHMN = lookup.scores.softmax(dim=-2).to(v_BHMd.dtype)
    return weights_BHMN.transpose(-2, -1) @ v_BHMd


def done(lookup: Lookup | None = None) -> None:
    """Leave the kept weights of a lookup that nobody reads any more to the next gather; None: free what was left."""
    if not torch.compiler.is_compiling():
        cpu.reuse(lookup.kept if lookup is not None and lookup.lse is not None else None)
