"""`lookupvit predict`: name what happens in videos."""

import argparse
import logging
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lookupvit_video.commands import options
from lookupvit_video.commands.run_command import print_error, share_cores
from lookupvit_video.errors import INTERNAL, UserError
from lookupvit_video.processes.memory import importing
from lookupvit_video.text import printable

if TYPE_CHECKING:
    from lookupvit_video.distributed.world import World
    from lookupvit_video.inference.batch import AnswerFile
    from lookupvit_video.inference.prediction import Prediction
    from lookupvit_video.inference.predictor import Predictor
    from lookupvit_video.inference.views import Failure

logger = logging.getLogger(__name__)
KINDS = ("lac", "aps", "class")  # those of evaluation/conformal.py, whose import takes longer than this help
EXAMPLES = """  lookupvit predict --checkpoint runs/demo_motion/model.pt video.mp4 folder/ "clips/**/*.webm"
  lookupvit predict --checkpoint runs/demo_motion/model.pt folder/ --json answers.jsonl --resume
  torchrun --nproc_per_node=8 -m lookupvit_video predict --checkpoint model.pt --list all.csv --json answers.jsonl
  lookupvit predict --ray auto --checkpoint /shared/model.pt --list /shared/all.csv --json answers.jsonl
  find /data -name "*.mp4" | lookupvit predict --checkpoint model.pt - --csv answers.csv --gmacs 60

A video shorter than the model's clip is read to its end, its last frame repeated. Answers come in completion order.
Exit code 0: all done; 1: some videos could not be read (named at the end); 2: nothing could be done.
"""


def parse_arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """Parse a command line; None: that of this process."""
    parser = options.make_parser("Name what happens in videos, with a trained checkpoint.", EXAMPLES)
    add = parser.add_argument
    add("videos", nargs="*", metavar="VIDEO", help="files, folders, quoted patterns; -: paths on standard input")
    add("--list", action="append", default=[], metavar="FILE", help="a path per line, or a CSV with a column path")
    options.add_checkpoint(parser)
    add("--topk", type=options.positive, default=5, metavar="K", help="classes to name (default: 5)")
    options.add_views(parser)
    add("--backend", choices=options.BACKENDS, help="decoder (default: the checkpoint's)")
    options.add_batch_size(parser)
    add("--compile", action="store_true",
        help="compile the model first: minutes at the start, then faster on a GPU (not with --adaptive)")  # fmt: skip
    add(
        "--int8",
        action="store_true",
        help="8-bit weights and activations: faster on CPUs with VNNI or AMX; layers are chosen on the first video",
    )
    add("--adapt", action="store_true", help="move clips whose tokens are unlike clean ones toward them; "
        "after lookupvit robustness --adapt")  # fmt: skip
    options.add_workers(parser)
    options.add_timeout(parser, 60.0, "seconds to open a video, and to decode its clips")
    add("--json", metavar="FILE", help="write JSON lines, one per video; -: standard output")
    add("--csv", metavar="FILE", help="write a table, one row per video; -: standard output")
    add("--resume", action="store_true", help="skip videos that the --json or --csv file has answers for")
    add("--draw", type=Path, metavar="FOLDER", help="write a PNG sheet per video: frames, attention")
    add_budgets(parser)
    add_unsure(parser)
    _add_ray(parser)
    arguments = parser.parse_args(words)
    for wrong, message in (
        (not arguments.videos and not arguments.list,
         "no videos: name files, folders, patterns, - for standard input, or --list FILE"),
        (arguments.calibration and not arguments.adaptive, "--calibration is for --adaptive"),
        (arguments.compile and arguments.adaptive,
         "--compile: --adaptive runs parts of the model, which stay uncompiled; give one of them"),
        (arguments.compile and arguments.int8, "--compile: compiled 8-bit layers are slower; give one of them"),
        (arguments.compile and arguments.adapt, "--compile: --adapt changes what the model computes; give one of them"),
        (arguments.resume and not (arguments.json or arguments.csv),
         "--resume continues what --json or --csv holds; give one of them"),
        (arguments.resume and arguments.json and arguments.csv, "--resume continues one file; give --json or --csv"),
        (arguments.draw and arguments.draw.exists() and not arguments.draw.is_dir(),
         f"--draw must be a folder; {arguments.draw} is not"),
        (arguments.json == arguments.csv == "-", "--json - and --csv -: both would go to standard output"),
    ):  # fmt: skip
        if wrong:
            parser.error(message)
    return arguments


def add_budgets(parser: argparse.ArgumentParser) -> None:
    """Add what an answer may cost, for ``budget_of``."""
    budget = parser.add_argument_group("budgets", "for checkpoints with several of them; one of these")
    one = budget.add_mutually_exclusive_group()
    one.add_argument("--grid", metavar="TxHxW", help="compressed grid, such as 4x7x7, or 4x7x7,b8,k1-0.5: also "
                     "fewer blocks and lookup tokens (default: the checkpoint's)")  # fmt: skip
    one.add_argument("--gmacs", type=float, metavar="G", help="most accurate budget by the calibration within 10^9 "
                     "multiply-accumulates a view; not calibrated: the largest")  # fmt: skip
    one.add_argument("--latency-ms", type=float, metavar="MS", help="the same by time, measured once on this device")
    one.add_argument("--adaptive", action="store_true", help="a small grid first, larger ones while not confident")
    budget.add_argument("--calibration", metavar="FILE", help="for --adaptive, of lookupvit calibrate "
                        "(default: the checkpoint's name with .adaptive.json)")  # fmt: skip


def add_unsure(parser: argparse.ArgumentParser) -> None:
    """Add what a calibrated checkpoint can say about unsure answers."""
    group = parser.add_argument_group("unsure answers", "for checkpoints that lookupvit calibrate has prepared")
    group.add_argument(
        "--reject", metavar="RATE", help='answer "none of these" so that at most this rate of the other answers is '
        "wrong (0.05), or of videos of unknown classes is accepted (unknown=0.05)",
    )  # fmt: skip
    group.add_argument(
        "--coverage", type=float, metavar="SHARE",
        help="also give a set of classes that holds the true one for this share of videos (0.9)",
    )  # fmt: skip
    group.add_argument(
        "--sets", choices=KINDS, default="lac", help="kind of set: lac, the smallest on average; aps, larger for hard "
        "videos; class, the coverage for each class (default: lac)",
    )  # fmt: skip


def _add_ray(parser: argparse.ArgumentParser) -> None:
    """Add what starts the predictor on a cluster."""
    group = parser.add_argument_group("clusters", "extra ray; paths must be the same on all machines")
    group.add_argument("--ray", metavar="ADDRESS", help="share the videos in the Ray cluster at this address; auto: "
                       "the one that this machine is in; local: on this machine alone")  # fmt: skip
    group.add_argument("--ray-actors", type=options.positive, metavar="N",
                       help="most processes with a model (default: one a GPU; without GPUs, one a core)")  # fmt: skip


def check_outputs(arguments: argparse.Namespace, videos: Sequence[str]) -> None:
    """Raise UserError where an answer file would replace an input."""
    outputs = {name: os.path.realpath(name) for name in (arguments.json, arguments.csv) if name not in (None, "-")}
    inputs = [arguments.checkpoint, *arguments.list, *filter(None, [arguments.calibration]), *videos]
    read = {os.path.realpath(name) for name in inputs if "\0" not in name}
    for name, path in outputs.items():
        if path in read:
            raise UserError(f"{name}: answers cannot be written to an input file; choose another name")
    if len(set(outputs.values())) < len(outputs):
        raise UserError(f"{arguments.json}: --json and --csv need a file each")


def check_shared(arguments: argparse.Namespace, processes: int) -> None:
    """Raise UserError where several processes cannot share what is asked for."""
    if processes == 1:
        return
    if "-" in (arguments.json, arguments.csv) or not (arguments.json or arguments.csv):
        raise UserError(f"{processes} processes write their answers to one file: give --json FILE or --csv FILE")
    if "-" in arguments.videos:
        raise UserError(f"{processes} processes cannot share standard input: write the paths to a file for --list")
    if arguments.latency_ms is not None:
        raise UserError("--latency-ms may choose another grid in each process; give --grid or --gmacs")


def budget_of(arguments: argparse.Namespace, predictor: "Predictor") -> dict[str, Any]:
    """Return the options for budgets as arguments of ``Predictor.answers``."""
    from lookupvit_video.inference.budget import known_budget, load_cascade

    if arguments.adaptive:
        path = arguments.calibration or Path(arguments.checkpoint).with_suffix(".adaptive.json")
        return {"adaptive": load_cascade(path, predictor.model, predictor.costs)}
    if arguments.gmacs is None and arguments.latency_ms is None:
        return {"grid": known_budget(predictor.costs, arguments.grid)}
    grid = predictor.grid_within(gmacs=arguments.gmacs, latency_ms=arguments.latency_ms)
    top1 = f", top-1 {predictor.top1[grid]:.2f} % in its calibration" if grid in predictor.top1 else ""
    logger.info("grid %s: %.4g GMACs a view%s", grid, predictor.grids[grid], top1)
    return {"grid": grid}


def quantize(predictor: "Predictor", videos: Sequence[str]) -> None:
    """Turn a model to 8 bits, the layers chosen on the first video that can be read, and log which stay in float."""
    import torch

    from lookupvit_video.decoding.reader import DecodeError
    from lookupvit_video.inference.views import read_views

    for video in videos:
        try:
            clips = read_views(video, predictor.plan).clips
        except DecodeError:  # reported when its turn comes
            continue
        left = predictor.quantize(torch.from_numpy(clips))
        logger.info("int8: linear layers in float: %s, and the classifiers", ", ".join(left) or "none")
        return


def say(text: str) -> None:
    """Print above the progress bar; where nobody reads any more (``| head``), in silence."""
    from tqdm import tqdm

    try:
        tqdm.write(printable(text), file=sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def show(prediction: "Prediction") -> None:
    """Print an answer, and which seconds of the video it is from."""
    from lookupvit_video.inference.batch import seconds_text

    note = f"  ({prediction.note})" if prediction.note else ""
    say(f"{prediction.path}  {seconds_text(prediction.times)}{note}")
    if prediction.present is not None or prediction.rejected:
        say(f"  {prediction.label}")
    for label, probability in zip(prediction.labels, prediction.probabilities, strict=True):
        say(f"  {100 * probability:5.1f} %  {label}")
    if prediction.members is not None:
        say(f"  set: {', '.join(prediction.members) or 'empty'}")


def draw(prediction: "Prediction", predictor: "Predictor", folder: Path, number: int) -> None:
    """Write the sheet of an answer."""
    from lookupvit_video.inference.draw import draw_prediction
    from lookupvit_video.inference.explain import explain_attention
    from lookupvit_video.models.budget import parse_budget

    name = printable(Path(prediction.path).name)
    sheet = folder / f"{number:03d}_{Path(name).stem[:40]}.png"
    rows = []
    if predictor.costs:
        attention = explain_attention(predictor, prediction.clip, parse_budget(prediction.grid))
        rows.append(("attention", attention.gather_map()))
    draw_prediction(replace(prediction, path=name), rows, sheet, predictor.classes)
    say(f"  drawn: {sheet}")


def report_cost(answers: Sequence[tuple[str, float]], largest: float) -> None:
    """Log the cost of the answers.

    Args:
        answers: (grid, GMACs a view) of each.
        largest: GMACs of a view on the largest grid; 0 for models without grids.
    """
    if answers:
        mean = sum(cost for _, cost in answers) / len(answers)
        counts = Counter(grid for grid, _ in answers)
        shares = ", ".join(f"{grid} {100 * count / len(answers):.0f} %" for grid, count in counts.most_common() if grid)
        of = f", {100 * mean / largest:.0f} % of the largest grid's; answered by {shares}" if largest else ""
        logger.info("%d videos: mean %.4g GMACs a view, all passes%s", len(answers), mean, of)


def write_answers(
    answers: "Iterable[Prediction | Failure]", files: "Sequence[AnswerFile]"
) -> "Iterator[Prediction | Failure]":
    """Write each answer to the files, then pass it on."""
    from lookupvit_video.inference.batch import csv_row

    for answer in answers:
        row = answer.as_dict()
        for file in files:
            file.write(csv_row(row) if file.columns else row)
        yield answer


def open_files(
    arguments: argparse.Namespace, predictor: "Predictor", videos: list[str], stack: ExitStack, world: "World"
) -> "tuple[list[AnswerFile], list[str]]":
    """Open the files of answers; return them, and the videos that have no answer in them yet."""
    from lookupvit_video.inference.batch import csv_columns, shared_answer_file

    columns = [
        *["present"] * predictor.multi_label, *["rejected"] * (arguments.reject is not None),
        *["set"] * (arguments.coverage is not None),
    ]  # fmt: skip
    topk = min(arguments.topk, len(predictor.classes))
    kinds = [(arguments.json, None), (arguments.csv, csv_columns(topk, columns))]
    files = [
        stack.enter_context(shared_answer_file(path, kind, arguments.resume, world)) for path, kind in kinds if path
    ]
    left = [video for video in videos if not any(video in file.done for file in files)]
    if len(left) < len(videos):
        logger.info("%d of %d videos have an answer already", len(videos) - len(left), len(videos))
    return files, left


def answer_all(
    arguments: argparse.Namespace, predictor: "Predictor", videos: list[str], failures: "list[Failure]", world: "World"
) -> "tuple[list[Failure], list[tuple[str, float]]]":
    """Answer this process's share of the videos; return those without an answer, and (grid, GMACs a view) of others."""
    from lookupvit_video.inference.batch import read_videos
    from lookupvit_video.inference.views import Failure
    from lookupvit_video.progress import progress

    plan = predictor.plan = predictor.plan.changed(
        arguments.views, arguments.crops, arguments.backend, arguments.timeout
    )
    topk, numbers = min(arguments.topk, len(predictor.classes)), {video: i for i, video in enumerate(videos)}
    costs, lost = [], []
    is_shown = "-" not in (arguments.json, arguments.csv)
    if arguments.int8 and not arguments.adaptive:
        quantize(predictor, videos)  # before a latency is measured
    budget = budget_of(arguments, predictor)
    if arguments.int8 and arguments.adaptive:
        quantize(predictor, videos)  # after the thresholds are found to be of these weights
    if arguments.compile:
        predictor.compile(arguments.batch_size)
    with ExitStack() as stack:
        files, left = open_files(arguments, predictor, videos, stack, world)
        left, failures = left[world.rank :: world.size], failures[world.rank :: world.size]
        views = chain(failures, read_videos(left, plan, arguments.workers))
        unsure = {"reject": arguments.reject, "coverage": arguments.coverage, "sets": arguments.sets}
        answers = predictor.answers(views, topk, batch_size=arguments.batch_size, **budget, **unsure)
        total = len(failures) + len(left)
        for answer in progress(write_answers(answers, files), total=total, label="predict", unit="videos"):
            if isinstance(answer, Failure):
                lost.append(answer)
                continue
            costs.append((answer.grid, answer.gmacs / (len(answer.times) * plan.num_crops)))
            if is_shown:
                show(answer)
            if arguments.draw:
                draw(answer, predictor, arguments.draw, numbers[answer.path])
    return lost, costs


def predict(words: Sequence[str] | None = None) -> int:
    """Run `lookupvit predict`, with the words of this process's command line or others."""
    arguments = parse_arguments(words)
    if arguments.ray:
        from lookupvit_video.commands.inference.ray_data import predict_by_ray

        return predict_by_ray(arguments)
    share_cores()
    if arguments.workers:
        from lookupvit_video.processes.pool import start_fork_server

        start_fork_server("lookupvit_video.inference.batch")
    with importing():
        from lookupvit_video.distributed.world import close_world, gather_objects, init_world, report_lost_processes
        from lookupvit_video.evaluation.adaptation import adapted, load_statistics, statistics_path
        from lookupvit_video.inference.batch import find_videos
        from lookupvit_video.inference.predictor import load_model
        from lookupvit_video.log import setup_logging

    world = init_world()
    setup_logging(world.is_main)
    check_shared(arguments, world.size)
    videos, failures = find_videos(arguments.videos, arguments.list)
    check_outputs(arguments, videos)
    predictor = load_model(arguments.checkpoint, arguments.device)
    statistics = load_statistics(statistics_path(str(predictor.source)), predictor.model) if arguments.adapt else None
    with adapted(predictor.model, statistics), report_lost_processes(world):
        shares = gather_objects(answer_all(arguments, predictor, videos, failures, world), world)
    close_world()
    lost = [failure for share, _ in shares for failure in share]
    costs = [cost for _, share in shares for cost in share]
    if world.is_main:
        report(predictor, lost, costs)
    return exit_code(lost, costs)


def exit_code(lost: "list[Failure]", costs: list[tuple[str, float]]) -> int:
    """Return 0: all have an answer; 1: some have none; 2: none has one."""
    if any(failure.error.startswith(INTERNAL) for failure in lost):
        return 1
    if lost and not costs:
        return 2
    return 1 if lost else 0


def report(predictor: "Predictor", lost: "list[Failure]", costs: list[tuple[str, float]]) -> None:
    """Say what the answers cost and which videos have none."""
    report_cost(costs, list(predictor.grids.values())[-1] if predictor.grids else 0.0)
    for failure in lost:
        print_error(printable(f"{failure.path}: {failure.error}"))
    logger.info("%d answered, %d failed", len(costs), len(lost))
