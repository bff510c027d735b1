"""A long video -> which class when: windows slide over it while it is decoded once, forward, at constant memory.

What is kept of the video at any time are the pictures of one window, cropped; what grows with its length are two times
and a row of probabilities for each window, and the packets' time stamps.

Shape letters: W windows, C channels, T frames of a window, H W pixels, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
from fvcore.common.config import CfgNode
from torch import Tensor

from lookupvit_video.data.sampling import build_time_sampler
from lookupvit_video.data.transforms import ClipTransform, eval_transform
from lookupvit_video.decoding.pyav_reader import PyAVReader
from lookupvit_video.decoding.reader import DecodeError, shown_at
from lookupvit_video.errors import UserError
from lookupvit_video.inference.budget import Grid
from lookupvit_video.inference.predictor import Predictor
from lookupvit_video.progress import progress

SEGMENTS_WINDOW = (
    4.0  # seconds, for models that see T frames of a whole video: about as long as those they learned from
)
CHANGE_COST = 2.0  # natural logarithm: seven times as likely; see find_segments
_SMALLEST = 0.01  # of a probability: no single window may rule a class out


@dataclass(frozen=True)
class Timeline:
    """What a model says of each window of a video."""

    path: str
    duration: float
    """Of the video, in seconds."""
    window: float
    """Length of a window, in seconds."""
    starts: np.ndarray
    """(W,) seconds, ascending."""
    probabilities: np.ndarray
    """(W, K) float32."""
    classes: list[str]

    @property
    def centres(self) -> np.ndarray:
        """(W,) seconds: the middle of each window."""
        return np.minimum(self.starts + self.window / 2, self.duration)

    @property
    def borders(self) -> np.ndarray:
        """(W + 1,) seconds: window i speaks for the time between borders i and i + 1, as it is the nearest there."""
        centres = self.centres
        return np.concatenate([[0.0], (centres[1:] + centres[:-1]) / 2, [self.duration]])

    def at(self, seconds: float) -> int:
        """Return the window that speaks for a time."""
        return int(np.searchsorted(self.borders[1:-1], seconds, side="right"))


@dataclass(frozen=True)
class Segment:
    """A stretch of video with one label."""

    start: float
    """Seconds."""
    end: float
    """Seconds."""
    label: str
    probability: float
    """Of the label: the mean over the windows of the stretch."""


def plan_windows(cfg: CfgNode, duration: float, stride: float | None, window: float | None) -> tuple[np.ndarray, float]:
    """Return the starts (W,) of the windows over a video, and their length, in seconds.

    Windows lie inside the video, the last one at its end; a video shorter than a window gets a single one.

    Args:
        duration: of the video, in seconds.
        stride: seconds from one start to the next; None: a quarter of a window.
        window: length in seconds, for DATA.SAMPLING segments only (None: 4 s); else the model's clip is the window.

    Raises:
        UserError: a length that cannot be.
    """
    if cfg.DATA.SAMPLING == "clip":
        if window is not None:
            raise UserError("--window: this model sees clips of a fixed length (DATA.SAMPLING clip); leave it out")
        window = cfg.DATA.NUM_FRAMES * cfg.DATA.SAMPLING_RATE / cfg.DATA.TARGET_FPS
    elif window is None:
        window = SEGMENTS_WINDOW
    stride = window / 4 if stride is None else stride
    for name, value in (("--window", window), ("--stride", stride)):
        if not 0.01 <= value < float("inf"):
            raise UserError(f"{name} must be a number of seconds from 0.01 on, got {value}")
    last = max(duration - window, 0.0)
    starts = np.arange(0.0, last + 1e-6, stride)
    if last - starts[-1] > 1e-3:  # shorter than any frame: the last window lies there already
        starts = np.append(starts, last)
    return starts, window


def window_clips(reader: PyAVReader, times_WT: np.ndarray, transform: ClipTransform) -> Iterator[Tensor]:
    """Yield the clip (C, T, H, W) uint8 of each window; every picture is decoded and cropped once.

    Args:
        times_WT: seconds; the windows' starts and the times in each ascend.
        transform: frames (T, H, W, C) -> one clip.
    """
    indices_WT = shown_at(reader.times, times_WT)
    needed = np.unique(indices_WT)
    pictures = progress(reader.walk(reader.times[needed].tolist()), total=len(needed), label="reading", unit="frames")
    kept: dict[int, Tensor] = {}
    window = 0
    for index, picture in zip(needed.tolist(), pictures, strict=True):
        kept[index] = transform(torch.from_numpy(picture.copy())[None])[0]
        while window < len(indices_WT) and indices_WT[window, -1] <= index:
            yield torch.cat([kept[i] for i in indices_WT[window].tolist()], dim=1)
            window += 1
            first = indices_WT[window, 0] if window < len(indices_WT) else index + 1
            kept = {i: frame for i, frame in kept.items() if i >= first}


def read_timeline(
    predictor: Predictor,
    path: str | Path,
    *,
    stride: float | None = None,
    window: float | None = None,
    batch_size: int = 8,
    grid: Grid | None = None,
    timeout: float = math.inf,
) -> Timeline:
    """Let windows slide over a video and classify each; the centre crop, decoded by PyAV.

    Args:
        path: a video of any length.
        stride, window: see ``plan_windows``.
        batch_size: windows that the model sees at once.
        grid: of the compressed tokens; None: the model's default.
        timeout: seconds that opening the video, and all that follows, may take.

    Raises:
        DecodeError: the file cannot be read, or not in time; it is a ValueError that names file and reason.
        UserError: a stride or window that cannot be.
    """
    cfg = predictor.cfg
    size = cfg.DATA.TEST_CROP_SIZE
    transform = eval_transform(size, cfg.DATA.TEST_SHORT_SIDE or size, 1)
    with open_forward(path, cfg, timeout) as reader:
        end = monotonic() + timeout
        starts, window = plan_windows(cfg, reader.duration, stride, window)
        offsets_T = build_time_sampler(cfg, training=False, num_clips=1)(window)[0]
        clips = window_clips(reader, starts[:, None] + offsets_T, transform)
        rows = []
        while batch := list(islice(clips, batch_size)):
            if monotonic() > end:
                raise DecodeError(
                    str(path), f"a time line of its {reader.duration:.0f} s took longer than {timeout:g} s"
                )
            rows.append(predictor.predict_clips(torch.stack(batch), grid).numpy())
        return Timeline(str(path), reader.duration, window, starts, np.concatenate(rows), predictor.classes)


def open_forward(path: str | Path, cfg: CfgNode, timeout: float = math.inf) -> PyAVReader:
    """Open a video to be read once from its beginning to its end.

    Ten times DATA.DECODE_TIMEOUT are allowed for the opening, which reads the packets of all of it, and for a picture.

    Args:
        timeout: seconds, where that is less.
    """
    usual = 10 * cfg.DATA.DECODE_TIMEOUT or math.inf  # 0: no limit
    limit = min(usual, timeout)
    return PyAVReader(path, timeout=limit if limit < math.inf else 0.0, index_cache=cfg.DATA.INDEX_CACHE, threads=0)


def find_segments(
    timeline: Timeline, *, change_cost: float = CHANGE_COST, min_probability: float = 0.0
) -> list[Segment]:
    """Merge windows into stretches of one label.

    The labels are those that maximise the sum of the windows' log probabilities less ``change_cost`` for every change,
    where windows across a change, which may look like anything, do not count (Viterbi's algorithm). So a stretch is at
    least a window long, and its ends are those of windows.

    Args:
        change_cost: in natural logarithms; more gives fewer stretches. 0 suits scenes as short as a window, end to end,
            of which a single window each says anything.
        min_probability: stretches whose mean probability is lower are left out.
    """
    starts, window = timeline.starts, timeline.window
    before_W = np.searchsorted(starts, starts - window + 1e-6, side="right") - 1  # the last one that ends by then
    labels_W = _likeliest_labels(np.log(np.maximum(timeline.probabilities, _SMALLEST)), before_W, change_cost)
    inside = np.flatnonzero(labels_W >= 0)
    changes = np.flatnonzero(np.diff(labels_W[inside])) + 1
    found, start = [], 0.0
    for run, after in zip(np.split(inside, changes), [*inside[changes].tolist(), None], strict=True):
        end = timeline.duration if after is None else float(starts[run[-1]] + window + starts[after]) / 2
        label = int(labels_W[run[0]])
        probability = float(timeline.probabilities[run, label].mean())
        if probability >= min_probability:
            found.append(Segment(start, end, timeline.classes[label], probability))
        start = end
    return found


def _likeliest_labels(scores_WK: np.ndarray, before_W: np.ndarray, change_cost: float) -> np.ndarray:
    """Return the labels (W,) of the best path, -1 for windows that it leaves out.

    Args:
        before_W: the window that a path which takes a new label at a window comes from; -1: none.
    """
    best_WK = scores_WK.copy()
    from_WK = np.full(scores_WK.shape, -1, dtype=np.int32)  # the label before a change; -1: the path stays
    for row in range(1, len(scores_WK)):
        best_WK[row] += best_WK[row - 1]
        before = before_W[row]
        if before >= 0:
            leader = int(best_WK[before].argmax())
            changed_K = scores_WK[row] + best_WK[before, leader] - change_cost
            changes_K = changed_K > best_WK[row]
            from_WK[row, changes_K] = leader
            best_WK[row, changes_K] = changed_K[changes_K]
    labels_W = np.full(len(scores_WK), -1)
    row, label = len(scores_WK) - 1, int(best_WK[-1].argmax())
    while row >= 0:
        labels_W[row] = label
        leader = int(from_WK[row, label])
        row, label = (row - 1, label) if leader < 0 else (int(before_W[row]), leader)
    return labels_W


def leading_classes(timeline: Timeline, count: int) -> list[int]:
    """Return the labels that have the largest share of the whole video, largest first."""
    return np.argsort(-timeline.probabilities.mean(0), kind="stable")[:count].tolist()


def timeline_as_json(timeline: Timeline, segments: Sequence[Segment], topk: int = 5) -> dict[str, Any]:
    """Return what the JSON file holds: segments, and the likeliest classes of every window; times in seconds."""
    best_WK = np.argsort(-timeline.probabilities, axis=1, kind="stable")[:, :topk]
    windows = [
        {
            "start": round(float(start), 3),
            "end": round(min(float(start) + timeline.window, timeline.duration), 3),
            "classes": {timeline.classes[label]: round(float(row[label]), 4) for label in best},
        }
        for start, row, best in zip(timeline.starts, timeline.probabilities, best_WK, strict=True)
    ]
    return {
        "path": timeline.path,
        "duration": round(timeline.duration, 3),
        "window": round(timeline.window, 3),
        "segments": [
            {
                "start": round(segment.start, 3),
                "end": round(segment.end, 3),
                "label": segment.label,
                "probability": round(segment.probability, 4),
            }
            for segment in segments
        ],
        "windows": windows,
    }
