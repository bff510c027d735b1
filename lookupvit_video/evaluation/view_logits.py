"""The logits of each view of some videos, for what is fitted afterwards. Shape letters: V views, K classes."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from lookupvit_video.data.dataset import Batch
from lookupvit_video.data.manifest import Video
from lookupvit_video.data.video_table import first_label
from lookupvit_video.distributed.world import World, gather_objects
from lookupvit_video.evaluation.conformal import pseudo_random
from lookupvit_video.evaluation.evaluate import CompressedGrid, clip_logits, label_table


class ViewLogits(NamedTuple):
    """Of those videos of a list that could be read."""

    logits: dict[CompressedGrid, np.ndarray]
    """By compressed grid, (videos, V, K) float32."""
    labels: np.ndarray
    """(videos,); of several labels a video (videos, K) bool."""
    uniform: np.ndarray
    """(videos,), see ``conformal.class_scores``: from the pixels of the view in the middle."""
    bad: list[tuple[int, str]]
    """(row, reason) of each of the others."""


def view_logits(
    model: nn.Module,
    batches: Iterable[Batch],
    videos: Sequence[Video],
    device: torch.device,
    *,
    num_classes: int,
    multi_label: bool,
    mean: Sequence[float],
    std: Sequence[float],
    precision: str,
    grids: Sequence[CompressedGrid] = (None,),
    world: World | None = None,
) -> ViewLogits:
    """Run a model over videos, each of which is read once; see ``clip_logits`` for the arguments.

    Args:
        batches: of all the videos, or of this process's share, with the same number of views each.
        world: of the processes that share the videos; each of them gets the logits of all.
    """
    by_row: dict[int, list[np.ndarray]] = {}
    uniform: dict[int, float] = {}
    bad: list[tuple[int, str]] = []
    for batch in batches:
        clips_BVCTHW = batch.clips.unflatten(0, (len(batch.indices), -1))
        answers = [
            clip_logits(model, batch.clips, device, mean=mean, std=std, precision=precision, grid=grid)
            .cpu().unflatten(0, clips_BVCTHW.shape[:2]).numpy()
            for grid in grids
        ]  # fmt: skip
        for place, row in enumerate(batch.indices.tolist()):
            by_row[row] = [answer[place] for answer in answers]
            uniform[row] = pseudo_random(clips_BVCTHW[place, clips_BVCTHW.shape[1] // 2].numpy().tobytes())
        bad += batch.errors
    if world is not None:
        shares = gather_objects((by_row, uniform, bad), world)
        by_row = {row: found for share in shares for row, found in share[0].items()}
        uniform = {row: found for share in shares for row, found in share[1].items()}
        bad = [one for share in shares for one in share[2]]
    rows = sorted(by_row.keys() - {row for row, _ in bad})
    labels = label_table(videos, num_classes) if multi_label else first_label(videos)
    return ViewLogits(
        logits={
            grid: np.stack([by_row[row][place] for row in rows]) if rows else np.zeros((0, 1, num_classes), np.float32)
            for place, grid in enumerate(grids)
        },
        labels=labels[rows],
        uniform=np.array([uniform[row] for row in rows]),
        bad=sorted(bad),
    )
