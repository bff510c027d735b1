"""`lookupvit calibrate`: probabilities that mean something, and when to reject an answer or accept a small budget's."""

import argparse
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lookupvit_video.commands import options
from lookupvit_video.errors import UserError

if TYPE_CHECKING:
    from lookupvit_video.data.manifest import Video
    from lookupvit_video.distributed.world import World
    from lookupvit_video.evaluation.view_logits import ViewLogits
    from lookupvit_video.inference.calibrated import CalibratedAnswers
    from lookupvit_video.inference.predictor import Predictor

logger = logging.getLogger(__name__)
EXAMPLES = """  lookupvit calibrate --checkpoint runs/x/model.pt --list val.csv --check-list test.csv
  lookupvit predict --checkpoint runs/x/model.pt --reject 0.05 --coverage 0.9 video.mp4
  lookupvit predict --checkpoint runs/x/model.pt --adaptive video.mp4

Writes a temperature, and what --reject and --coverage need, into the checkpoint; figures and a picture next to it
(model.calibration.json, .png). For a checkpoint with several compressed grids also the thresholds for --adaptive
(model.adaptive.json, .png). Calibrate on videos that the model was not trained on, and evaluate on a third, held-out
set (--check-list).
"""


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = options.make_parser(
        "Fit probabilities to labelled videos, and find when to reject an answer or accept a small grid's.", EXAMPLES
    )
    options.add_checkpoint(parser)
    add, percent = parser.add_argument, options.number(float, 0, 100)
    add("--list", metavar="FILE", help="labelled videos (default: DATA.VAL_LIST of the checkpoint's config)")
    add("--check-list", metavar="FILE", help="held-out labelled videos, to evaluate what was found")
    add("--unknown-list", metavar="FILE", help="videos of none of the classes, for predict --reject unknown=RATE")
    add("--check-unknown-list", metavar="FILE", help="others of them, to evaluate with --check-list")
    wanted = parser.add_mutually_exclusive_group()
    wanted.add_argument("--drop", type=percent, metavar="POINTS",
                        help="top-1 that --adaptive may lose against the largest grid, with 95 %% confidence (default: "
                        "0.5)")  # fmt: skip
    wanted.add_argument("--accuracy", type=percent, metavar="PERCENT", help="top-1 wanted, instead of --drop")
    options.add_views(parser)
    options.add_workers(parser)
    add("--out", type=Path, metavar="FILE",
        help="thresholds for --adaptive (default: the checkpoint's name with .adaptive.json)")  # fmt: skip
    arguments = parser.parse_args()
    if arguments.check_unknown_list and not (arguments.unknown_list and arguments.check_list):
        parser.error("--check-unknown-list is for --unknown-list with --check-list")
    return arguments


def check_checkpoint(arguments: argparse.Namespace, predictor: "Predictor") -> None:
    """Raise UserError where a checkpoint cannot be written to, or has no budgets although some are asked for."""
    from lookupvit_video.inference.budget import check_grid

    path = arguments.checkpoint
    if not Path(path).is_file():
        raise UserError(f"{path}: calibrate the .pt file of training, then write this folder with save_pretrained")
    for name in ("unknown_list", "drop", "accuracy", "out"):
        if predictor.multi_label and getattr(arguments, name) is not None:
            raise UserError(f"--{name.replace('_', '-')}: for one label a video; {path} gives several")
    if arguments.drop is None and arguments.accuracy is None and arguments.out is None:
        return
    check_grid(predictor.costs)
    if len(predictor.costs) < 2:
        (name,) = predictor.grids
        raise UserError(f"{path}: it has one compressed grid, {name}; train with MODEL.COMPRESSED_GRIDS")


def read_lists(arguments: argparse.Namespace, predictor: "Predictor") -> "dict[str, Sequence[Video]]":
    """Return the videos of each list by its name; those of unknown classes have a label that means nothing.

    Raises:
        UserError: a list cannot be read.
    """
    from lookupvit_video.data.manifest import Video, load_split, read_manifest
    from lookupvit_video.inference.batch import find_videos

    read = partial(read_manifest, classes=predictor.classes, multi_label=predictor.multi_label)
    lists: dict[str, Sequence[Video]] = {
        "calibration": read(arguments.list) if arguments.list else load_split(predictor.cfg, "val", predictor.classes)
    }
    if arguments.check_list:
        lists["check"] = read(arguments.check_list)
    for name, path in (("unknown", arguments.unknown_list), ("check_unknown", arguments.check_unknown_list)):
        if path:
            lists[name] = [Video(video, 0) for video in find_videos([], [path])[0]]
    for name, videos in lists.items():
        if not videos:
            raise UserError(f"the list for {name.replace('_', ' ')} has no videos")
    return lists


def logits_of(
    predictor: "Predictor", videos: "Sequence[Video]", arguments: argparse.Namespace, name: str, world: "World"
) -> "ViewLogits":
    """Return the logits of each grid for a list.

    Raises:
        UserError: none of its videos can be read.
    """
    from lookupvit_video.config import with_settings
    from lookupvit_video.data.loader import build_eval_loader
    from lookupvit_video.evaluation.view_logits import view_logits
    from lookupvit_video.progress import progress

    cfg = with_settings(predictor.cfg, {"DATA_LOADER.NUM_WORKERS": arguments.workers})
    plan = predictor.plan
    loader = build_eval_loader(
        cfg, videos, num_views=plan.times.num_clips, num_crops=plan.num_crops, rank=world.rank, world_size=world.size
    )
    count = len(range(world.rank, len(videos), world.size))
    found = view_logits(
        predictor.model,
        progress(loader, total=count, label=name, unit="videos", step=cfg.TEST.BATCH_SIZE),
        videos, predictor.device,
        num_classes=len(predictor.classes), multi_label=predictor.multi_label, mean=cfg.DATA.MEAN, std=cfg.DATA.STD,
        precision=cfg.TRAIN.PRECISION, grids=list(predictor.costs) or [None], world=world,
    )  # fmt: skip
    for row, reason in found.bad if world.is_main else []:
        logger.warning("%s is left out: %s", videos[row].path, reason)
    if len(found.bad) == len(videos):
        raise UserError(f"none of the {len(videos)} videos for {name.replace('_', ' ')} can be read")
    return found


def adaptive(
    arguments: argparse.Namespace, predictor: "Predictor", answers: "CalibratedAnswers", facts: dict[str, Any]
) -> None:
    """Choose a cascade, write it with its curve, and add its answers to the others."""
    from lookupvit_video.inference.adaptive_report import calibrate_cascade
    from lookupvit_video.inference.budget import save_cascade

    lists = {
        name: (answers.after[name], answers.lists[name].labels)
        for name in ("calibration", "check") if name in answers.lists
    }  # fmt: skip
    out = arguments.out or Path(arguments.checkpoint).with_suffix(".adaptive.json")
    drop = 0.5 if arguments.drop is None else arguments.drop
    picture = out.with_suffix(".png")
    cascade, found = calibrate_cascade(predictor.costs, lists, drop, arguments.accuracy, picture)
    save_cascade(out, cascade, predictor.model, {**facts, **found})
    logger.info("wrote %s and %s", out, picture)
    answers.add_cascade(cascade)


def calibrate() -> int:
    """Run `lookupvit calibrate`."""
    arguments = parse_arguments()
    from lookupvit_video.checkpoints.checkpoint import add_calibration
    from lookupvit_video.distributed.precision import autocast_dtype
    from lookupvit_video.distributed.world import close_world, init_world, report_lost_processes
    from lookupvit_video.evaluation.calibration_report import draw_calibration, log_facts
    from lookupvit_video.evaluation.report import choose_thresholds
    from lookupvit_video.files import write_json
    from lookupvit_video.inference.budget import Cascade
    from lookupvit_video.inference.calibrated import CalibratedAnswers
    from lookupvit_video.inference.predictor import load_model
    from lookupvit_video.log import setup_logging

    world = init_world()
    setup_logging(world.is_main)
    predictor = load_model(arguments.checkpoint, arguments.device)
    check_checkpoint(arguments, predictor)
    predictor.plan = predictor.plan.changed(arguments.views, arguments.crops)
    with report_lost_processes(world):
        lists = {
            name: logits_of(predictor, videos, arguments, name, world)
            for name, videos in read_lists(arguments, predictor).items()
        }
    close_world()
    if not world.is_main:
        return 0
    answers, test = CalibratedAnswers(lists, predictor.multi_label), predictor.cfg.TEST
    views = f"{predictor.plan.times.num_clips}x{predictor.plan.num_crops}"
    facts = {
        "views": views,
        "precision": str(autocast_dtype(predictor.cfg.TRAIN.PRECISION, predictor.device)).removeprefix("torch."),
    }
    if len(predictor.costs) > 1 and not predictor.multi_label:
        adaptive(arguments, predictor, answers, facts)
    found, report = {}, {}
    for budget in answers.temperatures:
        name = budget.name if isinstance(budget, Cascade) else predictor.budget_name(budget)
        found[name] = answers.calibration(budget, views)
        report[name] = answers.facts(budget, found[name])
        log_facts(name, report[name])
    main = predictor.default_budget
    thresholds: Sequence[float] = predictor.thresholds
    if predictor.multi_label:
        table, labels = answers.after["calibration"][main], lists["calibration"].labels
        thresholds = choose_thresholds(table, labels, test.THRESHOLDS, test.THRESHOLD_TARGET).tolist()
    path, shown = Path(arguments.checkpoint), "check" if "check" in lists else "calibration"
    add_calibration(path, {name: calibration.as_dict() for name, calibration in found.items()}, thresholds)
    out = path.with_suffix(".calibration.json")
    write_json(out, {**facts, "budgets": report}, indent=2)
    title = f"{len(lists[shown].labels)} videos, {'held out' if shown == 'check' else 'those of the calibration'}"
    draw_calibration(
        answers.before[shown][main], answers.after[shown][main], lists[shown].labels, title, out.with_suffix(".png")
    )
    logger.info("wrote the calibration into %s; figures: %s and %s", path, out, out.with_suffix(".png"))
    if shown != "check":
        logger.warning("nothing was evaluated on other videos; give a held-out list with --check-list")
    return 0
