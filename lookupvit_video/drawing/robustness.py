"""Robustness in one picture: a heat map of accuracies, and curves over severity or over the cost of an answer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lookupvit_video.drawing.figures import class_color, new_figure, plain, save_figure


def plot_robustness(
    names: Sequence[str],
    tables: Sequence[tuple[str, float, np.ndarray]],
    severities: Sequence[int],
    path: Path,
    costs: Sequence[tuple[str, float, float, float]] = (),
) -> None:
    """Draw a heat map of the first table; mean accuracy over severity of all; accuracy over cost where there are grids.

    Args:
        names: of the C corruptions.
        tables: of each model or grid its name, its accuracy on clean videos, and accuracies (C, S), all in percent.
        costs: of each compressed grid its name, GMACs a view, accuracy on clean videos and mPC.
    """
    title, clean, accuracies_CS = tables[0]
    figure: Any = new_figure(11, 1.6 + 0.28 * max(len(names), 8))
    left, right = figure.subfigures(1, 2, width_ratios=[1.25, 1])
    _heat_map(left.subplots(), names, accuracies_CS, severities, f"{title}: top-1, %; clean {clean:.1f}")
    axes: Any = np.atleast_1d(right.subplots(2 if costs else 1, 1))
    _curves(axes[0], tables, severities)
    if costs:
        _over_cost(axes[1], costs)
    save_figure(figure, path)


def _heat_map(axis: Any, names: Sequence[str], values_CS: np.ndarray, severities: Sequence[int], title: str) -> None:
    axis.imshow(values_CS, cmap="viridis", vmin=0, vmax=100, aspect="auto", interpolation="none")
    for (row, column), value in np.ndenumerate(values_CS):
        ink = "black" if value > 60 else "white"
        axis.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=8, color=ink)
    axis.set_xticks(range(len(severities)), [str(severity) for severity in severities])
    axis.set_yticks(range(len(names)), [plain(name) for name in names], fontsize=8)
    axis.set_xlabel("severity")
    axis.set_title(plain(title), fontsize=10)


def _curves(axis: Any, tables: Sequence[tuple[str, float, np.ndarray]], severities: Sequence[int]) -> None:
    for number, (name, clean, accuracies_CS) in enumerate(tables):
        places, values = [0, *severities], [clean, *accuracies_CS.mean(0)]
        axis.plot(places, values, marker="o", ms=4, color=class_color(number), label=plain(name))
    axis.set(xlabel="severity (0: clean)", ylabel="mean top-1, %", ylim=(0, 101))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)


def _over_cost(axis: Any, costs: Sequence[tuple[str, float, float, float]]) -> None:
    _, gmacs, cleans, corrupted = zip(*costs, strict=True)
    axis.plot(gmacs, cleans, "o-", color=class_color(0), label="clean")
    axis.plot(gmacs, corrupted, "s--", color=class_color(1), label="mPC")
    for name, cost, _, value in costs:
        axis.annotate(name, (cost, value), textcoords="offset points", xytext=(4, -12), fontsize=8)
    axis.set(xlabel="GMACs a view", ylabel="top-1, %")
    axis.margins(x=0.12, y=0.2)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
