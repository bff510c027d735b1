"""Training against corruptions: the same functions, at strengths between those that are tested, never at them."""

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lookupvit_video.corruptions.table import CORRUPTIONS
from lookupvit_video.errors import UserError

CHOICES = (
    "shot_noise", "contrast", "brightness", "saturate", "gaussian_noise", "shot_noise_p", "impulse_noise",
    "speckle_noise", "translate", "shake",
)  # fmt: skip
"""Corruptions of pixels whose strength may be any number."""


class RandomCorruption(nn.Module):
    """Corrupts a clip now and then, by one of some corruptions.

    The strength is between two neighboring severities: the published one of each weighs a quarter to three quarters,
    numbers above 0 on a logarithmic scale.

    Args:
        names: of ``CHOICES``.
        chance: of a clip to be corrupted.

    Raises:
        UserError: a name is none of them.
    """

    def __init__(self, names: Sequence[str], chance: float):
        super().__init__()
        if unknown := [name for name in names if name not in CHOICES]:
            raise UserError(f"AUG.CORRUPTIONS: {unknown[0]!r}: choose from {', '.join(CHOICES)}")
        self.names, self.chance = list(names), chance

    def forward(self, frames_TCHW: Tensor) -> Tensor:
        """Return frames (T, C, H, W) uint8; draws come from Python's ``random``."""
        if random.random() >= self.chance:
            return frames_TCHW
        corruption = CORRUPTIONS[random.choice(self.names)]
        at = random.randrange(len(corruption.strengths) - 1)
        strength = between(corruption.strengths[at], corruption.strengths[at + 1], random.uniform(0.25, 0.75))
        pixels_THWC = np.ascontiguousarray(frames_TCHW.permute(0, 2, 3, 1).numpy())
        rng = np.random.default_rng(random.getrandbits(63))
        return torch.from_numpy(corruption.function(pixels_THWC, strength, rng)).permute(0, 3, 1, 2)


def between(low: Any, high: Any, share: float) -> Any:
    """Return a strength between two of a corruption: numbers, or tuples of them."""
    if isinstance(low, tuple):
        return tuple(between(one, other, share) for one, other in zip(low, high, strict=True))
    if min(low, high) > 0:
        return float(low ** (1 - share) * high**share)
    return (1 - share) * low + share * high
