"""`lookupvit probe`: a linear probe of frozen weights, at many learning rates in one pass."""

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lookupvit_video.arguments import parse_with_settings
from lookupvit_video.commands import options
from lookupvit_video.commands.run_command import share_cores
from lookupvit_video.errors import UserError
from lookupvit_video.files import write_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lookupvit_video.evaluation.linear_probe import Cache

RATES = 20
LOWEST, HIGHEST = 1e-4, 1.0
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
    add("--rates", type=options.positive, default=RATES, metavar="N",
        help=f"learning rates between {LOWEST:g} and {HIGHEST:g} (default: {RATES})")  # fmt: skip
    add("--epochs", type=options.positive, default=100, metavar="N", help="passes over the features (default: 100)")
    add("--views", type=options.positive, default=1, metavar="N", help="clips of a video in time (default: 1)")
    options.add_json(parser)
    arguments = parse_with_settings(parser)
    share_cores()
    import torch

    from lookupvit_video.checkpoints.checkpoint import save_checkpoint
    from lookupvit_video.config import load_config
    from lookupvit_video.data.manifest import load_classes
    from lookupvit_video.distributed.world import close_world, init_world
    from lookupvit_video.evaluation.linear_probe import accuracies, put_into, train_probes
    from lookupvit_video.log import setup_logging
    from lookupvit_video.models.build import build_model
    from lookupvit_video.models.pretrained import init_from

    frozen = ["MODEL.FREEZE_ENCODER", "True", "MODEL.ADAPTER", "none", "MODEL.DROP_PATH", "0.0"]
    cfg = load_config(arguments.cfg, [*arguments.overrides, *frozen])
    classes, source = load_classes(cfg), cfg.MODEL.INIT_FROM
    if not source:
        raise UserError("MODEL.INIT_FROM is empty; name the weights to probe")
    if cfg.MODEL.TASK != "single_label":
        raise UserError(f"MODEL.TASK is {cfg.MODEL.TASK}; a probe is for one label a video")
    world = init_world(cfg.DIST_TIMEOUT)
    if world.size > 1:
        raise UserError(f"{world.size} processes: a probe needs all features in one; start it without torchrun")
    setup_logging(world.is_main)
    torch.manual_seed(cfg.RNG_SEED)
    model = build_model(cfg).to(world.device)
    report = init_from(model, source, inflate=cfg.MODEL.INIT_INFLATE, pixels=(cfg.DATA.MEAN, cfg.DATA.STD))
    print(report)
    train, val = (_cached(cfg, split, classes, model, world, arguments.views) for split in ("train", "val"))
    rates = torch.logspace(math.log10(LOWEST), math.log10(HIGHEST), arguments.rates).tolist()
    began, batch = time.monotonic(), min(256, len(train.labels_V))
    steps = arguments.epochs * max(1, len(train.labels_V) // batch)
    probes = train_probes(model, train, rates, steps=steps, batch=batch, seed=cfg.RNG_SEED)
    seconds, scores = time.monotonic() - began, accuracies(probes, val)
    best = max(range(len(rates)), key=scores.__getitem__)
    put_into(model, train, probes, best)
    folder = Path(cfg.OUTPUT_DIR)
    folder.mkdir(parents=True, exist_ok=True)
    save_checkpoint(folder / "model.pt", cfg=cfg, classes=classes, model=model)
    for rate, score in zip(rates, scores, strict=True):
        print(f"  learning rate {rate:<8.2g} {score:6.2f} %{'  best' if rate == rates[best] else ''}")
    print(f"probe: {steps} steps at {len(rates)} rates in {seconds:.1f} s; {folder / 'model.pt'}")
    if arguments.json:
        found = {"rates": rates, "top1": scores, "best": rates[best], "seconds": seconds, "clips": len(train.labels_V)}
        write_json(arguments.json, found, indent=2)
    close_world()
    return 0


def _cached(cfg: Any, split: str, classes: "Sequence[str]", model: Any, world: Any, views: int) -> "Cache":
    """Return the features of one of the config's lists."""
    from lookupvit_video.data.manifest import load_split
    from lookupvit_video.evaluation.evaluate import eval_loader
    from lookupvit_video.evaluation.linear_probe import cache_features
    from lookupvit_video.progress import progress

    videos = load_split(cfg, split, classes)
    loader, size = eval_loader(cfg, videos, world, views), cfg.TEST.BATCH_SIZE
    shown = progress(loader, total=len(videos), label=f"features of {split}", unit="videos", step=size)
    cache = cache_features(model, shown, cfg.DATA.MEAN, cfg.DATA.STD)
    if unread := len(videos) * views - len(cache.labels_V):
        print(f"{split}: {unread} of {len(videos) * views} clips cannot be read and are left out")
    return cache
