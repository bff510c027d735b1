"""Metrics of segments in time, compared with ActivityNet's definition written out on its own."""

import random

import numpy as np
import pytest

from lookupvit_video.evaluation.temporal import (
    THRESHOLDS,
    Labelled,
    average_precision,
    false_alarms,
    hard_windows,
    segment_f1,
    temporal_iou,
    temporal_metrics,
)


def plain_average_precision(found, true, threshold):
    """ActivityNet's definition, step by step: no arrays, no shared code."""
    ranked = sorted(range(len(found)), key=lambda i: -found[i].score)
    locked, flags = {}, []
    for i in ranked:
        best = []
        for j, t in enumerate(true):
            if t.video == found[i].video:
                shared = max(0.0, min(t.end, found[i].end) - max(t.start, found[i].start))
                union = (t.end - t.start) + (found[i].end - found[i].start) - shared
                best.append((shared / union, j))
        best.sort(key=lambda pair: -pair[0])
        hit = False
        for iou, j in best:
            if iou < threshold:
                break
            if j in locked:
                continue
            locked[j], hit = i, True
            break
        flags.append(hit)
    precisions, recalls, right = [], [], 0
    for count, hit in enumerate(flags, start=1):
        right += hit
        precisions.append(right / count)
        recalls.append(right / len(true))
    mpre, mrec = [0.0, *precisions, 0.0], [0.0, *recalls, 1.0]
    for i in range(len(mpre) - 2, -1, -1):
        mpre[i] = max(mpre[i], mpre[i + 1])
    return sum((mrec[i] - mrec[i - 1]) * mpre[i] for i in range(1, len(mrec)) if mrec[i] != mrec[i - 1])


def problem(seed):
    """Some true segments, and found ones near to them, twice, or anywhere."""
    draw = random.Random(seed)
    true, found = [], []
    for video in "abc"[: draw.randint(1, 3)]:
        for label in "xyz"[: draw.randint(1, 3)]:
            for _ in range(draw.randint(0, 5)):
                start = draw.uniform(0, 100)
                true.append(Labelled(video, label, start, start + draw.uniform(1, 20)))
                for _ in range(draw.randint(0, 3)):
                    low, high = start + draw.gauss(0, 2), true[-1].end + draw.gauss(0, 2)
                    found.append(Labelled(video, label, min(low, high - 0.1), high, draw.random()))
            for _ in range(draw.randint(0, 4)):
                start = draw.uniform(0, 100)
                found.append(Labelled(video, label, start, start + draw.uniform(1, 30), draw.random()))
    return found, true


@pytest.mark.parametrize("seed", range(50))
def test_average_precision_is_activitynets(seed):
    found, true = problem(seed)
    labels = sorted({t.label for t in true})
    metrics = temporal_metrics(found, true, 1.0)
    for threshold in THRESHOLDS:
        plain = [
            plain_average_precision([f for f in found if f.label == n], [t for t in true if t.label == n], threshold)
            for n in labels
        ]
        ours = [
            average_precision([f for f in found if f.label == n], [t for t in true if t.label == n], threshold)
            for n in labels
        ]
        assert ours == pytest.approx(plain, abs=1e-12)
        if labels:
            assert metrics[f"map_{threshold:g}"] == pytest.approx(100 * sum(plain) / len(plain), abs=0.006)


TRUE = [Labelled("a", "x", 0, 10), Labelled("a", "x", 20, 30), Labelled("a", "y", 40, 50)]


def test_iou():
    assert temporal_iou(Labelled("a", "x", 5, 15), TRUE).tolist() == pytest.approx([5 / 15, 0, 0])


def test_f1_counts_each_true_segment_once():
    found = [Labelled("a", "x", 0, 9, 0.9), Labelled("a", "x", 1, 10, 0.8), Labelled("a", "y", 20, 30, 0.7)]
    assert segment_f1(found, TRUE) == pytest.approx(2 * 1 / 6)
    assert segment_f1(TRUE, TRUE) == 1.0


def test_false_alarms_are_where_nothing_of_the_class_is():
    found = [Labelled("a", "x", 9, 12), Labelled("a", "y", 0, 10), Labelled("b", "x", 0, 10), Labelled("a", "z", 0, 1)]
    assert false_alarms(found, TRUE) == 3
    assert temporal_metrics(found, TRUE, 0.5)["false_alarms_an_hour"] == 6.0


def test_hard_windows_touch_no_span_and_not_one_another():
    starts = np.arange(0, 10, 0.5)
    wrong = np.where(starts == 3.0, 0.9, np.where(starts == 3.5, 0.8, np.where(starts == 6.0, 0.7, 0.1)))
    chosen = hard_windows(starts, starts + 1, wrong, [(6.5, 8)], 3)
    assert starts[chosen].tolist() == [3.0, 0.0, 1.0]  # 3.5 overlaps 3.0, and 6.0 the span
