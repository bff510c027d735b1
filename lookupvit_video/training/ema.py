"""The exponential moving average of the weights (Polyak averaging, as timm and VideoMAE keep it)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """Follows the trained parameters of a model: average = decay * average + (1 - decay) * weights after each step.

    It begins as the weights are. Buffers are not averaged. Under sharding each process averages its own shards.

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
        """Take in the weights after an optimiser step."""
        torch._foreach_lerp_(self._averages, self._weights, 1 - self.decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the model have the averages in place of its weights, inside the block.

        What is read from the model, or loaded into it, is then the averages, under any kind of parallelism.
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
