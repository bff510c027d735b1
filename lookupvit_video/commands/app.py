"""`lookupvit app`: a page to try a trained checkpoint."""

import argparse
import os
import signal
import tempfile
from pathlib import Path

from lookupvit_video.commands import options
from lookupvit_video.text import one_line

EXAMPLES = """  pip install "lookupvit_video[app]"
  lookupvit app --checkpoint runs/demo_motion/model.pt

The page serves the browser of this machine (127.0.0.1) and sends nothing to other machines. Uploads and pictures are
kept in a temporary folder, which is removed at the end. Exit code 0: ended by Ctrl-C or SIGTERM; 2: invalid input.
"""


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = options.make_parser(
        "A page to try a trained checkpoint: drop a video, see the answer, where the model looked, and when.", EXAMPLES
    )
    options.add_checkpoint(parser)
    add, number = parser.add_argument, options.number
    add("--calibration", metavar="FILE", help="of lookupvit calibrate: offers the budget 'adaptive'")
    add("--topk", type=number(int, 1, 1000), default=5, metavar="K", help="classes to show (default: 5)")
    options.add_views(parser)
    add("--port", type=number(int, 0, 65535), default=7860, metavar="N",
        help="0: the first free one from 7860 on (default: 7860)")  # fmt: skip
    add("--max-mb", type=number(int, 1, 10**5), default=200, metavar="MB", help="largest upload (default: 200)")
    add("--max-seconds", type=options.seconds, default=600.0, metavar="S", help="longest video (default: 600)")
    options.add_timeout(parser, 60.0, "seconds to open a video, to decode its clips, and for its timeline")
    return parser.parse_args()


def app() -> int:
    """Run `lookupvit app`."""
    arguments = parse_arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, so that the folder is removed
    with tempfile.TemporaryDirectory(prefix="lookupvit_page_", ignore_cleanup_errors=True) as folder:
        os.environ["MPLCONFIGDIR"] = os.path.join(folder, "matplotlib")  # where it keeps a list of fonts
        _serve(arguments, Path(folder))
    return 0


def _serve(arguments: argparse.Namespace, folder: Path) -> None:
    from lookupvit_video.inference.page.gradio_page import build, import_gradio, serve
    from lookupvit_video.inference.page.page import Page
    from lookupvit_video.inference.page.upload import Limits, warm_up
    from lookupvit_video.inference.predictor import load_model
    from lookupvit_video.log import setup_logging

    gradio = import_gradio(folder)
    setup_logging()
    predictor = load_model(arguments.checkpoint, arguments.device)
    page = Page(
        predictor, Limits(arguments.max_mb, arguments.max_seconds), topk=arguments.topk, num_views=arguments.views,
        num_crops=arguments.crops, timeout=arguments.timeout, calibration=arguments.calibration,
    )  # fmt: skip
    warm_up(page.plan)
    title = f"{one_line(Path(arguments.checkpoint).name)}: {len(predictor.classes)} classes, on {predictor.device}"
    serve(gradio, build(gradio, page, title, folder), arguments.port, arguments.max_mb)
