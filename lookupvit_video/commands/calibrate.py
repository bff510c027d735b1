"""`lookupvit calibrate`: choose the confidence at which a small grid's answer is accepted, on labelled videos."""

import argparse
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lookupvit_video.commands import options
from lookupvit_video.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from fvcore.common.config import CfgNode

    from lookupvit_video.data.manifest import Video
    from lookupvit_video.inference.budget import Grid, Point
    from lookupvit_video.inference.predictor import Predictor

logger = logging.getLogger(__name__)
EXAMPLES = """  lookupvit calibrate --checkpoint runs/x/model.pt --list val.csv --drop 0.5 --check-list test.csv
  lookupvit predict --checkpoint runs/x/model.pt --adaptive video.mp4

Writes runs/x/model.adaptive.json, which `lookupvit predict` finds there, and the curve, model.adaptive.png. Calibrate
on videos that the model was not trained on, and evaluate on a third, held-out set (--check-list).
"""


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = options.make_parser(
        "Choose, on labelled videos, the confidence at which a small compressed grid's answer is accepted.", EXAMPLES
    )
    options.add_checkpoint(parser)
    add, percent = parser.add_argument, options.number(float, 0, 100)
    add("--list", metavar="FILE", help="labelled videos (default: DATA.VAL_LIST of the checkpoint's config)")
    add("--check-list", metavar="FILE", help="held-out labelled videos, to evaluate the thresholds")
    wanted = parser.add_mutually_exclusive_group()
    wanted.add_argument("--drop", type=percent, metavar="POINTS", help="top-1 below the largest grid's (default: 0.5)")
    wanted.add_argument("--accuracy", type=percent, metavar="PERCENT", help="top-1 wanted, instead of --drop")
    options.add_views(parser)
    options.add_workers(parser)
    add("--out", type=Path, metavar="FILE", help="default: the checkpoint's name with .adaptive.json")
    return parser.parse_args()


def answer_tables(
    predictor: "Predictor", videos: "Sequence[Video]", cfg: "CfgNode", label: str
) -> "tuple[dict[Grid, np.ndarray], np.ndarray]":
    """Return each grid's probabilities (videos, K), and the labels (videos,); every video is read once."""
    from lookupvit_video.distributed.world import World
    from lookupvit_video.evaluation.evaluate import eval_loader, evaluate

    grids, world = list(predictor.costs), World(0, 1, predictor.device)
    loader = eval_loader(cfg, videos, world, cfg.TEST.NUM_ENSEMBLE_VIEWS, cfg.TEST.NUM_SPATIAL_CROPS)
    results = evaluate(predictor.model, loader, videos, cfg, world, label, grids)
    for row, reason in results[0].bad:
        logger.warning("%s counts as wrong: %s", videos[row].path, reason)
    return {grid: found.probabilities for grid, found in zip(grids, results, strict=True)}, results[0].labels


def facts_of(point: "Point", largest: "Point") -> dict[str, Any]:
    """Return a point of the curve as JSON holds it."""
    from lookupvit_video.text import grid_name

    return {
        "cascade": point.cascade.name,
        "top1": round(point.top1, 2),
        "gmacs_per_view": float(f"{point.macs / 1e9:.4g}"),
        "share_of_largest": round(point.macs / largest.macs, 3),
        "ended": dict(
            zip(map(grid_name, point.cascade.grids), [round(share, 1) for share in point.ended], strict=True)
        ),
    }


def draw_curve(splits: "Sequence[tuple[str, list[Point], list[Point], Point]]", wanted: float, path: Path) -> None:
    """Write a PNG: accuracy over mean GMACs a view.

    Args:
        splits: name; the single grids, the cheapest first; the cascades of the curve; the chosen one.
        wanted: accuracy, in percent, on the first of them.
    """
    import numpy as np

    from lookupvit_video.drawing.figures import new_figure, save_figure

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


def report_choice(name: str, chosen: "Point", largest: "Point", num_videos: int) -> dict[str, Any]:
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


def check_several_grids(checkpoint: str, predictor: "Predictor") -> None:
    """Raise UserError where a model has no budgets to choose from."""
    from lookupvit_video.inference.budget import check_grid
    from lookupvit_video.text import grid_name

    if predictor.multi_label:
        raise UserError(f"{checkpoint}: adaptive budgets are for one label a video; this model gives several")
    check_grid(predictor.costs)
    if len(predictor.costs) < 2:
        (grid,) = predictor.costs
        raise UserError(
            f"{checkpoint}: it has one compressed grid, {grid_name(grid)}; train with MODEL.COMPRESSED_GRIDS"
        )


def calibrate() -> int:
    """Run `lookupvit calibrate`."""
    arguments = parse_arguments()
    from lookupvit_video.data.manifest import load_split, read_manifest
    from lookupvit_video.distributed.parallel import autocast_dtype
    from lookupvit_video.inference.budget import (
        Cascade,
        candidates,
        choose,
        frontier,
        measure,
        save_cascade,
    )
    from lookupvit_video.inference.predictor import load_model
    from lookupvit_video.log import setup_logging

    setup_logging()
    predictor = load_model(arguments.checkpoint, arguments.device)
    check_several_grids(arguments.checkpoint, predictor)
    grids, cfg = list(predictor.costs), predictor.cfg.clone()
    cfg.defrost()
    cfg.DATA_LOADER.NUM_WORKERS = arguments.workers
    cfg.TEST.NUM_ENSEMBLE_VIEWS = arguments.views or cfg.TEST.NUM_ENSEMBLE_VIEWS
    cfg.TEST.NUM_SPATIAL_CROPS = arguments.crops or cfg.TEST.NUM_SPATIAL_CROPS
    given = arguments.list
    videos = read_manifest(given, predictor.classes) if given else load_split(predictor.cfg, "val", predictor.classes)
    others = read_manifest(arguments.check_list, predictor.classes) if arguments.check_list else []
    tables, labels = answer_tables(predictor, videos, cfg, "calibrate")
    points = [measure(cascade, predictor.costs, tables, labels) for cascade in candidates(tables)]
    singles = [measure(Cascade((grid,), ()), predictor.costs, tables, labels) for grid in grids]
    drop = 0.5 if arguments.drop is None else arguments.drop
    wanted = singles[-1].top1 - drop if arguments.accuracy is None else arguments.accuracy
    chosen, curve = choose(points, wanted), frontier(points)
    splits = [("calibration", singles, curve, chosen)]
    facts: dict[str, Any] = {
        "wanted_top1": round(wanted, 2),
        "views": f"{cfg.TEST.NUM_ENSEMBLE_VIEWS}x{cfg.TEST.NUM_SPATIAL_CROPS}",
        "precision": str(autocast_dtype(cfg.TRAIN.PRECISION, predictor.device)).removeprefix("torch."),
        "calibration": report_choice("calibration", chosen, singles[-1], len(videos)),
    }
    warn_of_few(len(videos), drop)
    if others:
        tables, labels = answer_tables(predictor, others, cfg, "check")
        groups = (singles, curve, [chosen])
        seen = [[measure(p.cascade, predictor.costs, tables, labels) for p in group] for group in groups]
        splits.append(("check", seen[0], seen[1], seen[2][0]))
        facts["check"] = report_choice("check", splits[1][3], splits[1][1][-1], len(others))
    for name, single, line, _ in splits:
        facts[name]["curve"] = [facts_of(point, single[-1]) for point in [*single, *line]]
    out = arguments.out or Path(arguments.checkpoint).with_suffix(".adaptive.json")
    save_cascade(out, chosen.cascade, predictor.model, facts)
    draw_curve(splits, wanted, out.with_suffix(".png"))
    logger.info("wrote %s and %s", out, out.with_suffix(".png"))
    return 0
