"""What answers without a model reach on a run's own split: the largest class, and nearest neighbors in motion energy.

A model that is not better has learned nothing from its few videos. Shape letters: B clips, T frames, H W pixels.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lookupvit_video.config import Section
from lookupvit_video.data.manifest import load_classes, load_split
from lookupvit_video.data.transforms import IGNORED
from lookupvit_video.distributed.world import World
from lookupvit_video.errors import UserError
from lookupvit_video.evaluation.evaluate import eval_loader
from lookupvit_video.studies.compare import facts_of
from lookupvit_video.text import markdown_table

NEIGHBORS = 5
_SPLITS = ("train", "test")


class Baselines(NamedTuple):
    """Top-1 on the test list of a run, in percent."""

    videos: int
    largest: float
    """Of always answering the largest class of the training list."""
    motion: float
    model: float


def motion_energy(clips_BCTHW: Tensor) -> Tensor:
    """Return four numbers (B, 4) of how much changes between frames: mean, deviation, most and time of most.

    A change is the mean absolute difference of two frames, of uint8 values; the time is a share of the clip.
    """
    gray_BTHW = clips_BCTHW.float().mean(1)
    energy_BT = gray_BTHW.diff(dim=1).abs().mean((2, 3))
    most_B, when_B = energy_BT.max(1)
    return torch.stack([energy_BT.mean(1), energy_BT.std(1, correction=0), most_B, when_B / energy_BT.shape[1]], 1)


def neighbors_top1(train_VF: np.ndarray, labels_V: np.ndarray, test_UF: np.ndarray, wanted_U: np.ndarray) -> float:
    """Return top-1 in percent of the majority of the nearest training videos, in deviations of each number.

    Of classes with equally many of them, the one with the nearest wins.
    """
    deviation_F = train_VF.std(0) + 1e-9
    apart_UV = np.linalg.norm((test_UF[:, None] - train_VF) / deviation_F, axis=-1)
    near_Un = labels_V[apart_UV.argsort(1, kind="stable")[:, :NEIGHBORS]]
    counts_Un = (near_Un[:, :, None] == near_Un[:, None, :]).sum(2)
    answers_U = np.take_along_axis(near_Un, counts_Un.argmax(1)[:, None], 1)[:, 0]
    return 100 * float((answers_U == wanted_U).mean())


def baselines_of(folder: Path, world: World) -> Baselines:
    """Return what a finished run and the answers without a model reach, on the clips that the run saw in its test.

    Raises:
        UserError: the run is not finished, has several labels a video, or clips of one frame.
    """
    run = facts_of(folder)
    cfg = run["config"]
    if cfg.MODEL.TASK != "single_label":
        raise UserError(
            f"{folder}: MODEL.TASK is {cfg.MODEL.TASK}; the answers without a model are of one class a video"
        )
    if cfg.DATA.NUM_FRAMES < 2:
        raise UserError(f"{folder}: DATA.NUM_FRAMES is 1; motion energy is what changes between two frames")
    classes = load_classes(cfg)
    (train_VF, labels_V, _), (test_UF, wanted_U, videos) = (_described(cfg, split, classes, world) for split in _SPLITS)
    share = len(wanted_U) / videos  # a video that cannot be read counts as wrong
    largest = 100 * float((wanted_U == np.bincount(labels_V).argmax()).mean())
    motion = neighbors_top1(train_VF, labels_V, test_UF, wanted_U)
    return Baselines(videos, share * largest, share * motion, run["accuracy"])


def _described(cfg: Section, split: str, classes: Sequence[str], world: World) -> tuple[np.ndarray, np.ndarray, int]:
    """Return motion energy and labels of the readable videos of a list, and how many videos it has."""
    videos = load_split(cfg, split, classes)
    numbers, labels = [], []
    for batch in eval_loader(cfg, videos, world):
        good = batch.labels != IGNORED
        numbers.append(motion_energy(batch.clips[good]))
        labels.append(batch.labels[good])
    return torch.cat(numbers).numpy(), torch.cat(labels).numpy(), len(videos)


def table_of(found: Mapping[str, Baselines]) -> str:
    """Return the Markdown table of runs, with their mean."""
    titles = ("run", "videos", "largest class, %", f"{NEIGHBORS} nearest neighbors in motion energy, %", "model, %")
    rows = [(name, *one) for name, one in found.items()]
    rows.append(("mean", *np.mean(list(found.values()), 0)))
    return markdown_table(titles, [(name, f"{count:.3g}", *(f"{value:.1f}" for value in values))
                                   for name, count, *values in rows])  # fmt: skip
