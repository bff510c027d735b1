"""Make Moving Digits: handwritten digits in motion, as H.264 videos with a motion label and a digit label."""

from lookupvit_video.commands.run_command import run_command  # first: Ctrl-C in a later import gives one line

# isort: split
import argparse
import logging
import os
from pathlib import Path

from lookupvit_video.preparation.moving_digits import make_moving_digits


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="prepare.py",
        description=__doc__,
        epilog="example: python datasets/moving_digits/prepare.py --out /tmp/digits --train 240 --val 80 --test 80",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "data", help="folder to write")
    parser.add_argument("--train", type=int, default=4800, help="training videos")
    parser.add_argument("--val", type=int, default=160, help="validation videos")
    parser.add_argument("--test", type=int, default=480, help="test videos")
    parser.add_argument("--size", type=int, default=64, help="pixels per side, even")
    parser.add_argument("--frames", type=int, default=24, help="frames per video")
    parser.add_argument("--fps", type=int, default=12, help="frames per second; also the distance of key frames")
    parser.add_argument("--seed", type=int, default=0, help="another seed gives other videos and another split")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="the files do not depend on it")
    parser.add_argument("--overwrite", action="store_true", help="replace a data set of other settings in OUT")
    return parser.parse_args()


def main() -> int:
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    args = vars(parse_args())
    is_new = make_moving_digits(**args)
    print(f"{'wrote' if is_new else 'reused the complete data set in'} {args['out']}")
    return 0


if __name__ == "__main__":
    run_command(main)
