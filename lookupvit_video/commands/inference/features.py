"""`lookupvit features`: what a model sees in videos, as numbers for other tools, and a search in them."""

import argparse
import logging
import os
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from lookupvit_video.commands import options
from lookupvit_video.commands.run_command import print_error
from lookupvit_video.errors import INTERNAL, UserError
from lookupvit_video.text import printable

if TYPE_CHECKING:
    from lookupvit_video.distributed.world import World
    from lookupvit_video.inference.features.extract import Reading
    from lookupvit_video.inference.predictor import Predictor
    from lookupvit_video.inference.views import Failure

logger = logging.getLogger(__name__)
EXAMPLES = """  lookupvit features --checkpoint runs/demo_motion/model.pt folder/ --out features.npy --resume
  lookupvit features --checkpoint model.pt long.mp4 --stride 0.5 --out long.parquet
  torchrun --nproc_per_node=8 -m lookupvit_video features --checkpoint model.pt --list all.csv --out all.npy
  lookupvit features --checkpoint model.pt new.mp4 --query features.npy --topk 3

One row per clip. A .npy file gets the path and the seconds of each row in NAME.npy.json; the other formats hold them.
Exit code 0: all done; 1: some videos could not be read (named at the end); 2: nothing could be done.
"""


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = options.make_parser("Save what a model sees in videos, or search for videos that look alike to it.",
                                 EXAMPLES)  # fmt: skip
    add = parser.add_argument
    add("videos", nargs="*", metavar="VIDEO", help="files, folders, quoted patterns; -: paths on standard input")
    add("--list", action="append", default=[], metavar="FILE", help="a path per line, or a CSV with a column path")
    options.add_checkpoint(parser)
    add("--out", metavar="FILE", help="write .npy, .safetensors or .parquet (pyarrow)")
    add("--resume", action="store_true", help="keep the features that --out has from an earlier run")
    add("--tokens", choices=("pooled", "compressed", "lookup"), default="pooled",
        help="what the classifiers read, or all tokens after the norm (default: pooled)")  # fmt: skip
    add("--grid", metavar="TxHxW", help="compressed grid or budget, as for predict (default: the checkpoint's)")
    add("--half", action="store_true", help="store float16")
    add("--views", type=options.positive, metavar="N", help="clips in time (default: as the checkpoint's test)")
    add("--stride", type=options.seconds, metavar="S", help="slide a window over each video, every S seconds")
    add("--window", type=options.seconds, metavar="S", help="its length, for DATA.SAMPLING segments")
    add("--query", metavar="FILE", help="find in these saved features what is nearest to the videos (cosine)")
    add("--topk", type=options.positive, default=5, metavar="K", help="neighbors for --query (default: 5)")
    add("--json", metavar="FILE", help="write neighbors as JSON lines; -: standard output")
    add("--backend", choices=options.BACKENDS, help="decoder (default: the checkpoint's)")
    options.add_batch_size(parser)
    options.add_workers(parser)
    options.add_timeout(parser, 60.0, "seconds to open a video, and to decode its clips")
    arguments = parser.parse_args()
    for wrong, message in (
        (not arguments.videos and not arguments.list,
         "no videos: name files, folders, patterns, - for standard input, or --list FILE"),
        (not arguments.out and not arguments.query, "nothing to do: give --out, --query or both"),
        (arguments.resume and not arguments.out, "--resume continues what --out holds; give it"),
        (arguments.json and not arguments.query, "--json is for --query"),
        (arguments.query and arguments.tokens != "pooled", "--query: searches in pooled features"),
        (arguments.window and not arguments.stride, "--window is for windows; give --stride as well"),
        (arguments.stride and arguments.views, "--stride: windows take the place of views; give one of them"),
    ):  # fmt: skip
        if wrong:
            parser.error(message)
    return arguments


def check_outputs(arguments: argparse.Namespace, videos: Sequence[str]) -> None:
    """Raise UserError where a file written would replace an input, or the other one."""
    outputs = [name for name in (arguments.out, arguments.json) if name not in (None, "-")]
    inputs = [arguments.checkpoint, arguments.query, *arguments.list, *videos]
    taken = {os.path.realpath(name) for name in inputs if name and "\0" not in name}
    for name in outputs:
        if os.path.realpath(name) in taken:
            raise UserError(f"{name}: cannot be written, it is an input file or given twice; choose another name")
        taken.add(os.path.realpath(name))


def check_shared(arguments: argparse.Namespace, processes: int) -> None:
    """Raise UserError where several processes cannot share what is asked for."""
    if processes > 1 and (arguments.json == "-" or not (arguments.out or arguments.json)):
        raise UserError(f"{processes} processes write to one file: give --out FILE or --json FILE")
    if processes > 1 and "-" in arguments.videos:
        raise UserError(f"{processes} processes cannot share standard input: write the paths to a file for --list")


def make_reading(arguments: argparse.Namespace, predictor: "Predictor") -> "tuple[Reading, dict[str, Any]]":
    """Return how to read the videos, and what the saved file says of it."""
    from lookupvit_video.checkpoints.checkpoint import fingerprint
    from lookupvit_video.inference.budget import known_budget
    from lookupvit_video.inference.features.extract import Reading

    grid = known_budget(predictor.costs, arguments.grid)
    plan = predictor.plan.changed(arguments.views, 1, arguments.backend, arguments.timeout)
    reading = Reading(
        plan=plan, tokens=arguments.tokens, grid=grid, batch_size=arguments.batch_size, workers=arguments.workers,
        windows=arguments.stride is not None, stride=arguments.stride, window=arguments.window,
    )  # fmt: skip
    about = {
        "tokens": arguments.tokens, "grid": predictor.budget_name(grid), "model": fingerprint(predictor.model),
        "views": 0 if reading.windows else plan.times.num_clips, "stride": arguments.stride, "window": arguments.window,
    }  # fmt: skip
    return reading, about


def extract_all(
    arguments: argparse.Namespace, predictor: "Predictor", videos: list[str], world: "World"
) -> "tuple[list[Failure], int]":
    """Save and look for the features of this process's share; return those without, and how many have some now."""
    from lookupvit_video.inference.batch import shared_answer_file
    from lookupvit_video.inference.features.extract import VideoFeatures, read_features, share_of
    from lookupvit_video.inference.features.search import FeatureSearch
    from lookupvit_video.inference.features.store import load_features, shared_feature_file
    from lookupvit_video.inference.views import Failure
    from lookupvit_video.progress import progress

    reading, about = make_reading(arguments, predictor)
    lost: list[Failure] = []
    count = 0
    with ExitStack() as stack:
        search = FeatureSearch(load_features(arguments.query), about, arguments.query) if arguments.query else None
        answers = (
            stack.enter_context(shared_answer_file(arguments.json, None, False, world)) if arguments.json else None
        )
        out, done = stack.enter_context(shared_feature_file(
            arguments.out, about, videos, resume=arguments.resume, half=arguments.half, world=world
        )) if arguments.out else (None, set())  # fmt: skip
        done &= set(videos)
        if done:
            logger.info("%d of %d videos have features already", len(done), len(videos))
        total = len(share_of(videos, done, reading.group_size, world.rank, world.size))
        groups = read_features(predictor, videos, done, reading, world.rank, world.size)
        for group in progress(groups, total=total, label="features", unit="videos"):
            found = [video for video in group if isinstance(video, VideoFeatures)]
            lost += [video for video in group if isinstance(video, Failure)]
            count += len(found)
            if out:
                out.add(found)
            for video in found:
                for answer in search.nearest(video, arguments.topk) if search else ():
                    if answers:
                        answers.write(answer)
                    if arguments.json != "-":
                        show(answer)
    return lost, count + (len(done) if world.is_main else 0)


def show(answer: dict[str, Any]) -> None:
    """Print a clip and its neighbors."""
    from lookupvit_video.commands.predict import say

    say(f"{answer['path']}  {answer['start']:.2f}-{answer['end']:.2f} s")
    for near in answer["nearest"]:
        say(f"  {near['similarity']:.4f}  {near['path']}  {near['start']:.2f}-{near['end']:.2f} s")


def features() -> int:
    """Run `lookupvit features`."""
    arguments = parse_arguments()
    from lookupvit_video.distributed.world import close_world, gather_objects, init_world, report_lost_processes
    from lookupvit_video.inference.batch import find_videos
    from lookupvit_video.inference.features.store import check_name
    from lookupvit_video.inference.predictor import load_model
    from lookupvit_video.log import setup_logging

    world = init_world()
    setup_logging(world.is_main)
    check_shared(arguments, world.size)
    videos, failures = find_videos(arguments.videos, arguments.list)
    check_outputs(arguments, videos)
    if arguments.out:
        check_name(arguments.out)
    predictor = load_model(arguments.checkpoint, arguments.device)
    with report_lost_processes(world):
        shares = gather_objects(extract_all(arguments, predictor, videos, world), world)
    close_world()
    lost = [*failures, *(failure for share, _ in shares for failure in share)]
    count = sum(found for _, found in shares)
    for failure in lost if world.is_main else []:
        print_error(printable(f"{failure.path}: {failure.error}"))
    logger.info("%d videos with features, %d failed", count, len(lost))
    if any(failure.error.startswith(INTERNAL) for failure in lost):
        return 1
    if not count:
        return 2
    return 1 if lost else 0
