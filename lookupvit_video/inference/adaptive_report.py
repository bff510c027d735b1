"""What adaptive answers reach on labeled videos: the choice of a cascade, its figures and its curve."""

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lookupvit_video.drawing.figures import new_figure, save_figure
from lookupvit_video.inference.budget import (
    Cascade,
    Costs,
    Grid,
    Point,
    best_cascades,
    budget_name,
    cascade_answers,
    choose,
    measure,
)

logger = logging.getLogger(__name__)
ONE_SIDED_95 = 1.645  # standard errors
ALL_TRIED = 6  # budgets whose chains are all tried; of more, those of up to three


def calibrate_cascade(
    costs: Costs,
    lists: Mapping[str, tuple[Mapping[Grid, np.ndarray], np.ndarray]],
    drop: float,
    accuracy: float | None,
    picture: Path,
) -> tuple[Cascade, dict[str, Any]]:
    """Choose a cascade on the first of some lists, evaluate it on all, and draw the curve.

    Args:
        lists: by name, each grid's probabilities (videos, K), and the labels (videos,).
        drop: top-1 that may be lost against the largest grid, in points, with 95 % confidence.
        accuracy: top-1 wanted, in percent, in place of it.

    Returns:
        the cascade, and the figures as JSON holds them.

    Raises:
        UserError: no cascade reaches the accuracy.
    """
    name, *others = lists
    tables, labels = lists[name]
    singles = [measure(Cascade((grid,), ()), costs, tables, labels) for grid in costs]
    curve = best_cascades(costs, tables, labels, len(costs) if len(costs) <= ALL_TRIED else 3)
    wanted = singles[-1].top1 - drop if accuracy is None else accuracy
    points = curve
    if accuracy is None:
        every = [*curve, singles[-1]]
        points = [point for point in every if most_lost(point, singles[-1], tables, labels) <= drop + 1e-9]
    chosen = choose(points, wanted)
    splits = [(name, singles, curve, chosen)]
    warn_of_few(len(labels), drop)
    for other in others:
        groups = ([measure(p.cascade, costs, *lists[other]) for p in group] for group in (singles, curve, [chosen]))
        its_singles, its_curve, (its_chosen,) = groups
        splits.append((other, its_singles, its_curve, its_chosen))
    facts: dict[str, Any] = {"wanted_top1": round(wanted, 2)}
    for split, its_singles, its_curve, its_chosen in splits:
        facts[split] = report_choice(split, its_chosen, its_singles[-1], len(lists[split][1]))
        facts[split]["curve"] = [facts_of(point, its_singles[-1]) for point in [*its_singles, *its_curve]]
    draw_curve(splits, wanted, picture)
    return chosen.cascade, facts


def most_lost(point: Point, largest: Point, tables: Mapping[Grid, np.ndarray], labels: np.ndarray) -> float:
    """Return the top-1, in points, that a cascade loses at most against another one: an upper bound of 95 %.

    Both answer the same videos, so that only those count that one alone gets right. The bound also pays for the choice:
    the best of thousands of cascades on some videos is partly the luckiest on them.
    """
    right, right_of_largest = (
        (cascade_answers(found.cascade, tables).argmax(1) == labels).astype(float) for found in (point, largest)
    )
    lost_V = 100 * (right_of_largest - right)
    return float(lost_V.mean() + ONE_SIDED_95 * lost_V.std() / len(lost_V) ** 0.5)


def facts_of(point: Point, largest: Point) -> dict[str, Any]:
    """Return a point of the curve as JSON holds it."""
    return {
        "cascade": point.cascade.name,
        "top1": round(point.top1, 2),
        "gmacs_per_view": float(f"{point.macs / 1e9:.4g}"),
        "share_of_largest": round(point.macs / largest.macs, 3),
        "ended": dict(
            zip(map(budget_name, point.cascade.grids), [round(share, 1) for share in point.ended], strict=True)
        ),
    }


def draw_curve(splits: Sequence[tuple[str, list[Point], list[Point], Point]], wanted: float, path: Path) -> None:
    """Write a PNG: accuracy over mean GMACs a view.

    Args:
        splits: name; the single grids, the cheapest first; the cascades of the curve; the chosen one.
        wanted: accuracy, in percent, on the first of them.
    """
    figure = new_figure(7.5, 4.6)
    axis = figure.subplots()
    for (name, singles, curve, chosen), color in zip(splits, ("tab:blue", "tab:orange"), strict=False):
        places = [point.macs / 1e9 for point in curve], [point.top1 for point in curve]
        axis.plot(*places, color=color, linewidth=1.4, marker=".", label=f"adaptive, {name}")
        places = [point.macs / 1e9 for point in singles], [point.top1 for point in singles]
        axis.plot(*places, color=color, linewidth=0, marker="s", markersize=6, mfc="none", label=f"one grid, {name}")
        axis.plot(chosen.macs / 1e9, chosen.top1, color=color, linewidth=0, marker="*", markersize=14,
                  label=f"chosen, {name}")  # fmt: skip
        for point in singles:
            axis.annotate(point.cascade.name, (point.macs / 1e9, point.top1), textcoords="offset points", xytext=(5, 5),
                          fontsize=7, color=color)  # fmt: skip
    axis.axhline(wanted, color="0.6", linestyle="--", linewidth=1, label=f"wanted, {splits[0][0]}: {wanted:.2f} %")
    largest = splits[0][1][-1].macs / 1e9
    axis.axvline(largest, color="0.85", linewidth=1)
    share = axis.secondary_xaxis(
        "top", functions=(partial(np.multiply, 100 / largest), partial(np.multiply, largest / 100))
    )
    share.set_xlabel("% of the largest grid's")
    axis.set(xlabel="mean GMACs a view, all passes", ylabel="top-1, %")
    axis.margins(x=0.08, y=0.12)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7, loc="best")
    save_figure(figure, path, dpi=150)


def report_choice(name: str, chosen: Point, largest: Point, num_videos: int) -> dict[str, Any]:
    """Log what the chosen cascade reaches on a split; return it as JSON holds it."""
    facts = facts_of(chosen, largest)
    logger.info(
        "%s, %d videos: %s: top-1 %.2f %% (largest grid %.2f %%), %.4g GMACs a view, %.1f %% of the largest grid's",
        name, num_videos, chosen.cascade.name, chosen.top1, largest.top1, chosen.macs / 1e9,
        100 * chosen.macs / largest.macs,
    )  # fmt: skip
    return {"videos": num_videos, **facts, "top1_of_largest": round(largest.top1, 2)}


def warn_of_few(count: int, drop: float) -> None:
    """Warn where so few videos cannot show a drop of some points: "rule of three", 3 / n at 95 %."""
    if count < 300 / max(drop, 0.1):
        logger.warning("%d videos are too few to detect a drop below %.1f points", count, 300 / count)
