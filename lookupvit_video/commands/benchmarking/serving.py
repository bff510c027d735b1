"""`lookupvit benchmark serve`: the server under load, next to predict."""

from pathlib import Path

from lookupvit_video.commands import options
from lookupvit_video.commands.run_command import command_line, share_cores
from lookupvit_video.files import model_file, write_json

EXAMPLES = """  lookupvit benchmark serve --json serve.json
  lookupvit benchmark serve --checkpoint runs/demo_motion/model.pt --requests 200 --hostile 0.1 --mixed-rounds 10

Starts lookupvit serve on a free port of this machine. In some rounds all requests are sent at once, in turns with
lookupvit predict over the same videos; in others, some of the requests are hostile: not a video, truncated, huge, slow,
of a wrong method, an address of a wrong host. Exit code 1: the server failed, an answer differs from predict's, a
status is wrong, the server holds more memory or handles after the last round, or it is slower than --at-least.
"""
SMALL = ("MODEL.VARIANT", "Ti", "DATA.NUM_FRAMES", "8", "DATA.TRAIN_CROP_SIZE", "112", "DATA.TEST_CROP_SIZE", "112",
         "DATA.TEST_SHORT_SIDE", "112", "TEST.NUM_ENSEMBLE_VIEWS", "1", "TEST.NUM_SPATIAL_CROPS", "1")  # fmt: skip


def serve() -> int:
    """Run `lookupvit benchmark serve`."""
    parser = options.make_parser("Measure lookupvit serve under load, next to lookupvit predict.", EXAMPLES)
    add, positive = parser.add_argument, options.positive
    add("--checkpoint", type=model_file, metavar="PATH", help="default: a LookupViT-Ti with random weights, 8 frames "
        "of 112 x 112 pixels")  # fmt: skip
    add("--videos", type=positive, default=50, metavar="N", help="small videos (default: 50)")
    add("--requests", type=positive, default=200, metavar="N", help="at once (default: 200)")
    add("--hostile", type=options.number(float, 0, 0.5), default=0.1, metavar="SHARE", help="default: 0.1")
    add("--rounds", type=positive, default=3, metavar="N", help="in turns with predict (default: 3)")
    add("--mixed-rounds", type=options.natural, default=5, metavar="N", help="with hostile ones (default: 5)")
    add("--at-least", type=options.number(float, 0), default=0.0, metavar="R", help="smallest videos/s over predict's")
    add("--workers", type=positive, default=options.default_workers(), metavar="N",
        help="processes that read videos, of both (default: one per core, at most 8)")  # fmt: skip
    options.add_batch_size(parser)
    options.add_device(parser)
    add("--cache", type=Path, default=Path("runs/benchmark"), metavar="DIR", help="folder of made videos and weights")
    options.add_json(parser)
    arguments = parser.parse_args()
    share_cores()
    from lookupvit_video.processes.pool import start_fork_server

    start_fork_server("lookupvit_video.inference.batch")
    from lookupvit_video.benchmarks.end_to_end import make_checkpoint
    from lookupvit_video.benchmarks.machine import describe_machine, show_versions
    from lookupvit_video.benchmarks.serving.load import MEGABYTES, RECEIVE, Load, measure, report, served
    from lookupvit_video.benchmarks.videos import make_videos
    from lookupvit_video.inference.predictor import load_model
    from lookupvit_video.log import setup_logging
    from lookupvit_video.provenance import commit

    setup_logging()
    cache = arguments.cache.resolve()
    cache.mkdir(parents=True, exist_ok=True)
    checkpoint = str(arguments.checkpoint or make_checkpoint(cache / "lookupvit_ti_small.pt", SMALL))
    paths = [str(path) for path in make_videos(cache, ["short"], arguments.videos)["short"]]
    predictor = load_model(checkpoint, arguments.device)
    load = Load(predictor, paths, arguments.requests, arguments.hostile, arguments.workers, arguments.batch_size)
    limits = {
        "queue": arguments.requests, "connections": 2 * arguments.requests, "max-mb": MEGABYTES,
        "receive-seconds": RECEIVE, "wait-seconds": 600, "workers": arguments.workers,
        "batch-size": arguments.batch_size, "device": arguments.device,
    }  # fmt: skip
    with served(checkpoint, limits) as server:
        facts = measure(load, server, arguments.rounds, arguments.mixed_rounds)
    print(report(facts), end="")
    machine = describe_machine(predictor.device)
    print(f"{commit()}, {machine['processor']}, {machine['cores']} cores, {show_versions(machine)}")
    if arguments.json:
        write_json(arguments.json, {"command": command_line(), "commit": commit(), **machine, **facts})
    return int(bool(facts["problems"]) or facts["ratio"] < arguments.at_least)
