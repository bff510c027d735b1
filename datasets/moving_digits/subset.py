"""Make a smaller label set of Moving Digits: some of the classes, and at most so many training videos."""

from lookupvit_video.commands.run_command import run_command  # first: Ctrl-C in a later import gives one line

# isort: split
import argparse
import os
from pathlib import Path

from lookupvit_video.data.manifest import read_class_list, read_manifest
from lookupvit_video.errors import UserError
from lookupvit_video.preparation.moving_digits import SPLITS
from lookupvit_video.text import write_csv, write_text

EXAMPLE = """example:
  python datasets/moving_digits/subset.py --of datasets/moving_digits/data_study/motion \\
    --out datasets/moving_digits/data_study/turning --train 480 \\
    --classes clockwise counter-clockwise approaching leaving
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="subset.py", description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--of", required=True, type=Path, metavar="FOLDER", help="a label set: lists and classes.txt")
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="the label set to write")
    parser.add_argument("--classes", required=True, nargs="+", metavar="NAME", help="those to keep, in this order")
    parser.add_argument("--train", type=int, default=0, help="training videos, the first ones (default: all)")
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    names = read_class_list(args.of / "classes.txt")
    if missing := [name for name in args.classes if name not in names]:
        raise UserError(f"--classes: {missing[0]!r} is not in {args.of / 'classes.txt'}; it has {', '.join(names)}")
    for split in SPLITS:
        videos = [v for v in read_manifest(args.of / f"{split}.csv", names) if names[v.label] in args.classes]
        kept = videos[: args.train or None] if split == "train" else videos
        rows = [(os.path.relpath(v.path, args.out), args.classes.index(names[v.label])) for v in kept]
        write_csv(args.out / f"{split}.csv", ("path", "label"), rows)
        print(f"{args.out / split}.csv: {len(kept)} videos")
    write_text(args.out / "classes.txt", "".join(f"{name}\n" for name in args.classes))
    return 0


if __name__ == "__main__":
    run_command(main)
