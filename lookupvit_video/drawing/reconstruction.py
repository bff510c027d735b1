"""A picture of masked pre-training: frames, what of them is visible, and what is predicted."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lookupvit_video.drawing.figures import SHOWN_FRAMES, new_figure, save_figure


def plot_reconstruction(rows: Sequence[Tensor], mean: Sequence[float], std: Sequence[float], path: Path) -> None:
    """Draw some frames of each clip in three rows: as it is, its visible part, and with the prediction.

    Args:
        rows: three times clips (B, C, T, H, W), normalized by ``mean`` and ``std``.
    """
    shape, count = (-1, 1, 1, 1), len(rows[0])
    times = np.linspace(0, rows[0].shape[2] - 1, 2 * SHOWN_FRAMES).round().astype(int)
    figure = new_figure(0.9 * len(times), 2.8 * count)
    axes = figure.subplots(count, 1, squeeze=False).ravel()
    for number, axis in enumerate(axes):
        lines = []
        for clips in rows:
            clip = clips[number, :, times].detach().float().cpu()
            pixels = (clip * torch.tensor(std).view(shape) + torch.tensor(mean).view(shape)).clamp(0, 1)
            lines.append(torch.cat(list(pixels.permute(1, 2, 3, 0)), dim=1))
        axis.imshow(torch.cat(lines).numpy(), interpolation="nearest")
        height = lines[0].shape[0]
        axis.set_xticks([])
        axis.set_yticks([height * (row + 0.5) for row in range(3)], ["clip", "visible", "predicted"])
    save_figure(figure, path)
