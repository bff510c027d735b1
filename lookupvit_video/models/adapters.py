"""Parameter-efficient tuning: AdaptFormer's adapters or LoRA in the blocks of a model whose own weights are frozen.

A connector is an adapter between its frozen and its training stage.
All keep the names of the adapted weights, so that MODEL.INIT_FROM fills them as in the plain model; all start as that
model; and their parameters are known by name (``is_adapter``).
Reading order: ``add_adapters``, AdaptFormer, LoRA, ``merge_lora``.
"""

import math

from torch import Tensor, nn
from torch.nn import functional as F

from lookupvit_video.errors import UserError

WIDTHS = {"adaptformer": 64, "adaptformer_code": 64, "lora": 8, "connector": 64}
"""Inner width of an adapter (AdaptFormer, table 1), rank of LoRA, where none is given."""
SCALES = {"adaptformer": 0.1, "adaptformer_code": 0.1, "lora": 1.0, "connector": 1.0}
"""What their output is multiplied with: AdaptFormer's s; LoRA's alpha / rank."""


def add_adapters(blocks: nn.Module, kind: str, width: int = 0, scale: float = 0.0) -> None:
    """Put adapters into every block of a list, or one into a ``TemporalEncoder``; the output does not change.

    Args:
        kind: "adaptformer": parallel to each MLP, also those of the lookup tokens, as in the paper; "adaptformer_code":
            the same as its authors' code has it, see ``Adapter``; "lora": on each linear layer; "connector": on the one
            vector per time index that a temporal encoder gets.
        width: inner width or rank; 0: that of ``WIDTHS``.
        scale: 0: that of ``SCALES``.

    Raises:
        UserError: there is no such kind.
    """
    if kind not in WIDTHS:
        raise UserError(f"adapters {kind!r}: choose {' or '.join(WIDTHS)}")
    width, scale = width or WIDTHS[kind], scale or SCALES[kind]
    if kind == "connector":
        positions = blocks.get_parameter("positions")
        blocks.adapter = Adapter(positions.shape[-1], width, scale).to(positions)
    for name, module in list(blocks.named_modules()):
        if kind == "adaptformer" and type(module) is nn.Sequential:
            blocks.set_submodule(name, AdaptedMLP(module, width, scale))
        elif kind == "lora" and isinstance(module, nn.Linear):
            blocks.set_submodule(name, LoRALinear(module, width, scale))
        elif kind == "adaptformer_code" and (norm := getattr(module, "adapted_norm", None)) is not None:
            adapter = Adapter(norm.normalized_shape[0], width, scale, dropout=0.1)
            module.adapter = adapter.to(norm.weight)


def is_adapter(name: str) -> bool:
    """Whether the parameter of that name was added by ``add_adapters``."""
    return ".adapter." in name or ".lora_" in name


class Adapter(nn.Module):
    """A narrow MLP: down, ReLU, up (AdaptFormer, arXiv 2205.13535, section 3.2); zero at first.

    The paper's equation 2 and the released code differ (ShoufaChen/AdaptFormer, issues 5 and 9): in the code, which the
    published figures belong to, the adapter reads the tokens before the norm, is added outside drop path and layer
    scale, and has a dropout of 0.1 before its second layer.
    """

    def __init__(self, dim: int, width: int, scale: float, dropout: float = 0.0):
        super().__init__()
        self.scale, self.dropout = scale, dropout
        self.down, self.up = nn.Linear(dim, width), nn.Linear(width, dim)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., D) to (..., D)."""
        hidden = F.relu(self.down(x))
        if self.dropout:
            hidden = F.dropout(hidden, self.dropout, self.training)
        update: Tensor = self.scale * self.up(hidden)
        return update


class AdaptedMLP(nn.Sequential):
    """A block's MLP with a parallel adapter on the same normalized tokens (AdaptFormer, equation 2).

    Both are in one residual branch, so that layer scale and drop path act on both.
    """

    def __init__(self, mlp: nn.Sequential, width: int, scale: float):
        super().__init__(*mlp)
        first = mlp[0]
        assert isinstance(first, nn.Linear)
        self.adapter = Adapter(first.in_features, width, scale).to(first.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., D) to (..., D)."""
        first, activation, second, adapter = self
        out: Tensor = second(activation(first(x))) + adapter(x)
        return out


class LoRALinear(nn.Linear):
    """A linear layer W with a low-rank update: W x + scale * up (down x) (LoRA, arXiv 2106.09685); zero at first."""

    def __init__(self, linear: nn.Linear, rank: int, scale: float):
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias, self.scale = linear.weight, linear.bias, scale
        self.plain = type(linear)  # what computes W x, see ``kernels.optimize``
        self.lora_down = nn.Parameter(linear.weight.new_empty(rank, linear.in_features))
        self.lora_up = nn.Parameter(linear.weight.new_zeros(linear.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_down, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        return self.plain.forward(self, x) + F.linear(self.scale * F.linear(x, self.lora_down), self.lora_up)

    def merged(self) -> nn.Linear:
        """Return the plain layer that computes the same."""
        linear = self.plain(self.in_features, self.out_features, device="meta")
        update = self.scale * (self.lora_up.double() @ self.lora_down.double())
        linear.weight = nn.Parameter((self.weight.double() + update).to(self.weight).detach())
        linear.bias = self.bias
        return linear


def merge_lora(model: nn.Module) -> nn.Module:
    """Turn every ``LoRALinear`` of a model into the plain layer that computes the same, in place; return the model.

    The result is the plain model, with its names and its cost. AdaptFormer's adapters have a ReLU inside: they stay.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, LoRALinear):
            model.set_submodule(name, module.merged())
    return model
