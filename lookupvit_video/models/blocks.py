"""The dense transformer block, the LookupViT block and the classifier on top.

Shape letters: B batch, N lookup tokens, M compressed tokens, D width, K classes, t time indices.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lookupvit_video.models import kernels
from lookupvit_video.models.attention import (
    NORM_EPS,
    AttentivePooling,
    BidirectionalCrossAttention,
    SelfAttention,
)
from lookupvit_video.models.kernels import Lookup
from lookupvit_video.models.kernels.rotary import FORMS, Rotary
from lookupvit_video.models.tokenizer import Grid, TubeletTokenizer, sine_cosine_positions


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the approximation that OpenAI's CLIP was trained with."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply elementwise."""
        return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
    "quick_gelu": QuickGELU,
}
POOLS = ("average", "average_norm", "class")


@dataclass(frozen=True)
class BlockOptions:
    """Options of a block; the same for all blocks of a model."""

    activation: str = "gelu"
    """gelu, gelu_tanh (ViViT's published weights) or quick_gelu (OpenAI's CLIP)."""
    norm_eps: float = NORM_EPS
    layer_scale: float = 0.0
    """Initial value of a learned factor per channel on each residual branch (CaiT, arXiv 2103.17239); 0: none."""
    qk_norm: bool = False
    reverse: str = "softmax"
    """See ``BidirectionalCrossAttention``; dense blocks ignore it."""
    lookup_conv: tuple[int, ...] = ()
    """t x h x w of the kernel of a ``LocalMixing`` in the MLP of the tokens of the complete grid; (): none."""
    rotary: str = ""
    """How queries and keys are turned by their place, one of ``rotary.FORMS``; "": not at all."""
    pre_norm: bool = False
    """Whether there is a norm before the first block too, as in CLIP."""
    convolutional_tokenizer: bool = False
    """Whether the tokenizer begins with a ``ConvolutionalStem``."""

    @property
    def has_positions(self) -> bool:
        """Whether positions are added to the tokens."""
        return not self.rotary or FORMS[self.rotary].has_table

    def tokenizer(self, *, dim: int, **arguments: Any) -> TubeletTokenizer:
        """Return a tokenizer whose tokens these blocks take."""
        norm = self.norm(dim) if self.pre_norm else None
        arguments |= {"positions": self.has_positions, "convolutional": self.convolutional_tokenizer}
        return TubeletTokenizer(dim=dim, norm=norm, **arguments)

    def norm(self, dim: int) -> nn.LayerNorm:
        """Return a layer norm."""
        return nn.LayerNorm(dim, eps=self.norm_eps)

    def mlp(self, dim: int, hidden_dim: int) -> nn.Sequential:
        """Return two linear layers with the activation between them."""
        return nn.Sequential(nn.Linear(dim, hidden_dim), ACTIVATIONS[self.activation](), nn.Linear(hidden_dim, dim))

    def scale(self, dim: int) -> nn.Module:
        """Return the layer scale of one residual branch."""
        return LayerScale(dim, self.layer_scale) if self.layer_scale else nn.Identity()


PLAIN = BlockOptions()


class LayerScale(nn.Module):
    """A learned factor per channel (CaiT, arXiv 2103.17239)."""

    def __init__(self, dim: int, initial: float):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), initial))

    def forward(self, x: Tensor) -> Tensor:
        """Scale (..., D)."""
        return x * self.gamma


class DropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382): in training, a residual branch is dropped for some clips of a batch.

    As torchvision's ``StochasticDepth``, but with the rate in a buffer: a number is part of compiled code,
    and blocks that differ in nothing else would be compiled one by one.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.drops = rate > 0
        self.register_buffer("kept", torch.tensor(1.0 - rate), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, ...) to the same shape: a row is 0 or, so that the mean stays, divided by the share of kept ones."""
        if not (self.training and self.drops):
            return x
        kept = self.get_buffer("kept")
        rows = torch.bernoulli(kept.expand(x.shape[0], *[1] * (x.ndim - 1))) / kept
        return x * rows.to(x.dtype)


class TransformerBlock(nn.Module):
    """Pre-norm ViT block: self-attention, then an MLP of ratio 4, each with a residual (arXiv 2010.11929).

    Args:
        grid: t x h x w of the tokens, for ``options.lookup_conv``; None: without that.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        drop_path: float = 0.0,
        options: BlockOptions = PLAIN,
        grid: Grid | None = None,
    ):
        super().__init__()
        self.norm_attention = options.norm(dim)
        self.attention = SelfAttention(dim, num_heads, options.qk_norm)
        self.scale_attention = options.scale(dim)
        self.norm_mlp = options.norm(dim)
        self.mlp = options.mlp(dim, 4 * dim)
        self.scale_mlp = options.scale(dim)
        self.mixing = LocalMixing(4 * dim, grid, options.lookup_conv) if grid and options.lookup_conv else None
        self.drop_path = DropPath(drop_path)
        self.adapter: nn.Module | None = None

    def forward(self, x_BND: Tensor, rotary: Rotary | None = None) -> Tensor:
        """Map (B, N, D) to (B, N, D)."""
        x_BND = x_BND + self.drop_path(self.scale_attention(self.attention(self.norm_attention(x_BND), rotary)))
        return self.add_mlp(x_BND)

    def add_mlp(self, x_BND: Tensor) -> Tensor:
        """Return the block's second half: (B, N, D) plus its MLP branch."""
        update_BND = mixed_mlp(self.mlp, self.mixing, self.norm_mlp(x_BND))
        out_BND: Tensor = x_BND + self.drop_path(self.scale_mlp(update_BND))
        return out_BND if self.adapter is None else out_BND + self.adapter(x_BND)

    @property
    def adapted_norm(self) -> nn.Module:
        """The norm of what an adapter reads before it, see ``adapters.Adapter``."""
        return self.norm_mlp


class LocalMixing(nn.Module):
    """A depthwise convolution over the grid of the tokens (DHVT, arXiv 2210.05958, section 3.3); zero at first.

    Args:
        channels: C.
        grid: t x h x w of the N tokens.
        kernel: t x h x w, each odd.
    """

    def __init__(self, channels: int, grid: Grid, kernel: tuple[int, ...]):
        super().__init__()
        self.grid, self.padding = grid, [side // 2 for side in kernel]
        self.weight = nn.Parameter(torch.zeros(channels, 1, *kernel))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x_BnC: Tensor, kept_Bn: Tensor | None = None) -> Tensor:
        """Map (B, n, C) to the same shape.

        Args:
            kept_Bn: which of the N tokens these are; the others count as zero, as those beyond the border. None: all.
        """
        x_BNC = x_BnC
        if kept_Bn is not None:
            rows = kept_Bn[..., None].expand_as(x_BnC)
            x_BNC = x_BnC.new_zeros(len(x_BnC), math.prod(self.grid), x_BnC.shape[-1]).scatter(1, rows, x_BnC)
        x_BCthw = x_BNC.transpose(1, 2).unflatten(2, self.grid)
        out_BNC = self._convolved(x_BCthw).flatten(2).transpose(1, 2)
        return out_BNC if kept_Bn is None else out_BNC.gather(1, rows)

    def _convolved(self, x_BCthw: Tensor) -> Tensor:
        arguments: dict[str, Any] = {"padding": self.padding, "groups": len(self.weight)}
        if not (x_BCthw.dtype == torch.bfloat16 and x_BCthw.device.type == "cpu" and torch.is_grad_enabled()):
            return F.conv3d(x_BCthw, self.weight, self.bias, **arguments)
        # oneDNN's bfloat16 gradient of such a weight reads past its input: now and then it is not finite. float32 takes
        # half of its time.
        with torch.autocast("cpu", enabled=False):
            out_BCthw = F.conv3d(x_BCthw.float(), self.weight.float(), self.bias.float(), **arguments)
        return out_BCthw.to(x_BCthw.dtype)


def mixed_mlp(mlp: nn.Sequential, mixing: LocalMixing | None, x_BND: Tensor, kept_BN: Tensor | None = None) -> Tensor:
    """Map (B, N, D) to the same shape by an MLP, with what ``mixing`` adds to its hidden layer, if anything."""
    if mixing is None:
        out_BND: Tensor = mlp(x_BND)
        return out_BND
    first, activation, second, *adapter = mlp
    hidden_BNC = activation(first(x_BND))
    out_BND = second(hidden_BNC + mixing(hidden_BNC, kept_BN))
    return out_BND + adapter[0](x_BND) if adapter else out_BND


class LookupViTBlock(nn.Module):
    """LookupViT block (arXiv 2407.12753, section 3): gather, refine, write back, narrow MLP; a residual around each.

    Costs (3NM + 2M^2) D + (4N + 15M) D^2 multiply-accumulates and weighs 19 D^2 parameters plus biases and norms.

    Args:
        writes_back: False in the last block of a model that reads compressed tokens only, which saves 2 N D^2 + N M D
            of the multiply-accumulates, and M D^2 for the values.
        grid: t x h x w of the lookup tokens, for ``options.lookup_conv``.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        drop_path: float = 0.0,
        options: BlockOptions = PLAIN,
        writes_back: bool = True,
        grid: Grid = (0, 0, 0),
    ):
        super().__init__()
        self.norm_gather_compressed = options.norm(dim)
        self.norm_gather_lookup = options.norm(dim)
        self.cross_attention = BidirectionalCrossAttention(
            dim, num_heads, options.reverse, options.qk_norm, writes_back
        )
        self.scale_gather = options.scale(dim)
        self.refine = TransformerBlock(dim, num_heads, drop_path, options)
        self.writes_back = writes_back
        if writes_back:
            self.norm_infuse = options.norm(dim)
            self.scale_infuse = options.scale(dim)
            self.norm_lookup_mlp = options.norm(dim)
            self.lookup_mlp = options.mlp(dim, dim // 2)
            self.scale_lookup_mlp = options.scale(dim)
        has_mixing = writes_back and options.lookup_conv
        self.mixing = LocalMixing(dim // 2, grid, options.lookup_conv) if has_mixing else None
        self.drop_path = DropPath(drop_path)
        self.adapter: nn.Module | None = None

    def forward(
        self,
        compressed_BMD: Tensor,
        lookup_BND: Tensor,
        writes_back: bool = True,
        return_lookup: bool = False,
        kept_BN: Tensor | None = None,
        rotary: tuple[Rotary, Rotary] | None = None,
    ) -> tuple[Tensor, Tensor, Lookup | None]:
        """Update both token sets.

        Args:
            writes_back: False leaves the lookup tokens as they are (they are not read after this block).
            return_lookup: return what the gather found, with its weights.
            kept_BN: which of the tokens of the grid the lookup tokens are; None: all.
            rotary: of the compressed and of the lookup tokens.

        Returns:
            compressed tokens (B, M, D), lookup tokens (B, N, D), and what was found or None.
        """
        update_BMD, lookup = self.cross_attention.gather(
            self.norm_gather_compressed(compressed_BMD), self.norm_gather_lookup(lookup_BND), rotary
        )
        compressed_BMD = compressed_BMD + self.drop_path(self.scale_gather(update_BMD))
        compressed_BMD = self.refine(compressed_BMD, rotary[0] if rotary else None)
        if writes_back and self.writes_back:
            lookup_BND = self.write_back(compressed_BMD, lookup_BND, lookup, kept_BN)
        if not return_lookup:
            kernels.done(lookup)
        return compressed_BMD, lookup_BND, lookup if return_lookup else None

    def write_back(
        self, compressed_BMD: Tensor, lookup_BND: Tensor, lookup: Lookup, kept_BN: Tensor | None = None
    ) -> Tensor:
        """Write refined compressed tokens (B, M, D) to lookup tokens (B, N, D) and run the narrow MLP on these."""
        update_BND = self.cross_attention.write_back(self.norm_infuse(compressed_BMD), lookup)
        lookup_BND = lookup_BND + self.drop_path(self.scale_infuse(update_BND))
        update_BND = mixed_mlp(self.lookup_mlp, self.mixing, self.norm_lookup_mlp(lookup_BND), kept_BN)
        out_BND: Tensor = lookup_BND + self.drop_path(self.scale_lookup_mlp(update_BND))
        return out_BND if self.adapter is None else out_BND + self.adapter(lookup_BND)

    @property
    def adapted_norm(self) -> nn.Module | None:
        """As that of ``TransformerBlock``; None where there is no MLP."""
        return self.norm_lookup_mlp if self.writes_back else None


class TemporalEncoder(nn.Module):
    """The second stage of a factorized encoder: a transformer over one vector per time index (ViViT, model 2)."""

    def __init__(self, *, length: int, dim: int, depth: int, num_heads: int, options: BlockOptions = PLAIN):
        super().__init__()
        self.positions = nn.Parameter(sine_cosine_positions((length, 1, 1), dim)[None])
        self.blocks = nn.ModuleList(TransformerBlock(dim, num_heads, options=options) for _ in range(depth))
        self.blocks.apply(init_linear)
        self.adapter: nn.Module | None = None

    def forward(self, frames_BtD: Tensor) -> Tensor:
        """Map (B, t, D) to (B, t, D)."""
        if self.adapter is not None:
            frames_BtD = frames_BtD + self.adapter(frames_BtD)
        frames_BtD = frames_BtD + self.positions
        for block in self.blocks:
            frames_BtD = block(frames_BtD)
        return frames_BtD


class Classifier(nn.Module):
    """A final norm, pooling over the tokens, dropout and a linear layer.

    Args:
        pool: "average": norm, then mean over the tokens; "average_norm": mean, then norm (VideoMAE); "class": norm of
            the first token; "attentive": norm, then ``AttentivePooling``.
    """

    norm: Callable[[Tensor], Tensor]
    attentive: Callable[[Tensor], Tensor]

    def __init__(
        self,
        dim: int,
        num_classes: int,
        dropout: float = 0.0,
        pool: str = "average",
        num_heads: int = 1,
        options: BlockOptions = PLAIN,
    ):
        super().__init__()
        self.pool = pool
        self.norm = options.norm(dim)
        if pool == "attentive":
            self.attentive = AttentivePooling(dim, num_heads)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(dim, num_classes)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)  # small, so that training starts from even probabilities
        nn.init.zeros_(self.linear.bias)

    def pooled(self, tokens_BND: Tensor) -> Tensor:
        """Map tokens (B, N, D) to one vector each (B, D)."""
        if self.pool == "class":
            return self.norm(tokens_BND[:, 0])
        if self.pool == "average_norm":
            return self.norm(tokens_BND.mean(dim=1))
        if self.pool == "attentive":
            return self.attentive(self.norm(tokens_BND))
        return self.norm(tokens_BND).mean(dim=1)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        """Map tokens (B, N, D) to logits (B, K)."""
        logits_BK: Tensor = self.linear(self.dropout(self.pooled(tokens_BND)))
        return logits_BK


def drop_path_rates(highest: float, depth: int) -> list[float]:
    """Return each block's stochastic depth: from 0 at the first block to ``highest`` at the last, linearly."""
    return [highest * i / max(depth - 1, 1) for i in range(depth)]


def init_linear(module: nn.Module) -> None:
    """Initialize a linear layer as ViT's JAX code and MAE do (Xavier, uniform; biases 0); for ``Module.apply``.

    The normal distribution of deviation 0.02 that is common in PyTorch suits a width of 768. In narrow models it leaves
    each branch nearly linear and attention nearly even, and what depends on products is learned much later.
    """
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
