"""A picture of pre-training: frames, and what a model makes of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lookupvit_video.drawing.figures import SHOWN_FRAMES, new_figure, save_figure


def plot_reconstruction(rows: Mapping[str, Tensor], mean: Sequence[float], std: Sequence[float], path: Path) -> None:
    """Draw some frames of each clip, one row for each of what is shown of it.

    Args:
        rows: by name, clips (B, C, T, H, W) that are normalized by ``mean`` and ``std``.
    """
    first = next(iter(rows.values()))
    shape, count = (-1, 1, 1, 1), len(first)
    times = np.linspace(0, first.shape[2] - 1, 2 * SHOWN_FRAMES).round().astype(int)
    figure = new_figure(0.9 * len(times), 0.95 * len(rows) * count)
    axes = figure.subplots(count, 1, squeeze=False).ravel()
    for number, axis in enumerate(axes):
        lines = []
        for clips in rows.values():
            clip = clips[number, :, times].detach().float().cpu()
            pixels = (clip * torch.tensor(std).view(shape) + torch.tensor(mean).view(shape)).clamp(0, 1)
            lines.append(torch.cat(list(pixels.permute(1, 2, 3, 0)), dim=1))
        axis.imshow(torch.cat(lines).numpy(), interpolation="nearest")
        height = lines[0].shape[0]
        axis.set_xticks([])
        axis.set_yticks([height * (row + 0.5) for row in range(len(rows))], list(rows))
    save_figure(figure, path)
