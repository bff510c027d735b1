#!/usr/bin/env python3
"""Train and test a model by config."""

import argparse
import logging
from pathlib import Path

import simplejson

from lookupvit_video.cli import run_command
from lookupvit_video.config import load_config
from lookupvit_video.data.manifest import load_classes
from lookupvit_video.engine.log import setup_logging
from lookupvit_video.engine.parallel import close_world, init_world
from lookupvit_video.engine.test import test
from lookupvit_video.engine.train import train
from lookupvit_video.files import written_whole

EXAMPLE = """examples:
  python tools/run_net.py --cfg configs/demo_motion.yaml
  python tools/run_net.py --cfg configs/demo_motion.yaml TRAIN.ENABLE False TEST.NUM_ENSEMBLE_VIEWS 4
  torchrun --nproc_per_node=8 tools/run_net.py --cfg configs/k400_lvit.yaml DATA.PATH_TO_DATA_DIR /data/k400

Every key stands with its default and reason in lookupvit_video/config.py.
"""


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cfg", required=True, metavar="FILE", help="a config, such as configs/demo_motion.yaml")
    parser.add_argument("overrides", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="settings over the config's")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    cfg = load_config(arguments.cfg, arguments.overrides)
    classes = load_classes(cfg)
    world = init_world()
    setup_logging(world.is_main)
    try:
        if world.is_main:
            with written_whole(Path(cfg.OUTPUT_DIR) / "config.yaml") as temporary:
                temporary.write_text(cfg.dump(), encoding="utf-8")
        if cfg.TRAIN.ENABLE:
            train(cfg, classes, world)
        if cfg.TEST.ENABLE:
            summary = test(cfg, classes, world)
            if summary:
                print(simplejson.dumps({key: value for key, value in summary.items() if key != "per_class"}))
    finally:
        logging.shutdown()
        close_world()
    return 0


if __name__ == "__main__":
    run_command(main)
