"""Labels that are settled one by one are those of all windows together."""

import numpy as np
import pytest

from lookupvit_video.inference.streaming.label_path import LabelPath


def windows(draw, count=120, classes=4, across=4):
    """Scores of windows of some scenes, and the last window before a change at each."""
    labels = np.repeat(draw.integers(classes, size=count // 10 + 1), 10)[:count]
    chances = draw.dirichlet([0.4] * classes, size=count)
    chances[np.arange(count), labels] += draw.uniform(0, 1.5, size=count)
    scores = np.log(chances / chances.sum(1, keepdims=True)).astype(np.float32).clip(-4.6)
    return scores, np.maximum(np.arange(count) - across, -1)


def at_once(scores, before, cost):
    path = LabelPath(cost)
    for row, last in zip(scores, before.tolist(), strict=True):
        path.add(row, last)
    return path.finish()


@pytest.mark.parametrize("cost", [0.0, 0.5, 2.0, 8.0])
def test_one_by_one_is_as_all_at_once(cost):
    draw = np.random.default_rng(3)
    for _ in range(10):
        scores, before = windows(draw, across=int(draw.integers(1, 6)))
        path, found, waits = LabelPath(cost, longest=500), [], []
        for row, last in zip(scores, before.tolist(), strict=True):
            path.add(row, last)
            found += path.settled()
            waits.append(len(path._best))
        assert found + path.finish() == at_once(scores, before, cost)
        assert np.median(waits) < 40


def test_what_never_settles_does_not_grow_without_end():
    path, found = LabelPath(1e9, longest=64), []
    rows = np.log(np.array([[0.5, 0.5], [0.4, 0.6]], np.float32))
    for number in range(1000):
        path.add(rows[number % 2], number - 4)
        found += path.settled()
        assert len(path._best) <= 64
    assert set(found) == {1}
    assert len(found + path.finish()) == 1000


def test_a_label_that_was_settled_stays():
    """After the bound was reached, the rest follows from the settled label."""
    path, found = LabelPath(1.0, longest=8), []
    rows = [np.array([-1.0, -1.0], np.float32)] * 20 + [np.array([-4.0, -0.1], np.float32)] * 20
    for number, row in enumerate(rows):
        path.add(row, number - 2)
        found += path.settled()
    found += path.finish()
    assert len(found) == 40
    assert found[:12] == [0] * 12
    assert found[-15:] == [1] * 15
    assert LabelPath(1.0).finish() == []
