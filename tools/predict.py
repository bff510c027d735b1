#!/usr/bin/env python3
"""Name what happens in videos, with a trained checkpoint."""

from lookupvit_video.commands.run_command import run_command  # first: Ctrl-C in a later import gives one line

# isort: split
import argparse
import logging
import math
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lookupvit_video.decoding.backends import BACKENDS
from lookupvit_video.errors import UserError
from lookupvit_video.inference.batch import AnswerFile, csv_columns, csv_row, find_videos, read_videos
from lookupvit_video.inference.budget import check_grid, load_cascade, parse_grid
from lookupvit_video.inference.draw import draw_prediction
from lookupvit_video.inference.predictor import Prediction, Predictor, load_model
from lookupvit_video.inference.views import Failure
from lookupvit_video.log import setup_logging
from lookupvit_video.progress import progress
from lookupvit_video.text import printable

logger = logging.getLogger(__name__)
EXAMPLE = """examples:
  python tools/predict.py --checkpoint runs/demo_motion/model.pt video.mp4 folder/ "clips/**/*.webm"
  python tools/predict.py --checkpoint runs/demo_motion/model.pt folder/ --json answers.jsonl --resume
  find /data -name "*.mp4" | python tools/predict.py --checkpoint model.pt - --csv answers.csv --gmacs 60

A video shorter than the model's clip is read to its end, its last frame repeated. Answers come as they are done, not in
the order asked. Exit code 0: all done; 1: some videos could not be read (named at the end); 2: nothing could be done.
"""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("videos", nargs="*", metavar="VIDEO", help="files, folders, quoted patterns; -: paths on standard input")
    add("--list", action="append", default=[], metavar="FILE", help="a path a line, or a CSV with a column path")
    add("--checkpoint", required=True, metavar="FILE", help="a .pt of training, a save_pretrained folder, a Hub id")
    add("--topk", type=int, default=5, metavar="K", help="classes to name (default: 5)")
    add("--views", type=int, metavar="N", help="clips in time (default: as the checkpoint was tested)")
    add("--crops", type=int, choices=(1, 3), help="crops in space (default: likewise)")
    add("--backend", choices=tuple(BACKENDS), help="decoder (default: the checkpoint's)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default: auto)")
    add("--batch-size", type=int, default=8, metavar="N", help="clips in one pass of the model (default: 8)")
    add("--compile", action="store_true",
        help="compile the model first: minutes at the start, faster on a GPU after (not with --adaptive)")  # fmt: skip
    add("--workers", type=int, default=min(os.cpu_count() or 1, 8), metavar="N",
        help="processes that read videos; 0: none but this one (default: one per core, at most 8)")  # fmt: skip
    add("--timeout", type=float, default=60.0, metavar="S", help="seconds to open, and to decode, one (default: 60)")
    add("--json", metavar="FILE", help="write JSON lines, one a video; -: standard output")
    add("--csv", metavar="FILE", help="write a table, a row a video; -: standard output")
    add("--resume", action="store_true", help="leave out videos that the --json or --csv file has answers to")
    add("--draw", type=Path, metavar="FOLDER", help="write a PNG sheet per video: frames, attention")
    budget = parser.add_argument_group("budgets", "for checkpoints trained on several compressed grids; one of these")
    one = budget.add_mutually_exclusive_group()
    one.add_argument("--grid", metavar="TxHxW", help="compressed grid, such as 4x7x7 (default: the checkpoint's)")
    one.add_argument("--gmacs", type=float, metavar="G", help="largest grid within 10^9 multiply-accumulates a view")
    one.add_argument("--latency-ms", type=float, metavar="MS", help="the same by time, measured once on this device")
    one.add_argument("--adaptive", action="store_true", help="a small grid first, larger ones while not confident")
    budget.add_argument("--calibration", metavar="FILE", help="for --adaptive, of tools/calibrate.py "
                        "(default: the checkpoint's name with .adaptive.json)")  # fmt: skip
    arguments = parser.parse_args()
    check_arguments(parser, arguments)
    return arguments


def check_arguments(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Leave with one line where an argument is out of range or contradicts another."""
    for name, low, high in (
        ("topk", 1, math.inf),
        ("views", 1, math.inf),
        ("batch_size", 1, 2**16),
        ("workers", 0, 256),
    ):
        value = getattr(arguments, name)
        if value is not None and not low <= value <= high:
            limits = f"at least {low}" if high == math.inf else f"{low} to {high}"
            parser.error(f"--{name.replace('_', '-')} must be {limits}, got {value}")
    if not 0 < arguments.timeout < math.inf:
        parser.error(f"--timeout must be a number of seconds above 0, got {arguments.timeout}")
    if not arguments.videos and not arguments.list:
        parser.error("no videos: name files, folders, patterns, - for standard input, or --list FILE")
    if arguments.calibration and not arguments.adaptive:
        parser.error("--calibration is for --adaptive")
    if arguments.compile and arguments.adaptive:
        parser.error("--compile: --adaptive runs parts of the model, which stay uncompiled; give one of them")
    if arguments.resume and not (arguments.json or arguments.csv):
        parser.error("--resume goes on with what --json or --csv holds; give one of them")
    if arguments.resume and arguments.json and arguments.csv:
        parser.error("--resume goes on with one file; give --json or --csv")
    if arguments.draw and arguments.draw.exists() and not arguments.draw.is_dir():
        parser.error(f"--draw takes a folder; {arguments.draw} is none")
    if arguments.json == arguments.csv == "-":
        parser.error("--json - and --csv -: both would go to standard output")


def check_outputs(arguments: argparse.Namespace, videos: list[str]) -> None:
    """Raise ValueError where an answer file would replace something that is read."""
    outputs = {name: os.path.realpath(name) for name in (arguments.json, arguments.csv) if name not in (None, "-")}
    given = [
        arguments.checkpoint,
        *arguments.list,
        *([arguments.calibration] if arguments.calibration else []),
        *videos,
    ]
    read = {os.path.realpath(name) for name in given if "\0" not in name}
    for name, path in outputs.items():
        if path in read:
            raise UserError(f"{name}: answers cannot be written to a file that is read; name another")
    if len(set(outputs.values())) < len(outputs):
        raise UserError(f"{arguments.json}: --json and --csv need a file each")


def budget_of(arguments: argparse.Namespace, predictor: Predictor) -> dict[str, Any]:
    """Return the arguments of ``Predictor.answers`` that the options for budgets stand for."""
    if arguments.adaptive:
        path = arguments.calibration or Path(arguments.checkpoint).with_suffix(".adaptive.json")
        return {"adaptive": load_cascade(path, predictor.model, predictor.costs)}
    if arguments.gmacs is None and arguments.latency_ms is None:
        if arguments.grid is not None:
            check_grid(predictor.costs, parse_grid(arguments.grid))
        return {"grid": arguments.grid}
    grid = predictor.grid_within(gmacs=arguments.gmacs, latency_ms=arguments.latency_ms)
    logger.info("grid %s: %.4g GMACs a view", grid, predictor.grids[grid])
    return {"grid": grid}


def say(text: str) -> None:
    """Print for people; where nobody reads on (``| head``), in silence."""
    try:
        tqdm.write(text, file=sys.stdout)  # past the progress bar
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def show(prediction: Prediction) -> None:
    note = f"  ({prediction.note})" if prediction.note else ""
    say(printable(prediction.path + note))
    for label, probability in zip(prediction.labels, prediction.probabilities, strict=True):
        say(f"  {100 * probability:5.1f} %  {printable(label)}")


def draw(prediction: Prediction, predictor: Predictor, folder: Path, number: int) -> None:
    name = printable(Path(prediction.path).name)
    sheet = folder / f"{number:03d}_{Path(name).stem[:40]}.png"
    attention = predictor.attention_maps(prediction.clip)
    rows = [] if attention is None else [("attention", attention)]
    draw_prediction(replace(prediction, path=name), rows, sheet)
    say(printable(f"  drawn: {sheet}"))


def tell_cost(answers: list[tuple[str, float]], largest: float) -> None:
    """Log what the answers took.

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
    answers: Iterable[Prediction | Failure], files: Sequence[AnswerFile]
) -> Iterator[Prediction | Failure]:
    """Write each answer to the files before it goes on."""
    for answer in answers:
        row = answer.as_dict()
        for file in files:
            file.write(csv_row(row) if file.columns else row)
        yield answer


def predict(
    arguments: argparse.Namespace, predictor: Predictor, videos: list[str], failures: list[Failure]
) -> tuple[list[Failure], list[tuple[str, float]]]:
    """Answer to all videos; return what has no answer, and (grid, GMACs a view) of what has."""
    plan = predictor.plan.changed(arguments.views, arguments.crops, arguments.backend, arguments.timeout)
    topk, numbers = min(arguments.topk, len(predictor.classes)), {video: i for i, video in enumerate(videos)}
    costs, lost = [], []
    is_table = "-" not in (arguments.json, arguments.csv)
    budget = budget_of(arguments, predictor)
    if arguments.compile:
        predictor.compile(arguments.batch_size)
    with ExitStack() as stack:
        kinds = [(arguments.json, None), (arguments.csv, csv_columns(topk))]
        files = [stack.enter_context(AnswerFile(path, kind, arguments.resume)) for path, kind in kinds if path]
        left = [video for video in videos if not any(video in file.done for file in files)]
        if len(left) < len(videos):
            logger.info("%d of %d videos have an answer already", len(videos) - len(left), len(videos))
        views = chain(failures, read_videos(left, plan, arguments.workers))
        answers = predictor.answers(views, topk, batch_size=arguments.batch_size, **budget)
        total = len(failures) + len(left)
        for answer in progress(write_answers(answers, files), total=total, label="predict", unit="videos"):
            if isinstance(answer, Failure):
                lost.append(answer)
                continue
            costs.append((answer.grid, answer.gmacs / (len(answer.times) * plan.num_crops)))
            if is_table:
                show(answer)
            if arguments.draw:
                draw(answer, predictor, arguments.draw, numbers[answer.path])
    return lost, costs


def main() -> int:
    arguments = parse_arguments()
    setup_logging()
    videos, failures = find_videos(arguments.videos, arguments.list)
    check_outputs(arguments, videos)
    predictor = load_model(arguments.checkpoint, arguments.device)
    lost, costs = predict(arguments, predictor, videos, failures)
    tell_cost(costs, list(predictor.grids.values())[-1] if predictor.grids else 0.0)
    for failure in lost:
        print(printable(f"predict.py: error: {failure.path}: {failure.reason}"), file=sys.stderr)
    if lost and not costs:
        return 2
    return 1 if lost else 0


if __name__ == "__main__":
    run_command(main)
