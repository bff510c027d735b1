"""Pictures of a run: learning curves and the confusion matrix."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lookupvit_video.files import written_whole


def new_figure(width: float, height: float) -> Figure:
    """Return a figure of so many inches that needs no display and no global pyplot state."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path, dpi: int = 120) -> None:
    """Write a figure as PNG, whole or not at all."""
    with written_whole(path) as temporary:
        figure.savefig(temporary, dpi=dpi, format="png")


def plot_curves(train: Sequence[dict[str, Any]], val: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw training loss and learning rate over steps, and validation accuracy beside them."""
    figure = new_figure(10, 3.6)
    axes = figure.subplots(1, 2)
    steps = [entry["step"] for entry in train]
    axes[0].plot(steps, [entry["loss"] for entry in train], color="tab:blue")
    axes[0].set(title="training loss", xlabel="step", ylabel="loss")
    rate = axes[0].twinx()
    rate.plot(steps, [entry["lr"] for entry in train], color="0.7", linewidth=1)
    rate.set_ylabel("learning rate", color="0.5")
    if val:
        for key, colour in (("top1", "tab:green"), ("top5", "tab:olive")):
            axes[1].plot(
                [e["step"] for e in val], [e[key] for e in val], marker="o", markersize=3, label=key, color=colour
            )
        axes[1].legend(loc="lower right")
    axes[1].set(title="validation accuracy", xlabel="step", ylabel="%", ylim=(0, 101))
    for axis in axes:
        axis.grid(alpha=0.3)
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
        axis.set_xticks(range(len(classes)), classes, rotation=45, ha="right", rotation_mode="anchor")
        axis.set_yticks(range(len(classes)), classes)
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
