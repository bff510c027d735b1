"""Pictures of a run: the clips that the model sees, and learning curves; colors of classes."""

import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from lookupvit_video.drawing.fonts import class_label, drawable, extra_families
from lookupvit_video.files import atomic_write

SHOWN_CLIPS, SHOWN_FRAMES = 8, 4
# Okabe and Ito's, for all kinds of color vision; a darker yellow shows on white, and wine for black on a dark panel.
_FIRST_COLORS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#d8cc20", "#992154")
_FROM_OKLAB = np.array([[1, 0.396338, 0.215804], [1, -0.105561, -0.063854], [1, -0.089484, -1.291486]])
_TO_RGB = np.array([[4.076742, -3.307712, 0.23097], [-1.268438, 2.609757, -0.341319], [-0.004196, -0.703419, 1.707615]])
Color = tuple[float, float, float]


def new_figure(width: float, height: float) -> Figure:
    """Return a figure of a size in inches that needs no display and no global pyplot state."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def draw_all_scripts(figure: Figure) -> None:
    """Let the texts of a figure use the fonts that names in other scripts need."""
    if extra_families:
        for text in figure.findobj(Text):
            text.set_fontfamily([*text.get_fontfamily(), "DejaVu Sans", *extra_families])


def save_figure(figure: Figure, path: Path, dpi: int = 120) -> None:
    """Write a figure as PNG, completely or not at all."""
    draw_all_scripts(figure)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=dpi, format="png")


def plain(name: str) -> str:
    """Return text that matplotlib draws literally: a dollar would start a formula, an underscore in front hide it."""
    text = drawable(name).replace("$", r"\$")
    return " " + text if text.startswith("_") else text


def class_color(number: int) -> Color:
    """Return the color (RGB, 0 to 1) of a class, by its place in the class list: the same in every picture.

    After the first eight, colors are spread over hues and lightness in OKLCH, a perceptual space, as evenly as a
    sequence without an end can (Roberts' R2), so neighbors are far apart.
    """
    if number < len(_FIRST_COLORS):
        return to_rgb(_FIRST_COLORS[number])
    lightness, hue = 0.5 + 0.28 * (0.5698403 * number % 1), 2 * np.pi * (0.7548777 * number % 1)
    lms = (_FROM_OKLAB @ (lightness, 0.12 * np.cos(hue), 0.12 * np.sin(hue))) ** 3
    red, green, blue = ((_TO_RGB @ lms).clip(0, 1) ** (1 / 2.2)).tolist()
    return red, green, blue


def ink_on(color: Sequence[float]) -> str:
    """Return the better readable of "black" and "white" on a color (RGB, 0 to 1): that of more contrast by WCAG."""
    return "black" if np.dot(np.power(color[:3], 2.2), (0.2126, 0.7152, 0.0722)) > 0.179 else "white"


def plot_curves(
    train: Sequence[dict[str, Any]],
    val: Sequence[dict[str, Any]],
    path: Path,
    percentages: Sequence[str] = ("top1", "top5"),
    others: Sequence[str] = (),
    best: tuple[str, bool] = ("top1", True),
    loss: str = "cross-entropy",
) -> None:
    """Draw losses and learning rate over epochs, and the metrics of validation next to them, the best epoch marked.

    Args:
        percentages, others: names of metrics in ``val``.
        best: the metric that chooses the best epoch, and whether higher is better.
        loss: what it is.
    """
    figure = new_figure(10 if val else 6, 3.6)
    axes = figure.subplots(1, 2 if val else 1, squeeze=False)[0]
    epochs = [entry["epoch"] for entry in train]
    axes[0].plot(epochs, [entry["loss"] for entry in train], color="tab:blue", label="training loss")
    axes[0].set(title="loss", xlabel="epoch", ylabel=loss)
    rate = axes[0].twinx()
    rate.plot(epochs, [entry["lr"] for entry in train], color="0.7", linewidth=1, label="learning rate")
    rate.set_ylabel("learning rate", color="0.5")
    if val:
        _plot_metric(axes[0], val, "loss", "tab:orange", label="validation loss")
        _plot_metrics(axes[1], val, percentages, others)
        _mark_best(axes, val, *best)
        axes[1].set_xlim(0, 1.03 * max(entry["epoch"] for entry in [*train, *val]))
    for axis in axes:
        axis.grid(alpha=0.3)
    lines = {line.get_label(): line for axis in figure.axes for line in axis.lines}
    figure.legend(handles=list(lines.values()), loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    save_figure(figure, path)


def _plot_metric(axis: Any, val: Sequence[dict[str, Any]], key: str, color: str, label: str) -> None:
    places = [(e["epoch"], e[key]) for e in val if e.get(key) is not None]  # a resumed run may have added one
    if places:
        axis.plot(*zip(*places, strict=True), "o-", ms=3, label=label, color=color)


def _plot_metrics(axis: Any, val: Sequence[dict[str, Any]], percentages: Sequence[str], others: Sequence[str]) -> None:
    colors = itertools.cycle(f"tab:{name}" for name in "green olive purple red brown blue".split())
    axis.set(title="validation", xlabel="epoch", ylabel="%", ylim=(0, 101))
    for key in percentages:
        _plot_metric(axis, val, key, next(colors), key)
    if others:
        twin = axis.twinx()
        twin.set_ylabel(", ".join(others))
        for key in others:
            _plot_metric(twin, val, key, next(colors), key)


def _mark_best(axes: Any, val: Sequence[dict[str, Any]], key: str, higher_is_better: bool) -> None:
    """Draw a line at the epoch of the best value of a metric, the first of equal ones."""
    known = [entry for entry in val if entry.get(key) is not None]
    if known:
        best = max(known, key=lambda entry: entry[key] if higher_is_better else -entry[key])
        for axis in axes:
            label = f"best: epoch {best['epoch']}, {key} {best[key]:.4g}"
            axis.axvline(best["epoch"], color="0.3", linestyle="--", linewidth=1, label=label)


def plot_clips(
    clips_BCTHW: torch.Tensor,
    targets_BK: torch.Tensor,
    classes: Sequence[str],
    mean: Sequence[float],
    std: Sequence[float],
    path: Path,
) -> None:
    """Draw some frames of some clips of a batch, of as many classes as possible, as the model gets them.

    Args:
        clips_BCTHW: normalized by ``mean`` and ``std``, after all augmentation and mixing.
        targets_BK: the title of each clip names its two classes of the most weight.
    """
    chosen = _spread(targets_BK.argmax(1).tolist(), SHOWN_CLIPS)
    clips, targets = clips_BCTHW[chosen].detach().float().cpu(), targets_BK[chosen].cpu()
    times = np.linspace(0, clips.shape[2] - 1, min(SHOWN_FRAMES, clips.shape[2])).round().astype(int)
    shape, columns = (-1, 1, 1, 1), min(2, len(clips))
    rows = -(-len(clips) // columns)
    figure = new_figure(1.6 * len(times) * columns, 1.9 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, clip, target in zip(axes, clips, targets, strict=False):
        pixels = (clip[:, times] * torch.tensor(std).view(shape) + torch.tensor(mean).view(shape)).clamp(0, 1)
        axis.imshow(torch.cat(list(pixels.permute(1, 2, 3, 0)), dim=1).numpy())
        weights, labels = target.topk(min(2, len(classes)))
        names = [
            ("" if weight > 0.995 else f"{100 * weight:.0f} % ") + class_label(classes[label], label)
            for weight, label in zip(weights.tolist(), labels.tolist(), strict=True)
            if weight > 0.005
        ]
        axis.set_title(" + ".join(names) or "could not be read", fontsize=9, loc="left", parse_math=False)
    save_figure(figure, path)


def _spread(labels: Sequence[int], count: int) -> list[int]:
    """Return the places of up to ``count`` labels, those of rare ones first taken, in order of label."""
    seen: Counter[int] = Counter()
    turns = []
    for label in labels:
        turns.append(seen[label])
        seen[label] += 1
    chosen = sorted(range(len(labels)), key=turns.__getitem__)[:count]
    return sorted(chosen, key=labels.__getitem__)


def plot_accuracy_vs_gmacs(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw accuracy over GMACs a view, a point for each compressed grid of one checkpoint."""
    figure = new_figure(6, 4)
    axis = figure.subplots()
    name, label = ("top1", "top-1") if "top1" in rows[0] else ("mean_average_precision", "mAP")
    costs, accuracies = [row["gmacs_per_view"] for row in rows], [row[name] for row in rows]
    axis.plot(costs, accuracies, marker="o", color="tab:blue")
    for row in rows:
        axis.annotate(
            row["grid"], (row["gmacs_per_view"], row[name]), textcoords="offset points", xytext=(4, -12), fontsize=9
        )
    axis.set(title="one checkpoint, several compressed grids", xlabel="GMACs a view", ylabel=f"{label}, %")
    axis.margins(x=0.12, y=0.15)
    axis.grid(alpha=0.3)
    save_figure(figure, path)
