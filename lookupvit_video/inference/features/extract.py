"""A model's features of clips, windows and lists of videos: what its classifiers read, or its tokens after the norm.

Shape letters: B clips, R rows (clips of a video), C channels, T frames, H W pixels, N tokens, D width.
"""

import math
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lookupvit_video.decoding.reader import DecodeError
from lookupvit_video.distributed.precision import autocast, autocast_dtype
from lookupvit_video.inference.batch import read_videos
from lookupvit_video.inference.budget import Grid
from lookupvit_video.inference.predictor import Predictor
from lookupvit_video.inference.timeline import open_windows
from lookupvit_video.inference.views import Failure, Plan, Views

TOKENS = ("pooled", "compressed", "lookup")


class VideoFeatures(NamedTuple):
    """The features of one video."""

    path: str
    times: np.ndarray
    """(R, 2) float64: seconds of the first and the last frame of each clip."""
    rows: np.ndarray
    """(R, D), or (R, N, D) for tokens."""


@dataclass(frozen=True)
class Reading:
    """Which clips to take from each video, and what to keep of them."""

    plan: Plan
    """With one crop."""
    tokens: str = "pooled"
    """One of ``TOKENS``."""
    grid: Grid | None = None
    """Of the compressed tokens, or a budget; None: the model's default."""
    batch_size: int = 8
    """Clips in one pass of the model."""
    workers: int = 0
    """Processes that read videos; windows are read in this one."""
    windows: bool = False
    """Slide a window over each video instead of taking the plan's views."""
    stride: float | None = None
    window: float | None = None
    """See ``plan_windows``."""

    @property
    def group_size(self) -> int:
        """Videos that share passes of the model."""
        return 1 if self.windows else math.ceil(self.batch_size / self.plan.num_views)


def share_of(videos: Sequence[str], done: Container[str], group_size: int, rank: int, world_size: int) -> list[str]:
    """Return what one of several processes has to read: the groups with a video that is not done, in turns."""
    groups = dict.fromkeys(number // group_size for number, video in enumerate(videos) if video not in done)
    mine = set(list(groups)[rank::world_size])
    return [video for number, video in enumerate(videos) if number // group_size in mine and video not in done]


def clip_features(
    predictor: Predictor, clips_BCTHW: Tensor, tokens: str = "pooled", grid: Grid | None = None
) -> Tensor:
    """Return the features of uint8 clips (B, C, T, H, W), float32 on the CPU.

    Args:
        tokens: "pooled": what the classifiers that answer read, of two heads side by side: (B, D). "compressed" or
            "lookup": the tokens of ``forward_features`` after the norm: (B, N, D).
        grid: see ``Reading``.

    Raises:
        UserError: the model has no such tokens or grid.
    """
    model: Any = predictor.model
    budget = () if grid is None else (grid,)
    with torch.inference_mode(), autocast(
        predictor.device, autocast_dtype(predictor.cfg.TRAIN.PRECISION, predictor.device)
    ):  # fmt: skip
        inputs = predictor.inputs(clips_BCTHW)
        if tokens == "pooled":
            with _classifier_inputs(model) as found:
                model(inputs, *budget)
            # X3D's classifier reads every place, and averages its logits
            features = torch.cat([read.flatten(1, -2).mean(1) if read.dim() > 2 else read for read in found], dim=1)
        else:
            features = model.normed_tokens(model(inputs, *budget, with_features=True)[1], tokens)
    return features.float().cpu()


@contextmanager
def _classifier_inputs(model: Any) -> Iterator[list[Tensor]]:
    """Collect what the last linear layer of each head reads, in the order of the calls; any model has such layers."""
    found: list[Tensor] = []
    with ExitStack() as stack:
        for head in model.classifiers():
            linear = [module for module in head.modules() if isinstance(module, nn.Linear)][-1]
            stack.enter_context(linear.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0])))
        yield found


def read_features(
    predictor: Predictor,
    videos: Sequence[str],
    done: Iterable[str],
    reading: Reading,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[list[VideoFeatures | Failure]]:
    """Yield the features of groups of videos, in completion order; a group shares passes of the model.

    Groups are the same whatever is done already, and the answers to a group depend on nothing else: features are the
    same to the bit after a kill, and for any number of processes.

    Args:
        done: videos to leave out.
        rank, world_size: this process and how many share the groups.
    """
    finished = set(done)
    size = reading.group_size
    group_of = {video: number // size for number, video in enumerate(videos)}
    left = share_of(videos, finished, size, rank, world_size)
    if reading.windows:
        for video in left:
            yield [_window_features(predictor, video, reading)]
        return
    missing = [0] * (len(videos) // size + 1)
    for video in left:
        missing[group_of[video]] += 1
    waiting: dict[int, list[Views | Failure]] = {}
    for views in read_videos(left, reading.plan, reading.workers):
        group = group_of[views.name if isinstance(views, Views) else views.path]
        waiting.setdefault(group, []).append(views)
        if len(waiting[group]) == missing[group]:
            yield list(_group_features(predictor, waiting.pop(group), reading))


def _group_features(
    predictor: Predictor, group: list[Views | Failure], reading: Reading
) -> Iterator[VideoFeatures | Failure]:
    yield from (views for views in group if isinstance(views, Failure))
    read = sorted((views for views in group if isinstance(views, Views)), key=lambda views: views.name)
    if not read:
        return
    clips = torch.cat([torch.from_numpy(views.clips) for views in read])
    rows = torch.cat([
        clip_features(predictor, part, reading.tokens, reading.grid) for part in torch.split(clips, reading.batch_size)
    ]).numpy()  # fmt: skip
    for views, part in zip(read, np.split(rows, np.cumsum([len(views.clips) for views in read])[:-1]), strict=True):
        yield VideoFeatures(views.name, np.array(views.times), part)


def _window_features(predictor: Predictor, video: str, reading: Reading) -> VideoFeatures | Failure:
    try:
        with open_windows(video, reading.plan, reading.stride, reading.window) as found:
            rows = []
            while batch := list(islice(found.clips, reading.batch_size)):
                rows.append(clip_features(predictor, torch.stack(batch), reading.tokens, reading.grid).numpy())
            times = np.minimum(found.times[:, [0, -1]], found.duration)
    except DecodeError as error:
        return Failure(video, error.reason)
    return VideoFeatures(video, times, np.concatenate(rows))
