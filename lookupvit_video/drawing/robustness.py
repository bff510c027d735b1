"""Robustness in one picture: a heat map of accuracies, and curves over severity or over the cost of an answer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lookupvit_video.drawing.figures import class_color, new_figure, plain, save_figure

MANY = 8  # budgets, from which on their names take too much room


def plot_robustness(budgets: Sequence[Mapping[str, Any]], severities: Sequence[int], path: Path) -> None:
    """Draw a heat map of the dearest budget; mean accuracy over severity of all; accuracy over cost where some differ.

    Args:
        budgets: of the report of ``lookupvit robustness``: name, cost, and figures in percent.
    """
    by_cost = sorted(budgets, key=lambda of: float(of["gmacs_per_view"]))
    rows = by_cost[-1]["corruptions"]
    figure: Any = new_figure(11, 1.6 + 0.28 * max(len(rows), 8 * (1 + (len(by_cost) > 1))))
    left, right = figure.subfigures(1, 2, width_ratios=[1.25, 1])
    _heat_map(left.subplots(), by_cost[-1], severities)
    axes: Any = np.atleast_1d(right.subplots(2 if len(by_cost) > 1 else 1, 1))
    _curves(axes[0], by_cost, severities)
    if len(by_cost) > 1:
        _over_cost(axes[1], by_cost)
    save_figure(figure, path)


def _name(budget: Mapping[str, Any]) -> str:
    return budget["grid"] or "this checkpoint"


def _clean(budget: Mapping[str, Any]) -> float:
    return float(budget["summaries"][-1]["clean"]["value"])


def _accuracies(budget: Mapping[str, Any]) -> np.ndarray:
    """Return accuracies (C, S)."""
    return np.array([row["top1"] for row in budget["corruptions"]])


def _heat_map(axis: Any, budget: Mapping[str, Any], severities: Sequence[int]) -> None:
    names, values_CS = [row["corruption"] for row in budget["corruptions"]], _accuracies(budget)
    axis.imshow(values_CS, cmap="viridis", vmin=0, vmax=100, aspect="auto", interpolation="none")
    for (row, column), value in np.ndenumerate(values_CS):
        ink = "black" if value > 60 else "white"
        axis.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=8, color=ink)
    axis.set_xticks(range(len(severities)), [str(severity) for severity in severities])
    axis.set_yticks(range(len(names)), [plain(name) for name in names], fontsize=8)
    axis.set_xlabel("severity")
    axis.set_title(plain(f"{_name(budget)}: top-1, %; clean {_clean(budget):.1f}"), fontsize=10)


def _curves(axis: Any, budgets: Sequence[Mapping[str, Any]], severities: Sequence[int]) -> None:
    for number, budget in enumerate(budgets):
        values = [_clean(budget), *_accuracies(budget).mean(0)]
        axis.plot([0, *severities], values, marker="o", ms=4, color=class_color(number), label=plain(_name(budget)))
    axis.set(xlabel="severity (0: clean)", ylabel="mean top-1, %", ylim=(0, 101))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8 if len(budgets) <= MANY else 6, ncols=1 + len(budgets) // MANY)


def _over_cost(axis: Any, budgets: Sequence[Mapping[str, Any]]) -> None:
    """Draw a pair of curves over the grids for each number of blocks and share of tokens."""
    families: dict[str, list[Mapping[str, Any]]] = {}
    for budget in budgets:
        families.setdefault(budget["grid"].partition(",")[2], []).append(budget)
    for number, (family, members) in enumerate(families.items()):
        gmacs, color = [of["gmacs_per_view"] for of in members], class_color(number)
        corrupted = [of["summaries"][-1]["mPC"]["value"] for of in members]
        axis.plot(
            gmacs, [_clean(of) for of in members], "o-", ms=4, color=color, label=plain(f"{family} clean".strip())
        )
        axis.plot(gmacs, corrupted, "s--", ms=4, color=color, label=plain(f"{family} mPC".strip()))
        for place, (budget, value) in enumerate(zip(members, corrupted, strict=True)):
            if len(budgets) <= MANY:  # the grid alone, above and below in turn
                axis.annotate(budget["grid"].partition(",")[0], (budget["gmacs_per_view"], value), ha="center",
                              textcoords="offset points", xytext=(0, (-12, 6)[(place + number) % 2]),
                              fontsize=7)  # fmt: skip
    axis.set(xlabel="GMACs a view", ylabel="top-1, %")
    axis.margins(x=0.12, y=0.2)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8 if len(families) <= MANY // 2 else 6, ncols=1 + len(families) // MANY)
