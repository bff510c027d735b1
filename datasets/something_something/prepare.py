"""Write the lists of Something-Something V1 or V2 from the official annotations and the videos at hand."""

from lookupvit_video.commands.run_command import run_command  # first: Ctrl-C in a later import gives one line

# isort: split
import argparse
import logging
from pathlib import Path

from lookupvit_video.preparation.lists import add_options, read_options
from lookupvit_video.preparation.something_something import PUBLISHED, prepare_something_something

EXAMPLE = """example:
  python datasets/something_something/prepare.py --annotations ssv2/labels --videos ssv2/20bn-something-something-v2 \\
    --out data/ssv2

Exit code 0: all done; 1: some videos could not be re-encoded (named); 2: nothing could be done.
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="prepare.py", description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", type=int, choices=PUBLISHED, default=2, help="of the data set (default: 2)")
    parser.add_argument("--annotations", required=True, type=Path, metavar="DIR", help="folder of the official files")
    parser.add_argument("--videos", required=True, nargs="+", type=Path, metavar="DIR", help="folders with the videos")
    add_options(parser)
    return parser.parse_args()


def main() -> int:
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    args = parse_args()
    return prepare_something_something(args.version, args.annotations, args.videos, read_options(args))


if __name__ == "__main__":
    run_command(main)
