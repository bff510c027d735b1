"""The multi-view test of a checkpoint, by config."""

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from fvcore.common.config import CfgNode

from lookupvit_video.checkpoints.checkpoint import Checkpoint, check_settings, load_checkpoint, load_weights
from lookupvit_video.data.loader import report_worker_failures
from lookupvit_video.data.manifest import Video, load_split
from lookupvit_video.distributed.precision import autocast_dtype
from lookupvit_video.distributed.world import World, main_first
from lookupvit_video.errors import UserError
from lookupvit_video.evaluation.adaptation import adapted, load_statistics, statistics_path
from lookupvit_video.evaluation.evaluate import (
    CompressedGrid,
    Results,
    class_recalls,
    eval_loader,
    evaluate,
    write_grids,
    write_results,
)
from lookupvit_video.evaluation.metrics import METRICS, chosen_metrics, rounded, text
from lookupvit_video.evaluation.probes import ORDERS, what_order_means
from lookupvit_video.log import forget_bad_videos, record_bad_videos
from lookupvit_video.models.budget import Budget
from lookupvit_video.models.build import build_model, model_spec
from lookupvit_video.models.complexity import count_parameters, measured_macs
from lookupvit_video.provenance import measured_with

logger = logging.getLogger(__name__)


def gmacs(macs: int) -> float:
    """Return billions of multiply-accumulates with four digits."""
    return float(f"{macs / 1e9:.4g}")


def run_test(cfg: CfgNode, classes: list[str], world: World) -> dict[str, Any] | None:
    """Test a checkpoint on the test list with the config's views; the main process writes and returns the results.

    Raises:
        UserError: the checkpoint or the list cannot be read, or they do not fit the config.
    """
    chosen_metrics(cfg.TEST.METRICS, len(classes), multi_label=cfg.MODEL.TASK == "multi_label")
    videos = main_first(world, lambda main: load_split(cfg, "test", classes, check=main))
    checkpoint = load_checkpoint(cfg.TEST.CHECKPOINT_FILE_PATH or Path(cfg.OUTPUT_DIR) / "model.pt")
    _check_fit(model_spec(cfg).settings_not_in_weights, classes, cfg.MODEL.TASK, checkpoint)
    model = build_model(cfg)
    load_weights(model, checkpoint, resize_positions=True)
    clip = torch.zeros(1, 3, cfg.DATA.NUM_FRAMES, cfg.DATA.TEST_CROP_SIZE, cfg.DATA.TEST_CROP_SIZE)
    spec = model_spec(cfg)
    budgets = _budgets(spec.budgets, [tuple(cfg.MODEL.COMPRESSED_GRID), *map(tuple, cfg.TEST.GRIDS)])
    macs = [measured_macs(model, clip, *([budget] if budget else [])) for budget in budgets]
    model.to(world.device)
    views, crops = cfg.TEST.NUM_ENSEMBLE_VIEWS, cfg.TEST.NUM_SPATIAL_CROPS
    logger.info("test: %s on %d videos, %d x %d views", checkpoint.path, len(videos), views, crops)
    statistics = load_statistics(statistics_path(checkpoint.path), model) if cfg.TEST.ADAPT else None
    with report_worker_failures(), adapted(model, statistics):
        loader = eval_loader(cfg, videos, world, views, crops)
        orders = ORDERS[1:] if cfg.TEST.PROBES else ()
        temperatures = _temperatures(checkpoint.calibration, budgets)
        results = evaluate(model, loader, videos, cfg, world, "test", budgets, orders, temperatures)
    if not world.is_main:
        return None
    facts = {
        "checkpoint": str(checkpoint.path),
        "arch": cfg.MODEL.ARCH,
        "step": checkpoint.step,
        "views": f"{views}x{crops}",
        "precision": str(autocast_dtype(cfg.TRAIN.PRECISION, world.device)).removeprefix("torch."),
        "gmacs_per_view": gmacs(macs[0]),
        "parameters": count_parameters(model),
        "measured_with": measured_with(world.device),
    }
    if len(budgets) > 1:
        times = spec.shape.times  # factorised: a grid is that of each time index
        facts["grids"] = _budget_table(times, budgets, macs, results[: len(budgets)], cfg.TEST.METRICS)
    if cfg.TEST.PROBES:
        facts["probes"] = _probes([results[0], *results[len(budgets) :]], cfg.TEST.METRICS[0])
    folder, skip_list = Path(cfg.OUTPUT_DIR), Path(cfg.DATA.PATH_TO_DATA_DIR, cfg.DATA.SKIP_LIST)
    forget_bad_videos(folder, ("test",), skip_list)  # what an earlier test could not read may be readable now
    return _write(results[0], videos, classes, folder, facts, cfg.TEST.METRICS, checkpoint.thresholds)


def _check_fit(settings: Mapping[str, Any], classes: list[str], task: str, checkpoint: Checkpoint) -> None:
    if checkpoint.config.MODEL.TASK != task:
        raise UserError(
            f"{checkpoint.path}: trained for MODEL.TASK {checkpoint.config.MODEL.TASK}, the config says {task}"
        )
    if checkpoint.classes != classes:
        raise UserError(f"{checkpoint.path}: its classes are not those of the data; test it with its own class list")
    check_settings(settings, checkpoint)


def _budgets(known: Sequence[Budget], grids: Sequence[tuple[int, ...]]) -> list[Budget | None]:
    """Return the budgets to test, the model's own first: all those on some grids; [None] for a model without."""
    return [budget for budget in known if budget.grid in grids] or [None]


def _temperatures(
    calibration: Mapping[str, Mapping[str, Any]], budgets: Sequence[Budget | None]
) -> dict[CompressedGrid, list[float]]:
    """Return the temperature of each budget that was calibrated; None: the first of them, the default."""
    names = {budget: budget.name if budget else "" for budget in budgets}
    found: dict[CompressedGrid, list[float]] = {
        budget: calibration[name]["temperature"] for budget, name in names.items() if name in calibration
    }
    return found | ({None: found[budgets[0]]} if budgets[0] in found else {})


def _budget_table(
    times: int, budgets: Sequence[Budget | None], macs: list[int], results: list[Results], metrics: Sequence[str]
) -> list[dict[str, Any]]:
    """Return a row for each budget, the cheapest first."""
    return [
        {"grid": budget.name, "tokens": times * math.prod(budget.grid), "gmacs_per_view": gmacs(cost),
         **rounded(found.measure(metrics), 2)}
        for budget, cost, found in sorted(zip(budgets, macs, results, strict=True), key=lambda row: row[1])
        if budget is not None
    ]  # fmt: skip


def _probes(results: Sequence[Results], metric: str) -> dict[str, float]:
    """Log and return the first metric with each order of the frames."""
    values = {order: round(found.measure([metric])[metric], 2) for order, found in zip(ORDERS, results, strict=True)}
    logger.info("%s: %s", METRICS[metric].label, what_order_means(values))
    return values


def _write(
    results: Results,
    videos: Sequence[Video],
    classes: list[str],
    folder: Path,
    facts: dict[str, Any],
    metrics: Sequence[str],
    thresholds: Sequence[float],
) -> dict[str, Any]:
    """Write all files of the test and return the summary."""
    unread = results.bad + results.used_damaged
    record_bad_videos(folder, [("test", videos[row].path, reason) for row, reason in unread])
    if "grids" in facts:
        write_grids(facts["grids"], folder)
    summary = write_results(results, videos, classes, folder, facts, metrics, thresholds)
    logger.info(
        "test: %s of %d videos (%d could not be read and count as wrong, %d are damaged and were used); wrote %s",
        text({name: summary[name] for name in metrics if name in summary}),
        len(videos), len(results.bad), len(results.used_damaged),
        ", ".join(str(folder / name) for name in ("test_results.json", "test_predictions.csv", "test_per_class.png")),
    )  # fmt: skip
    logger.info("test: %s", class_recalls(results, classes))
    return summary
