"""Write the lists of Kinetics-400, -600, -700 or -700-2020 from the official annotations and the videos at hand."""

from lookupvit_video.commands.run_command import run_command  # first: Ctrl-C in a later import gives one line

# isort: split
import argparse
import logging
from pathlib import Path

from lookupvit_video.preparation.kinetics import CLASSES, prepare_kinetics
from lookupvit_video.preparation.lists import add_options, read_options

EXAMPLE = """example:
  python datasets/kinetics/prepare.py --dataset k400 --annotations k400/annotations/*.csv --videos k400 \\
    --out data/k400 --short-side 256

Exit code 0: all done; 1: some videos could not be re-encoded or a tarball is damaged (named); 2: nothing could be done.
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="prepare.py", description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", required=True, choices=CLASSES, help="gives the published counts to compare with")
    parser.add_argument("--annotations", required=True, nargs="+", type=Path, metavar="FILE", help="official CSV, JSON")
    parser.add_argument("--videos", nargs="+", type=Path, default=[], metavar="DIR", help="folders with the videos")
    parser.add_argument("--tarballs", type=Path, metavar="DIR", help="unpack its tarballs to OUT/unpacked first")
    parser.add_argument(
        "--classes", type=Path, metavar="FILE", help="class list to use (default: the annotated labels, alphabetically)"
    )
    parser.add_argument(
        "--whole-videos", action="store_true", help="files named ID.mp4 are whole YouTube videos, not the clips"
    )
    parser.add_argument("--trim", action="store_true", help="re-encode only the annotated span of whole videos")
    add_options(parser)
    return parser.parse_args()


def main() -> int:
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    args = parse_args()
    return prepare_kinetics(
        args.dataset,
        args.annotations,
        args.videos,
        read_options(args),
        tarballs=args.tarballs,
        whole=args.whole_videos,
        classes=args.classes,
    )


if __name__ == "__main__":
    run_command(main)
