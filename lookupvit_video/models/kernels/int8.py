"""Linear layers with eight-bit weights and activations, for inference; each checked against the layer it replaces.

A weight has a scale for each output channel. Activations have a scale and a zero for each clip, taken from its values
as they come ("dynamic"), so that an answer depends on nothing but its own clip. On processors with instructions for it
(VNNI, AMX) torch's operator does all in one pass. Elsewhere, and for exported models, plain operations around a product
of integers compute the same; these need not be faster than floats. docs/export.md has size, accuracy and speed.
"""

import warnings
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.jit._trace import is_tracing
from torch.utils._python_dispatch import _get_current_dispatch_mode

from lookupvit_video.errors import RunFailure
from lookupvit_video.models.kernels.cpu import Linear

TINY = 1e-30
LAYER_LIMIT = 0.05
"""Of a layer's error: the norm of the difference to the float layer's output on the same input, over that output's."""
OUTPUT_LIMIT = 0.05
"""The same of the model's logits, each clip's without their mean, which no answer depends on."""

Run = Callable[[], Tensor]
"""Runs the model on some clips and returns its logits (B, K)."""


class Int8Linear(nn.Module):
    """A linear layer (B, ..., in) -> (B, ..., out) with 8-bit weights and activations.

    ``weight`` (in, out) int8 and ``scale`` (out,) float32 are buffers; ``bias`` (out,) is float32.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor

    def __init__(self, layer: nn.Linear):
        super().__init__()
        weight = layer.weight.detach().float()
        scale = weight.abs().amax(dim=1).clamp_min(TINY) / 127
        self.register_buffer("weight", (weight / scale[:, None]).round().to(torch.int8).t().contiguous())
        self.register_buffer("scale", scale)
        self.register_buffer("bias", scale.new_zeros(len(scale)) if layer.bias is None else layer.bias.detach().float())

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, ..., in) to (B, ..., out), float32."""
        x = x.float()
        if not _has_operator(x):
            return self.plain(x)
        if self not in _packed:
            _packed[self] = self._pack()
        found = [torch.ops.quantized.linear_dynamic(one, _packed[self], False) for one in x.split(1)]
        return found[0] if len(found) == 1 else torch.cat(found)

    def plain(self, x: Tensor) -> Tensor:
        """Do the same in plain operations, which can be traced."""
        dims = list(range(1, x.ndim))
        low, high = x.amin(dims, keepdim=True).clamp_max(0), x.amax(dims, keepdim=True).clamp_min(0)
        step = ((high - low) / 255).clamp_min(TINY)
        zero = (-low / step).round()
        # The product takes signed integers: all are shifted by 128, like the zero.
        ints = ((x * (1 / step)).round() + zero).clamp(0, 255) - 128
        sums = torch._int_mm(ints.to(torch.int8).flatten(0, -2), self.weight).unflatten(0, x.shape[:-1])
        of_zero = (zero - 128) * self.weight.sum(dim=0, dtype=torch.float32)
        return torch.addcmul(self.bias, (sums - of_zero) * step, self.scale)

    def _pack(self) -> Any:
        zeros, before = torch.zeros(len(self.scale), dtype=torch.long), torch.backends.quantized.engine
        with warnings.catch_warnings(action="ignore"):  # a later torch may lack the operator: see _is_capable
            weight = torch._make_per_channel_quantized_tensor(self.weight.t().contiguous(), self.scale, zeros, 0)
            try:
                torch.backends.quantized.engine = "onednn"
                return torch.ops.quantized.linear_prepack(weight, self.bias)
            finally:
                torch.backends.quantized.engine = before


class Int8Weights(nn.Module):
    """A linear layer (..., in) -> (..., out) that computes in floats and keeps its weights in 8 bits.

    A runtime makes floats of them as it loads: a quarter of the file, at the speed of floats. ``weight`` (out, in) int8
    and ``scale`` (out, 1) float32 are buffers.
    """

    weight: Tensor
    scale: Tensor

    def __init__(self, layer: nn.Linear):
        super().__init__()
        weight = layer.weight.detach().float()
        scale = weight.abs().amax(dim=1, keepdim=True).clamp_min(TINY) / 127
        self.register_buffer("weight", (weight / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)


_packed: WeakKeyDictionary[Int8Linear, Any] = WeakKeyDictionary()
"""What the operator takes, of each layer that has run: torch.export refuses a module that holds it."""


@cache
def _is_capable() -> bool:
    has_operator = hasattr(torch.ops.quantized, "linear_dynamic") and hasattr(torch, "quint8")
    return has_operator and "onednn" in torch.backends.quantized.supported_engines and torch.cpu._is_vnni_supported()


def _has_operator(x: Tensor) -> bool:
    if torch.compiler.is_compiling() or x.device.type != "cpu":
        return False
    return _is_capable() and not is_tracing() and _get_current_dispatch_mode() is None


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """Return the linear layers of a model by name, without classifiers, which see one vector a clip."""
    return {
        name: module for name, module in model.named_modules()
        if type(module) in (nn.Linear, Linear) and name.rpartition(".")[2] != "linear"
    }  # fmt: skip


def quantize_weights(model: nn.Module) -> None:
    """Keep the weights of a model's linear layers in 8 bits, in place; it computes in floats."""
    for name, layer in linear_layers(model).items():
        model.set_submodule(name, Int8Weights(layer))


def quantize(model: nn.Module, run: Run) -> dict[str, nn.Linear]:
    """Replace the linear layers of a model, in place, except where it costs accuracy; return those that were replaced.

    A layer stays in float where its own error is above ``LAYER_LIMIT``; then, as long as the error of the logits is
    above ``OUTPUT_LIMIT``, half of the layers that are left follow, those of the largest error.

    Args:
        run: with the clips to measure the errors on.
    """
    expected, replaced = run(), linear_layers(model)
    for name, layer in replaced.items():
        model.set_submodule(name, Int8Linear(layer))
    errors = layer_errors(model, replaced, run)
    back = [name for name, error in errors.items() if not error <= LAYER_LIMIT]
    while True:
        for name in back:
            model.set_submodule(name, replaced.pop(name))
        if not replaced or output_error(run(), expected) <= OUTPUT_LIMIT:
            return replaced
        worst = sorted(replaced, key=lambda name: -errors[name])
        back = worst[: -(-len(worst) // 2)]


def check_quantized(model: nn.Module, replaced: Mapping[str, nn.Linear], run: Run, expected: Tensor) -> float:
    """Return the error of a quantized model's logits against those of the float model.

    Raises:
        RunFailure: it is too large, or that of a layer is.
    """
    _packed.clear()  # what was packed from other weights would be measured
    for name, error in layer_errors(model, replaced, run).items():
        if not error <= LAYER_LIMIT:
            raise RunFailure(f"{name}: its 8-bit output differs by {error:.2g} of itself, more than {LAYER_LIMIT:g}")
    found = output_error(run(), expected)
    if not found <= OUTPUT_LIMIT:
        raise RunFailure(f"the 8-bit model's logits differ by {found:.2g} of themselves, more than {OUTPUT_LIMIT:g}")
    return found


def layer_errors(model: nn.Module, replaced: Mapping[str, nn.Linear], run: Run) -> dict[str, float]:
    """Return the error of each 8-bit layer against the float layer that it replaced, on the same inputs."""
    found: dict[str, float] = {}

    def compare(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, name: str) -> None:
        wanted = replaced[name](inputs[0])
        found[name] = float((output - wanted).norm() / wanted.norm())

    hooks = [model.get_submodule(name).register_forward_hook(partial(compare, name=name)) for name in replaced]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return found


def output_error(logits_BK: Tensor, expected_BK: Tensor) -> float:
    """Return how far logits are from those expected; infinite or nan where they are not finite."""
    expected = expected_BK - expected_BK.mean(dim=1, keepdim=True)
    difference = logits_BK - logits_BK.mean(dim=1, keepdim=True) - expected
    return float(difference.norm() / expected.norm())
