"""Validation and multi-view test: softmax averaged over the views of a video, each video counted once.

Shape letters: B videos, V views, K classes.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import nn

from lookupvit_video.data.dataset import Batch, damage_refused
from lookupvit_video.data.loader import Loader, build_eval_loader
from lookupvit_video.data.manifest import Video, join_labels
from lookupvit_video.data.transforms import normalize
from lookupvit_video.data.video_table import first_label
from lookupvit_video.distributed.precision import autocast, autocast_dtype
from lookupvit_video.distributed.world import World, gather_objects
from lookupvit_video.evaluation.metrics import chosen_metrics, decisions, interval, rounded, text, top_k
from lookupvit_video.evaluation.probes import reordered
from lookupvit_video.evaluation.report import class_table, write_class_table
from lookupvit_video.files import write_json
from lookupvit_video.models.budget import Budget
from lookupvit_video.progress import progress
from lookupvit_video.text import one_line, write_csv

logger = logging.getLogger(__name__)
CompressedGrid = Budget | tuple[int, ...] | None


@dataclass(frozen=True)
class Results:
    """Answers over a list of videos; a video that could not be read counts as wrong."""

    labels: np.ndarray
    """(videos,); of several labels a video (videos, K) bool"""
    probabilities: np.ndarray
    """(videos, K): mean softmax, or sigmoid, over the views; zeros for a video that could not be read."""
    bad: list[tuple[int, str]]
    """(row, reason) of each video that could not be read, or was skipped for its damage."""
    damaged: list[tuple[int, str]] = field(default_factory=list)
    """(row, what is damaged) of each video with damage, used or skipped."""

    @property
    def readable(self) -> np.ndarray:
        """(videos,) bool: which could be read."""
        readable = np.ones(len(self.labels), dtype=bool)
        readable[[row for row, _ in self.bad]] = False
        return readable

    @property
    def used_damaged(self) -> list[tuple[int, str]]:
        """(row, reason for bad_videos.csv) of each damaged video that was used."""
        unread = {row for row, _ in self.bad}
        return [(row, f"damaged, used: {damage}") for row, damage in self.damaged if row not in unread]

    def top(self, k: int) -> float:
        """Return the share of videos, in percent, whose label is among the k likeliest classes."""
        return top_k(self.scores, self.labels, k)

    def measure(self, names: Sequence[str]) -> dict[str, float]:
        """Return the value by name of each of some metrics that fits the number of classes, see ``metrics``."""
        return {
            metric.name: metric.function(self.scores, self.labels)
            for metric in chosen_metrics(names, self.scores.shape[1], multi_label=self.multi_label)
        }

    @property
    def multi_label(self) -> bool:
        """Whether a video may have several labels."""
        return self.labels.ndim == 2

    def intervals(self, names: Sequence[str]) -> dict[str, list[float]]:
        """Return the 95 % bootstrap interval over the videos of each of these metrics."""
        chosen = chosen_metrics(names, self.scores.shape[1], multi_label=self.multi_label)
        found = {metric.name: interval(metric.function, self.scores, self.labels) for metric in chosen}
        return {name: [round(value, 2) for value in pair] for name, pair in found.items()}

    @property
    def scores(self) -> np.ndarray:
        """(videos, K): what metrics take, see ``metrics``."""
        wrong = 2.0 * ~self.labels if self.multi_label else 0.0
        return np.where(self.readable[:, None], self.probabilities, wrong)

    def confusion(self) -> np.ndarray:
        """Return counts (K, K): rows true, columns predicted; videos that could not be read are left out."""
        num_classes = self.probabilities.shape[1]
        counts = np.zeros((num_classes, num_classes), dtype=np.int64)
        np.add.at(counts, (self.labels[self.readable], self.probabilities.argmax(1)[self.readable]), 1)
        return counts

    def per_class(self) -> list[float | None]:
        """Return each class's recall in percent, unreadable videos as wrong; None where the list has no video.

        Of several labels a video with a threshold of 0.5.
        """
        if self.multi_label:
            found = (decisions(self.scores, self.labels) & self.labels).sum(0)
            return [100 * float(r) / int(t) if t else None for r, t in zip(found, self.labels.sum(0), strict=True)]
        totals = np.bincount(self.labels, minlength=self.probabilities.shape[1])
        right = self.confusion().diagonal()
        return [100 * float(r) / int(t) if t else None for r, t in zip(right, totals, strict=True)]


def class_recalls(results: Results, classes: Sequence[str]) -> str:
    """Return recall a class as one line for a log: up to ten classes, or the five lowest of more; and the mean."""
    totals = results.labels.sum(0) if results.multi_label else np.bincount(results.labels, minlength=len(classes))
    rows = [
        (recall, f"{one_line(name)} {recall:.0f} % of {total}")
        for recall, name, total in zip(results.per_class(), classes, totals, strict=True) if recall is not None
    ]  # fmt: skip
    lowest = sorted(rows, key=lambda row: row[0])[:5] if len(rows) > 10 else rows
    mean = sum(recall for recall, _ in rows) / len(rows)
    what = "recall a class" if lowest is rows else f"lowest recall of {len(rows)} classes"
    return f"{what}: {', '.join(line for _, line in lowest)}; mean class accuracy {mean:.2f} %"


def clip_logits(
    model: nn.Module,
    clips: torch.Tensor,
    device: torch.device,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    precision: str = "auto",
    grid: CompressedGrid = None,
) -> torch.Tensor:
    """Return the logits (clips, K), float32 on the device, of uint8 clips (clips, C, T, H, W); model in eval mode.

    Args:
        mean, std: of each channel, on a scale of 0 to 1.
        precision: TRAIN.PRECISION.
        grid: of the compressed tokens, or a budget, for a LookupViT; None: the model's default.
    """
    with torch.inference_mode(), autocast(device, autocast_dtype(precision, device)):
        inputs = normalize(clips.to(device, non_blocking=True), mean, std)
        logits: torch.Tensor = model(inputs) if grid is None else model(inputs, grid)
        return logits.float()


def predict_clips(
    model: nn.Module,
    clips: torch.Tensor,
    device: torch.device,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    precision: str = "auto",
    grid: CompressedGrid = None,
    multi_label: bool = False,
    temperature: Sequence[float] = (),
) -> torch.Tensor:
    """Return the softmax (clips, K), float32 on the CPU, of uint8 clips, see ``clip_logits``.

    Args:
        multi_label: return the sigmoid instead.
        temperature: to divide the logits by: one number, or one a class; empty: 1.
    """
    logits = clip_logits(model, clips, device, mean=mean, std=std, precision=precision, grid=grid)
    return as_probabilities(logits, multi_label, temperature).cpu()


def as_probabilities(logits: torch.Tensor, multi_label: bool, temperature: Sequence[float]) -> torch.Tensor:
    """Return the softmax or sigmoid of logits (..., K), see ``predict_clips``."""
    if temperature:
        logits = logits / logits.new_tensor(temperature)
    return logits.sigmoid() if multi_label else logits.softmax(-1)


def eval_loader(cfg: CfgNode, videos: Sequence[Video], world: World, views: int = 1, crops: int = 1) -> Loader:
    """Return the loader of this process's share of some videos, each with some views in time and space."""
    return build_eval_loader(
        cfg, videos, num_views=views, num_crops=crops, rank=world.rank, world_size=world.size,
        pin_memory=world.device.type == "cuda",
    )  # fmt: skip


def evaluate(
    model: nn.Module,
    loader: Iterable[Batch],
    videos: Sequence[Video],
    cfg: CfgNode,
    world: World,
    label: str,
    grids: Sequence[CompressedGrid] = (None,),
    orders: Sequence[str] = (),
    temperatures: Mapping[CompressedGrid, Sequence[float]] | None = None,
) -> list[Results]:
    """Run a model over this process's share of the videos and gather the shares of all processes.

    Every video is read once, whatever the number of grids.

    Args:
        model: not wrapped in DDP; its mode is kept.
        loader: see ``eval_loader``.
        videos: the complete list, the same in all processes.
        label: what the progress line says.
        grids: compressed grids or budgets to answer with; None is the model's default.
        orders: of the frames, see ``reordered``, to answer with in addition, on the default grid.
        temperatures: of the grids, see ``predict_clips``; 1 for others.

    Returns:
        one ``Results`` for each of ``grids``, then one for each of ``orders``.

    Raises:
        RunFailure: a video is damaged and DATA.DAMAGED_TEST is refuse.
    """
    from lookupvit_video.distributed.parallel import gathered

    was_training, multi_label = model.training, cfg.MODEL.TASK == "multi_label"
    model.eval()
    ways = [*((grid, "real") for grid in grids), *((None, order) for order in orders)]
    own: list[list[tuple[int, np.ndarray]]] = [[] for _ in ways]
    bad: list[tuple[int, str]] = []
    damaged: list[tuple[int, str]] = []
    share = len(range(world.rank, len(videos), world.size))
    batches = progress(loader, total=share, label=label, unit="videos", step=cfg.TEST.BATCH_SIZE) \
        if world.is_main else loader  # fmt: skip
    with gathered(model):
        for batch in batches:
            for rows, (grid, order) in zip(own, ways, strict=True):
                probabilities = predict_clips(
                    model, _with_order(batch, order), world.device,
                    mean=cfg.DATA.MEAN, std=cfg.DATA.STD, precision=cfg.TRAIN.PRECISION, grid=grid,
                    multi_label=multi_label, temperature=(temperatures or {}).get(grid, ()),
                )  # fmt: skip
                by_video_BVK = probabilities.unflatten(0, (len(batch.indices), -1)).numpy()
                rows += zip(batch.indices.tolist(), by_video_BVK.mean(1), strict=True)
            bad += batch.errors
            damaged += batch.damaged
            if damaged and cfg.DATA.DAMAGED_TEST == "refuse":
                raise damage_refused(videos[damaged[0][0]].path, damaged[0][1], "DATA.DAMAGED_TEST")
    model.train(was_training)
    labels = label_table(videos, cfg.MODEL.NUM_CLASSES) if multi_label else first_label(videos)
    return _gathered(own, bad, damaged, labels, cfg.MODEL.NUM_CLASSES, world)


def _gathered(
    own: Sequence[Sequence[tuple[int, np.ndarray]]],
    bad: Sequence[tuple[int, str]],
    damaged: Sequence[tuple[int, str]],
    labels: np.ndarray,
    num_classes: int,
    world: World,
) -> list[Results]:
    """Put the shares of all processes together.

    Args:
        own: of each way to answer, (row, probabilities (K,)) of this process's videos.
    """
    tables = np.zeros((len(own), len(labels), num_classes), dtype=np.float32)
    for shares in gather_objects(own, world):
        for table, rows in zip(tables, shares, strict=True):
            for row, probability in rows:
                table[row] = probability
    all_bad = sorted(item for items in gather_objects(bad, world) for item in items)
    all_damaged = sorted(item for items in gather_objects(damaged, world) for item in items)
    tables[:, [row for row, _ in all_bad]] = 0
    return [Results(labels, table, all_bad, all_damaged) for table in tables]


def _with_order(batch: Batch, order: str) -> torch.Tensor:
    """Return a batch's clips with their frames in another order, one a video."""
    if order == "real":
        return batch.clips
    of_video = batch.clips.unflatten(0, (len(batch.indices), -1))
    pairs = zip(of_video, batch.indices.tolist(), strict=True)
    return torch.cat([reordered(clips, order, seed=row) for clips, row in pairs])


def label_table(videos: Sequence[Video], num_classes: int) -> np.ndarray:
    """Return which classes (videos, K) bool each video has."""
    return np.array([[label in video.every_label for label in range(num_classes)] for video in videos])


def write_grids(rows: Sequence[dict[str, Any]], folder: Path) -> None:
    """Write and log the accuracy and cost with each compressed grid: accuracy_vs_gmacs.csv and .png."""
    from lookupvit_video.drawing.figures import plot_accuracy_vs_gmacs

    write_csv(folder / "accuracy_vs_gmacs.csv", list(rows[0]), [list(row.values()) for row in rows])
    plot_accuracy_vs_gmacs(rows, folder / "accuracy_vs_gmacs.png")
    for row in rows:
        logger.info(
            "grid %-9s %5d compressed tokens  %8.4g GMACs a view  %s", row["grid"], row["tokens"],
            row["gmacs_per_view"], text(row, "  "),
        )  # fmt: skip


def write_results(
    results: Results,
    videos: Sequence[Video],
    classes: Sequence[str],
    folder: Path,
    facts: dict[str, Any],
    metrics: Sequence[str] = ("top1", "top5"),
    thresholds: Sequence[float] = (),
) -> dict[str, Any]:
    """Write test_results.json, test_predictions.csv and what ``write_class_table`` writes into a folder.

    confusion_matrix.csv and .png in addition, where a video has one label. Returns the JSON's content.

    Args:
        facts: what was measured (checkpoint, views, precision, ...); they come first.
        metrics: TEST.METRICS.
        thresholds: of each class (K,), where a video may have several labels; none: 0.5 for all.
    """
    cuts_K = np.array(thresholds or 0.5)
    table = class_table(results.scores, results.labels, cuts_K)
    summary = {
        **facts,
        "videos": len(videos),
        **rounded(results.measure(metrics), 2),
        "intervals_95": results.intervals(metrics),
        **({"macro_f1_with_thresholds": _mean_f1(table)} if thresholds else {}),
        "bad_videos": [{"path": videos[row].path, "reason": reason} for row, reason in results.bad],
        "damaged_videos": [{"path": videos[row].path, "damage": damage} for row, damage in results.damaged],
        "per_class": dict(zip(classes, results.per_class(), strict=True)),
    }
    write_json(folder / "test_results.json", summary, indent=None)
    write_class_table(table, classes, folder)
    answered, readable, rows = decisions(results.probabilities, results.labels, cuts_K), results.readable, []
    for row, video in enumerate(videos):
        best = [int(label) for label in np.flatnonzero(answered[row] & readable[row])]
        shares = [f"{results.probabilities[row, label]:.4f}" for label in best]
        cells = [[classes[label] for label in labels] for labels in (video.every_label, best)]
        joined = map(join_labels if results.multi_label else "".join, cells)
        rows.append((video.path, *joined, "|".join(shares)))
    write_csv(folder / "test_predictions.csv", ("path", "label", "prediction", "probability"), rows)
    if not results.multi_label:
        from lookupvit_video.drawing.confusion import plot_confusion

        counts = results.confusion()
        write_csv(
            folder / "confusion_matrix.csv",
            ("true \\ predicted", *classes),
            [(name, *row) for name, row in zip(classes, counts.tolist(), strict=True)],
        )
        plot_confusion(counts, classes, folder / "confusion_matrix.png")
    return summary


def _mean_f1(table: Sequence[tuple[int, float, float, float, float]]) -> float:
    return round(float(np.nanmean([f1 for _, _, _, f1, _ in table])), 2)
