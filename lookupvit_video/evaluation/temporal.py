"""Found segments of untrimmed videos against labelled ones: mAP at temporal IoU, segment F1, false alarms an hour."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)


class Labelled(NamedTuple):
    """A stretch of a video with a class."""

    video: str
    label: str
    start: float
    """Seconds."""
    end: float
    """Seconds."""
    score: float = 1.0
    """Of a found one."""


def temporal_iou(one: Labelled, others: Sequence[Labelled]) -> np.ndarray:
    """Return intersection over union (N,) of one segment and N others, in time."""
    starts, ends = np.array([(each.start, each.end) for each in others]).T
    shared = (np.minimum(ends, one.end) - np.maximum(starts, one.start)).clip(0)
    found: np.ndarray = shared / (ends - starts + one.end - one.start - shared)
    return found


def _matches(found: Iterable[Labelled], true: Sequence[Labelled], threshold: float) -> list[bool]:
    """Return for each found segment of a class, best first, whether it is the first to match some true one.

    It takes the true one of the largest IoU that no better one has, if that IoU is large enough.
    """
    of_video = defaultdict(list)
    for each in true:
        of_video[each.video].append(each)
    taken: dict[str, set[int]] = defaultdict(set)
    right = []
    for each in found:
        others = of_video[each.video]
        iou = temporal_iou(each, others) if others else np.empty(0)
        order = [int(i) for i in np.argsort(-iou, kind="stable") if iou[i] >= threshold]
        free = next((i for i in order if i not in taken[each.video]), None)
        right.append(free is not None)
        if free is not None:
            taken[each.video].add(free)
    return right


def average_precision(found: Iterable[Labelled], true: Sequence[Labelled], threshold: float) -> float:
    """Return the interpolated average precision of one class, 0 to 1.

    ActivityNet's definition (Heilbron et al., CVPR 2015; the evaluation code of the challenge): segments in the order
    of their scores; a true one counts once; precision at a recall is the best at that recall or a higher one.
    """
    ranked = sorted(found, key=lambda each: -each.score)
    hits = np.cumsum(_matches(ranked, true, threshold))
    if not len(hits):
        return 0.0
    recall, precision = hits / len(true), hits / np.arange(1, len(hits) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall, prepend=0.0) * best).sum())


def segment_f1(found: Sequence[Labelled], true: Sequence[Labelled], threshold: float = 0.5) -> float:
    """Return the segmental F1, 0 to 1 (Lea et al., CVPR 2017): all classes together, each true segment counts once."""
    hits = 0
    for label in {each.label for each in found}:
        its = sorted((each for each in found if each.label == label), key=lambda each: -each.score)
        hits += sum(_matches(its, [each for each in true if each.label == label], threshold))
    return 2 * hits / max(1, len(found) + len(true))


def false_alarms(found: Sequence[Labelled], true: Sequence[Labelled]) -> int:
    """Return how many found segments share no moment with a true one of their class."""
    alarms = 0
    for each in found:
        others = [other for other in true if (other.video, other.label) == (each.video, each.label)]
        alarms += not others or not temporal_iou(each, others).any()
    return alarms


def temporal_metrics(found: Sequence[Labelled], true: Sequence[Labelled], hours: float) -> dict[str, Any]:
    """Return mAP at each threshold and their mean, F1 at 0.5, in percent, and false alarms an hour.

    Args:
        hours: length of all videos.
    """
    labels = sorted({each.label for each in true})
    maps = {}
    for threshold in THRESHOLDS:
        of_class = [
            average_precision([f for f in found if f.label == label], [t for t in true if t.label == label], threshold)
            for label in labels
        ]
        maps[f"map_{threshold:g}"] = round(100 * float(np.mean(of_class)), 2) if labels else float("nan")
    return {
        **maps,
        "map": round(float(np.mean(list(maps.values()))), 2),
        "segment_f1": round(100 * segment_f1(found, true), 2),
        "false_alarms_an_hour": round(false_alarms(found, true) / hours, 2),
        "found": len(found),
        "true": len(true),
    }


def hard_windows(
    starts: np.ndarray, ends: np.ndarray, wrong: np.ndarray, spans: Sequence[tuple[float, float]], count: int
) -> list[int]:
    """Return the windows outside of all labelled spans of which a model is most wrongly sure; no two of them overlap.

    Args:
        starts, ends: (W,) seconds of each window.
        wrong: (W,) probability that something is there.
        spans: labelled seconds.
    """
    chosen: list[int] = []
    busy = list(spans)
    for index in np.argsort(-wrong, kind="stable").tolist():
        if len(chosen) < count and all(ends[index] <= start or starts[index] >= end for start, end in busy):
            chosen.append(index)
            busy.append((float(starts[index]), float(ends[index])))
    return chosen
