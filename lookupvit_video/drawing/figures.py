"""Pictures of a run: the clips that the model sees, learning curves and the confusion matrix; colors of classes."""

import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize, PowerNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from lookupvit_video.drawing.fonts import class_label, drawable, extra_families
from lookupvit_video.files import atomic_write

SHOWN_CLIPS, SHOWN_FRAMES = 8, 4
FULL_MATRIX = 30  # classes: of more, a confusion matrix has no room for numbers
LISTED = 22  # confusions, and classes, next to a larger matrix
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


def save_figure(figure: Figure, path: Path, dpi: int = 120) -> None:
    """Write a figure as PNG, completely or not at all."""
    if extra_families:
        for text in figure.findobj(Text):
            text.set_fontfamily([*text.get_fontfamily(), "DejaVu Sans", *extra_families])
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
) -> None:
    """Draw losses and learning rate over epochs, and the metrics of validation next to them, the best epoch marked.

    Args:
        percentages, others: names of metrics in ``val``.
        best: the metric that chooses the best epoch, and whether higher is better.
    """
    figure = new_figure(10 if val else 6, 3.6)
    axes = figure.subplots(1, 2 if val else 1, squeeze=False)[0]
    epochs = [entry["epoch"] for entry in train]
    axes[0].plot(epochs, [entry["loss"] for entry in train], color="tab:blue", label="training loss")
    axes[0].set(title="loss", xlabel="epoch", ylabel="cross-entropy")
    rate = axes[0].twinx()
    rate.plot(epochs, [entry["lr"] for entry in train], color="0.7", linewidth=1, label="learning rate")
    rate.set_ylabel("learning rate", color="0.5")
    if val:
        _plot_metric(axes[0], val, "loss", "tab:orange", label="validation loss")
        _plot_metrics(axes[1], val, percentages, others)
        _mark_best(axes, val, *best)
    for axis in axes:
        axis.grid(alpha=0.3)
    lines = {line.get_label(): line for axis in figure.axes for line in axis.lines}
    figure.legend(handles=list(lines.values()), loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    save_figure(figure, path)


def _plot_metric(axis: Any, val: Sequence[dict[str, Any]], key: str, color: str, label: str) -> None:
    places = [(e["epoch"], e[key]) for e in val if e.get(key) is not None]  # a resumed run may have added one
    axis.plot(*zip(*places, strict=True) if places else ([], []), "o-", ms=3, label=label, color=color)


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


def plot_confusion(counts_KK: np.ndarray, classes: Sequence[str], path: Path) -> None:
    """Draw the confusion matrix: rows are the true classes, the color is the share of a row's videos.

    Up to 30 classes it has counts, and accuracy and number of videos of each row; of more, lists of the most frequent
    confusions and the least accurate classes.
    """
    totals_K, is_full = counts_KK.sum(1), len(classes) <= FULL_MATRIX
    share_KK = 100 * counts_KK / np.maximum(totals_K, 1)[:, None]
    size = 3.0 + 0.42 * len(classes) if is_full else 9.0
    figure = new_figure(size + (2.2 if is_full else 6.6), size)
    panels: Any = [figure] if is_full else figure.subfigures(1, 2, width_ratios=[size + 1, 5.6])
    axis = panels[0].subplots()
    norm = Normalize(0, 100) if is_full else PowerNorm(0.5, 0, 100)  # the root keeps a few percent visible
    image = axis.imshow(share_KK, cmap="Blues", norm=norm, interpolation="none")
    panels[0].colorbar(image, ax=axis, label="% of the true class", shrink=0.8)
    videos, right = int(totals_K.sum()), int(counts_KK.trace())
    axis.set(xlabel="predicted", ylabel="true")
    axis.set_title(f"confusion matrix: {right} of {videos} right, {100 * right / max(videos, 1):.1f} %", fontsize=11)
    names, size = [plain(class_label(name, number)) for number, name in enumerate(classes)], 9 if is_full else 6
    if len(classes) <= 2 * FULL_MATRIX:
        axis.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=size)
        axis.set_yticks(range(len(names)), names, fontsize=size)
    if is_full:
        _write_counts(axis, counts_KK, share_KK, totals_K)
    else:
        _list_confusions(panels[1].subplots(), counts_KK, totals_K, names)
    save_figure(figure, path)


def _write_counts(axis: Any, counts_KK: np.ndarray, share_KK: np.ndarray, totals_K: np.ndarray) -> None:
    """Write the count into each cell, and accuracy and number of videos to the right of each row."""
    for row, column in np.argwhere(counts_KK > 0):
        ink = "white" if share_KK[row, column] > 50 else "black"
        axis.text(column, row, f"{counts_KK[row, column]}", ha="center", va="center", fontsize=8, color=ink)
    sums = axis.secondary_yaxis("right")
    cells = [f"{share:.0f} % of {n}" if n else "0" for n, share in zip(totals_K, share_KK.diagonal(), strict=True)]
    sums.set_yticks(range(len(cells)), cells, fontsize=8)
    sums.set_ylabel("accuracy", fontsize=8)
    sums.tick_params(length=0)


def _list_confusions(axis: Any, counts_KK: np.ndarray, totals_K: np.ndarray, names: Sequence[str]) -> None:
    """List the most frequent confusions and the least accurate classes, with their numbers on the matrix's axes."""
    wrong_KK, right_K = counts_KK * (1 - np.eye(len(names), dtype=np.int64)), counts_KK.diagonal()
    lines = [f"most frequent of {wrong_KK.sum()} confusions: true → predicted"]
    for place in np.argsort(-wrong_KK, axis=None, kind="stable")[:LISTED]:
        row, column = divmod(int(place), len(names))
        if wrong_KK[row, column]:
            share = f"{wrong_KK[row, column]} of {totals_K[row]}"
            lines.append(f"{share}:  {row} {names[row]} → {column} {names[column]}")
    lines += ["", "least accurate classes"]
    known = np.flatnonzero(totals_K)
    for row in known[np.argsort(right_K[known] / totals_K[known], kind="stable")][:LISTED]:
        lines.append(f"{100 * right_K[row] / totals_K[row]:.0f} % of {totals_K[row]}:  {row} {names[row]}")
    axis.set_axis_off()
    axis.text(0, 1, "\n".join(lines), va="top", fontsize=8, linespacing=1.6, transform=axis.transAxes)
