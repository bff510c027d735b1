"""The interface of all readers of video files, whichever library decodes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Self, TypeVar

import numpy as np
import torch

from lookupvit_video.errors import UserError
from lookupvit_video.processes.waiting import seconds_without_processor

_Pixels = TypeVar("_Pixels", np.ndarray, torch.Tensor)
_TIME_TOLERANCE = 1e-6  # seconds: a time computed as index / fps may fall a rounding error short of the frame's own

PICTURE_DATA = "picture data"  # the decoder fails, complains, or marks frames corrupt
LOST_FRAMES = "lost frames"  # announced by the packets, not delivered by the decoder
PICTURE_SIZE = "picture size"  # changes midway, or contradicts the header
PIXEL_SHAPE = "pixel shape"
TIME_STAMPS = "time stamps"  # jump back: the frames have no one order
CONTAINER = "container"  # packets marked corrupt, a checksum that does not match, reading that stops midway
CUT = "cut short"  # the header announces more than the file holds


class DecodeError(UserError):
    """A video that cannot be read correctly, with its `path` and the `reason`."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)  # both in args: it must survive pickling, on its way out of a loader worker
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class Mismatch(Exception):
    """What the decoder delivers is not what the packets announced."""


class Damage(NamedTuple):
    """A kind of damage found in a file, with details."""

    kind: str
    detail: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}"


class DamageList(list[Damage]):
    """The damage of one file: the first find of each kind."""

    def note(self, kind: str, detail: str) -> None:
        """Add a kind of damage unless it is in the list."""
        if all(damage.kind != kind for damage in self):
            self.append(Damage(kind, detail))

    def __str__(self) -> str:
        return "; ".join(map(str, self))


@dataclass(frozen=True)
class VideoInfo:
    """What the file holds: pixels as displayed (upright and square), average rate in frames/s, duration in seconds."""

    codec: str
    width: int
    height: int
    fps: float
    duration: float
    num_frames: int


class Box(NamedTuple):
    """A part of a picture, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def cut(self, frames_THWC: _Pixels) -> _Pixels:
        """Look at this part of frames (..., H, W, C)."""
        rows, columns = slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)
        return frames_THWC[..., rows, columns, :]

    def seen_from(self, other: Box) -> Box:
        """The same part, in a picture that begins where the other one does."""
        return Box(self.top - other.top, self.left - other.left, self.height, self.width)

    @classmethod
    def around(cls, boxes: Iterable[Box]) -> Box:
        """The smallest box that holds some others."""
        tops, lefts, bottoms, rights = zip(
            *((box.top, box.left, box.top + box.height, box.left + box.width) for box in boxes), strict=True
        )
        return cls(min(tops), min(lefts), max(bottoms) - min(tops), max(rights) - min(lefts))


class VideoReader:
    """An open video, and a context manager that closes it; made by `open_video`.

    `times` holds the presentation times of its frames: float64 (N,), seconds, ascending, `times[0] == 0.0`. These are
    the packets' times until a decode contradicts them (a damaged file); `times` and what follows from them then become
    what is decoded. `duration` is the time at which the last frame ends, in seconds.
    """

    times: np.ndarray
    duration: float
    remark: str | None = None
    """What the file requires and is not done, such as a turn by 45 degrees; known once a frame was decoded."""
    interlaced: bool = False
    """Whether a frame handed out by PyAV so far holds two fields; they are not taken apart."""

    @property
    def info(self) -> VideoInfo:
        """What the file holds; the first access may decode a frame.

        Raises:
            DecodeError: that frame cannot be decoded.
        """
        raise NotImplementedError

    def frames_at(self, seconds: Sequence[float], window: Callable[[int, int], Box] | None = None) -> torch.Tensor:
        """Frames shown at times in seconds, in any order, with repeats: uint8 (T, H, W, C), RGB, upright.

        The frame shown at t is the last one with time <= t; before the first frame the first, after the end the last.

        Args:
            window: called once with the frames' height and width; returns the part that is wanted. None: all of it.

        Raises:
            UserError: a time is not finite, or the reader is closed.
            DecodeError: the file does not deliver its frames, or not in the time allowed.
        """
        raise NotImplementedError

    @property
    def damage(self) -> Sequence[Damage]:
        """What is known to be damaged so far: a frame is inspected when it is decoded. Empty: nothing.

        Once a frame shows damage, the complete file is decoded; from then on this is complete, and each time gives
        the same picture at every read.
        """
        return ()

    def look_at_all(self) -> None:
        """Decode the complete file once, so that `damage` holds all that can be noticed.

        Raises:
            DecodeError: no frame can be decoded, or not in the time allowed.
        """

    def close(self) -> None:
        """Release the file; closing twice is harmless."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Deadline:
    """The time that one call of a reader may take; `seconds` 0: no limit.

    Time in which other processes had the processor and this thread was waiting for it does not count.
    """

    def __init__(self, path: str, seconds: float) -> None:
        self.path, self.seconds = path, seconds
        self.restart()

    def restart(self) -> None:
        """Count from now."""
        now = time.monotonic()
        self._end = now + self.seconds if self.seconds else math.inf
        self._look = now + min(1.0, self.seconds / 10) if self.seconds else math.inf  # short calls need no system call
        self._waited: float | None = None  # without a processor, up to that look

    def check(self) -> None:
        """Raise DecodeError once the time is over."""
        now = time.monotonic()
        if now <= self._look:
            return
        if self._waited is None:
            self._waited, self._look = seconds_without_processor() or 0.0, self._end
        if now <= self._end:
            return
        waited = seconds_without_processor() or 0.0
        self._end += waited - self._waited
        self._waited, self._look = waited, self._end
        if time.monotonic() > self._end:
            raise DecodeError(self.path, f"took longer than {self.seconds:g} s to decode (DATA.DECODE_TIMEOUT)")


def checked_times(path: str, seconds: Sequence[float]) -> np.ndarray:
    """Times as float64 (T,), or UserError where one is not finite."""
    at = np.asarray(seconds, dtype=np.float64).reshape(-1)
    if not np.isfinite(at).all():
        raise UserError(f"{path}: a time is not finite: {at[~np.isfinite(at)][0]}")
    return at


def shown_at(times: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Indices of the frames shown at some times."""
    return np.maximum(np.searchsorted(times, at + _TIME_TOLERANCE, side="right") - 1, 0)
