"""`lookupvit explain` and `lookupvit timeline`: where a model looks, and what happens when."""

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lookupvit_video.commands import options
from lookupvit_video.commands.run_command import print_error
from lookupvit_video.errors import UserError
from lookupvit_video.files import write_json
from lookupvit_video.text import one_line

if TYPE_CHECKING:
    from lookupvit_video.inference.predictor import Predictor

logger = logging.getLogger(__name__)
EXPLAIN_EXAMPLES = """  lookupvit explain --checkpoint runs/demo_motion/model.pt video.mp4 --out explained --token 0,1,1
  lookupvit explain --checkpoint runs/demo_motion/model.pt --list my_data/test.csv --out explained

Writes for each video a PNG sheet and an mp4 (frames, and the same with heat maps), and explained/explained.json.
Exit code 0: all done; 1: some videos could not be read (named on stderr); 2: nothing could be done.
"""
TIMELINE_EXAMPLES = """  lookupvit timeline --checkpoint runs/demo_motion/model.pt video.mp4 --json timeline.json \\
      --png timeline.png --annotate annotated.mp4
  lookupvit timeline --checkpoint model.pt --truth untrimmed.csv --hard-negatives hard.csv
  lookupvit timeline --checkpoint model.pt --truth held_out.csv --change-cost 1 2 4 8 16

Windows as long as what the model was trained on (its clip; with DATA.SAMPLING segments its usual training video) slide
over the video, which is decoded once, forward; memory does not grow with it.
Exit code 0: done; 1: runtime failure; 2: invalid input.
"""
CHANGE_COST = 2.0  # as inference.timeline


def token(text: str) -> tuple[int, ...]:
    """Read the place of a token, "0,1,1", for ``type=``."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: write it as 0,1,1") from None


def explain() -> int:
    """Run `lookupvit explain`."""
    parser = options.make_parser(
        "Show where a LookupViT looks in a video, and what a model would lose without the order of the frames.",
        EXPLAIN_EXAMPLES,
    )
    parser.add_argument("videos", nargs="*", metavar="VIDEO", help="video files to look into")
    options.add_checkpoint(parser)
    options.add_out(parser)
    parser.add_argument(
        "--list", metavar="FILE", help="labelled videos (path,label) or class folders: accuracy without time"
    )
    for name, what in (("token", "compressed token, by its place on the compressed grid, from 0"),
                       ("lookup", "lookup token, by its place on the grid of tubelets")):  # fmt: skip
        parser.add_argument(f"--{name}", action="append", type=token, default=[], metavar="T,H,W",
                            help=f"follow a {what}; may be repeated")  # fmt: skip
    arguments = parser.parse_args()
    if not arguments.videos and not arguments.list:
        parser.error("give videos, or --list")
    from lookupvit_video.decoding.backends import DecodeError
    from lookupvit_video.inference.predictor import load_model
    from lookupvit_video.log import setup_logging

    setup_logging()
    predictor = load_model(arguments.checkpoint, arguments.device)
    report: dict[str, Any] = {"checkpoint": arguments.checkpoint, "videos": []}
    failures = 0
    for number, video in enumerate(arguments.videos):
        stem = Path(video).stem if len(arguments.videos) == 1 else f"{number:03d}_{Path(video).stem}"
        try:
            report["videos"].append(_explain_video(predictor, video, stem, arguments))
        except DecodeError as error:
            print_error(error)
            report["videos"].append({"path": video, "error": str(error)})
            failures += 1
    if arguments.list:
        report["without_time"] = _explain_list(predictor, arguments.list)
    write_json(arguments.out / "explained.json", report)
    bad = bool(arguments.list and report["without_time"]["bad_videos"])
    if failures and failures == len(arguments.videos) and not arguments.list:
        return 2
    return 1 if failures or bad else 0


def _explain_video(predictor: "Predictor", video: str, stem: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Write sheet and mp4 of one video (a LookupViT only), print and return what it would lose without time."""
    from lookupvit_video.inference.annotate import write_overlay
    from lookupvit_video.inference.draw import draw_prediction
    from lookupvit_video.inference.explain import explain_attention, heat_maps, without_time

    prediction = predictor.predict(video, num_crops=1)
    answers = without_time(predictor, prediction.clip)
    real = int(answers["real"].argmax())
    shown: dict[str, Any] = {}
    print(one_line(video))
    for order, shares in answers.items():
        best, label = float(shares.max()), predictor.classes[int(shares.argmax())]
        kept = float(shares[real])
        print(
            f"  {order:9} {100 * best:5.1f} %  {one_line(label):30} {100 * kept:5.1f} % left of "
            f"{predictor.classes[real]!r}"
        )
        shown[order] = {"label": label, "probability": round(best, 4), "of the real answer": round(kept, 4)}
    if predictor.grids:
        attention = explain_attention(predictor, prediction.clip)
        rows = heat_maps(attention, arguments.token, arguments.lookup)
        draw_prediction(prediction, rows, arguments.out / f"{stem}.png", predictor.classes)
        write_overlay(
            prediction.clip.permute(1, 2, 3, 0).numpy(), attention.answer_map(), arguments.out / f"{stem}.mp4"
        )
        print(one_line(f"  drawn: {arguments.out / stem}.png, .mp4"))
    return {"path": video, **shown}


def _explain_list(predictor: "Predictor", path: str) -> dict[str, Any]:
    """Print and return the accuracy over a list of videos with the frames in, out of and without order."""
    from lookupvit_video.data.manifest import read_manifest
    from lookupvit_video.evaluation.metrics import METRICS
    from lookupvit_video.evaluation.probes import ORDERS, what_order_means
    from lookupvit_video.inference.explain import accuracy_without_time

    videos = read_manifest(path, predictor.classes, multi_label=predictor.multi_label)
    results = accuracy_without_time(predictor, videos)
    metric = "mean_average_precision" if predictor.multi_label else "top1"
    values = {order: results[order].measure([metric])[metric] for order in ORDERS}
    print(f"{path}: {len(videos)} videos, one center clip each")
    print(f"  {'frames':9} {METRICS[metric].label:>8} {'lost':>7}")
    for order, value in values.items():
        print(f"  {order:9} {value:6.2f} % {values['real'] - value:7.2f}")
    print(f"  {what_order_means(values)}")
    bad = [{"path": videos[row].path, "reason": reason} for row, reason in results["real"].bad]
    for video in bad:
        print_error(video["reason"])
    rounded = {order: round(value, 2) for order, value in values.items()}
    return {"list": path, "videos": len(videos), metric: rounded, "bad_videos": bad}


def timeline() -> int:
    """Run `lookupvit timeline`."""
    arguments = _timeline_arguments()
    from lookupvit_video.inference.annotate import annotate_video, check_video_name
    from lookupvit_video.inference.draw import draw_timeline
    from lookupvit_video.inference.predictor import load_model
    from lookupvit_video.inference.timeline import find_segments, read_timeline, timeline_as_json
    from lookupvit_video.log import setup_logging

    setup_logging()
    if arguments.annotate:
        check_video_name(arguments.annotate)  # before hours of work
    predictor = load_model(arguments.checkpoint, arguments.device)
    if arguments.annotate and predictor.multi_label:
        raise UserError("--annotate shows one label at a time; this checkpoint gives several: use --png or --json")
    if arguments.truth:
        from lookupvit_video.commands.inference.truth import score_list

        return score_list(predictor, arguments)
    windows = read_timeline(predictor, arguments.video, stride=arguments.stride, window=arguments.window,
                            batch_size=arguments.batch_size)  # fmt: skip
    logger.info("windows of %.3g s over %.3g s: %d", windows.window, windows.duration, len(windows.starts))
    [change_cost] = arguments.change_cost
    segments = find_segments(windows, change_cost=change_cost, min_probability=arguments.min_probability)
    for segment in segments:
        label = one_line(segment.label)
        print(f"{segment.start:9.2f} s {segment.end:9.2f} s  {100 * segment.probability:5.1f} %  {label}")
    if arguments.json:
        write_json(arguments.json, timeline_as_json(windows, segments, arguments.topk))
    if arguments.png:
        draw_timeline(windows, segments, arguments.png, arguments.topk)
    if arguments.annotate:
        annotate_video(windows, segments, predictor.plan, arguments.annotate)
    return 0


def _timeline_arguments() -> argparse.Namespace:
    parser = options.make_parser(
        "Name what happens when in a long video: a timeline, its segments, and the video with both drawn in.",
        TIMELINE_EXAMPLES,
    )
    add = parser.add_argument
    add("video", nargs="?", metavar="VIDEO", help="a video file of any length")
    options.add_checkpoint(parser)
    add("--json", type=Path, metavar="FILE", help="write segments and windows as JSON")
    add("--png", type=Path, metavar="FILE", help="draw the leading classes over time")
    add("--annotate", type=Path, metavar="FILE", help="write the video with the answers (.mp4)")
    add("--stride", type=float, metavar="S", help="seconds between windows (default: window / 4)")
    add("--window", type=float, metavar="S",
        help="seconds of a window, of DATA.SAMPLING segments (default: as the training videos)")  # fmt: skip
    add("--topk", type=options.positive, default=5, metavar="K", help="classes per window, and drawn (default: 5)")
    add("--change-cost", type=options.number(float, 0), nargs="+", default=[CHANGE_COST], metavar="X",
        help="log probability that a change of label must gain; 0: scenes of one window; with --truth several are "
        f"compared (default: {CHANGE_COST:g})")  # fmt: skip
    add("--min-probability", type=options.number(float, 0), default=0.0, metavar="P",
        help="leave out segments with a lower probability (default: 0)")  # fmt: skip
    options.add_batch_size(parser)
    add("--truth", type=Path, metavar="LIST", help="instead of VIDEO, a list with the spans of untrimmed videos: print "
        "mAP at temporal IoU 0.3 to 0.7, segment F1 and false alarms an hour")  # fmt: skip
    add("--background", default="background", metavar="NAME", help="class that is not counted (default: background)")
    add("--hard-negatives", type=Path, metavar="FILE", help="with --truth: write windows outside of all spans of which "
        "the model is most wrongly sure, as rows of the background class")  # fmt: skip
    arguments = parser.parse_args()
    if bool(arguments.video) == bool(arguments.truth):
        parser.error("give a VIDEO, or --truth LIST")
    if arguments.truth and (arguments.png or arguments.annotate):
        parser.error("--png and --annotate are for one VIDEO")
    if arguments.hard_negatives and not arguments.truth:
        parser.error("--hard-negatives is for --truth")
    if arguments.video and len(arguments.change_cost) > 1:
        parser.error("--change-cost: one value for one VIDEO; several are for --truth")
    return arguments
