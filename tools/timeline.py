#!/usr/bin/env python3
"""Name what happens when in a long video: a time line, its segments, and the video with both drawn in."""

from lookupvit_video.commands.run_command import run_command  # first: Ctrl-C in a later import gives one line

# isort: split
import argparse
from pathlib import Path

from lookupvit_video.files import write_json
from lookupvit_video.inference.annotate import annotate_video, check_video_name
from lookupvit_video.inference.draw import draw_timeline
from lookupvit_video.inference.predictor import load_model
from lookupvit_video.inference.timeline import (
    CHANGE_COST,
    Segment,
    find_segments,
    read_timeline,
    timeline_as_json,
)
from lookupvit_video.log import setup_logging
from lookupvit_video.text import one_line

EXAMPLE = """example:
  python tools/timeline.py --checkpoint runs/demo_motion/model.pt video.mp4 --json timeline.json --png timeline.png \\
      --annotate annotated.mp4

Windows as long as the model's clip slide over the video, which is decoded once, forward; memory does not grow with it.
Exit code 0: done; 1: a failure at work; 2: the video or an argument is wrong.
"""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("video", metavar="VIDEO", help="a video file of any length")
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help="a .pt file of tools/run_net.py")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write segments and windows as JSON")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw the leading classes over time")
    parser.add_argument("--annotate", type=Path, metavar="FILE", help="write the video with the answers (.mp4)")
    parser.add_argument("--stride", type=float, metavar="S", help="seconds between windows (default: window / 4)")
    parser.add_argument(
        "--window",
        type=float,
        metavar="S",
        help="seconds of a window, for models of DATA.SAMPLING segments (default: 4)",
    )
    parser.add_argument("--topk", type=int, default=5, metavar="K", help="classes per window, and drawn (default: 5)")
    parser.add_argument(
        "--change-cost", type=float, default=CHANGE_COST, metavar="X",
        help=f"log probability that a change of label must gain; 0: scenes of one window (default: {CHANGE_COST:g})",
    )  # fmt: skip
    parser.add_argument(
        "--min-probability", type=float, default=0.0, metavar="P", help="leave out less sure segments (default: 0)"
    )
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="windows at once (default: 8)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default: auto)")
    arguments = parser.parse_args()
    for name, low in (("topk", 1), ("batch_size", 1), ("change_cost", 0), ("min_probability", 0)):
        if not getattr(arguments, name) >= low:
            parser.error(f"--{name.replace('_', '-')} must be at least {low}, got {getattr(arguments, name)}")
    return arguments


def show(segments: list[Segment]) -> None:
    for segment in segments:
        label = one_line(segment.label)
        print(f"{segment.start:9.2f} s {segment.end:9.2f} s  {100 * segment.probability:5.1f} %  {label}")


def main() -> int:
    arguments = parse_arguments()
    setup_logging()
    if arguments.annotate:
        check_video_name(arguments.annotate)  # before hours of work
    predictor = load_model(arguments.checkpoint, arguments.device)
    timeline = read_timeline(
        predictor,
        arguments.video,
        stride=arguments.stride,
        window=arguments.window,
        batch_size=arguments.batch_size,
    )
    segments = find_segments(timeline, change_cost=arguments.change_cost, min_probability=arguments.min_probability)
    show(segments)
    if arguments.json:
        write_json(arguments.json, timeline_as_json(timeline, segments, arguments.topk))
    if arguments.png:
        draw_timeline(timeline, segments, arguments.png, arguments.topk)
    if arguments.annotate:
        annotate_video(timeline, segments, predictor.plan, arguments.annotate)
    return 0


if __name__ == "__main__":
    run_command(main)
