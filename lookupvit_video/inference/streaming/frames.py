"""Frames on their way from a source to the model: which are needed, how many wait, and the windows made of them.

Shape letters: C channels, T frames of a window, H W pixels.
"""

import threading
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

TOLERANCE = 1e-6  # seconds, as decoding/reader.py
CUT, DROPPED = "cut", "dropped"


@dataclass
class Frame:
    """A cropped frame."""

    start: float
    """Seconds of the source, from which on it is shown."""
    end: float
    """Seconds up to which it is shown."""
    arrived: float
    """By ``time.monotonic``, when it was decoded."""
    pixels: Tensor
    """(C, 1, H, W) uint8"""
    gap: str = ""
    """Why frames before it are missing: ``CUT`` (the source was interrupted), ``DROPPED`` (the model was busy)."""


class Window(NamedTuple):
    """A clip that is ready for the model."""

    start: float
    """Seconds of the source."""
    clip: Tensor
    """(C, T, H, W) uint8"""
    arrived: float
    """When its last frame was decoded."""
    after_cut: bool
    """Whether the source was interrupted since the window before."""


class WindowGrid:
    """Where windows start, and which frames they show: the same as in ``plan_windows`` for a file.

    Args:
        stride: seconds from one start to the next.
        offsets_T: seconds of the frames of a window from its start on.
    """

    def __init__(self, stride: float, offsets_T: np.ndarray):
        self.stride, self._offsets_T = stride, offsets_T

    def times(self, number: int) -> np.ndarray:
        """Return the seconds (T,) of the frames of a window."""
        times_T: np.ndarray = number * self.stride + self._offsets_T
        return times_T

    def needs(self, start: float, end: float) -> bool:
        """Return whether some window shows the frame that is shown from ``start`` to ``end``, in seconds."""
        first_T = np.maximum(np.ceil((start - TOLERANCE - self._offsets_T) / self.stride - 1e-9), 0)
        return bool((first_T * self.stride + self._offsets_T + TOLERANCE < end).any())

    def first_after(self, seconds: float) -> int:
        """Return the number of the first window that starts at a time or later."""
        return max(int(np.ceil((seconds - TOLERANCE) / self.stride - 1e-9)), 0)


class WindowBuilder:
    """Makes windows of the frames of one source; it keeps the frames of one window."""

    def __init__(self, grid: WindowGrid):
        self._grid, self._frames, self._next = grid, deque[Frame](), 0
        self._after_cut, self._count = False, 0

    def add(self, frame: Frame) -> list[Window]:
        """Take in the next frame that is needed; return the windows that it completes.

        Windows that would show frames from before and after a gap are left out.
        """
        if frame.gap:
            self._frames.clear()
            self._next = max(self._next, self._grid.first_after(frame.start))
            self._after_cut |= frame.gap == CUT
        self._frames.append(frame)
        found = []
        while (times_T := self._grid.times(self._next))[-1] + TOLERANCE < frame.end:
            found.append(self._window(times_T))
            self._next += 1
            first = self._grid.times(self._next)[0] + TOLERANCE
            while len(self._frames) > 1 and self._frames[1].start <= first:
                self._frames.popleft()
        return found

    def finish(self) -> list[Window]:
        """At the end of a source that was shorter than a window, return one that repeats the last frame."""
        return [self._window(self._grid.times(0))] if self._frames and not self._count else []

    def _window(self, times_T: np.ndarray) -> Window:
        starts = np.array([frame.start for frame in self._frames])
        shown_T = np.maximum(np.searchsorted(starts, times_T + TOLERANCE, side="right") - 1, 0)
        clip = torch.cat([self._frames[index].pixels for index in shown_T.tolist()], dim=1)
        cut, self._after_cut = self._after_cut, False
        self._count += 1
        return Window(float(times_T[0]), clip, self._frames[shown_T[-1]].arrived, cut)


class FrameQueue:
    """Frames that wait for the model.

    Args:
        seconds: of the source, between the oldest and the newest frame.
        ready: is notified of every frame; several queues may share it.
        drops: whether the oldest frames make room for new ones; else ``put`` waits.
    """

    def __init__(self, seconds: float, ready: threading.Condition, drops: bool):
        self.dropped = 0
        """Frames that made room."""
        self.is_closed = False
        self._seconds, self._ready, self._drops = seconds, ready, drops
        self._frames: deque[Frame] = deque()

    def put(self, frame: Frame, stop: threading.Event) -> None:
        """Add a frame; where the queue does not drop, wait for room or for ``stop``."""
        with self._ready:
            while not self._drops and self._is_full(frame) and not stop.is_set():
                self._ready.wait(0.2)
            while self._drops and self._is_full(frame):
                gap = CUT if CUT in (self._frames.popleft().gap, self._follower(frame).gap) else DROPPED
                self._follower(frame).gap = gap
                self.dropped += 1
            self._frames.append(frame)
            self._ready.notify_all()

    def _follower(self, frame: Frame) -> Frame:
        return self._frames[0] if self._frames else frame

    def _is_full(self, frame: Frame) -> bool:
        return bool(self._frames) and frame.start - self._frames[0].start > self._seconds

    def take(self) -> list[Frame]:
        """Return all frames that wait."""
        with self._ready:
            frames = list(self._frames)
            self._frames.clear()
            self._ready.notify_all()
        return frames

    def close(self) -> None:
        """Say that no further frame comes."""
        with self._ready:
            self.is_closed = True
            self._ready.notify_all()

    @property
    def has_news(self) -> bool:
        """Whether ``take`` would return something, or never will."""
        return bool(self._frames) or self.is_closed
