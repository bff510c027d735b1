"""Validation and multi-view test: softmax averaged over the views of a video, every video counted once.

Shape letters: B videos, V views, K classes.
"""

import csv
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import nn

from lookupvit_video.data.dataset import Batch, damage_refused
from lookupvit_video.data.manifest import Video
from lookupvit_video.data.transforms import normalize
from lookupvit_video.distributed.parallel import autocast_dtype, gathered
from lookupvit_video.distributed.world import World, gather_objects
from lookupvit_video.figures import plot_accuracy_vs_gmacs, plot_confusion
from lookupvit_video.files import atomic_write, write_json
from lookupvit_video.progress import progress
from lookupvit_video.text import open_text, write_csv

logger = logging.getLogger(__name__)
CompressedGrid = tuple[int, ...] | None


@dataclass(frozen=True)
class Results:
    """Accuracy over a list of videos; a video that could not be read counts as wrong."""

    labels: np.ndarray
    """(videos,)"""
    probabilities: np.ndarray
    """(videos, K): mean softmax over the views; zeros for a video that could not be read."""
    bad: list[tuple[int, str]]
    """(row, reason) of each video that could not be read, or was skipped for its damage."""
    damaged: list[tuple[int, str]] = field(default_factory=list)
    """(row, what is damaged) of each video with damage, used or skipped."""

    def top(self, k: int) -> float:
        """Return the share of videos, in percent, whose label is among the k likeliest classes."""
        best = np.argsort(-self.probabilities, axis=1, kind="stable")[:, :k]
        return 100 * float(np.mean((best == self.labels[:, None]).any(1) & self.read))

    @property
    def read(self) -> np.ndarray:
        """(videos,) bool: which could be read."""
        read = np.ones(len(self.labels), dtype=bool)
        read[[row for row, _ in self.bad]] = False
        return read

    @property
    def used_damaged(self) -> list[tuple[int, str]]:
        """(row, reason for bad_videos.csv) of each video with damage that was used all the same."""
        unread = {row for row, _ in self.bad}
        return [(row, f"damaged, used: {damage}") for row, damage in self.damaged if row not in unread]

    def confusion(self) -> np.ndarray:
        """Return counts (K, K): rows true, columns predicted; videos that could not be read are left out."""
        num_classes = self.probabilities.shape[1]
        counts = np.zeros((num_classes, num_classes), dtype=np.int64)
        np.add.at(counts, (self.labels[self.read], self.probabilities.argmax(1)[self.read]), 1)
        return counts

    def per_class(self) -> list[float | None]:
        """Return each class's accuracy in percent, unreadable videos as wrong; None where the list has no video."""
        totals = np.bincount(self.labels, minlength=self.probabilities.shape[1])
        right = self.confusion().diagonal()
        return [100 * float(r) / int(t) if t else None for r, t in zip(right, totals, strict=True)]


def predict_clips(
    model: nn.Module, cfg: CfgNode, clips: torch.Tensor, device: torch.device, grid: CompressedGrid = None
) -> torch.Tensor:
    """Return the softmax (clips, K), float32 on the CPU, of uint8 clips (clips, C, T, H, W); model in eval mode.

    Args:
        grid: of the compressed tokens, for a LookupViT; None: the model's default.
    """
    dtype = autocast_dtype(cfg.TRAIN.PRECISION, device)
    with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        inputs = normalize(clips.to(device, non_blocking=True), cfg.DATA.MEAN, cfg.DATA.STD)
        logits = model(inputs) if grid is None else model(inputs, grid)
        return logits.float().softmax(-1).cpu()


def evaluate(
    model: nn.Module,
    loader: Iterable[Batch],
    videos: Sequence[Video],
    cfg: CfgNode,
    world: World,
    label: str,
    grids: Sequence[CompressedGrid] = (None,),
) -> list[Results]:
    """Run a model over this process's share of the videos and put all processes' shares together.

    Every video is read once, whatever the number of grids.

    Args:
        model: not wrapped in DDP; its mode is kept.
        loader: from ``build_eval_loader`` with this process's rank.
        videos: the whole list, the same in all processes.
        label: what the progress line says.
        grids: compressed grids to answer with; None is the model's default.

    Returns:
        one ``Results`` for each of ``grids``.

    Raises:
        RunFailure: a video is damaged and DATA.DAMAGED_TEST is refuse.
    """
    was_training = model.training
    model.eval()
    own: list[list[tuple[int, np.ndarray]]] = [[] for _ in grids]
    bad: list[tuple[int, str]] = []
    damaged: list[tuple[int, str]] = []
    share = len(range(world.rank, len(videos), world.size))
    batches = progress(loader, total=share, label=label, unit="videos", step=cfg.TEST.BATCH_SIZE) \
        if world.is_main else loader  # fmt: skip
    with gathered(model):
        for batch in batches:
            for rows, grid in zip(own, grids, strict=True):
                probabilities = predict_clips(model, cfg, batch.clips, world.device, grid)
                by_video_BVK = probabilities.unflatten(0, (len(batch.indices), -1)).numpy()
                rows += zip(batch.indices.tolist(), by_video_BVK.mean(1), strict=True)
            bad += batch.errors
            damaged += batch.damaged
            if damaged and cfg.DATA.DAMAGED_TEST == "refuse":
                raise damage_refused(videos[damaged[0][0]].path, damaged[0][1], "DATA.DAMAGED_TEST")
    model.train(was_training)
    labels = np.array([video.label for video in videos])
    tables = np.zeros((len(grids), len(videos), cfg.MODEL.NUM_CLASSES), dtype=np.float32)
    for shares in gather_objects(own, world):
        for table, rows in zip(tables, shares, strict=True):
            for row, probability in rows:
                table[row] = probability
    all_bad = sorted(item for items in gather_objects(bad, world) for item in items)
    all_damaged = sorted(item for items in gather_objects(damaged, world) for item in items)
    tables[:, [row for row, _ in all_bad]] = 0
    return [Results(labels, table, all_bad, all_damaged) for table in tables]


def write_grids(rows: Sequence[dict[str, Any]], folder: Path) -> None:
    """Write what one checkpoint reaches with each compressed grid: accuracy_vs_gmacs.csv and .png; log the table."""
    with atomic_write(folder / "accuracy_vs_gmacs.csv") as temporary, open_text(temporary, "w") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    plot_accuracy_vs_gmacs(rows, folder / "accuracy_vs_gmacs.png")
    for row in rows:
        logger.info(
            "grid %-9s %5d compressed tokens  %8.4g GMACs a view  top-1 %.2f %%  top-5 %.2f %%",
            row["grid"], row["tokens"], row["gmacs_per_view"], row["top1"], row["top5"],
        )  # fmt: skip


def write_results(
    results: Results, videos: Sequence[Video], classes: Sequence[str], folder: Path, facts: dict[str, Any]
) -> dict[str, Any]:
    """Write test_results.json, test_predictions.csv and confusion_matrix.png into a folder; return the JSON's content.

    Args:
        facts: what was measured, put before the figures (checkpoint, views, precision, ...).
    """
    summary = {
        **facts,
        "videos": len(videos),
        "top1": round(results.top(1), 2),
        "top5": round(results.top(5), 2),
        "bad_videos": [{"path": videos[row].path, "reason": reason} for row, reason in results.bad],
        "damaged_videos": [{"path": videos[row].path, "damage": damage} for row, damage in results.damaged],
        "per_class": dict(zip(classes, results.per_class(), strict=True)),
    }
    write_json(folder / "test_results.json", summary, indent=None)
    read, rows = results.read, []
    for row, video in enumerate(videos):
        best = int(results.probabilities[row].argmax())
        answer = (classes[best], f"{results.probabilities[row, best]:.4f}") if read[row] else ("", "")
        rows.append((video.path, classes[video.label], *answer))
    write_csv(folder / "test_predictions.csv", ("path", "label", "prediction", "probability"), rows)
    plot_confusion(results.confusion(), classes, folder / "confusion_matrix.png")
    return summary
