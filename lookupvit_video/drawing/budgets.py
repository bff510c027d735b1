"""Accuracy over what an answer costs: every budget of one checkpoint, and other models for comparison."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lookupvit_video.drawing.figures import class_color, new_figure, plain, save_figure

MARKERS = "sD^vPX*"


class Drawn(NamedTuple):
    """A budget as a point."""

    name: str
    gmacs: float
    """10^9 multiply-accumulates a view."""
    ms: float
    """Measured milliseconds a view."""
    top1: float
    """Percent."""


def best_of(points: Sequence[Drawn], cost: Callable[[Drawn], float]) -> list[Drawn]:
    """Return the points that no cheaper one reaches in accuracy, the cheapest first."""
    found: list[Drawn] = []
    for point in sorted(points, key=lambda point: (cost(point), -point.top1)):
        if not found or point.top1 > found[-1].top1:
            found.append(point)
    return found


def plot_budgets(
    models: Mapping[str, Sequence[Drawn]],
    path: Path,
    how: str = "",
    size: tuple[float, float] = (10, 4.6),
    metric: str = "top-1, %",
) -> None:
    """Draw accuracy over operations and over time.

    Args:
        models: by name; the budgets of the first are a cloud with its frontier, those of the others points beside it.
        how: what the time was measured with, in a few words for the title.
        size: of the picture in inches.
    """
    figure = new_figure(*size)
    axes: Any = figure.subplots(1, 2, sharey=True)
    costs: list[tuple[str, Callable[[Drawn], float]]] = [
        ("GMACs a view", lambda point: point.gmacs),
        ("ms a view", lambda point: point.ms),
    ]
    for axis, (label, cost) in zip(axes, costs, strict=True):
        axis.margins(x=0.12, y=0.12)
        _cloud(axis, models, cost)
        axis.set_xlabel(plain(label))
        axis.set_xlim(left=0)
        _name_ends(axis, best_of(next(iter(models.values())), cost), cost)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(metric)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    if how:
        figure.suptitle(plain(how), fontsize=9)
    save_figure(figure, path, dpi=150)


def _cloud(axis: Any, models: Mapping[str, Sequence[Drawn]], cost: Callable[[Drawn], float]) -> None:
    for number, (name, points) in enumerate(models.items()):
        color = class_color(number)
        marker, face = ("o", color) if number == 0 else (MARKERS[(number - 1) % len(MARKERS)], "none")
        places = [cost(point) for point in points], [point.top1 for point in points]
        axis.plot(*places, color=color, linewidth=0, marker=marker, ms=5 if number == 0 else 7, mfc=face, alpha=0.8,
                  label=plain(name))  # fmt: skip
        if number == 0 and len(points) > 1:
            best = best_of(points, cost)
            places = [cost(point) for point in best], [point.top1 for point in best]
            axis.plot(*places, color=color, linewidth=1.2, label="its frontier")


def _name_ends(axis: Any, best: Sequence[Drawn], cost: Callable[[Drawn], float]) -> None:
    """Write the names of the cheapest and of the best budget of a frontier: those between would overlap."""
    middle = sum(axis.get_xlim()) / 2
    for point, shift in ((best[0], -12), (best[-1], 8)) if len(best) > 1 else ():
        align = "left" if cost(point) < middle else "right"
        axis.annotate(plain(point.name), (cost(point), point.top1), textcoords="offset points", xytext=(0, shift),
                      ha=align, fontsize=7, color=class_color(0))  # fmt: skip
