"""`lookupvit robustness`: accuracy on corrupted videos, of one checkpoint or against another."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lookupvit_video.commands import options
from lookupvit_video.commands.run_command import print_error
from lookupvit_video.errors import UserError
from lookupvit_video.files import model_file, write_json
from lookupvit_video.text import printable, write_csv

if TYPE_CHECKING:
    from lookupvit_video.data.manifest import Video
    from lookupvit_video.evaluation.evaluate import CompressedGrid
    from lookupvit_video.evaluation.robustness.measurement import Entry
    from lookupvit_video.inference.predictor import Predictor

EXAMPLES = """  lookupvit robustness --checkpoint runs/x/model.pt --suite minikinetics-c --plot robust.png
  lookupvit robustness --checkpoint runs/x/model.pt --list my.csv --suite fog jumble --severity 3 5 --budget all
  lookupvit robustness --checkpoint runs/x/0 runs/x/1 --reference runs/vit/0 runs/vit/1 --json robust.json

Several checkpoints on one side are seeds of one model: their figures are averaged. Answers are kept in a folder next to
each checkpoint; the same command resumes from them.
Exit code 0: done; 1: runtime failure, or some videos could not be read (they count as wrong); 2: invalid input.
"""


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
    add("--budget", "--grid", nargs="+", default=[], metavar="BUDGET",
        help="compressed grids (2x4x4), also with fewer blocks (2x4x4,b8) or tokens (2x4x4,k1-0.5), or all; "
        "each is compared with the dearest (default: the checkpoint's)")  # fmt: skip
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
    add("--csv", type=Path, metavar="FILE", help="write a row for each budget, corruption and severity")
    add("--plot", type=Path, metavar="FILE", help="draw a heat map, and curves over severity and cost (PNG)")
    arguments = parser.parse_args()
    arguments.severity = sorted(set(arguments.severity))
    if arguments.out and len(arguments.checkpoint) + len(arguments.reference) > 1:
        parser.error("--out is for a single checkpoint; of several, each keeps its answers next to it")
    return arguments


def _entries(arguments: argparse.Namespace) -> "tuple[list[Entry], list[Entry]]":
    """Load all checkpoints: those of --checkpoint, then those of --reference."""
    from lookupvit_video.evaluation.robustness.measurement import Entry
    from lookupvit_video.inference.predictor import load_model

    paths, count = [*arguments.checkpoint, *arguments.reference], len(arguments.checkpoint)
    entries: list[Entry] = []
    for number, path in enumerate(paths):
        predictor = load_model(path, arguments.device)
        if entries and predictor.classes != entries[0].subject.classes:
            raise UserError(f"{path}: its classes are not those of {paths[0]}")
        budgets = _budgets(predictor, arguments.budget if number < count else ())
        if entries and number < count and budgets != entries[0].budgets:
            raise UserError(f"{path}: its budgets are not those of {paths[0]}; name some that both have with --budget")
        folder = arguments.out or Path(str(predictor.source)).with_suffix(".robustness")
        entries.append(Entry(predictor, budgets, folder))
    return entries[:count], entries[count:]


def _budgets(predictor: "Predictor", wanted: Sequence[str]) -> "list[CompressedGrid]":
    """Return the budgets to answer within; [None]: the model's own."""
    from lookupvit_video.inference.budget import check_grid, known_budget

    if list(wanted) == ["all"]:
        check_grid(predictor.costs)
        return list(predictor.costs)
    return [*dict.fromkeys(known_budget(predictor.costs, name) for name in wanted)] or [None]


def _videos(arguments: argparse.Namespace, predictor: "Predictor") -> "list[Video]":
    import numpy as np

    from lookupvit_video.data.manifest import load_split, read_manifest

    if predictor.multi_label:
        raise UserError(f"{predictor.source}: robustness is of one label a video; this checkpoint gives several")
    classes, given = predictor.classes, arguments.list
    videos = read_manifest(given, classes) if given else load_split(predictor.cfg, "test", classes)
    count = min(arguments.videos or len(videos), len(videos))
    return [videos[at] for at in np.linspace(0, len(videos) - 1, count).round().astype(int)]


def robustness() -> int:
    """Run `lookupvit robustness`."""
    arguments = parse_arguments()
    from lookupvit_video.corruptions.table import suite
    from lookupvit_video.evaluation.robustness.measurement import Measurement
    from lookupvit_video.evaluation.robustness.report import report_text
    from lookupvit_video.log import setup_logging

    setup_logging()
    suite(*arguments.suite)  # a wrong name is reported before any work
    own, reference = _entries(arguments)
    predictor: Any = own[0].subject
    measurement = Measurement(
        _videos(arguments, predictor), suite(*arguments.suite, tubelet=tuple(predictor.cfg.MODEL.TUBELET)),
        arguments.severity, arguments.workers, arguments.views, arguments.crops, arguments.temperature,
        arguments.adapt, arguments.attack, arguments.attack_steps,
    )  # fmt: skip
    report = measurement.report(own, reference)
    print(report_text(report), flush=True)
    _write(arguments, report)
    for video in report["bad_videos"]:
        print_error(printable(video["reason"]))
    return 1 if report["bad_videos"] else 0


def _write(arguments: argparse.Namespace, report: dict[str, Any]) -> None:
    """Write the files that are asked for."""
    from lookupvit_video.evaluation.robustness.report import CSV_COLUMNS, csv_rows

    if arguments.json:
        write_json(arguments.json, report)
    if arguments.csv:
        write_csv(arguments.csv, CSV_COLUMNS, csv_rows(report))
    if arguments.plot:
        from lookupvit_video.drawing.robustness import plot_robustness

        plot_robustness(report["grids"], report["severities"], arguments.plot)
