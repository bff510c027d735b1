"""`lookupvit train`, `lookupvit test`: train and test a model by config."""

import sys
from pathlib import Path

from lookupvit_video.arguments import parse_with_settings
from lookupvit_video.commands.options import add_cfg, add_settings, make_parser
from lookupvit_video.commands.run_command import program, share_cores
from lookupvit_video.errors import EXIT_INTERRUPTED

EXAMPLES = """  lookupvit train --cfg demo_motion
  lookupvit train --cfg demo_motion TRAIN.ENABLE False TEST.NUM_ENSEMBLE_VIEWS 4
  torchrun --nproc_per_node=8 -m lookupvit_video train --cfg k400_lvit DATA.PATH_TO_DATA_DIR /data/k400
  lookupvit train --cfg demo_motion --dry-run

On SIGTERM and SIGUSR1 the current step is finished and saved, and the exit code is 75; rerun the command to resume.
Ctrl-C does the same with exit code 130; a second Ctrl-C leaves at once, without saving.
Every key is described, with its default, in lookupvit_video/config/keys.py.
"""
TEST_EXAMPLES = """  lookupvit test --cfg demo_motion TEST.NUM_ENSEMBLE_VIEWS 4
  lookupvit test --cfg k400_lvit TEST.CHECKPOINT_FILE_PATH model.pt DATA.PATH_TO_DATA_DIR /data/k400

The same as `lookupvit train` with TRAIN.ENABLE False.
"""


def train() -> int:
    """Run `lookupvit train`."""
    parser = make_parser("Train and test a model by config.", EXAMPLES)
    add_cfg(parser)
    add_settings(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the plan, make one step, write nothing")
    arguments = parse_with_settings(parser)
    return run(arguments.cfg, arguments.overrides, arguments.dry_run)


def test() -> int:
    """Run `lookupvit test`."""
    parser = make_parser("Test a trained model by config.", TEST_EXAMPLES)
    add_cfg(parser)
    add_settings(parser)
    arguments = parse_with_settings(parser)
    return run(arguments.cfg, [*arguments.overrides, "TRAIN.ENABLE", "False"])


def run(path: str, overrides: list[str], dry: bool = False) -> int:
    """Train and test by a config; return the exit code."""
    share_cores()
    import simplejson

    from lookupvit_video.config import load_config
    from lookupvit_video.data.manifest import load_classes
    from lookupvit_video.distributed.world import close_world, init_world, report_lost_processes
    from lookupvit_video.evaluation.run_test import run_test
    from lookupvit_video.log import setup_logging
    from lookupvit_video.processes.stop_signals import Stopped
    from lookupvit_video.text import write_text
    from lookupvit_video.training.dry_run import dry_run
    from lookupvit_video.training.output import report_disk_failures, sole_writer
    from lookupvit_video.training.step import report_memory_failures
    from lookupvit_video.training.train import train

    cfg = load_config(path, overrides)
    classes = load_classes(cfg)
    world = init_world(cfg.DIST_TIMEOUT)
    setup_logging(world.is_main)

    def train_and_test() -> None:
        if world.is_main:
            write_text(Path(cfg.OUTPUT_DIR) / "config.yaml", cfg.dump())
        if cfg.TRAIN.ENABLE:
            train(cfg, classes, world)
        if not cfg.TEST.ENABLE:
            return
        try:
            summary = run_test(cfg, classes, world)
        except KeyboardInterrupt:
            if not world.is_main:
                raise SystemExit(EXIT_INTERRUPTED) from None
            raise KeyboardInterrupt("interrupted during the test; rerun the command to test again") from None
        if summary:
            print(simplejson.dumps({key: value for key, value in summary.items() if key != "per_class"}))

    code = 0
    try:
        with report_lost_processes(world, min(cfg.DIST_TIMEOUT, 30.0)), report_memory_failures():
            if dry:
                dry_run(cfg, classes, world)
            else:
                with sole_writer(cfg.OUTPUT_DIR, world), report_disk_failures(cfg.OUTPUT_DIR):
                    train_and_test()
    except Stopped as stopped:
        if world.is_main:
            print(f"{program()}: {stopped}", file=sys.stderr)
        code = stopped.exit_code
    close_world()  # not after a failure: nccl would wait there for lost processes before they are named
    return code
