"""What a tool calls a moment of a video, and which of the file's own frames that is.

A span of a list lasts from the time stamp of its first frame up to, and without, that of the first frame after it.
Tools count frames from 0 or 1, name the last frame or the one after it, or count what a constant rate would show;
others write seconds, rounded, from the beginning of the file or of its first picture.
"""

from dataclasses import dataclass
from typing import NamedTuple

import av
import numpy as np

from lookupvit_video.decoding.opening import ANY_TAGS, SAFE
from lookupvit_video.decoding.pyav_reader import PyAVReader
from lookupvit_video.decoding.reader import shown_at
from lookupvit_video.errors import UserError

_ROUNDED = 0.0005  # seconds: a time this near to a frame's means that frame
_ORIGINS = ("first-frame", "file")


class Mark(NamedTuple):
    """A label as a tool has it: numbers in the tool's own unit, None for the complete video."""

    video: str
    """The video's name, as the tool has it."""
    label: str
    start: float | None = None
    end: float | None = None
    score: float | None = None
    """Of a prediction."""


class Span(NamedTuple):
    """A label as a list has it: seconds, None for the beginning and the end of the file."""

    path: str
    label: str
    start: float | None = None
    end: float | None = None
    score: float | None = None


@dataclass(frozen=True)
class Convention:
    """How a tool counts."""

    unit: str
    """"frames" or "seconds"."""
    base: int = 0
    """Number of the first frame."""
    inclusive: bool = False
    """Whether the end is the last frame, not the one after it."""
    rate: float | None = None
    """Frames a second that the tool assumes; None: its frames are those of the file."""
    rounding: float = 0.001
    """What seconds are rounded to."""
    origin: str = ""
    """What second 0 is: "first-frame" or "file"; empty: not known, and refused where the two differ."""

    def validate(self) -> None:
        """Raise UserError where an option is out of range."""
        if self.origin not in ("", *_ORIGINS):
            raise UserError(f"--origin {self.origin}: choose first-frame or file")
        if self.rate is not None and not 0 < self.rate < 10_000:
            raise UserError(f"--rate {self.rate:g}: frames a second that the tool assumes, such as 29.97")


class Clock:
    """The time stamps of a file.

    Raises:
        DecodeError: the file cannot be read.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        with PyAVReader(path) as reader:
            self.times, self.duration = reader.times, reader.duration
            self.width, self.height = reader.info.width, reader.info.height
        self.borders = np.append(self.times, self.duration)
        """(N + 1,) seconds: where frames begin, and where the last one ends."""
        self.offset = _seconds_before_the_picture(path)
        """From the beginning of the file to that of the picture."""

    def span(self, mark: Mark, how: Convention) -> Span:
        """Return what a mark means.

        Raises:
            UserError: it is not in the video, or its meaning is not known.
        """
        if mark.start is None or mark.end is None:
            return Span(self.path, mark.label, None, None, mark.score)
        if how.unit == "frames" and how.rate is None:
            first, after = (self._border(number - how.base, mark) for number in (mark.start, mark.end + how.inclusive))
            start, end = float(self.borders[first]), float(self.borders[after])
        elif how.unit == "frames":
            assert how.rate is not None
            parts = (mark.start - how.base, mark.end - how.base + how.inclusive)
            start, end = (self._near(part / how.rate, 0.5 / how.rate, how) for part in parts)
        else:
            start, end = (self._near(at, how.rounding / 2, how) for at in (mark.start, mark.end))
        if not start < end or start >= self.duration:
            raise UserError(
                f"{self.path}: {mark.label!r} from {mark.start:g} to {mark.end:g} is not in the video; check the "
                "options for frames and seconds"
            )
        return Span(self.path, mark.label, start, end, mark.score)

    def mark(self, span: Span, how: Convention) -> Mark:
        """Return what a tool calls a span.

        Raises:
            UserError: it cannot name these frames.
        """
        if span.start is None and span.end is None and how.unit == "seconds":
            return Mark(self.path, span.label, None, None, span.score)
        first, after = self.frames(span)
        if how.unit == "frames" and how.rate is None:
            numbers: tuple[float, float] = (first + how.base, after + how.base - how.inclusive)
        else:
            start, end = span.start or 0.0, self.duration if span.end is None else min(span.end, self.duration)
            shift = self._shift(how)
            if how.rate is None:
                numbers = (_rounded(start + shift, how), _rounded(end + shift, how))
            else:
                low, high = (round((float(self.borders[at]) + shift) * how.rate) + how.base for at in (first, after))
                numbers = (low, high - how.inclusive)
        mark = Mark(self.path, span.label, *numbers, span.score)
        try:
            same = self.frames(self.span(mark, how)) == (first, after)
        except UserError:  # nothing is left between the numbers
            same = False
        if not same:
            rate = f" at {how.rate:g} frames/s" if how.rate else f" rounded to {how.rounding:g} s"
            raise UserError(
                f"{self.path}: frames {first} to {after - 1} cannot be told apart from their neighbors{rate}; choose a "
                "larger --rate, or a tool that counts the file's own frames (cvat, fiftyone)"
            )
        return mark

    def frames(self, span: Span) -> tuple[int, int]:
        """Return the first frame of a span and the one after its last."""
        start, end = span.start or 0.0, self.duration if span.end is None else min(span.end, self.duration)
        first, after = self._nearest(start), self._nearest(end)
        if abs(self.borders[first] - start) > _ROUNDED:
            first = int(shown_at(self.times, np.array([start]))[0])
        if abs(self.borders[after] - end) > _ROUNDED:
            after = int(shown_at(self.times, np.array([end]))[0]) + 1
        return first, after

    def _border(self, number: float, mark: Mark) -> int:
        if number != int(number) or not 0 <= number < len(self.borders):
            raise UserError(
                f"{self.path}: {mark.label!r} is from frame {mark.start:g} to {mark.end:g}, and the video has "
                f"{len(self.times)} frames; check --frame-base and --end"
            )
        return int(number)

    def _near(self, second: float, radius: float, how: Convention) -> float:
        """Return the nearest border within a radius, in the file's own seconds; else the second as it is."""
        second -= self._shift(how)
        border = float(self.borders[self._nearest(second)])
        return border if abs(border - second) <= radius * 1.001 + 1e-6 else max(0.0, second)

    def _nearest(self, second: float) -> int:
        return int(np.abs(self.borders - second).argmin())

    def _shift(self, how: Convention) -> float:
        if not how.origin and abs(self.offset) > how.rounding / 2:
            raise UserError(
                f"{self.path}: its picture begins {self.offset:.3f} s after the file does; choose what second 0 of the "
                "tool is: --origin file (players, browsers) or --origin first-frame"
            )
        return self.offset if how.origin == "file" else 0.0


def _rounded(second: float, how: Convention) -> float:
    return float(round(second, max(0, round(-np.log10(how.rounding)))))


def _seconds_before_the_picture(path: str) -> float:
    with av.open(f"file:{path}", options=SAFE, **ANY_TAGS) as container:
        stream = container.streams.best("video")
        if stream is None or stream.start_time is None or container.start_time is None or not stream.time_base:
            return 0.0
        return float(stream.start_time * stream.time_base - container.start_time / av.time_base)
