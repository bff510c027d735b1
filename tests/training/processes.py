"""What tests of ``distributed/parallel.py`` run in several processes: python -m tests.training.processes WHAT ARG."""

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch

from lookupvit_video.commands.run_command import run_command
from lookupvit_video.config import load_config
from lookupvit_video.data.manifest import load_classes
from lookupvit_video.distributed.precision import autocast_dtype
from lookupvit_video.distributed.world import World, gather_objects, init_world, report_lost_processes
from lookupvit_video.training.optim import learning_rate_factor
from lookupvit_video.training.run import describe_world
from lookupvit_video.training.train import train


def train_all(plan: list[dict[str, Any]]) -> int:
    """Train once for each entry: {"overrides": [...], "begin": a checkpoint to go on from, or ""}."""
    world = init_world(timeout=60)
    for entry in plan:
        cfg = load_config("tests/small.yaml", entry["overrides"])
        checkpoints = Path(cfg.OUTPUT_DIR) / "checkpoints"
        if world.is_main:
            checkpoints.mkdir(parents=True)
            if entry["begin"]:
                shutil.copy(entry["begin"], checkpoints)
        gather_objects(None, world)
        train(cfg, load_classes(cfg), world)
        lines = description(cfg, world, 17)
        if world.is_main:
            (Path(cfg.OUTPUT_DIR) / "world.txt").write_text("\n".join(lines))
    return 0


def description(cfg: Any, world: World, num_videos: int) -> list[str]:
    """Return the lines of ``describe_world`` as a run has them."""
    return describe_world(
        world, batch_size=cfg.TRAIN.BATCH_SIZE, parts=cfg.TRAIN.ACCUMULATION_STEPS, parallel=cfg.TRAIN.PARALLEL,
        dtype=autocast_dtype(cfg.TRAIN.PRECISION, world.device), num_videos=num_videos,
        peak_rate=cfg.SOLVER.BASE_LR * learning_rate_factor(cfg.TRAIN.BATCH_SIZE, cfg.SOLVER.BASE_LR_BATCH),
    )  # fmt: skip


def hang(rank: int) -> int:
    """Let one process stay away from a sum that the others wait for."""
    world = init_world(timeout=2)
    if world.rank == rank:
        time.sleep(60)
    with report_lost_processes(world, seconds=2):
        torch.distributed.all_reduce(torch.ones(3))
    return 0


if __name__ == "__main__":
    what, argument = sys.argv[1:]
    run_command(lambda: train_all(json.loads(argument)) if what == "train" else hang(int(argument)))
