"""`lookupvit robustness`: accuracy on corrupted videos, of one checkpoint or against another."""

import argparse
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lookupvit_video.commands import options
from lookupvit_video.commands.run_command import print_error
from lookupvit_video.errors import UserError
from lookupvit_video.files import model_file, write_json
from lookupvit_video.text import printable, write_csv

if TYPE_CHECKING:
    from fvcore.common.config import CfgNode

    from lookupvit_video.corruptions.table import Corruption
    from lookupvit_video.data.manifest import Video
    from lookupvit_video.evaluation.adaptation import TokenStatistics
    from lookupvit_video.evaluation.evaluate import CompressedGrid
    from lookupvit_video.evaluation.robustness.report import Side
    from lookupvit_video.inference.predictor import Predictor

logger = logging.getLogger(__name__)
EXAMPLES = """  lookupvit robustness --checkpoint runs/x/model.pt --suite minikinetics-c --plot robust.png
  lookupvit robustness --checkpoint runs/x/model.pt --list my.csv --suite fog jumble --severity 3 5 --grid all
  lookupvit robustness --checkpoint runs/x/0 runs/x/1 --reference runs/vit/0 runs/vit/1 --json robust.json

Several checkpoints on one side are seeds of one model: their figures are averaged. Answers are kept in a folder next to
each checkpoint; the same command resumes from them.
Exit code 0: done; 1: runtime failure, or some videos could not be read (they count as wrong); 2: invalid input.
"""
STATISTICS_OF = 512  # videos at most: more change the mean by little


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = options.make_parser(
        "Measure accuracy and calibration on corrupted videos: noise, blur, weather, codecs, time.", EXAMPLES
    )
    add = parser.add_argument
    add("--checkpoint", required=True, nargs="+", type=model_file, metavar="PATH",
        help="a run's folder, a .pt file, a save_pretrained folder, a Hub id; several: seeds of one model")  # fmt: skip
    add("--reference", nargs="+", default=[], type=model_file, metavar="PATH", help="the same, to compare with")
    add("--list", metavar="FILE", help="labelled videos (default: DATA.TEST_LIST of the first checkpoint's config)")
    add("--suite", nargs="+", default=["all"], metavar="NAME",
        help="minikinetics-c, minissv2-c, schiappa-p, more, probes, all, or corruptions (default: all)")  # fmt: skip
    add("--severity", nargs="+", type=options.number(int, 1, 5), default=[1, 2, 3, 4, 5], metavar="N",
        help="of 1 to 5 (default: all)")  # fmt: skip
    add("--grid", nargs="+", default=[], metavar="TxHxW", help="compressed grids, or all (default: the checkpoint's)")
    add("--videos", type=options.positive, metavar="N", help="take N videos, spread over the list (default: all)")
    add("--temperature", type=options.number(float, 0.01, 100), default=1.0, metavar="T",
        help="divide the logits of the gather (other models: of self-attention) by T (default: 1)")  # fmt: skip
    add("--adapt", action="store_true",
        help="test-time adaptation: move clips whose tokens are unlike those of DATA.VAL_LIST")  # fmt: skip
    add("--attack", type=options.natural, default=0, metavar="N",
        help="attack N tubelets of each clip with the model's gradients: success rate (default: 0, none)")  # fmt: skip
    add("--attack-steps", type=options.positive, default=10, metavar="N", help="steps of an attack (default: 10)")
    options.add_views(parser)
    options.add_workers(parser)
    options.add_device(parser)
    add("--out", type=Path, metavar="FOLDER", help="where answers are kept (default: CHECKPOINT with .robustness)")
    options.add_json(parser)
    add("--csv", type=Path, metavar="FILE", help="write a row for each grid, corruption and severity")
    add("--plot", type=Path, metavar="FILE", help="draw a heat map, and curves over severity and cost (PNG)")
    arguments = parser.parse_args()
    arguments.severity = sorted(set(arguments.severity))
    if arguments.out and len(arguments.checkpoint) + len(arguments.reference) > 1:
        parser.error("--out is for a single checkpoint; of several, each keeps its answers next to it")
    return arguments


def _grids(predictor: "Predictor", wanted: Sequence[str]) -> "list[CompressedGrid]":
    """Return the compressed grids to answer with; [None]: the model's own."""
    from lookupvit_video.inference.budget import check_grid
    from lookupvit_video.models.budget import parse_budget

    if list(wanted) == ["all"] and predictor.costs:
        return list(predictor.costs)
    budgets = [parse_budget(name).bare for name in wanted]
    for budget in budgets:
        check_grid(predictor.costs, budget)
    return [*budgets] or [None]


def name_of(grid: "CompressedGrid") -> str:
    """Return a grid or budget as text; "": the model's own."""
    from lookupvit_video.models.budget import as_budget

    return as_budget(grid).name if grid else ""


def _videos(arguments: argparse.Namespace, predictor: "Predictor") -> "list[Video]":
    import numpy as np

    from lookupvit_video.data.manifest import load_split, read_manifest

    if predictor.multi_label:
        raise UserError(f"{predictor.source}: robustness is of one label a video; this checkpoint gives several")
    classes, given = predictor.classes, arguments.list
    videos = read_manifest(given, classes) if given else load_split(predictor.cfg, "test", classes)
    count = min(arguments.videos or len(videos), len(videos))
    return [videos[at] for at in np.linspace(0, len(videos) - 1, count).round().astype(int)]


def _answer_all(
    arguments: argparse.Namespace,
    predictors: "Sequence[Predictor]",
    videos: "Sequence[Video]",
    corruptions: "Sequence[Corruption]",
    grids: "Sequence[CompressedGrid]",
) -> tuple[list[Path], dict[int, str]]:
    """Let every checkpoint answer; return their folders, and (row, reason) of the videos that could not be read.

    Checkpoints that read videos in the same way answer together, so that each corrupted video is made once for them.

    Args:
        grids: of ``--checkpoint``; ``--reference`` answers on its own.
    """
    from lookupvit_video.checkpoints.checkpoint import fingerprint
    from lookupvit_video.config import with_settings
    from lookupvit_video.distributed.world import World
    from lookupvit_video.evaluation.evaluate import eval_loader
    from lookupvit_video.evaluation.robustness.answers import Answering, answer_corrupted, open_folder

    groups: dict[str, list[tuple[CfgNode, Answering]]] = {}
    folders: list[Path] = []
    for number, predictor in enumerate(predictors):
        test = predictor.cfg.TEST
        cfg = with_settings(predictor.cfg, {
            "DATA_LOADER.NUM_WORKERS": arguments.workers,
            "TEST.NUM_ENSEMBLE_VIEWS": arguments.views or test.NUM_ENSEMBLE_VIEWS,
            "TEST.NUM_SPATIAL_CROPS": arguments.crops or test.NUM_SPATIAL_CROPS,
        })  # fmt: skip
        chosen = grids if number < len(arguments.checkpoint) else [None]
        folders.append(arguments.out or Path(str(predictor.source)).with_suffix(".robustness"))
        open_folder(folders[-1], {
            "weights": fingerprint(predictor.model), "severities": arguments.severity,
            "temperature": arguments.temperature, "adapt": arguments.adapt,
            "views": f"{cfg.TEST.NUM_ENSEMBLE_VIEWS}x{cfg.TEST.NUM_SPATIAL_CROPS}",
            "grids": [name_of(grid) for grid in chosen],
            "videos": [[video.path, video.label, video.start, video.end] for video in videos],
        })  # fmt: skip
        answering = Answering(predictor.predict_clips, folders[-1], chosen)
        groups.setdefault(f"{cfg.DATA} {cfg.TEST}", []).append((cfg, answering))
    bad: dict[int, str] = {}
    for group in groups.values():
        cfg = group[0][0]
        loader = eval_loader(
            cfg, videos, World(0, 1, predictors[0].device), cfg.TEST.NUM_ENSEMBLE_VIEWS, cfg.TEST.NUM_SPATIAL_CROPS
        )
        bad |= dict(answer_corrupted(
            [answering for _, answering in group], loader, corruptions, batch_size=cfg.TEST.BATCH_SIZE,
            severities=arguments.severity, refuse_damaged=cfg.DATA.DAMAGED_TEST == "refuse",
        ))  # fmt: skip
    return folders, bad


def _statistics(arguments: argparse.Namespace, predictor: "Predictor") -> "TokenStatistics":
    """Return what the tokens of clean videos look like; measured once, on the videos of validation."""
    from lookupvit_video.config import with_settings
    from lookupvit_video.data.manifest import load_split
    from lookupvit_video.distributed.world import World
    from lookupvit_video.evaluation.adaptation import load_statistics, measure_tokens, save_statistics, statistics_path
    from lookupvit_video.evaluation.evaluate import eval_loader

    path = statistics_path(str(predictor.source))
    if not path.exists():
        cfg = with_settings(predictor.cfg, {"DATA_LOADER.NUM_WORKERS": arguments.workers})
        videos = load_split(cfg, "val", predictor.classes)[:STATISTICS_OF]
        batches = eval_loader(cfg, videos, World(0, 1, predictor.device), 1, cfg.TEST.NUM_SPATIAL_CROPS)
        clips = (predictor.inputs(batch.clips) for batch in batches if not batch.errors)
        save_statistics(path, measure_tokens(predictor.model, clips), predictor.model)
        logger.info("wrote %s, of %d videos", path, len(videos))
    return load_statistics(path, predictor.model)


def _attack(arguments: argparse.Namespace, predictor: "Predictor", videos: "Sequence[Video]") -> dict[str, Any]:
    """Attack one clip of each video; print and return what it reached."""
    from lookupvit_video.config import with_settings
    from lookupvit_video.distributed.world import World
    from lookupvit_video.evaluation.evaluate import eval_loader
    from lookupvit_video.evaluation.robustness.attack import attack_clips
    from lookupvit_video.progress import progress

    cfg, size = (
        with_settings(predictor.cfg, {"DATA_LOADER.NUM_WORKERS": arguments.workers}),
        predictor.cfg.TEST.BATCH_SIZE,
    )
    loader = eval_loader(cfg, videos, World(0, 1, predictor.device))
    found = attack_clips(
        predictor.model, progress(loader, total=len(videos), label="attack", unit="videos", step=size),
        predictor.device, mean=cfg.DATA.MEAN, std=cfg.DATA.STD, tubelet=tuple(cfg.MODEL.TUBELET),
        count=arguments.attack, steps=arguments.attack_steps,
    )  # fmt: skip
    print(
        f"{predictor.source}: attack on {arguments.attack} tubelets, {arguments.attack_steps} steps: {found.fooled} of "
        f"{found.right} right answers turned, {found.success:.1f} %"
    )
    return {"checkpoint": str(predictor.source), **found._asdict()}


def _predictors(arguments: argparse.Namespace) -> "list[Predictor]":
    from lookupvit_video.inference.predictor import load_model

    paths = [*arguments.checkpoint, *arguments.reference]
    predictors = [load_model(path, arguments.device) for path in paths]
    for path, predictor in zip(paths, predictors, strict=True):
        if predictor.classes != predictors[0].classes:
            raise UserError(f"{path}: its classes are not those of {paths[0]}")
    return predictors


def _sides(folders: Sequence[Path], corruptions: "Sequence[Corruption]", count: int) -> "list[Side]":
    """Return the answers of some checkpoints on each of their grids."""
    from lookupvit_video.evaluation.robustness.answers import CLEAN, read_answers
    from lookupvit_video.evaluation.robustness.report import Side

    kept = [[read_answers(folder, one) for one in (CLEAN, *corruptions)] for folder in folders]
    complete = [[answers for answers in of if answers is not None] for of in kept]
    return [Side([of[0] for of in complete], [of[1:] for of in complete], grid) for grid in range(count)]


def robustness() -> int:
    """Run `lookupvit robustness`."""
    arguments = parse_arguments()
    import numpy as np

    from lookupvit_video.corruptions.table import suite
    from lookupvit_video.evaluation.adaptation import adapted
    from lookupvit_video.evaluation.robustness.report import rows_of, summaries_of, summary_text, table_text
    from lookupvit_video.evaluation.robustness.temperature import tempered
    from lookupvit_video.log import setup_logging
    from lookupvit_video.provenance import measured_with

    setup_logging()
    suite(*arguments.suite)  # a wrong name is reported before any work
    predictors = _predictors(arguments)
    predictor = predictors[0]
    corruptions = suite(*arguments.suite, tubelet=tuple(predictor.cfg.MODEL.TUBELET))
    videos, grids = _videos(arguments, predictor), _grids(predictor, arguments.grid)
    with ExitStack() as stack:
        for one in predictors:
            stack.enter_context(tempered(one.model, arguments.temperature))
            stack.enter_context(adapted(one.model, _statistics(arguments, one) if arguments.adapt else None))
        folders, bad = _answer_all(arguments, predictors, videos, corruptions, grids)
        attacks = [_attack(arguments, one, videos) for one in predictors] if arguments.attack else []
    labels, first = np.array([video.label for video in videos]), len(arguments.checkpoint)
    reference = _sides(folders[first:], corruptions, 1)[0] if arguments.reference else None
    report: dict[str, Any] = {
        "checkpoint": arguments.checkpoint, "reference": arguments.reference, "videos": len(videos),
        "measured_with": measured_with(predictor.device), "precision": predictor.cfg.TRAIN.PRECISION,
        "severities": arguments.severity, "temperature": arguments.temperature, "grids": [], "attacks": attacks,
        "bad_videos": [{"path": videos[row].path, "reason": reason} for row, reason in sorted(bad.items())],
    }  # fmt: skip
    for grid, side in zip(grids, _sides(folders[:first], corruptions, len(grids)), strict=True):
        rows, found = rows_of(side, corruptions, labels), summaries_of(side, corruptions, labels, reference)
        name = name_of(grid)
        report["grids"].append({"grid": name, "corruptions": rows, "summaries": found,
                                "gmacs_per_view": float(f"{predictor.macs_a_view(grid) / 1e9:.4g}")})  # fmt: skip
        print(f"grid {name}" if name else f"{len(videos)} videos")
        print(table_text(rows, arguments.severity))
        print("\n".join(summary_text(summary) for summary in found), flush=True)
    _write(arguments, report)
    for video in report["bad_videos"]:
        print_error(printable(video["reason"]))
    return 1 if report["bad_videos"] else 0


def _write(arguments: argparse.Namespace, report: dict[str, Any]) -> None:
    """Write the files that are asked for."""
    from lookupvit_video.evaluation.robustness.report import CSV_COLUMNS, csv_rows

    severities, grids = report["severities"], report["grids"]
    if arguments.json:
        write_json(arguments.json, report)
    if arguments.csv:
        rows = [row for of in grids for row in csv_rows(of["grid"], of["corruptions"], severities)]
        write_csv(arguments.csv, CSV_COLUMNS, rows)
    if arguments.plot:
        import numpy as np

        from lookupvit_video.drawing.robustness import plot_robustness

        cleans = [of["summaries"][-1]["clean"]["value"] for of in grids]
        tables = [(of["grid"] or "this checkpoint", clean, np.array([row["top1"] for row in of["corruptions"]]))
                  for of, clean in zip(grids, cleans, strict=True)]  # fmt: skip
        costs = [(of["grid"], of["gmacs_per_view"], clean, of["summaries"][-1]["mPC"]["value"])
                 for of, clean in zip(grids, cleans, strict=True)]  # fmt: skip
        names = [row["corruption"] for row in grids[0]["corruptions"]]
        plot_robustness(names, tables, severities, arguments.plot, sorted(costs, key=lambda row: row[1])
                        if len(costs) > 1 else ())  # fmt: skip
