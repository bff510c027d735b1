#!/usr/bin/env python3
"""Name what happens in videos, with a trained checkpoint."""

import argparse
import sys
from pathlib import Path

import simplejson

from lookupvit_video.cli import run_command
from lookupvit_video.data.decode import BACKENDS, DecodeError
from lookupvit_video.engine.log import setup_logging
from lookupvit_video.files import written_whole
from lookupvit_video.inference.draw import draw_prediction
from lookupvit_video.inference.predictor import Prediction, load_model

EXAMPLE = """example:
  python tools/predict.py --checkpoint runs/demo_motion/model.pt video.mp4 other.webm --json answers.json --draw sheets/

Exit code 0: all done; 1: some videos could not be read (named on stderr); 2: nothing could be done.
"""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("videos", nargs="+", metavar="VIDEO", help="video files")
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help="a .pt file of tools/run_net.py")
    parser.add_argument("--topk", type=int, default=5, metavar="K", help="classes to name (default: 5)")
    parser.add_argument("--views", type=int, metavar="N", help="clips in time (default: as the checkpoint was tested)")
    parser.add_argument("--crops", type=int, choices=(1, 3), help="crops in space (default: likewise)")
    parser.add_argument("--backend", choices=tuple(BACKENDS), help="decoder (default: the checkpoint's)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default: auto)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the answers as JSON")
    parser.add_argument("--draw", type=Path, metavar="FOLDER", help="write a PNG sheet per video: frames, attention")
    arguments = parser.parse_args()
    for name in ("topk", "views"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            parser.error(f"--{name} must be at least 1, got {value}")
    return arguments


def show(prediction: Prediction) -> None:
    print(prediction.path)
    for label, probability in zip(prediction.labels, prediction.probabilities, strict=True):
        print(f"  {100 * probability:5.1f} %  {label}")


def main() -> int:
    arguments = parse_arguments()
    setup_logging()
    predictor = load_model(arguments.checkpoint, arguments.device)
    answers, failures = [], 0
    for number, video in enumerate(arguments.videos):
        try:
            prediction = predictor.predict(
                video, arguments.topk, num_views=arguments.views, num_crops=arguments.crops, backend=arguments.backend
            )
        except DecodeError as error:
            print(f"predict.py: error: {error}", file=sys.stderr)
            answers.append({"path": video, "error": str(error)})
            failures += 1
            continue
        show(prediction)
        answers.append({"path": video, "classes": dict(zip(prediction.labels, prediction.probabilities, strict=True))})
        if arguments.draw:
            sheet = arguments.draw / f"{number:03d}_{Path(video).stem}.png"
            draw_prediction(prediction, predictor.attention_maps(prediction.clip), sheet)
            print(f"  drawn: {sheet}")
    if arguments.json:
        with written_whole(arguments.json) as temporary:
            temporary.write_text(simplejson.dumps(answers, indent=1) + "\n", encoding="utf-8")
    if failures == len(arguments.videos):
        return 2
    return 1 if failures else 0


if __name__ == "__main__":
    run_command(main)
