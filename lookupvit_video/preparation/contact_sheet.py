"""Contact sheet: some videos of a data set as the model sees them, with their labels."""

import os
import random
from collections import defaultdict
from collections.abc import Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from lookupvit_video.data.loader import build_eval_loader, build_train_loader
from lookupvit_video.data.manifest import Video
from lookupvit_video.decoding.backends import open_video
from lookupvit_video.drawing.figures import new_figure, save_figure
from lookupvit_video.drawing.fonts import drawable
from lookupvit_video.preparation.check import ListedVideo
from lookupvit_video.text import shortened

FRAMES = 4  # of each clip, from its first to its last
_COLUMNS = 3
_HEIGHT = 128  # pixels of a frame where no config says what the model sees
_GAP = 3  # pixels between two frames


def pick_rows(rows: Sequence[ListedVideo], count: int, seed: int) -> list[ListedVideo]:
    """Return up to ``count`` random rows whose file is sound, of all splits as equally as can be, in order of split."""
    of_split = defaultdict(list)
    for row in rows:
        if not row.is_bad and not any(problem.kind == "span" for problem in row.problems):
            of_split[row.split].append(row)
    draw = random.Random(seed)
    shuffled = [draw.sample(group, min(count, len(group))) for group in of_split.values()]
    turns = chain.from_iterable(zip_longest(*shuffled))
    chosen = [row for row in turns if row is not None][:count]
    order = list(of_split)
    return sorted(chosen, key=lambda row: order.index(row.split))


class Strip(NamedTuple):
    """Some frames of a video side by side."""

    picture: np.ndarray
    """uint8 (H, W, 3)."""
    label: int
    """That of the clip: mirrored ones may have another than the video."""


def model_views(cfg: CfgNode, videos: Sequence[Video], mirror: Sequence[int] | None, seed: int) -> dict[bool, Any]:
    """Return the loaders' own data sets over some videos: True, as in training; False, as in validation.

    What happens on the device later (erasing, mixup) is not in them.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.RNG_SEED, cfg.DATA.CACHE_VIDEOS, cfg.DATA_LOADER.NUM_WORKERS = seed, False, 0
    cfg.TRAIN.BATCH_SIZE, cfg.TRAIN.ACCUMULATION_STEPS = cfg.AUG.NUM_SAMPLE, 1
    train = build_train_loader(cfg, videos, mirror=mirror, total_steps=1)
    return {True: train.dataset, False: build_eval_loader(cfg, videos, num_views=1, num_crops=1).dataset}


def strip_as_seen(index: int, rows: Sequence[ListedVideo], views: dict[bool, Any]) -> Strip | None:
    """Return frames of the clip that the model gets of a row, of training where its split is; None: it gets none."""
    torch.set_num_threads(1)
    sample = views[rows[index].split == "train"][index]
    if sample.error:
        return None
    return Strip(_side_by_side(sample.clips[0].permute(1, 2, 3, 0)), sample.labels[0])


def strip_of_file(index: int, rows: Sequence[ListedVideo]) -> Strip:
    """Return frames from the first to the last of a row's video, not cropped.

    Raises:
        DecodeError: the video cannot be read.
    """
    torch.set_num_threads(1)
    video = rows[index].video
    with open_video(video.path) as reader:
        start = video.start or 0.0
        last = max(start, min(video.end or float("inf"), float(reader.times[-1])))
        frames_THWC = reader.frames_at(np.linspace(start, last, FRAMES).tolist())
    width = max(1, round(frames_THWC.shape[2] * _HEIGHT / frames_THWC.shape[1]))
    resized = F.resize(frames_THWC.permute(0, 3, 1, 2), [_HEIGHT, width], antialias=True)
    return Strip(_side_by_side(resized.permute(0, 2, 3, 1)), video.label)


def _side_by_side(frames_THWC: Tensor) -> np.ndarray:
    """Lay some frames, from the first to the last, side by side with white between them."""
    chosen = np.linspace(0, len(frames_THWC) - 1, FRAMES).round().astype(int).tolist()
    height = frames_THWC.shape[1]
    gap = frames_THWC.new_full((height, max(1, _GAP * height // _HEIGHT), 3), 255)
    parts = [part for index in chosen for part in (gap, frames_THWC[index])]
    return torch.cat(parts[1:], dim=1).numpy()


def draw_contact_sheet(shown: Sequence[tuple[ListedVideo, str, np.ndarray]], path: Path, title: str) -> None:
    """Write a PNG of (row, label, strip (H, W, 3)), three side by side, each under its label and over its file."""
    shape = np.median([strip.shape[:2] for _, _, strip in shown], axis=0)  # one tall video must not stretch all rows
    width, rows = 4.2, -(-len(shown) // _COLUMNS)
    folder = os.path.commonpath([os.path.dirname(os.path.abspath(row.video.path)) for row, _, _ in shown])
    figure = new_figure(width * _COLUMNS, rows * (width * shape[0] / shape[1] + 0.5) + 0.4)
    figure.suptitle(shortened(drawable(title), 150), fontsize=10, color="0.35", parse_math=False)
    axes = list(figure.subplots(rows, _COLUMNS, squeeze=False).flat)
    for axis in axes[len(shown) :]:
        axis.set_axis_off()
    for axis, (row, label, strip) in zip(axes, shown, strict=False):
        axis.imshow(strip)
        axis.set(xticks=[], yticks=[], anchor="NW")  # labels of a row at one height
        axis.spines[:].set_visible(False)
        axis.set_title(
            shortened(drawable(label or "no label"), 54), loc="left", fontsize=9, weight="bold", pad=3, parse_math=False
        )
        name = shortened(drawable(os.path.relpath(row.video.path, folder)), 76 - len(row.split), keep_end=True)
        axis.set_xlabel(
            f"{drawable(row.split)}  {name}", loc="left", fontsize=6.5, color="0.45", labelpad=2, parse_math=False
        )
    save_figure(figure, path)
