"""A video of what a live source showed, with the answer that was known at the time."""

import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from lookupvit_video.inference.annotate import (
    SMALLEST_WIDTH,
    AnswerPanel,
    VideoWriter,
    as_clock,
    check_video_name,
    open_writer,
)

_SHORTEST = 1e-3  # seconds from one written frame to the next


class _Open(NamedTuple):
    writer: VideoWriter
    panel: AnswerPanel
    factor: int
    """By which narrow pictures are enlarged."""
    size: tuple[int, int]
    """Width and height of the first picture, which later ones of another size are fitted to."""


class Recorder:
    """Writes frames with the latest answer below them, as H.264; the file appears when it is closed.

    The thread that decodes adds frames; another one says the answers, and may close it while frames still come.

    Raises:
        UserError: a suffix that names no container for H.264.
    """

    def __init__(self, path: str | Path, classes: Sequence[str]):
        check_video_name(path)
        self._path, self._classes = path, classes
        self._answer: tuple[int, float] | None = None
        self._file, self._is_closed, self._lock = ExitStack(), False, threading.Lock()
        self._open: _Open | None = None
        self._last = -1.0

    def answer(self, number: int, probability: float) -> None:
        """Show a class from the next frame on."""
        self._answer = number, probability

    def add(self, picture_HWC: np.ndarray, seconds: float, fps: float) -> None:
        """Write a frame (H, W, 3) uint8 RGB, shown from ``seconds`` of the source on.

        Args:
            fps: of the source, for the header.
        """
        with self._lock:
            if not self._is_closed and seconds - self._last >= _SHORTEST:
                self._last = seconds
                self._write(picture_HWC, seconds, fps)

    def _write(self, picture_HWC: np.ndarray, seconds: float, fps: float) -> None:
        height, width = picture_HWC.shape[:2]
        now = self._open or self._start(width, height, fps)
        if (width, height) != now.size:
            picture_HWC = np.asarray(Image.fromarray(picture_HWC).resize(now.size))
        picture_HWC = picture_HWC.repeat(now.factor, 0).repeat(now.factor, 1)
        panel = now.panel.draw_answer(*(self._answer or (None,)))
        now.panel.draw_clock(panel, as_clock(seconds))
        now.writer.write(np.concatenate([picture_HWC, np.asarray(panel)]), seconds)

    def _start(self, width: int, height: int, fps: float) -> _Open:
        factor = -(-SMALLEST_WIDTH // width)
        panel = AnswerPanel(self._classes, width * factor)
        size = {"width": panel.width, "height": height * factor + panel.height}
        writer = self._file.enter_context(open_writer(self._path, **size, fps=fps))
        self._open = _Open(writer, panel, factor, (width, height))
        return self._open

    def close(self) -> None:
        """Finish the file; without a frame there is none."""
        with self._lock:
            self._is_closed = True
            self._file.close()
