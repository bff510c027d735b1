"""Test-time adaptation: a clip whose tokens look unlike those of clean videos is moved toward them.

The mean and deviation of each channel over the tokens of one clip, before positions are added to them, are aligned with
those of clean videos, as batch norm statistics are in other networks (Schneider et al., NeurIPS 2020, arXiv
2006.16971), which this project's layer norms do not have. Each clip is adapted by itself: no gradient, no second pass,
nothing carried from one to the next, and the answer does not depend on the batch. A clip as close to the mean as clean
videos are stays as it is, to the bit.

Shape letters: B clips, N lookup tokens, D width.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lookupvit_video.checkpoints.checkpoint import fingerprint
from lookupvit_video.errors import UserError
from lookupvit_video.files import atomic_write

SPARED = 0.95
"""Share of clean clips that are not moved."""


@dataclass(frozen=True)
class TokenStatistics:
    """What the tokens of clean videos look like to a tokenizer, without their positions."""

    mean: Tensor
    """(D,): averaged over clips, as is the deviation."""
    deviation: Tensor
    """(D,)"""
    far: float
    """The distance from which on a clip is moved."""

    def distance(self, tokens_BND: Tensor) -> Tensor:
        """Return how far the statistics of each clip are from those of clean videos: (B,)."""
        return self.distance_of(tokens_BND.mean(1), tokens_BND.std(1))

    def distance_of(self, mean_BD: Tensor, deviation_BD: Tensor) -> Tensor:
        """Return the same from the statistics: shift in deviations plus change of scale, averaged over channels."""
        shift_B = ((mean_BD - self.mean).abs() / self.deviation).mean(1)
        return shift_B + (deviation_BD / self.deviation).clamp(min=1e-6).log().abs().mean(1)

    def aligned(self, tokens_BND: Tensor, positions_1ND: Tensor | float) -> Tensor:
        """Return tokens (B, N, D) with their positions, those of far clips with the statistics of clean videos."""
        content_BND = (tokens_BND - positions_1ND).float()
        mean_B1D, deviation_B1D = content_BND.mean(1, keepdim=True), content_BND.std(1, keepdim=True)
        moved_BND = (content_BND - mean_B1D) / (deviation_B1D + 1e-6) * self.deviation + self.mean + positions_1ND
        is_far_B = self.distance(content_BND) > self.far
        return torch.where(is_far_B[:, None, None], moved_BND.to(tokens_BND.dtype), tokens_BND)


def measure_tokens(model: nn.Module, clips: Iterable[Tensor]) -> TokenStatistics:
    """Look at clean clips.

    Args:
        clips: normalized (B, C, T, H, W), on the model's device.

    Raises:
        UserError: the model has no tubelet tokens.
    """
    means, deviations = [], []
    with torch.inference_mode():
        for clips_BCTHW in clips:
            tokenizer = _tokenizer(model)
            tokens_BND = (tokenizer(clips_BCTHW) - tokenizer.added_positions).float()
            means.append(tokens_BND.mean(1).cpu())
            deviations.append(tokens_BND.std(1).cpu())
    mean_BD, deviation_BD = torch.cat(means), torch.cat(deviations)
    found = TokenStatistics(mean_BD.mean(0), deviation_BD.mean(0).clamp(min=1e-6), 0.0)
    return replace(found, far=float(found.distance_of(mean_BD, deviation_BD).quantile(SPARED)))


def _tokenizer(model: nn.Module) -> Any:
    tokenizer = getattr(model, "tokenizer", None)
    if getattr(tokenizer, "projection", None) is None:
        raise UserError("adaptation: this model has no tubelet tokens")
    return tokenizer


@contextmanager
def adapted(model: nn.Module, statistics: TokenStatistics | None) -> Iterator[None]:
    """Align the tokens of every clip while the block is active; None changes nothing."""
    if statistics is None:
        yield
        return
    tokenizer = _tokenizer(model)
    device = next(tokenizer.parameters()).device
    there = replace(statistics, mean=statistics.mean.to(device), deviation=statistics.deviation.to(device))
    hook = tokenizer.register_forward_hook(partial(_hook, there))
    try:
        yield
    finally:
        hook.remove()


def _hook(statistics: TokenStatistics, tokenizer: Any, _inputs: Any, tokens_BND: Tensor) -> Tensor:
    return statistics.aligned(tokens_BND, tokenizer.added_positions)


def statistics_path(checkpoint: str | Path) -> Path:
    """Return where the statistics for a checkpoint are kept."""
    return Path(checkpoint).with_suffix(".tokens.npz")


def save_statistics(path: Path, statistics: TokenStatistics, model: nn.Module) -> None:
    """Write statistics, and which tokenizer they are of."""
    with atomic_write(path) as temporary:
        np.savez(
            temporary, content_mean=statistics.mean.numpy(), deviation=statistics.deviation.numpy(), far=statistics.far,
            tokenizer=fingerprint(_tokenizer(model)),
        )  # fmt: skip


def load_statistics(path: str | Path, model: nn.Module) -> TokenStatistics:
    """Read statistics for a model.

    Raises:
        UserError: the file is missing or damaged, or belongs to other weights.
    """
    if not Path(path).exists():
        raise UserError(f"{path}: missing; lookupvit robustness --adapt --checkpoint {Path(path).parent} makes it")
    try:
        with np.load(path, allow_pickle=False) as kept:
            mean, deviation = (torch.from_numpy(kept[name]) for name in ("content_mean", "deviation"))
            far, of = float(kept["far"]), str(kept["tokenizer"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: these statistics cannot be read ({error}); remove the file") from None
    if of != fingerprint(_tokenizer(model)):
        raise UserError(f"{path}: these statistics are of other weights; remove the file")
    return TokenStatistics(mean, deviation, far)
