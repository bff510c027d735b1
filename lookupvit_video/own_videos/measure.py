"""What a clip and a step cost on this machine, measured on a few videos and steps of the real model."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median

import torch
from fvcore.common.config import CfgNode

from lookupvit_video.config import with_settings
from lookupvit_video.data.loader import build_train_loader
from lookupvit_video.data.manifest import Video
from lookupvit_video.distributed.precision import autocast, autocast_dtype
from lookupvit_video.models.build import build_model
from lookupvit_video.own_videos.rules import Costs
from lookupvit_video.training.dry_run import step_bytes

VIDEOS, STEPS, CLIPS = 8, 4, 8  # at most
READING = 5.0  # seconds after which no further video is read


def measure(cfg: CfgNode, videos: Sequence[Video], device: torch.device) -> Costs:
    """Read a few of the videos, each at least twice, and make a few steps on zeros."""
    alone = with_settings(cfg, {"DATA_LOADER.NUM_WORKERS": 0})
    dataset = build_train_loader(alone, videos, total_steps=1).dataset
    rows = sorted({len(videos) * i // VIDEOS for i in range(VIDEOS)})
    first, again = list[float](), list[float]()
    for number in range(VIDEOS):  # few videos: each several times, as one clip may be far from a key frame
        turn, row = number // len(rows), rows[number % len(rows)]
        if not turn:
            first.append(_seconds(partial(dataset.__getitem__, (0, row)), device))
        again.append(_seconds(partial(dataset.__getitem__, (turn + 1, row)), device))
        if sum(first) + sum(again) > READING:
            break
    batch = min(CLIPS, cfg.TRAIN.BATCH_SIZE)
    size = cfg.DATA.TRAIN_CROP_SIZE
    clips = torch.zeros(batch, 3, cfg.DATA.NUM_FRAMES, size, size, device=device)
    model, dtype = build_model(cfg).to(device).train(), autocast_dtype(cfg.TRAIN.PRECISION, device)
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad])

    def step() -> None:
        with autocast(device, dtype):
            logits = model(clips)
        torch.stack([head.float().square().sum() for head in logits]).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    def look() -> None:
        with torch.no_grad(), autocast(device, dtype):
            model(clips)

    steps = [_seconds(step, device) for _ in range(STEPS)][1:]  # the first one allocates memory
    model.eval()
    looks = [_seconds(look, device) for _ in range(STEPS)][1:]
    kept = step_bytes(model.train(), clips[:1], dtype)
    return Costs(sum(first) / len(first), sum(again) / len(again), median(steps) / batch, median(looks) / batch, kept)


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    began = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
