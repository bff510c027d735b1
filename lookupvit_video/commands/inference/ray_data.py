"""`lookupvit predict --ray`: the predictor as actors of Ray Data, which places them and replaces lost ones."""

import argparse
import contextlib
import logging
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import chain
from typing import Any

import simplejson

from lookupvit_video.errors import UserError

logger = logging.getLogger(__name__)
_VIDEOS = 32  # of a task, and so what is answered again where an actor is lost


class Answerer:
    """Answers videos in a process of Ray's, with the options of the command line.

    Args:
        folder: where the command was started; paths are relative to it.
        gpu: whether this process has one.
    """

    def __init__(self, arguments: argparse.Namespace, folder: str, gpu: bool):
        from lookupvit_video.commands.predict import budget_of
        from lookupvit_video.inference.predictor import load_model
        from lookupvit_video.processes.pool import start_fork_server

        start_fork_server("lookupvit_video.inference.batch")
        with contextlib.suppress(OSError):  # a folder of that machine alone; absolute paths do not need it
            os.chdir(folder)
        self.arguments = arguments
        self.predictor = load_model(arguments.checkpoint, "cuda" if gpu else "cpu")
        self.plan = self.predictor.plan = self.predictor.plan.changed(
            arguments.views, arguments.crops, arguments.backend, arguments.timeout
        )
        self.readers = max(arguments.workers, 1) if gpu else 1  # without a GPU there is an actor for each core
        self.budget = budget_of(arguments, self.predictor)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Answer some videos: {"path": names in bytes} -> {"answer": JSON}."""
        from lookupvit_video.inference.batch import read_videos
        from lookupvit_video.inference.views import Failure

        given, rows = self.arguments, []
        # read by a process of its own: a file that crashes the decoder is a failure, and not an actor to be replaced
        names = [os.fsdecode(bytes(path)) for path in batch["path"]]
        views = read_videos(names, self.plan, self.readers)
        for answer in self.predictor.answers(
            views, min(given.topk, len(self.predictor.classes)), batch_size=given.batch_size,
            reject=given.reject, coverage=given.coverage, sets=given.sets, **self.budget,
        ):  # fmt: skip
            row = answer.as_dict()
            if not isinstance(answer, Failure):
                row |= {"_cost": [answer.grid, answer.gmacs / (len(answer.times) * self.plan.num_crops)]}
            rows.append(simplejson.dumps(row))
        return {"answer": rows}


def answers_by_ray(arguments: argparse.Namespace, videos: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the answer of each video, once, in completion order, as a row of JSON; "_cost": its grid, GMACs a view.

    Raises:
        UserError: ray is not installed, or there is no cluster at the address.
    """
    if not videos:
        return
    try:
        import ray
        import ray.data
    except ImportError:
        raise UserError('--ray needs ray: pip install "lookupvit_video[ray]"') from None
    try:
        address = None if arguments.ray == "local" else arguments.ray
        ray.init(address, ignore_reinit_error=True, logging_level=logging.WARNING, log_to_driver=False)
    except (ConnectionError, ValueError) as error:
        raise UserError(f"--ray {arguments.ray}: no cluster there ({error}); give the address of its head, or local "
                        "for this machine") from None  # fmt: skip
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    resources = ray.cluster_resources()
    gpus = 0 if arguments.device == "cpu" else int(resources.get("GPU", 0))
    blocks = math.ceil(len(videos) / _VIDEOS)
    actors = min(arguments.ray_actors or gpus or int(resources.get("CPU", 1)), blocks)
    logger.info("ray: %d nodes, %d actors on %s each", len(ray.nodes()), actors, "a GPU" if gpus else "a core")
    rows = ray.data.from_items([{"path": os.fsencode(video)} for video in videos], override_num_blocks=blocks)
    answers = rows.map_batches(
        Answerer, batch_size=None, concurrency=(1, actors), num_gpus=1 if gpus else 0, num_cpus=1,
        fn_constructor_args=(arguments, os.getcwd(), gpus > 0),
    )  # fmt: skip
    for row in answers.iter_rows():
        yield simplejson.loads(row["answer"])


def check_options(arguments: argparse.Namespace) -> None:
    """Raise UserError where actors cannot do what is asked for."""
    if "-" in (arguments.json, arguments.csv) or not (arguments.json or arguments.csv):
        raise UserError("--ray: the answers go to a file: give --json FILE or --csv FILE")
    for option in ("draw", "compile", "int8", "adapt", "latency_ms"):
        if getattr(arguments, option) not in (None, False):
            raise UserError(f"--ray: --{option.replace('_', '-')} is for predictions without it; leave one of them out")
    if arguments.device not in ("auto", "cpu"):
        raise UserError(f"--ray: Ray places the actors; --device is auto or cpu, not {arguments.device}")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("--ray: Ray starts the processes itself; leave torchrun out")


def predict_by_ray(arguments: argparse.Namespace) -> int:
    """Run `lookupvit predict --ray`."""
    from lookupvit_video.commands.predict import budget_of, check_outputs, exit_code, open_files, report
    from lookupvit_video.distributed.world import init_world
    from lookupvit_video.inference.batch import csv_row, find_videos
    from lookupvit_video.inference.predictor import load_model
    from lookupvit_video.inference.views import Failure
    from lookupvit_video.log import setup_logging
    from lookupvit_video.progress import progress

    check_options(arguments)
    setup_logging()
    videos, failures = find_videos(arguments.videos, arguments.list)
    check_outputs(arguments, videos)
    predictor = load_model(arguments.checkpoint, "cpu")
    budget_of(arguments, predictor)  # mistakes are found here, and not by each actor
    lost: list[Failure] = []
    costs: list[tuple[str, float]] = []
    with ExitStack() as stack:
        files, left = open_files(arguments, predictor, videos, stack, init_world())
        rows = chain((failure.as_dict() for failure in failures), answers_by_ray(arguments, left))
        for row in progress(rows, total=len(failures) + len(left), label="predict", unit="videos"):
            cost = row.pop("_cost", None)
            for file in files:
                file.write(csv_row(row) if file.columns else row)
            if cost:
                costs.append((cost[0], cost[1]))
            else:
                lost.append(Failure(row["path"], row["error"]))
    report(predictor, lost, costs)
    return exit_code(lost, costs)
