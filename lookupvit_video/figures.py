"""Pictures of a run: the clips that the model sees, learning curves and the confusion matrix."""

import itertools
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lookupvit_video.files import atomic_write
from lookupvit_video.text import printable

SHOWN_CLIPS, SHOWN_FRAMES = 8, 4


def new_figure(width: float, height: float) -> Figure:
    """Return a figure of a size in inches that needs no display and no global pyplot state."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path, dpi: int = 120) -> None:
    """Write a figure as PNG, completely or not at all."""
    with atomic_write(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # an empty box is drawn
        figure.savefig(temporary, dpi=dpi, format="png")


def plain(name: str) -> str:
    """Return a name that matplotlib draws literally: a dollar would start a formula, some bytes are an error."""
    return printable(name).replace("$", r"\$")


def plot_curves(
    train: Sequence[dict[str, Any]],
    val: Sequence[dict[str, Any]],
    path: Path,
    percentages: Sequence[str] = ("top1", "top5"),
    others: Sequence[str] = (),
) -> None:
    """Draw training loss and learning rate over steps, and the metrics of validation next to them.

    Args:
        percentages, others: names of metrics in ``val``.
    """
    figure = new_figure(10, 3.6)
    axes = figure.subplots(1, 2)
    steps = [entry["step"] for entry in train]
    axes[0].plot(steps, [entry["loss"] for entry in train], color="tab:blue")
    axes[0].set(title="training loss", xlabel="step", ylabel="loss")
    rate = axes[0].twinx()
    rate.plot(steps, [entry["lr"] for entry in train], color="0.7", linewidth=1)
    rate.set_ylabel("learning rate", color="0.5")
    if val:
        axis, colors = axes[1], itertools.cycle(f"tab:{name}" for name in "green olive blue orange red purple".split())
        for key in (*percentages, *others):
            if key in others and axis is axes[1]:
                axis = axes[1].twinx()
                axis.set_ylabel(", ".join(others))
            places = [(e["step"], e[key]) for e in val if e.get(key) is not None]  # a resumed run may have added one
            axis.plot(*zip(*places, strict=True) if places else ([], []), "o-", ms=3, label=key, color=next(colors))
        figure.legend(
            handles=[line for a in figure.axes[1:] for line in a.lines if line.get_marker() == "o"],
            loc="outside lower right",
            ncols=4,
        ) if others else axes[1].legend(loc="lower right")
    axes[1].set(title="validation accuracy", xlabel="step", ylabel="%", ylim=(0, 101))
    for axis in axes:
        axis.grid(alpha=0.3)
    save_figure(figure, path)


def plot_clips(
    clips_BCTHW: torch.Tensor,
    targets_BK: torch.Tensor,
    classes: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
    path: Path,
) -> None:
    """Draw some frames of the first clips of a batch, as the model gets them after all augmentation and mixing.

    Args:
        clips_BCTHW: normalized by ``mean`` and ``std``.
        targets_BK: the title of each clip names its two classes of the most weight.
    """
    clips = clips_BCTHW[:SHOWN_CLIPS].detach().float().cpu()
    times = np.linspace(0, clips.shape[2] - 1, min(SHOWN_FRAMES, clips.shape[2])).round().astype(int)
    shape = (-1, 1, 1, 1)
    figure = new_figure(1.6 * len(times), 1.9 * len(clips))
    for axis, clip, target in zip(
        figure.subplots(len(clips), squeeze=False)[:, 0], clips, targets_BK.cpu(), strict=False
    ):
        pixels = (clip[:, times] * torch.tensor(std).view(shape) + torch.tensor(mean).view(shape)).clamp(0, 1)
        axis.imshow(torch.cat(list(pixels.permute(1, 2, 3, 0)), dim=1).numpy())
        weights, labels = target.topk(min(2, len(classes)))
        names = [
            printable(classes[label] if weight > 0.995 else f"{100 * weight:.0f} % {classes[label]}")
            for weight, label in zip(weights.tolist(), labels.tolist(), strict=True)
            if weight > 0.005
        ]
        axis.set_title(" + ".join(names) or "could not be read", fontsize=8, parse_math=False)
        axis.set_axis_off()
    save_figure(figure, path)


def plot_accuracy_vs_gmacs(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw top-1 accuracy over GMACs a view, a point for each compressed grid of one checkpoint."""
    figure = new_figure(6, 4)
    axis = figure.subplots()
    costs, accuracies = [row["gmacs_per_view"] for row in rows], [row["top1"] for row in rows]
    axis.plot(costs, accuracies, marker="o", color="tab:blue")
    for row in rows:
        axis.annotate(
            row["grid"], (row["gmacs_per_view"], row["top1"]), textcoords="offset points", xytext=(4, -12), fontsize=9
        )
    axis.set(title="one checkpoint, several compressed grids", xlabel="GMACs a view", ylabel="top-1, %")
    axis.margins(x=0.12, y=0.15)
    axis.grid(alpha=0.3)
    save_figure(figure, path)


def plot_confusion(counts_KK: np.ndarray, classes: Sequence[str], path: Path) -> None:
    """Draw the confusion matrix: rows are the true classes, each row in percent of its videos."""
    share = 100 * counts_KK / np.maximum(counts_KK.sum(1, keepdims=True), 1)
    size = min(4 + 0.32 * len(classes), 24)
    figure = new_figure(size + 1, size)
    axis = figure.subplots()
    image = axis.imshow(share, cmap="Blues", vmin=0, vmax=100)
    figure.colorbar(image, ax=axis, label="% of the true class", shrink=0.8)
    axis.set(xlabel="predicted", ylabel="true", title="confusion matrix")
    if len(classes) <= 60:
        names = list(map(plain, classes))
        axis.set_xticks(range(len(classes)), names, rotation=45, ha="right", rotation_mode="anchor")
        axis.set_yticks(range(len(classes)), names)
    if len(classes) <= 20:
        for row, column in np.argwhere(counts_KK > 0):
            dark = share[row, column] > 50
            axis.text(
                column,
                row,
                f"{share[row, column]:.0f}",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if dark else "black",
            )
    save_figure(figure, path)
