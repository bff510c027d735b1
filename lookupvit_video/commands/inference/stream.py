"""`lookupvit stream`: what happens in live video, as it happens."""

import argparse
import logging
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from lookupvit_video.commands import options
from lookupvit_video.errors import RunFailure, UserError
from lookupvit_video.text import printable

if TYPE_CHECKING:
    from lookupvit_video.inference.predictor import Predictor
    from lookupvit_video.inference.streaming.stream import StreamOptions

logger = logging.getLogger(__name__)
EXAMPLES = """  lookupvit stream --checkpoint model.pt --source 0 --stride 0.5
  lookupvit stream --checkpoint model.pt --source rtsp://camera/live --source rtsp://other/live --out events.jsonl
  lookupvit stream --checkpoint model.pt --source https://host/live.m3u8 --enter 0.8 --leave 0.5 --smooth 1
  lookupvit stream --checkpoint model.pt --source video.mp4 --realtime --annotate annotated.mp4

One JSON line per event: source, event (start, end), label, start, end, probability; times are seconds of the source.
The last line of each source is its summary. Ctrl-C and SIGTERM end the run. Exit code 0: all sources ended, or it was
ended by a signal; 1: a source could not be read; 2: invalid input.
"""


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = options.make_parser(
        "Name what happens in live video: cameras, RTSP, HLS, files, standard input.", EXAMPLES
    )
    add, number = parser.add_argument, options.number
    options.add_checkpoint(parser)
    add("--source", action="append", required=True, metavar="SOURCE", help="number of a camera, rtsp:// or http(s):// "
        "(.m3u8) address, file, or - (standard input); may be repeated")  # fmt: skip
    add("--stride", type=options.seconds, metavar="S", help="seconds from one window to the next (default: a quarter "
        "of a window)")  # fmt: skip
    add("--window", type=options.seconds, metavar="S", help="length of a window, for DATA.SAMPLING segments")
    add("--grid", metavar="TxHxW", help="compressed grid or budget, as for predict (default: the checkpoint's)")
    options.add_batch_size(parser)
    add("--realtime", action="store_true", help="play files at their own speed; drop what the model is too slow for")
    add("--buffer", type=options.seconds, metavar="S", help="seconds of frames that may wait for the model (default: "
        "a window and 1 s)")  # fmt: skip
    add("--retries", type=options.natural, metavar="N", help="attempts in a row to connect again (default: no limit)")
    options.add_timeout(parser, 10.0, "seconds to connect, and to wait for data")
    group = parser.add_argument_group("events")
    add = group.add_argument
    add("--change-cost", type=number(float, 0), default=2.0, metavar="C", help="how much likelier another label must "
        "be, as for timeline (default: 2)")  # fmt: skip
    add("--min-probability", type=number(float, 0, 1), default=0.0, metavar="P", help="leave out less likely events")
    add("--enter", type=number(float, 0, 1), metavar="P", help="every class by itself: present from this probability on"
        " (default for several labels a video: the checkpoint's thresholds)")  # fmt: skip
    add("--leave", type=number(float, 0, 1), metavar="P", help="until it falls below this one (default: as --enter)")
    add("--smooth", type=number(float, 0), default=0.0, metavar="S", help="average probabilities over seconds first")
    group = parser.add_argument_group("output")
    add = group.add_argument
    add("--out", default="-", metavar="FILE", help="append JSON lines to a file; -: standard output (default)")
    add("--webhook", metavar="URL", help="post each event as JSON as well")
    add("--decisions", action="store_true", help="write the likeliest class of every window too")
    add("--annotate", metavar="FILE", help="write the video of the source as well, with the latest answer below each "
        "frame (.mp4, .mov, .mkv)")  # fmt: skip
    arguments = parser.parse_args()
    for wrong, message in (
        (len(set(arguments.source)) < len(arguments.source), "--source: each one once"),
        (arguments.leave is not None and arguments.enter is not None and arguments.leave > arguments.enter,
         "--leave must be at most --enter"),
    ):  # fmt: skip
        if wrong:
            parser.error(message)
    return arguments


def stream_options(arguments: argparse.Namespace, predictor: "Predictor") -> "StreamOptions":
    """Return the options, checked against the checkpoint."""
    from lookupvit_video.inference.budget import known_budget
    from lookupvit_video.inference.streaming.stream import StreamOptions

    grid = known_budget(predictor.costs, arguments.grid)
    if arguments.enter is None and not predictor.thresholds and (arguments.leave is not None or arguments.smooth):
        raise UserError("--leave, --smooth: for classes by themselves; give --enter as well")
    names = ("stride", "window", "batch_size", "buffer", "realtime", "timeout", "retries", "change_cost",
             "min_probability", "enter", "leave", "smooth", "decisions", "annotate")  # fmt: skip
    return StreamOptions(grid=grid, **{name: getattr(arguments, name) for name in names})


@contextmanager
def ended_by_signals(stop: threading.Event) -> Iterator[None]:
    """Set ``stop`` at Ctrl-C and SIGTERM; a second one ends the process at once."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, _: object) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    for number in before:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def log_summary(summary: Mapping[str, Any]) -> None:
    """Log the counts of a source in one line."""
    latency = ""
    if summary["latency_p50_ms"] is not None:
        latency = f", latency p50 {summary['latency_p50_ms']:.0f} ms, p99 {summary['latency_p99_ms']:.0f} ms"
    logger.info(
        "%s: %.1f s, %d frames in, %d dropped, %d cuts, %d decisions, %d skipped, %d events%s", summary["source"],
        summary["seconds"], summary["frames"], summary["dropped"], summary["cuts"], summary["decisions"],
        summary["skipped"], summary["events"], latency,
    )  # fmt: skip


def check_failures(summaries: Sequence[Mapping[str, Any]]) -> None:
    """Raise RunFailure where sources could not be read to their end."""
    failed = [f"{summary['source']}: {summary['error']}" for summary in summaries if "error" in summary]
    if failed:
        raise RunFailure(printable("; ".join(failed)))


def stream() -> int:
    """Run `lookupvit stream`."""
    arguments = parse_arguments()
    from lookupvit_video.inference.predictor import load_model
    from lookupvit_video.inference.streaming.sinks import LineSink, WebhookSink
    from lookupvit_video.inference.streaming.source import parse_source
    from lookupvit_video.inference.streaming.stream import Streamer
    from lookupvit_video.log import setup_logging

    setup_logging()
    sources = list(map(parse_source, arguments.source))
    inputs = map(os.path.realpath, [arguments.checkpoint, *arguments.source])
    for out in filter(None, (arguments.out.removeprefix("-"), arguments.annotate)):
        if os.path.realpath(out) in inputs:
            raise UserError(f"{out}: an input file is not written over; choose another name")
    predictor = load_model(arguments.checkpoint, arguments.device)
    stop = threading.Event()
    with ExitStack() as stack:
        sinks: list[LineSink | WebhookSink] = [LineSink(arguments.out)]
        if arguments.webhook:
            sinks.append(WebhookSink(arguments.webhook))
        for sink in sinks:
            stack.callback(sink.close)

        def write(event: dict[str, Any]) -> None:
            for sink in sinks:
                sink.write(event)
                if sink.is_closed:
                    stop.set()

        streamer = Streamer(predictor, sources, stream_options(arguments, predictor), write, stop)
        with ended_by_signals(stop):
            summaries = streamer.run()
    for summary in summaries:
        log_summary(summary)
    check_failures(summaries)
    return 0
