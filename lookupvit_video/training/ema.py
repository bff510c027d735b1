"""The exponential moving average of the weights (Polyak averaging, as timm and VideoMAE keep it)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """Follows the trained parameters of a model: average = decay * average + (1 - decay) * weights after each step.

    It starts from the weights. Buffers are not averaged. Under sharding each process averages its own shards, which
    torch.optim.swa_utils.AveragedModel cannot do: it copies the model, and FSDP2 refuses that.

    Args:
        model: what ``parallelize`` returned.
        decay: at least 0 and below 1; 0.9999 averages over about 10,000 steps.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self._weights: list[Tensor] = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._averages = [weight.detach().clone() for weight in self._weights]

    @torch.no_grad()
    def update(self) -> None:
        """Update the averages after an optimizer step."""
        torch._foreach_lerp_(self._averages, self._weights, 1 - self.decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Exchange the model's weights for the averages inside the block.

        What is read from the model, or loaded into it, are then the averages, under any kind of parallelism.
        """
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for weight, average in zip(self._weights, self._averages, strict=True):
            kept = weight.detach().clone()
            weight.copy_(average)
            average.copy_(kept)
