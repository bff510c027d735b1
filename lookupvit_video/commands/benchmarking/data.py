"""`lookupvit benchmark lists`: what a list of many videos costs."""

from pathlib import Path

from lookupvit_video.commands import options
from lookupvit_video.commands.run_command import command_line
from lookupvit_video.errors import UserError
from lookupvit_video.files import write_json

LISTS_EXAMPLES = """  lookupvit benchmark lists --rows 1000000 --samples 100000
  lookupvit benchmark lists --rows 20000 --samples 1000 --json lists.json

A CSV and class folders of symbolic links, of 1000 rows and of many, read as a training does, by one process and two.
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
    from lookupvit_video.benchmarks.lists import measure_lists, report
    from lookupvit_video.benchmarks.machine import describe_machine, show_versions
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
