#!/usr/bin/env python3
"""Train and test a model by config."""

from lookupvit_video.commands.run_command import run_command  # first: Ctrl-C in a later import gives one line

# isort: split
import argparse
import sys
from pathlib import Path

import simplejson
from fvcore.common.config import CfgNode

from lookupvit_video.arguments import parse_with_settings
from lookupvit_video.config import load_config
from lookupvit_video.data.manifest import load_classes
from lookupvit_video.distributed.world import World, close_world, init_world, report_lost_processes
from lookupvit_video.errors import EXIT_INTERRUPTED
from lookupvit_video.evaluation.run_test import run_test
from lookupvit_video.files import atomic_write
from lookupvit_video.log import setup_logging
from lookupvit_video.processes.stop_signals import Stopped
from lookupvit_video.training.dry_run import dry_run
from lookupvit_video.training.output import report_disk_failures, sole_writer
from lookupvit_video.training.step import report_memory_failures
from lookupvit_video.training.train import train

EXAMPLE = """examples:
  python tools/run_net.py --cfg configs/demo_motion.yaml
  python tools/run_net.py --cfg configs/demo_motion.yaml TRAIN.ENABLE False TEST.NUM_ENSEMBLE_VIEWS 4
  torchrun --nproc_per_node=8 tools/run_net.py --cfg configs/k400_lvit.yaml DATA.PATH_TO_DATA_DIR /data/k400
  python tools/run_net.py --cfg configs/demo_motion.yaml --dry-run

SIGTERM or SIGUSR1: the step at hand is finished and saved, the exit code is 75, and the same command resumes. Ctrl-C
does the same with exit code 130; pressed once more it leaves at once, without saving.
Every key stands with its default and reason in lookupvit_video/config.py.
"""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cfg", required=True, metavar="FILE", help="a config, such as configs/demo_motion.yaml")
    parser.add_argument("--dry-run", action="store_true", help="print the plan, make one step, write nothing")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="settings over the config's")
    return parse_with_settings(parser)


def main() -> int:
    arguments = parse_arguments()
    cfg = load_config(arguments.cfg, arguments.overrides)
    classes = load_classes(cfg)
    world = init_world(cfg.DIST_TIMEOUT)
    setup_logging(world.is_main)
    code = 0
    try:
        with report_lost_processes(world, min(cfg.DIST_TIMEOUT, 30.0)), report_memory_failures():
            if arguments.dry_run:
                dry_run(cfg, classes, world)
            else:
                with sole_writer(cfg, world), report_disk_failures(cfg):
                    run(cfg, classes, world)
    except Stopped as stopped:
        if world.is_main:
            print(f"run_net.py: {stopped}", file=sys.stderr)
        code = stopped.exit_code
    close_world()  # not after a failure: nccl would wait there for the processes that are lost, before they are named
    return code


def run(cfg: CfgNode, classes: list[str], world: World) -> None:
    if world.is_main:
        with atomic_write(Path(cfg.OUTPUT_DIR) / "config.yaml") as temporary:
            temporary.write_text(cfg.dump(), encoding="utf-8")
    if cfg.TRAIN.ENABLE:
        train(cfg, classes, world)
    if cfg.TEST.ENABLE:
        try:
            summary = run_test(cfg, classes, world)
        except KeyboardInterrupt:
            if not world.is_main:
                raise SystemExit(EXIT_INTERRUPTED) from None
            raise KeyboardInterrupt("interrupted during the test; the same command tests again") from None
        if summary:
            print(simplejson.dumps({key: value for key, value in summary.items() if key != "per_class"}))


if __name__ == "__main__":
    run_command(main)
