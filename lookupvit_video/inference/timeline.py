"""A long video -> which class when: a window slides over it while it is decoded once, forward, at constant memory.

Memory holds the cropped frames of one window. What grows with the video are a time and a row of probabilities for each
window, and the packets' time stamps.

Shape letters: W windows, C channels, T frames of a window, H W pixels, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lookupvit_video.data.transforms import ClipTransform, eval_transform
from lookupvit_video.decoding.pyav_reader import PyAVReader
from lookupvit_video.decoding.reader import DecodeError, shown_at
from lookupvit_video.errors import UserError
from lookupvit_video.inference.budget import Grid
from lookupvit_video.inference.predictor import Predictor
from lookupvit_video.inference.streaming.label_path import LabelPath
from lookupvit_video.inference.views import Plan
from lookupvit_video.progress import progress

SEGMENTS_WINDOW = 4.0  # seconds, for older checkpoints of DATA.SAMPLING segments
CHANGE_COST = 2.0  # natural logarithm: seven times as likely; see find_segments
SMALLEST = 0.01  # probability: no single window may rule a class out


@dataclass(frozen=True)
class Timeline:
    """A model's answers to each window of a video."""

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
    thresholds: Sequence[float] = ()
    """(K,), where a window may have several labels; empty: it has one."""
    apart: float = 0.0
    """Least seconds between the starts of two windows with a change of label between them; 0: a window."""

    @property
    def centers(self) -> np.ndarray:
        """(W,) seconds: the middle of each window."""
        return np.minimum(self.starts + self.window / 2, self.duration)

    @property
    def borders(self) -> np.ndarray:
        """(W + 1,) seconds: between borders i and i + 1, window i is the nearest."""
        centers = self.centers
        return np.concatenate([[0.0], (centers[1:] + centers[:-1]) / 2, [self.duration]])

    def at(self, seconds: float) -> int:
        """Return the window whose center is nearest to a time."""
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


def plan_windows(plan: Plan, duration: float, stride: float | None, window: float | None) -> tuple[np.ndarray, float]:
    """Return the starts (W,) of the windows over a video, and their length, in seconds.

    Windows lie inside the video, the last one at its end; a video shorter than a window has one.

    Args:
        plan: of the model.
        duration: of the video, in seconds.
        stride: seconds from one start to the next; None: see ``default_stride``.
        window: length in seconds, for DATA.SAMPLING segments only; None: what the model was trained on, its clip or
            its usual training video (4 s where the checkpoint does not know).

    Raises:
        UserError: a stride or window out of range.
    """
    if window is None:
        window = plan.clip_seconds or plan.video_seconds or SEGMENTS_WINDOW
    elif plan.clip_seconds is not None:
        raise UserError("--window: this model sees clips of a fixed length (DATA.SAMPLING clip); leave it out")
    if plan.is_step and stride is not None:
        raise UserError(f"--stride: this model answers after each of its tubelets, every {window:.4g} s; leave it out")
    stride = default_stride(plan, window) if stride is None else stride
    for name, value in (("--window", window), ("--stride", stride)):
        if not 0.01 <= value < float("inf"):
            raise UserError(f"{name} must be a number of seconds from 0.01 on, got {value}")
    last = max(duration - window, 0.0)
    starts = np.arange(0.0, last + 1e-6, stride)
    if last - starts[-1] > 1e-3 and not plan.is_step:  # less than any frame's duration: there is a window already
        starts = np.append(starts, last)
    return starts, window


def default_stride(plan: Plan, window: float) -> float:
    """Return the seconds from one window to the next: a quarter of a window; tubelets follow one another."""
    return window if plan.is_step else window / 4


def apart(plan: Plan, window: float) -> float:
    """Return the least seconds between the starts of two windows with a change of label between them.

    That is a window, since those across a change do not count. A change may fall inside a tubelet, which is then left
    out: two tubelets.
    """
    return 2 * window if plan.is_step else window


def window_clips(reader: PyAVReader, times_WT: np.ndarray, transform: ClipTransform) -> Iterator[Tensor]:
    """Yield the clip (C, T, H, W) uint8 of each window; every frame is decoded and cropped once.

    Args:
        times_WT: seconds, ascending from window to window and in each.
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
    """Slide a window over a video and classify each; the center crop, decoded by PyAV.

    Args:
        path: a video of any length.
        stride, window: see ``plan_windows``.
        batch_size: windows in one pass of the model; a streaming one takes its tubelets one by one.
        grid: of the compressed tokens; None: the model's default.
        timeout: seconds for opening the video, and again for the rest.

    Raises:
        DecodeError: the file cannot be read, or not in time.
        UserError: a stride or window out of range.
    """
    with open_windows(path, predictor.window_plan, stride, window, timeout) as found:
        end = monotonic() + timeout
        rows, state = [], None
        while batch := list(islice(found.clips, 1 if predictor.is_streaming else batch_size)):
            if monotonic() > end:
                raise DecodeError(str(path), f"a timeline of {found.duration:.0f} s took longer than {timeout:g} s")
            if predictor.is_streaming:
                answers, state = predictor.predict_step(torch.stack(batch), state)
            else:
                answers = predictor.predict_clips(torch.stack(batch), grid)
            rows.append(answers.numpy())
        return Timeline(str(path), found.duration, found.window, found.starts, np.concatenate(rows), predictor.classes,
                        predictor.thresholds, apart(predictor.window_plan, found.window))  # fmt: skip


@dataclass(frozen=True)
class Windows:
    """The windows over an open video."""

    duration: float
    """Of the video, in seconds."""
    window: float
    """Length of a window, in seconds."""
    starts: np.ndarray
    """(W,) seconds, ascending."""
    times: np.ndarray
    """(W, T) seconds of the frames."""
    clips: Iterator[Tensor]
    """(C, T, H, W) uint8 each: the center crop."""


@contextmanager
def open_windows(
    path: str | Path, plan: Plan, stride: float | None, window: float | None, timeout: float = math.inf
) -> Iterator[Windows]:
    """Open a video and read its windows one by one; see ``read_timeline``."""
    transform = eval_transform(plan.size, plan.short_side, 1)
    with open_forward(path, plan, timeout) as reader:
        starts, window = plan_windows(plan, reader.duration, stride, window)
        times_WT = starts[:, None] + window_offsets(plan, window)
        yield Windows(reader.duration, window, starts, times_WT, window_clips(reader, times_WT, transform))


def window_offsets(plan: Plan, window: float) -> np.ndarray:
    """Return the seconds (T,) of the frames of a window from its start on."""
    offsets_T: np.ndarray = replace(plan.times, num_clips=1)(window)[0]
    return offsets_T


def open_forward(path: str | Path, plan: Plan, timeout: float = math.inf) -> PyAVReader:
    """Open a video to be read once from its beginning to its end.

    Opening, which reads all packets, and each picture may take ten times the plan's timeout.

    Args:
        timeout: seconds, where that is less.
    """
    limit = min(10 * plan.timeout or math.inf, timeout)  # 0: no limit
    return PyAVReader(path, timeout=limit if limit < math.inf else 0.0, index_cache=plan.index_cache, threads=0)


def find_segments(
    timeline: Timeline, *, change_cost: float = CHANGE_COST, min_probability: float = 0.0
) -> list[Segment]:
    """Merge windows into stretches of one label; of several labels, see ``_present``.

    The labels maximize the sum of the windows' log probabilities minus ``change_cost`` for every change (Viterbi's
    algorithm). Windows across a change do not count, since they mix both sides. So a stretch is at least a window long,
    and its ends are those of windows.

    Args:
        change_cost: in natural logarithms; a larger one gives fewer stretches. 0 suits scenes as short as a window, end
            to end, of which only one window each shows a single scene.
        min_probability: leave out stretches of a lower mean probability.
    """
    if timeline.thresholds:
        return [segment for segment in _present(timeline) if segment.probability >= min_probability]
    starts, window = timeline.starts, timeline.window
    before_W = np.searchsorted(starts, starts - (timeline.apart or window) + 1e-6, side="right") - 1
    labels_W = _likeliest_labels(np.log(np.maximum(timeline.probabilities, SMALLEST)), before_W, change_cost)
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


def _present(timeline: Timeline) -> list[Segment]:
    """Return the stretches, in order of time, in which the windows' probability of a class is above its threshold.

    Those of different classes overlap. A window counts for the time that is nearest to its center.
    """
    borders, found = timeline.borders, []
    for label, cut in enumerate(timeline.thresholds):
        there_W = np.concatenate([[False], timeline.probabilities[:, label] >= cut, [False]])
        for first, after in np.flatnonzero(np.diff(there_W.astype(int))).reshape(-1, 2).tolist():
            mean = float(timeline.probabilities[first:after, label].mean())
            found.append(Segment(float(borders[first]), float(borders[after]), timeline.classes[label], mean))
    return sorted(found, key=lambda segment: segment.start)


def _likeliest_labels(scores_WK: np.ndarray, before_W: np.ndarray, change_cost: float) -> np.ndarray:
    """Return the labels (W,) of the best path, -1 for windows that it leaves out.

    Args:
        before_W: for each window, the last one before a change of label there; -1: none.
    """
    path = LabelPath(change_cost)
    for scores_K, before in zip(scores_WK, before_W.tolist(), strict=True):
        path.add(scores_K, before)
    return np.array(path.finish())


def leading_classes(timeline: Timeline, count: int) -> list[int]:
    """Return the labels of the largest mean probability over a video, largest first."""
    labels: list[int] = np.argsort(-timeline.probabilities.mean(0), kind="stable")[:count].tolist()
    return labels


def timeline_as_json(timeline: Timeline, segments: Sequence[Segment], topk: int = 5) -> dict[str, Any]:
    """Return segments and the likeliest classes of every window, ready for JSON; times in seconds."""
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
                "start": round(s.start, 3),
                "end": round(s.end, 3),
                "label": s.label,
                "probability": round(s.probability, 4),
            }
            for s in segments
        ],
        "windows": windows,
    }
