"""`lookupvit probe`: a linear probe of frozen weights, at many learning rates in one pass."""

import sys

from lookupvit_video.arguments import parse_with_settings
from lookupvit_video.commands import options
from lookupvit_video.commands.run_command import program, share_cores
from lookupvit_video.files import write_json

EXAMPLES = """  lookupvit probe --cfg finetune_own DATA.PATH_TO_DATA_DIR my_data MODEL.NUM_CLASSES 5 \\
      MODEL.INIT_FROM weights.pt OUTPUT_DIR runs/probe

The frozen model runs once over DATA.TRAIN_LIST and DATA.VAL_LIST, on the clips of validation, without augmentation. The
probe with the best rate on DATA.VAL_LIST is written to OUTPUT_DIR/model.pt, for predict and test.
"""


def probe() -> int:
    """Run `lookupvit probe`."""
    parser = options.make_parser("Train a linear probe of frozen weights at many learning rates in one pass.", EXAMPLES)
    options.add_cfg(parser)
    options.add_settings(parser)
    add = parser.add_argument
    add("--rates", type=options.positive, default=20, metavar="N",
        help="learning rates between 1e-4 and 1 (default: 20)")  # fmt: skip
    add("--epochs", type=options.positive, default=100, metavar="N", help="passes over the features (default: 100)")
    add("--views", type=options.positive, default=1, metavar="N", help="clips of a video in time (default: 1)")
    add("--time", action="store_true", help="also measure how long one rate alone takes")
    options.add_json(parser)
    arguments = parse_with_settings(parser)
    share_cores()
    from lookupvit_video.config import load_config
    from lookupvit_video.data.manifest import load_classes
    from lookupvit_video.distributed.world import close_world, init_world
    from lookupvit_video.log import setup_logging
    from lookupvit_video.processes.stop_signals import Stopped
    from lookupvit_video.training.finetuning.cached_probe import train_probe
    from lookupvit_video.training.finetuning.method import PROBE
    from lookupvit_video.training.output import sole_writer

    frozen = [str(part) for pair in PROBE.items() for part in pair]
    cfg = load_config(arguments.cfg, [*arguments.overrides, *frozen])
    classes, world = load_classes(cfg), init_world(cfg.DIST_TIMEOUT)
    setup_logging(world.is_main)
    try:
        with sole_writer(cfg.OUTPUT_DIR, world):
            found = train_probe(
                cfg, classes, world, rates=arguments.rates, epochs=arguments.epochs, views=arguments.views,
                timed=arguments.time,
            )  # fmt: skip
    except Stopped as stopped:
        print(f"{program()}: {stopped}", file=sys.stderr)
        return stopped.exit_code
    if arguments.json:
        write_json(arguments.json, found._asdict() | {"ratio": found.ratio}, indent=2)
    close_world()
    return 0
