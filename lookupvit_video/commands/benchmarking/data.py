"""`lookupvit benchmark lists | shards`: what a list of many videos costs, and the places where they lie."""

from pathlib import Path

from lookupvit_video.commands import options
from lookupvit_video.commands.benchmark import MADE
from lookupvit_video.commands.run_command import command_line
from lookupvit_video.errors import UserError
from lookupvit_video.files import write_json

LISTS_EXAMPLES = """  lookupvit benchmark lists --rows 1000000 --samples 100000
  lookupvit benchmark lists --rows 20000 --samples 1000 --json lists.json

A CSV and class folders of symbolic links, of 1000 rows and of many, read as a training does, by one process and two.
"""
SHARDS_EXAMPLES = """  lookupvit benchmark shards
  lookupvit benchmark shards --only tiny --rounds 5 --workers 4 --latency 20 --json shards.json

Single files and tar shards take turns: from the disk, batch by batch in one process, and from an HTTP server on this
machine, epoch by epoch.
"""


def lists() -> int:
    """Run `lookupvit benchmark lists`."""
    parser = options.make_parser("Measure the CPU time and memory of a list of many videos (Linux).", LISTS_EXAMPLES)
    add, positive = parser.add_argument, options.positive
    add("--rows", type=positive, default=1_000_000, metavar="N", help="rows of the long list (default: 1000000)")
    add("--samples", type=positive, default=100_000, metavar="N", help="rows to read in order (default: 100000)")
    add("--cache", type=Path, default=Path("runs/benchmark"), metavar="DIR", help="folder of made videos and links")
    options.add_json(parser)
    arguments = parser.parse_args()
    if not Path("/proc/self/smaps_rollup").exists():
        raise UserError("lookupvit benchmark lists: this system does not tell the memory that processes share")
    from lookupvit_video.benchmarks.machine import describe_machine, show_versions
    from lookupvit_video.benchmarks.reading.lists import measure_lists, report
    from lookupvit_video.log import setup_logging
    from lookupvit_video.provenance import commit

    setup_logging()
    machine = describe_machine()
    rows = measure_lists(arguments.cache.resolve(), arguments.rows, arguments.samples)
    print(report(rows), end="")
    print(f"{commit()}, {machine['processor']}, {machine['cores']} cores, {show_versions(machine)}")
    if arguments.json:
        write_json(arguments.json, {"command": command_line(), "commit": commit(), **machine, "rows": rows})
    return 0


def shards() -> int:
    """Run `lookupvit benchmark shards`."""
    parser = options.make_parser("Measure clips/s of single files and of tar shards, on disk and over HTTP (Linux).",
                                 SHARDS_EXAMPLES)  # fmt: skip
    add, positive = parser.add_argument, options.positive
    add("--only", nargs="+", choices=MADE, default=["gop12", "webm", "tiny"], help="kinds of made videos")
    add("--videos", type=positive, default=400, metavar="N", help="of each kind (default: 400)")
    add("--rounds", type=positive, default=5, metavar="N", help="medians are over N rounds (default: 5)")
    add("--workers", type=positive, default=4, metavar="N", help="that read over HTTP (default: 4)")
    add("--latency", type=options.number(float, 0), default=20.0, metavar="MS", help="of a request (default: 20)")
    add("--cache", type=Path, default=Path("runs/benchmark"), metavar="DIR", help="folder of made videos and shards")
    options.add_json(parser)
    arguments = parser.parse_args()
    import torch

    from lookupvit_video.benchmarks.machine import describe_machine, show_versions
    from lookupvit_video.benchmarks.reading.shards import measure_shards, report
    from lookupvit_video.log import setup_logging
    from lookupvit_video.processes.memory import keep_freed_memory
    from lookupvit_video.provenance import commit

    setup_logging()
    torch.set_num_threads(1)  # these two as in a worker
    keep_freed_memory()
    machine = describe_machine()
    rows = measure_shards(
        arguments.cache.resolve(), arguments.only, count=arguments.videos, rounds=arguments.rounds,
        workers=arguments.workers, latency=arguments.latency / 1000,
    )  # fmt: skip
    print(report(rows), end="")
    print(f"{commit()}, {machine['processor']}, {machine['cores']} cores, {show_versions(machine)}")
    if arguments.json:
        write_json(arguments.json, {"command": command_line(), "commit": commit(), **machine, "rows": rows})
    return 0
