"""What a run reports at its start: its processes, and what a step is."""

import socket

import torch
from fvcore.common.config import CfgNode

from lookupvit_video.distributed.parallel import autocast_dtype
from lookupvit_video.distributed.world import World, gather_objects
from lookupvit_video.training.optim import learning_rate_factor


def describe_world(cfg: CfgNode, world: World, num_videos: int) -> str:
    """Return a line for each process and one for what a step is; all processes must call it.

    Args:
        num_videos: of the training list.
    """
    gpu = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else ""
    places = gather_objects(f"host {socket.gethostname()}, device {world.device} {gpu}".rstrip(), world)
    parts = cfg.TRAIN.ACCUMULATION_STEPS
    kind = "" if world.size == 1 else f", {cfg.TRAIN.PARALLEL}"
    lines = [f"process {rank} of {world.size}: {place}" for rank, place in enumerate(places)]
    lines.append(
        f"a step: {cfg.TRAIN.BATCH_SIZE} clips = world size {world.size} x {parts} accumulation steps x "
        f"{cfg.TRAIN.BATCH_SIZE // (world.size * parts)}{kind}, "
        f"{str(autocast_dtype(cfg.TRAIN.PRECISION, world.device)).removeprefix('torch.')}; "
        f"peak learning rate {cfg.SOLVER.BASE_LR * learning_rate_factor(cfg):g} for any world size; "
        f"{num_videos} training videos"
    )
    return "\n".join(lines)
