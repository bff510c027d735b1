"""Frames and windows of a live source: the same pixels as the windows of a file, and gaps that are not hidden."""

import threading

import numpy as np
import pytest
import torch

from lookupvit_video.inference.streaming.frames import CUT, DROPPED, Frame, FrameQueue, WindowBuilder, WindowGrid

OFFSETS = np.arange(4) * 0.25


def frame(start, end, gap=""):
    return Frame(start, end, start, torch.full((3, 1, 2, 2), round(start * 100) % 251, dtype=torch.uint8), gap)


def shown(times, at):
    return np.maximum(np.searchsorted(times, at + 1e-6, side="right") - 1, 0)


@pytest.mark.parametrize("stride", [0.1, 0.25, 0.4, 3.0])
def test_windows_show_the_frames_of_their_times(stride):
    draw = np.random.default_rng(1)
    times = np.cumsum(np.concatenate([[0], draw.choice([0.02, 0.04, 0.05, 0.3], size=200)]))
    grid = WindowGrid(stride, OFFSETS)
    builder, found, needed = WindowBuilder(grid), [], 0
    for start, end in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
        if grid.needs(start, end):
            needed += 1
            found += builder.add(frame(start, end))
    expected = np.arange(0, times[-1] - OFFSETS[-1] - 1e-6, stride)
    assert [window.start for window in found] == pytest.approx(expected[: len(found)].tolist())
    assert len(found) >= len(expected) - 1
    all_times = np.concatenate([window.start + OFFSETS for window in found])
    assert (
        needed <= len(np.unique(shown(times, np.concatenate([all_times, all_times[-1] + np.arange(9) * stride])))) + 4
    )
    for window in found:
        indices = shown(times, window.start + OFFSETS)
        assert window.clip[0, :, 0, 0].tolist() == [round(times[i] * 100) % 251 for i in indices]
        assert window.arrived == times[indices[-1]]


def test_windows_across_a_gap_are_left_out():
    builder = WindowBuilder(WindowGrid(0.25, OFFSETS))
    found = [w.start for i in range(8) for w in builder.add(frame(i * 0.25, i * 0.25 + 0.25))]
    assert found == [0, 0.25, 0.5, 0.75, 1.0]
    later = [w for i in range(12, 20) for w in builder.add(frame(i * 0.25, i * 0.25 + 0.25, CUT if i == 12 else ""))]
    assert [(window.start, window.after_cut) for window in later[:2]] == [(3.0, True), (3.25, False)]
    dropped = [w for i in range(30, 36) for w in builder.add(frame(i * 0.25, i * 0.25 + 0.25, DROPPED * (i == 30)))]
    assert [(window.start, window.after_cut) for window in dropped[:1]] == [(7.5, False)]
    assert builder.finish() == []


def test_what_is_shorter_than_a_window_repeats_its_last_frame():
    builder = WindowBuilder(WindowGrid(0.25, OFFSETS))
    assert builder.finish() == []
    assert builder.add(frame(0, 0.25)) + builder.add(frame(0.25, 0.5)) == []
    (window,) = builder.finish()
    assert window.clip[0, :, 0, 0].tolist() == [0, 25, 25, 25]


def test_a_queue_drops_the_oldest_and_says_so():
    queue, stop = FrameQueue(1.0, threading.Condition(), drops=True), threading.Event()
    for number in range(10):
        queue.put(frame(number * 0.25, number * 0.25 + 0.25, CUT if number == 2 else ""), stop)
    assert queue.dropped == 5
    frames = queue.take()
    assert [(item.start, item.gap) for item in frames[:2]] == [(1.25, CUT), (1.5, "")]
    for number in range(10, 30):
        queue.put(frame(number * 0.25, number * 0.25 + 0.25), stop)
    assert [item.gap for item in queue.take()] == [DROPPED, "", "", "", ""]
    assert queue.dropped == 20
    assert not queue.has_news
    queue.close()
    assert queue.has_news


def test_a_queue_that_does_not_drop_waits():
    queue, stop = FrameQueue(0.5, threading.Condition(), drops=False), threading.Event()
    thread = threading.Thread(target=lambda: [queue.put(frame(i * 0.25, i * 0.25 + 0.25), stop) for i in range(20)])
    thread.start()
    found = []
    while thread.is_alive() or queue.has_news:
        part = queue.take()
        assert len(part) <= 3
        found += part
    thread.join()
    assert [item.start for item in found] == [i * 0.25 for i in range(20)]
    assert queue.dropped == 0
    stop.set()  # ends who waits
    for i in range(20):
        queue.put(frame(i, i + 1), stop)
