"""`lookupvit study`, `lookupvit compare` and `lookupvit baselines`: many runs, and tables of them."""

import sys
from contextlib import ExitStack
from pathlib import Path

from lookupvit_video.arguments import parse_with_settings
from lookupvit_video.commands import options
from lookupvit_video.commands.run_command import program
from lookupvit_video.files import write_json
from lookupvit_video.text import write_text

STUDY_EXAMPLES = """  lookupvit study --study studies/options_motion --jobs 2
  lookupvit study --study studies/options_motion --out runs/studies/short SOLVER.MAX_EPOCH 1

A study is a YAML file: configs (name: file), seeds, rows (name: {KEY: value}), and settings that hold for all rows.
Finished runs are not repeated: stop it (Ctrl-C saves the current runs) and rerun the command to resume. Runs are
written to OUT/CONFIG/ROW/SEED, the table to OUT/table.md and OUT/table.json.
"""
COMPARE_EXAMPLES = """  lookupvit compare runs/studies/finetune/turning/*/*

Each folder is the OUTPUT_DIR of a run that was trained and tested. Folders named by a number (the seeds of `lookupvit
study`) make one line for the folder above them: means, and the deviation of the accuracy. Their configs must be equal
except for RNG_SEED, which must differ, and OUTPUT_DIR.
"""
BASELINES_EXAMPLES = """  lookupvit baselines runs/folds/*

Each folder is the OUTPUT_DIR of a run that was trained and tested, with its lists still in place. A model that is not
better than these answers has learned nothing from its videos.
"""


def study() -> int:
    """Run `lookupvit study`."""
    parser = options.make_parser(
        "Train every row of a study for every seed; table of mean and spread of top-1 with GMACs and parameters.",
        STUDY_EXAMPLES,
    )
    parser.add_argument("--study", required=True, metavar="FILE", help="a YAML file, or the name of a shipped study")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="default: runs/studies/NAME")
    parser.add_argument("--jobs", type=options.positive, default=1, metavar="N",
                        help="runs at a time, one thread each (default: 1)")  # fmt: skip
    parser.add_argument("--table-only", action="store_true", help="make the table of the finished runs")
    parser.add_argument("overrides", nargs="*", default=[], metavar="KEY VALUE",
                        help="settings over those of the study; a row's own stand above them")  # fmt: skip
    arguments = parse_with_settings(parser)
    from lookupvit_video.config import find_config
    from lookupvit_video.processes.lock import only_writer
    from lookupvit_video.processes.stop_signals import Stopped
    from lookupvit_video.studies.study import check_done, do_runs, plan, read_study, results_of, table_of

    path = find_config(arguments.study)
    content = read_study(path)
    out = arguments.out or Path("runs/studies") / path.stem
    runs = plan(content, path, out, arguments.overrides)
    done = [job for job in runs if (job[0] / "test_results.json").exists()]
    check_done(done)
    runs = [] if arguments.table_only else [job for job in runs if job not in done]
    print(f"{len(runs)} runs to do, {arguments.jobs} at a time; table: {out / 'table.md'}", flush=True)
    with ExitStack() as stack:
        if not arguments.table_only:
            stack.enter_context(only_writer(out / ".lock", f"--out {out}", "choose another --out or stop it"))
        try:
            failed = do_runs(runs, arguments.jobs)
        except Stopped as stopped:
            print(f"{program()}: {stopped}", file=sys.stderr)
            return stopped.exit_code
        entries = results_of(content, out)
        table = table_of(entries)
        write_text(out / "table.md", table)
        write_json(out / "table.json", entries)
    print(table)
    return 1 if failed else 0


def compare() -> int:
    """Run `lookupvit compare`."""
    parser = options.make_parser(
        "Compare finished runs: what they trained, how long that took and how good they are, one line per run.",
        COMPARE_EXAMPLES,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="FOLDER", help="folders of finished runs")
    runs = parser.parse_args().runs
    from lookupvit_video.studies.compare import group_runs, table_of

    print(table_of(group_runs(runs)), end="")
    return 0


def baselines() -> int:
    """Run `lookupvit baselines`."""
    parser = options.make_parser(
        "What the largest class and nearest neighbors in motion energy answer on the splits of finished runs.",
        BASELINES_EXAMPLES,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="FOLDER", help="folders of finished runs")
    runs = parser.parse_args().runs
    from lookupvit_video.distributed.world import init_world
    from lookupvit_video.studies.baselines import baselines_of, table_of
    from lookupvit_video.studies.compare import short_names

    world = init_world()
    found = [baselines_of(folder, world) for folder in runs]
    print(table_of(dict(zip(short_names([folder.resolve() for folder in runs]), found, strict=True))), end="")
    return 0
