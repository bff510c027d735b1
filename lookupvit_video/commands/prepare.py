"""`lookupvit prepare ...`: lists of data sets; `lookupvit demo`: from nothing to predictions."""

import argparse
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lookupvit_video.commands import options
from lookupvit_video.commands.run_command import share_cores

if TYPE_CHECKING:
    from lookupvit_video.preparation.lists import Options

DATA = Path("datasets/moving_digits/data")  # as the shipped configs have it
KINETICS = ("k400", "k600", "k700", "k700-2020")
SSV = (1, 2)
EXIT_CODES = """
Exit code 0: all done; 1: some videos could not be re-encoded or a tarball is damaged (named); 2: nothing could be done.
"""
KINETICS_EXAMPLES = f"""  lookupvit prepare kinetics --dataset k400 --annotations k400/annotations/*.csv \\
      --videos k400 --out data/k400 --short-side 256
{EXIT_CODES}"""
SSV2_EXAMPLES = f"""  lookupvit prepare ssv2 --annotations ssv2/labels --videos ssv2/videos --out data/ssv2
  lookupvit prepare ssv2 --version 1 --annotations ssv1/labels --videos ssv1/frames --out data/ssv1
{EXIT_CODES}"""
SUBSET_EXAMPLES = f"""  lookupvit prepare subset --of {DATA}/motion --out {DATA}/turning --train 480 \\
      --classes clockwise counter-clockwise approaching leaving
"""
SPLIT_EXAMPLES = r"""  lookupvit prepare split --data my_videos --out lists
  lookupvit prepare split --data labels.csv --group-by '([^/]*)_\d+\.' --folds 5 --out folds
  lookupvit prepare split --data my_videos --order-by mtime --out lists
  lookupvit prepare split --data my_videos --keep lists --out lists2    # new videos join; no file changes its split

No group is in two splits: the list's column "group", what --group-by finds in the path, or else each file. The lists
are for DATA.PATH_TO_DATA_DIR; folds are in OUT/0, OUT/1, ..., each with the fold as val.csv and test.csv.
"""
TOOLS = ("label-studio", "cvat", "via", "fiftyone", "activitynet", "elan")  # as preparation.labelling.convert
IMPORT_EXAMPLES = """  lookupvit prepare import-labels --tool cvat annotations.xml --videos my_videos --out lists
  lookupvit prepare import-labels --tool label-studio export.json --rate 24 --videos my_videos --out lists
  lookupvit prepare import-labels --tool elan eaf_files/ --origin file --videos my_videos --out lists

Writes OUT/all.csv (path,label,start,end) and OUT/classes.txt. Frame numbers become seconds by each file's own time
stamps. What a tool's file does not say is given by an option, or refused.
"""
EXPORT_EXAMPLES = """  lookupvit prepare export-labels --tool fiftyone lists/all.csv --out labels.json
  lookupvit prepare export-labels --tool label-studio answers.jsonl --rate 24 --out tasks.json   # of predict --json
  lookupvit prepare export-labels --tool elan timeline.json --out eaf_files/                     # of timeline --json

Answers and timelines become predictions, to start the next round of labelling from.
"""
SHARDS_EXAMPLES = """  lookupvit prepare shards --list data/k400/train.csv --out /data/shards/train
  lookupvit prepare shards --index /data/wds/*.tar --out /data/wds/train --classes classes.txt
  lookupvit prepare shards --verify /data/shards/*.tar

OUT.csv is a list for DATA.TRAIN_LIST; it names members as if the tars were folders. Run the command again after an
interruption: complete shards are kept. Exit code 1: --verify found damage.
"""
DEMO_EXAMPLES = """  lookupvit demo
  lookupvit demo --out /tmp/demo --data /tmp/digits
"""


def prepare() -> int:
    """Run `lookupvit prepare`."""
    return options.run_one_of(
        {
            "kinetics": options.Command("prepare", "kinetics", "Kinetics-400, -600, -700, -700-2020"),
            "ssv2": options.Command("prepare", "ssv2", "Something-Something V1, V2"),
            "moving-digits": options.Command("prepare", "moving_digits", "make the demo videos"),
            "shards": options.Command("prepare", "shards", "tar files with an index, of the videos of a list"),
            "split": options.Command("prepare", "split", "lists of your own videos that share no recording"),
            "import-labels": options.Command("prepare", "import_labels", "labels of a labelling tool -> a list"),
            "export-labels": options.Command(
                "prepare", "export_labels", "a list or answers -> a labelling tool's file"
            ),
            "background": options.Command("prepare", "background", "rows between the spans of untrimmed videos"),
            "subset": options.Command("prepare", "subset", "some classes of Moving Digits"),
        },
        "Write the lists of a data set.",
        "  lookupvit prepare moving-digits\n",
    )


def _add_list_options(parser: argparse.ArgumentParser) -> None:
    options.add_out(parser)
    add = parser.add_argument
    add("--test-on", choices=("val", "test"), default="val",
        help="which annotated split test.csv is; the field reports on val (default: val)")  # fmt: skip
    add("--short-side", type=int, metavar="PIXELS",
        help="re-encode to OUT/videos as H.264 with at most this short side, e.g. 256 or 320 (default: keep the files)"
    )  # fmt: skip
    add("--gop", type=int, default=30, metavar="N", help="re-encoding: frames between key frames (default: 30)")
    add("--crf", type=int, default=23, metavar="N", help="re-encoding: x264's scale, 0 (lossless) to 51 (default: 23)")
    add("--processes", type=options.positive, default=os.cpu_count() or 1, metavar="N",
        help="re-encoding: videos at a time (default: one per core)")  # fmt: skip


def _list_options(arguments: argparse.Namespace, trim: bool = False) -> "Options":
    from lookupvit_video.preparation.lists import Options
    from lookupvit_video.preparation.reencode import Encoding

    logging.basicConfig(format="%(message)s", level=logging.INFO)
    side = arguments.short_side
    encoding = None if side is None else Encoding(side, arguments.gop, arguments.crf)
    if encoding:
        encoding.validate()
    return Options(arguments.out, encoding, trim, arguments.processes, arguments.test_on)


def kinetics() -> int:
    """Run `lookupvit prepare kinetics`."""
    parser = options.make_parser(
        "Write the lists of Kinetics-400, -600, -700 or -700-2020 from the official annotations and your videos.",
        KINETICS_EXAMPLES,
    )
    add = parser.add_argument
    add("--dataset", required=True, choices=KINETICS,
        help="chooses the published counts to compare with")  # fmt: skip
    add("--annotations", required=True, nargs="+", type=Path, metavar="FILE", help="official CSV, JSON")
    add("--videos", nargs="+", type=Path, default=[], metavar="DIR", help="folders with the videos")
    add("--tarballs", type=Path, metavar="DIR", help="unpack its tarballs to OUT/unpacked first")
    add("--classes", type=Path, metavar="FILE", help="class list to use (default: the annotated labels, sorted)")
    add("--whole-videos", action="store_true", help="files named ID.mp4 are complete YouTube videos, not the clips")
    add("--trim", action="store_true", help="re-encode only the annotated span of complete videos")
    _add_list_options(parser)
    arguments = parser.parse_args()
    from lookupvit_video.preparation.kinetics import prepare_kinetics

    return prepare_kinetics(
        arguments.dataset, arguments.annotations, arguments.videos, _list_options(arguments, arguments.trim),
        tarballs=arguments.tarballs, whole=arguments.whole_videos, classes=arguments.classes,
    )  # fmt: skip


def ssv2() -> int:
    """Run `lookupvit prepare ssv2`."""
    parser = options.make_parser(
        "Write the lists of Something-Something V1 or V2 from the official annotations and your videos.", SSV2_EXAMPLES
    )
    add = parser.add_argument
    add("--version", type=int, choices=SSV, default=2, help="of the data set (default: 2)")
    add("--annotations", required=True, type=Path, metavar="DIR", help="folder of the official files")
    add("--videos", required=True, nargs="+", type=Path, metavar="DIR", help="folders with the videos")
    _add_list_options(parser)
    arguments = parser.parse_args()
    from lookupvit_video.preparation.something_something import prepare_something_something

    return prepare_something_something(
        arguments.version, arguments.annotations, arguments.videos, _list_options(arguments)
    )


def moving_digits(words: Sequence[str] | None = None) -> int:
    """Run `lookupvit prepare moving-digits`, with the words of this process's command line or others."""
    parser = options.make_parser(
        "Make Moving Digits: handwritten digits in motion, as H.264 videos with a motion label and a digit label.",
        "  lookupvit prepare moving-digits --out /tmp/digits --train 240 --val 80 --test 80\n",
    )
    options.add_out(parser, str(DATA))
    for name, default, what in (
        ("train", 4800, "training videos"), ("val", 160, "validation videos"), ("test", 480, "test videos"),
        ("size", 64, "pixels per side, even"), ("frames", 24, "frames per video"),
        ("fps", 12, "frames per second; also the distance of key frames"),
        ("digits", 1, "most digits in a video; from 2 on, the label is all that are in it"),
        ("distractors", 0, "moving shapes in a video, as bright as the digit and of no class"),
        ("seed", 0, "another seed gives other videos and another split"),
        ("processes", os.cpu_count() or 1, "the files do not depend on it"),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{what} (default: {default})")
    parser.add_argument("--labels", choices=("motion", "order"), default="motion", help="order: two motions, one after "
        "the other, and the test videos joined to one as well (default: motion)")  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace a data set of other settings in OUT")
    arguments = parser.parse_args(words)
    from lookupvit_video.preparation.moving_digits import make_moving_digits

    logging.basicConfig(format="%(message)s", level=logging.INFO)
    is_new = make_moving_digits(**vars(arguments))
    print(f"{'wrote' if is_new else 'reused the complete data set in'} {arguments.out}")
    return 0


def split() -> int:
    """Run `lookupvit prepare split`."""
    parser = options.make_parser(
        "Split videos into training, validation and test by recording, person or time, with each class in each split.",
        SPLIT_EXAMPLES,
    )
    add = parser.add_argument
    add("--data", required=True, type=Path, metavar="PLACE", help="a folder of class folders, or a list")
    options.add_out(parser)
    add("--group-by", default="", metavar="PATTERN", help="regular expression on the path: what may not be parted")
    add("--shares", type=float, nargs="+", default=[0.7, 0.15, 0.15], metavar="SHARE",
        help="of train, val, test; of two, the last is both val and test (default: 0.7 0.15 0.15)")  # fmt: skip
    add("--folds", type=options.natural, default=0, metavar="K", help="k folds for cross-validation")
    add("--order-by", default="", metavar="mtime | PATTERN",
        help="the newest are tested: by file time, or by what a regular expression finds in the path")  # fmt: skip
    add("--keep", type=Path, metavar="FOLDER", help="lists of an earlier split: their videos stay where they are")
    add("--copies", type=Path, metavar="FILE", help="copies.csv of lookupvit check --copies: copies stay together")
    add("--seed", type=int, default=0, metavar="N", help="another seed gives another split (default: 0)")
    arguments = parser.parse_args()
    from lookupvit_video.own_videos.write_split import SplitOptions, prepare_split

    chosen = SplitOptions(
        arguments.shares, arguments.folds, arguments.order_by, arguments.keep, arguments.seed, arguments.copies
    )
    lines, hints = prepare_split(arguments.data, arguments.out, arguments.group_by, chosen)
    print("\n".join([*lines, *(f"note: {hint}" for hint in hints)]))
    return 0


def _add_tool(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--tool", required=True, choices=TOOLS, help="whose file it is")
    options.add_out(parser, metavar="PATH")
    add("--rate", type=float, metavar="FPS", help="frames a second that the tool assumes (label-studio: required; "
        "default: its frames are the file's own)")  # fmt: skip
    add("--frame-base", type=int, choices=(0, 1), help="number of the first frame (default: as the tool counts)")
    add("--end", default="", choices=("inclusive", "exclusive"),
        help="whether the end is the last frame or the one after it (default: as the tool has it)")  # fmt: skip
    add("--origin", default="", choices=("file", "first-frame"), help="what second 0 of the tool is, where the picture "
        "begins after the file does (default: refuse such files)")  # fmt: skip


def import_labels() -> int:
    """Run `lookupvit prepare import-labels`."""
    parser = options.make_parser("Write the labels of a labelling tool as a list.", IMPORT_EXAMPLES)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="what the tool exported")
    parser.add_argument("--videos", required=True, type=Path, metavar="DIR", help="folder with the videos")
    _add_tool(parser)
    arguments = parser.parse_args()
    from lookupvit_video.log import setup_logging
    from lookupvit_video.preparation.labelling.convert import Choices, import_labels

    setup_logging()
    chosen = Choices(arguments.rate, arguments.frame_base, arguments.end, arguments.origin)
    count = import_labels(arguments.tool, arguments.files, arguments.videos, arguments.out, chosen, _reading)
    print(f"{arguments.out / 'all.csv'}: {count} labels")
    return 0


def export_labels() -> int:
    """Run `lookupvit prepare export-labels`."""
    parser = options.make_parser("Write a list, answers or a timeline as a labelling tool's file.", EXPORT_EXAMPLES)
    parser.add_argument("source", type=Path, metavar="FILE", help="a list, or JSON of predict or timeline")
    _add_tool(parser)
    arguments = parser.parse_args()
    from lookupvit_video.log import setup_logging
    from lookupvit_video.preparation.labelling.convert import Choices, export_labels

    setup_logging()
    chosen = Choices(arguments.rate, arguments.frame_base, arguments.end, arguments.origin)
    count = export_labels(arguments.tool, arguments.source, arguments.out, chosen, _reading)
    print(f"{arguments.out}: {count} labels")
    return 0


def background() -> int:
    """Run `lookupvit prepare background`."""
    parser = options.make_parser(
        "Add the time between labelled spans of untrimmed videos to a list, as a class of its own.",
        "  lookupvit prepare background --list lists/all.csv --window 4 --out untrimmed\n",
    )
    add = parser.add_argument
    add("--list", required=True, type=Path, metavar="FILE", help="a list with start and end, next to its classes.txt")
    options.add_out(parser)
    add("--label", default="background", metavar="NAME", help="name of the class (default: background)")
    add("--shortest", type=options.number(float, 0), default=1.0, metavar="S",
        help="seconds; shorter pauses are left out (default: 1)")  # fmt: skip
    add("--window", type=options.number(float, 0), default=0.0, metavar="S",
        help="seconds; about the length of the parts it is cut into (default: one row each)")  # fmt: skip
    arguments = parser.parse_args()
    from lookupvit_video.preparation.background import add_background

    old, new = add_background(
        arguments.list, arguments.out, arguments.label, shortest=arguments.shortest, window=arguments.window,
        follow=_reading,
    )  # fmt: skip
    print(f"{arguments.out / 'all.csv'}: {old} labels, {new} rows of {arguments.label!r}")
    return 0


def _reading(paths: Sequence[str]) -> Iterable[str]:
    from lookupvit_video.progress import progress

    return progress(paths, total=len(paths), label="reading time stamps", unit="videos")


def shards() -> int:
    """Run `lookupvit prepare shards`."""
    parser = options.make_parser("Pack the videos of a list into tar files with an index.", SHARDS_EXAMPLES)
    add = parser.add_argument
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--list", type=Path, metavar="FILE", help="pack the videos of this list")
    kind.add_argument("--index", nargs="+", metavar="TAR", help="write the index of tars that other programs made, and "
                      "OUT.csv with the labels in their members KEY.cls")  # fmt: skip
    kind.add_argument("--verify", nargs="+", metavar="TAR", help="compare shards with their index")
    add("--out", type=Path, metavar="OUT", help="of --list: shards OUT-000000.tar, ... and the list OUT.csv")
    add("--classes", type=Path, metavar="FILE", help="class names (default: classes.txt next to the list)")
    add("--gb", type=options.number(float, 1e-6), default=1.0, metavar="GB", help="size of a shard (default: 1)")
    arguments = parser.parse_args()
    if not arguments.verify and not arguments.out:
        parser.error("--out: where the shards and their list go")
    from lookupvit_video.data.manifest import has_several_labels, read_class_list, read_table
    from lookupvit_video.log import setup_logging
    from lookupvit_video.preparation.shards import (
        index_shards,
        labelled_members,
        make_shards,
        verify_shards,
        write_list,
    )

    setup_logging()
    if arguments.verify:
        wrong = verify_shards(arguments.verify)
        for line in wrong:
            print(line)
        print(f"{len(arguments.verify)} shards, {len(wrong)} problems")
        return 1 if wrong else 0
    out: Path = arguments.out
    folder = arguments.list.parent if arguments.list else out.parent
    classes = read_class_list(arguments.classes or folder / "classes.txt")
    if arguments.list:
        several = has_several_labels(arguments.list, classes)
        videos = read_table(arguments.list, classes, multi_label=several)
        made = make_shards(videos, classes, out.parent, out.name, int(arguments.gb * 1e9))
        print(f"{len(made)} shards, {len(videos)} rows: {out}.csv")
    else:
        members = index_shards(arguments.index)
        write_list(Path(f"{out}.csv"), labelled_members(members, len(classes), out.parent), classes)
        print(f"{len(members)} shards: {out}.csv")
    return 0


def subset() -> int:
    """Run `lookupvit prepare subset`."""
    parser = options.make_parser(
        "Make a smaller label set of Moving Digits: some of the classes, and at most N training videos.",
        SUBSET_EXAMPLES,
    )
    add = parser.add_argument
    add("--of", required=True, type=Path, metavar="FOLDER", help="a label set: lists and classes.txt")
    options.add_out(parser)
    add("--classes", default=[], nargs="+", metavar="NAME", help="those to keep, in this order (default: all)")
    add("--train", type=options.natural, default=0, metavar="N", help="the first N training videos (default: all)")
    add("--skip", type=options.natural, default=0, metavar="N",
        help="begin after the first N training videos, for another draw of the same size (default: 0)")  # fmt: skip
    add("--long-tail", type=options.number(float, 1), default=1.0, metavar="R",
        help="keep R times as many training videos of the first class as of the last (default: 1)")  # fmt: skip
    arguments = parser.parse_args()
    from lookupvit_video.preparation.subset import write_subset

    a = arguments
    lists = write_subset(a.of, a.out, a.classes, a.train or None, a.long_tail, skip=a.skip)
    for path, count in lists.items():
        print(f"{path}: {count} videos")
    return 0


def demo() -> int:
    """Run `lookupvit demo`."""
    parser = options.make_parser("Make the demo videos, train on them, test, predict and draw.", DEMO_EXAMPLES)
    options.add_out(parser, "runs/demo_motion")
    parser.add_argument("--data", type=Path, default=DATA, metavar="FOLDER", help=f"of the videos (default: {DATA})")
    arguments = parser.parse_args()
    share_cores()
    from lookupvit_video.commands.predict import predict
    from lookupvit_video.commands.train import run

    out, data = arguments.out, arguments.data
    print("1 of 3: make the videos", flush=True)
    moving_digits(["--out", str(data)])
    print("2 of 3: train and test", flush=True)
    if code := run("demo_motion", ["OUTPUT_DIR", str(out), "DATA.PATH_TO_DATA_DIR", str(data / "motion")]):
        return code
    print("3 of 3: predict", flush=True)
    videos = [str(data / "videos" / "test" / f"{number:05d}.mp4") for number in range(4)]
    drawn = ["--json", f"{out}/predictions.jsonl", "--draw", f"{out}/sheets"]
    code = predict(["--checkpoint", f"{out}/model.pt", "--topk", "3", *drawn, *videos])
    print(f"""
Done. Look at:
  {out}/curves.png             loss and validation accuracy
  {out}/confusion_matrix.png   which motions are confused, on the test videos
  {out}/sheets/*.png           four test videos: frames, attention, answer
  {out}/test_results.json      accuracy; test_predictions.csv: each video's answer
  {out}/model.pt               the trained model, for lookupvit predict""")
    return code
