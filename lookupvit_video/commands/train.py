"""`lookupvit train`, `lookupvit test`: train and test a model by config."""

import sys
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from lookupvit_video.arguments import parse_with_settings
from lookupvit_video.commands.options import add_cfg, add_settings, make_parser, number
from lookupvit_video.commands.run_command import program, share_cores
from lookupvit_video.errors import EXIT_INTERRUPTED

if TYPE_CHECKING:
    from fvcore.common.config import CfgNode

    from lookupvit_video.distributed.world import World

EXAMPLES = """  lookupvit train --data my_videos --minutes 10
  lookupvit train --cfg demo_motion
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
    parser = make_parser("Train and test a model on your videos, or by config.", EXAMPLES)
    add_cfg(parser, required=False)
    add_settings(parser)
    add = parser.add_argument
    add("--data", metavar="PLACE",
        help="your videos: a folder of class folders, of train, val and test, or a list; settings are chosen to fit "
        "(docs/own_videos.md)")  # fmt: skip
    add("--minutes", type=number(float, 0.1), metavar="M", help="time for it (default: 10 on a CPU, 60 on a GPU)")
    add("--group-by", metavar="PATTERN",
        help="keep videos in one split if this regular expression matches the same text in their paths")  # fmt: skip
    add("--dry-run", action="store_true", help="print the plan, make one step, write nothing")
    arguments = parse_with_settings(parser)
    if not arguments.cfg and not arguments.data:
        parser.error("give --data PLACE, or --cfg CONFIG")
    named = {"AUTO.ENABLE": arguments.data and True, "DATA.PATH_TO_DATA_DIR": arguments.data,
             "AUTO.MINUTES": arguments.minutes, "AUTO.GROUP_BY": arguments.group_by}  # fmt: skip
    settings = [str(part) for pair in named.items() if pair[1] for part in pair]
    return run(arguments.cfg or "own_videos", [*settings, *arguments.overrides], arguments.dry_run)


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
    from lookupvit_video.config import given_keys, load_config, with_settings
    from lookupvit_video.data.manifest import load_classes
    from lookupvit_video.distributed.world import close_world, init_world, report_lost_processes
    from lookupvit_video.log import setup_logging
    from lookupvit_video.own_videos.choose import choose_config, output_dir_of
    from lookupvit_video.processes.stop_signals import Stopped
    from lookupvit_video.training.dry_run import dry_run
    from lookupvit_video.training.finetuning.method import with_method
    from lookupvit_video.training.output import report_disk_failures, sole_writer
    from lookupvit_video.training.step import report_memory_failures

    cfg, given = load_config(path, overrides), given_keys(path, overrides)
    if cfg.AUTO.ENABLE:
        default = {"OUTPUT_DIR": output_dir_of(cfg.DATA.PATH_TO_DATA_DIR)}
        cfg = cfg if "OUTPUT_DIR" in given else with_settings(cfg, default)
    classes = [] if cfg.AUTO.ENABLE else load_classes(cfg)
    world = init_world(cfg.DIST_TIMEOUT)
    setup_logging(world.is_main)
    code = 0
    try:
        with ExitStack() as stack:
            stack.enter_context(report_lost_processes(world, min(cfg.DIST_TIMEOUT, 30.0)))
            stack.enter_context(report_memory_failures())
            if not dry:
                stack.enter_context(sole_writer(cfg.OUTPUT_DIR, world))
                stack.enter_context(report_disk_failures(cfg.OUTPUT_DIR))
            if cfg.AUTO.ENABLE:
                lists = Path(stack.enter_context(TemporaryDirectory())) if dry else Path(cfg.OUTPUT_DIR) / "data"
                cfg = choose_config(cfg, given, world, lists)
                classes = load_classes(cfg)
            if cfg.TRAIN.FINETUNE != "none":
                cfg = with_method(cfg, given_keys(None, overrides), classes, world)
            if dry:
                dry_run(cfg, classes, world)
            else:
                _train_and_test(cfg, classes, world)
    except Stopped as stopped:
        if world.is_main:
            print(f"{program()}: {stopped}", file=sys.stderr)
        code = stopped.exit_code
    close_world()  # not after a failure: nccl would wait there for lost processes before they are named
    return code


def _train_and_test(cfg: "CfgNode", classes: list[str], world: "World") -> None:
    import simplejson

    from lookupvit_video.evaluation.run_test import run_test
    from lookupvit_video.text import write_text
    from lookupvit_video.training.finetuning.cached_probe import train_probe
    from lookupvit_video.training.train import train

    if world.is_main:
        write_text(Path(cfg.OUTPUT_DIR) / "config.yaml", cfg.dump())
    if cfg.TRAIN.ENABLE:
        (train_probe if cfg.TRAIN.FINETUNE == "probe" else train)(cfg, classes, world)
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
