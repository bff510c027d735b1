"""`lookupvit benchmark end-to-end | compare`: video files to answers, and two such results."""

from pathlib import Path
from statistics import median
from typing import Any

from lookupvit_video.benchmarks.rivals import RIVALS
from lookupvit_video.commands import options
from lookupvit_video.commands.run_command import command_line
from lookupvit_video.files import model_file, write_json

EXAMPLES = """  lookupvit benchmark end-to-end --only videomae mvit_v2_s --json a.json
  lookupvit benchmark end-to-end --only --videos 200 --rounds 1
  lookupvit benchmark end-to-end --commits main HEAD --at-most 1.05
  lookupvit benchmark compare a.json b.json

Each is a complete process, from its start to its exit, with one view of every video; they take turns. With --commits,
the code of several commits takes turns instead, in a clone of the repository. Exit code 1: slower than --at-most.
"""


def end_to_end() -> int:
    """Run `lookupvit benchmark end-to-end`."""
    parser = options.make_parser("Measure video files to answers, as complete processes.", EXAMPLES)
    add, positive = parser.add_argument, options.positive
    add("--only", nargs="*", choices=list(RIVALS), default=["videomae"], help="other pipelines (default: videomae)")
    add("--commits", nargs="+", default=[], metavar="COMMIT", help="instead: this project's code at these commits")
    add("--at-most", type=float, metavar="R", help="largest seconds of the last commit over those of the first")
    add("--checkpoint", type=model_file, metavar="PATH", help="default: a LookupViT-B with random weights")
    add("--videos", type=positive, default=12, metavar="N", help="videos of 10 s (default: 12)")
    add("--rounds", type=positive, default=5, metavar="N", help="medians are over N rounds (default: 5)")
    add("--cache", type=Path, default=Path("runs/benchmark"), metavar="DIR", help="folder of made videos and weights")
    options.add_json(parser)
    arguments = parser.parse_args()
    if arguments.at_most is not None and len(arguments.commits) < 2:
        parser.error("--at-most compares two commits; name them with --commits")
    from lookupvit_video.benchmarks import end_to_end as measuring
    from lookupvit_video.benchmarks.machine import describe_machine, show_versions
    from lookupvit_video.benchmarks.videos import make_videos
    from lookupvit_video.log import setup_logging
    from lookupvit_video.provenance import commit

    setup_logging()
    cache, count, rounds = arguments.cache.resolve(), arguments.videos, arguments.rounds
    cache.mkdir(parents=True, exist_ok=True)
    checkpoint = str(Path(arguments.checkpoint or measuring.make_checkpoint(cache / "lookupvit_b.pt")).resolve())
    videos = [str(path) for path in make_videos(cache, ["gop12"], count)["gop12"]]
    facts: dict[str, Any] = {"command": command_line(), "commit": commit(), **describe_machine()}
    if arguments.commits:
        with measuring.at_commits(arguments.commits, checkpoint) as entrants:
            facts["rows"] = measuring.race(entrants, videos, rounds)
    else:
        rivals = [measuring.rival(name, cache) for name in arguments.only]
        entrants = [measuring.lookupvit(checkpoint), *rivals, measuring.FLOOR]
        facts["rows"] = measuring.race(entrants, videos, rounds)
        facts["model_seconds"] = measuring.model_alone(checkpoint, count, rounds)
    print(measuring.report(facts["rows"], facts.get("model_seconds", [])))
    print(f"{facts['commit']}, {facts['processor']}, {facts['cores']} cores, {show_versions(facts)}")
    if arguments.json:
        write_json(arguments.json, facts)
    slower = median(measuring.ratios(facts["rows"], "all")[-1])
    return int(arguments.at_most is not None and slower > arguments.at_most)


def compare() -> int:
    """Run `lookupvit benchmark compare`."""
    parser = options.make_parser("Compare two results of lookupvit benchmark end-to-end.", EXAMPLES)
    parser.add_argument("before", type=Path, metavar="A.json")
    parser.add_argument("after", type=Path, metavar="B.json")
    arguments = parser.parse_args()
    from lookupvit_video.benchmarks.end_to_end import comparison, read_result

    before, after = read_result(arguments.before), read_result(arguments.after)
    for name, facts in (("before", before), ("after", after)):
        print(f"{name}: {facts['commit']}, {facts['processor']}, {facts['cores']} cores")
    print(f"\n{comparison(before, after)}", end="")
    return 0
