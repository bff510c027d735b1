#!/usr/bin/env python3
"""A page to try a trained checkpoint: drop a video, see the answer, where the model looked, and when."""

from lookupvit_video.commands.run_command import run_command  # first: Ctrl-C in a later import gives one line

# isort: split
import argparse
import math
import os
import signal
import tempfile
from pathlib import Path

from lookupvit_video.text import one_line

EXAMPLE = """example:
  pip install -e .[app]
  python tools/app.py --checkpoint runs/demo_motion/model.pt

The page is for the browser of this machine (127.0.0.1) and asks no other machine for anything. Uploads and pictures lie
in a temporary folder, which is removed at the end. Exit code 0: ended by Ctrl-C or SIGTERM; 2: an argument is wrong.
"""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="FILE", help="a .pt of training, a save_pretrained folder, a Hub id")
    add("--calibration", metavar="FILE", help="of tools/calibrate.py: offers the budget 'adaptive'")
    add("--topk", type=int, default=5, metavar="K", help="classes to show (default: 5)")
    add("--views", type=int, metavar="N", help="clips in time (default: as the checkpoint was tested)")
    add("--crops", type=int, choices=(1, 3), help="crops in space (default: likewise)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default: auto)")
    add("--port", type=int, default=7860, metavar="N", help="0: the first free one from 7860 on (default: 7860)")
    add("--max-mb", type=int, default=200, metavar="MB", help="largest upload (default: 200)")
    add("--max-seconds", type=float, default=600.0, metavar="S", help="longest video (default: 600)")
    add("--timeout", type=float, default=60.0, metavar="S",
        help="seconds to open a video, to decode its clips, and for its time line (default: 60)")  # fmt: skip
    arguments = parser.parse_args()
    for name, low, high in (("topk", 1, 1000), ("views", 1, 1000), ("port", 0, 65535), ("max_mb", 1, 10**5)):
        value = getattr(arguments, name)
        if value is not None and not low <= value <= high:
            parser.error(f"--{name.replace('_', '-')} must be {low} to {high}, got {value}")
    for name in ("max_seconds", "timeout"):
        if not 0 < getattr(arguments, name) < math.inf:
            parser.error(
                f"--{name.replace('_', '-')} must be a number of seconds above 0, got {getattr(arguments, name)}"
            )
    return arguments


def run(arguments: argparse.Namespace, folder: Path) -> None:
    # Imported here: the processes that read videos import this file, and are to start fast; and what is imported
    # looks at the environment that is set by now.
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


def main() -> int:
    arguments = parse_arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, so that the folder goes
    with tempfile.TemporaryDirectory(prefix="lookupvit_page_", ignore_cleanup_errors=True) as folder:
        os.environ["MPLCONFIGDIR"] = os.path.join(folder, "matplotlib")  # where it keeps a list of fonts
        run(arguments, Path(folder))
    return 0


if __name__ == "__main__":
    run_command(main)
