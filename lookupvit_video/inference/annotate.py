"""Videos with answers drawn in, written frame by frame as H.264."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lookupvit_video.drawing.figures import class_color
from lookupvit_video.drawing.fonts import BOLD, REGULAR, class_label, font_of
from lookupvit_video.errors import UserError
from lookupvit_video.files import atomic_write
from lookupvit_video.inference.draw import attention_at, overlay
from lookupvit_video.inference.timeline import Segment, Timeline, open_forward
from lookupvit_video.inference.views import Plan
from lookupvit_video.progress import progress
from lookupvit_video.text import shortened

SMALLEST_WIDTH = 480  # pixels: smaller videos are enlarged, so that the text is readable
SUFFIXES = (".mp4", ".mov", ".mkv")
_TICKS = 90_000  # per second: divisible by the usual frame rates
_PAPER, _INK, _PALE = (22, 22, 26), (240, 240, 240), (90, 90, 96)
_LINE = 480  # pixels of width for which the sizes below are chosen; text is larger on wider videos
_PANEL_HEIGHT = 84


class VideoWriter(NamedTuple):
    """An open H.264 file, see ``open_writer``."""

    container: Any
    stream: Any

    def write(self, picture_HWC: np.ndarray, seconds: float) -> None:
        """Add a frame (H, W, 3) uint8 RGB, shown from a time in seconds on; times ascend."""
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(even(picture_HWC)), format="rgb24")
        frame.pts, frame.time_base = round(seconds * _TICKS), Fraction(1, _TICKS)
        self.container.mux(self.stream.encode(frame))


def check_video_name(path: str | Path) -> None:
    """Raise UserError where a suffix names no container for H.264."""
    if Path(path).suffix.lower() not in SUFFIXES:
        raise UserError(f"{path}: an output video's name must end in {', '.join(SUFFIXES)}")


@contextmanager
def open_writer(path: str | Path, *, width: int, height: int, fps: float) -> Iterator[VideoWriter]:
    """Open an H.264 file to write frame by frame; it appears once the block succeeds.

    Args:
        path: its suffix chooses the container.
        width, height: in pixels, rounded up to even, since the color planes have half of them.
        fps: for the header; the frames' own times are kept.

    Raises:
        UserError: another suffix, or a PyAV without an H.264 encoder.
    """
    check_video_name(path)
    with atomic_write(path) as temporary, av.open(str(temporary), "w") as container:
        try:
            options = {"crf": "20", "preset": "veryfast"}
            stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=options)
        except av.codec.codec.UnknownCodecError:
            raise UserError("this build of PyAV cannot write H.264 (libx264); pip install av") from None
        stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
        stream.codec_context.time_base = Fraction(1, _TICKS)
        yield VideoWriter(container, stream)
        container.mux(stream.encode(None))


def annotate_video(timeline: Timeline, segments: Sequence[Segment], plan: Plan, out: str | Path) -> None:
    """Write a video with label, confidence bar and timeline below its frames, at their times, without sound.

    Memory holds one frame at a time. Narrow videos are enlarged by an integer factor.

    Args:
        timeline, segments: of the video at ``timeline.path``.

    Raises:
        DecodeError: the video cannot be read.
        UserError: see ``open_writer``.
    """
    check_video_name(out)
    with open_forward(timeline.path, plan) as reader:
        info, times = reader.info, reader.times.tolist()
        factor = -(-SMALLEST_WIDTH // info.width)
        panel = Panel(timeline, segments, info.width * factor)
        pictures = progress(reader.walk(times), total=len(times), label="drawing", unit="frames")
        height = info.height * factor + panel.height
        with open_writer(out, width=panel.width, height=height, fps=info.fps) as writer:
            for seconds, picture in zip(times, pictures, strict=True):
                picture = picture.repeat(factor, 0).repeat(factor, 1)
                writer.write(np.concatenate([picture, panel.draw(seconds)]), seconds)


def write_overlay(frames_THWC: np.ndarray, heat_thw: Tensor, path: str | Path, fps: float = 4.0) -> None:
    """Write the frames of a clip as H.264, enlarged, next to the same with a heat map laid over.

    Args:
        frames_THWC: uint8 RGB.
        heat_thw: (t, h, w), see ``draw.overlay``.
        fps: of the output; slow, since a clip is short.

    Raises:
        UserError: see ``open_writer``.
    """
    height, width = frames_THWC.shape[1:3]
    factor = -(-SMALLEST_WIDTH // (2 * width))
    with open_writer(path, width=2 * width * factor, height=height * factor, fps=fps) as writer:
        for index, frame in enumerate(frames_THWC.repeat(factor, 1).repeat(factor, 2)):
            heat_hw = attention_at(heat_thw, index, len(frames_THWC))
            writer.write(np.concatenate([frame, overlay(frame, heat_hw)], axis=1), index / fps)


def even(picture_HWC: np.ndarray) -> np.ndarray:
    """Repeat the last row or column of a picture (H, W, C) that has an odd number of them."""
    height, width = picture_HWC.shape[:2]
    return np.pad(picture_HWC, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


class AnswerPanel:
    """The panel below the frames of an annotated video: a label, its probability and a bar.

    Args:
        classes: in the order of their numbers, which choose colors.
        width: in pixels.
    """

    def __init__(self, classes: Sequence[str], width: int):
        self.classes, self.width = classes, width
        self.scale = max(1.0, width / _LINE / 1.5)  # text grows less than the frame
        self.height = round(_PANEL_HEIGHT * self.scale)

    def draw_answer(self, number: int | None, share: float = 0.0) -> Image.Image:
        """Return the panel of a class with its probability; None: no answer."""
        image = Image.new("RGB", (self.width, self.height), _PAPER)
        if number is None:
            return image
        pen = ImageDraw.Draw(image)
        percent, size = f"{share:.0%}", self._px(20)
        left, right = self._px(8), self.width - self._px(8)
        room = right - left - sum(font.getlength(part) for part, font in _runs(percent + "  ", size))
        x, baseline = float(left), self._px(26)
        for part, font in _fitted(class_label(self.classes[number], number, 1000), size, room):
            pen.text((x, baseline), part, fill=_INK, font=font, anchor="ls")
            x += font.getlength(part)
        pen.text((right, baseline), percent, fill=_INK, font=_font(REGULAR, size), anchor="rs")
        top, bottom = self._px(36), self._px(45)
        pen.rectangle((left, top, right, bottom), fill=_PALE)
        pen.rectangle((left, top, left + round(share * (right - left)), bottom), fill=_color(number))
        return image

    def draw_clock(self, image: Image.Image, text: str) -> None:
        """Write a time into the panel."""
        pen = ImageDraw.Draw(image)
        pen.text((self._px(8), self._px(68)), text, fill=_INK, font=_font(REGULAR, self._px(11)))

    def _px(self, pixels: int) -> int:
        return round(pixels * self.scale)


class Panel(AnswerPanel):
    """The same of a whole timeline, which it shows as a strip.

    Args:
        width: in pixels.
    """

    def __init__(self, timeline: Timeline, segments: Sequence[Segment], width: int):
        super().__init__(timeline.classes, width)
        self.timeline, self.segments = timeline, segments
        self._starts = np.array([segment.start for segment in segments])
        self._numbers = {segment.label: timeline.classes.index(segment.label) for segment in segments}
        self.colors = {label: _color(number) for label, number in self._numbers.items()}
        self._strip = self._draw_strip()
        self._drawn: tuple[Segment | None, Image.Image] = None, self._draw_segment(None)

    def segment_at(self, seconds: float) -> Segment | None:
        """Return the segment that a time lies in, if any."""
        index = int(np.searchsorted(self._starts, seconds, side="right")) - 1
        if index < 0 or seconds >= self.segments[index].end:
            last = self.segments and index == len(self.segments) - 1 and seconds >= self.timeline.duration
            return self.segments[-1] if last else None
        return self.segments[index]

    def draw(self, seconds: float) -> np.ndarray:
        """Return the panel at a time: uint8 (height, width, 3)."""
        segment = self.segment_at(seconds)
        if self._drawn[0] is not segment:
            self._drawn = segment, self._draw_segment(segment)
        image, strip, top = self._drawn[1].copy(), self._strip, self._px(54)
        cursor = self._px(8) + round(seconds / self.timeline.duration * (strip.width - 1))
        box = (cursor - 1, top - self._px(3), cursor + 1, top + strip.height + self._px(3))
        ImageDraw.Draw(image).rectangle(box, fill=_INK)
        self.draw_clock(image, f"{as_clock(seconds)} / {as_clock(self.timeline.duration)}")
        return np.asarray(image)

    def _draw_segment(self, segment: Segment | None) -> Image.Image:
        """Return the panel of a segment: label and mean probability, a bar of it, the timeline."""
        answer = (None,) if segment is None else (self._numbers[segment.label], segment.probability)
        image = self.draw_answer(*answer)
        image.paste(self._strip, (self._px(8), self._px(54)))
        return image

    def _draw_strip(self) -> Image.Image:
        """Return the timeline: the color of the segment at each column."""
        width = self.width - 2 * self._px(8)
        columns = np.empty((1, width, 3), dtype=np.uint8)
        for x in range(width):
            segment = self.segment_at((x + 0.5) / width * self.timeline.duration)
            columns[0, x] = self.colors[segment.label] if segment else _PALE
        return Image.fromarray(columns.repeat(self._px(10), axis=0))


def _color(number: int) -> tuple[int, int, int]:
    red, green, blue = (round(255 * value) for value in class_color(number)[:3])
    return red, green, blue


def as_clock(seconds: float) -> str:
    """Return a time as text: 75.2 -> "1:15", 3700 -> "1:01:40"."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@cache
def _font(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(BOLD if path == REGULAR else path, size)


def _runs(text: str, size: int) -> list[tuple[str, ImageFont.FreeTypeFont]]:
    """Return the parts of a text, each with the font that has its letters: Pillow draws with one."""
    parts = groupby(text, key=lambda letter: font_of(letter) or REGULAR)
    return [("".join(letters), _font(path, size)) for path, letters in parts]


def _fitted(text: str, size: int, room: float) -> list[tuple[str, ImageFont.FreeTypeFont]]:
    """Return the parts of a text, see ``_runs``, of as many of its letters as fit into some pixels."""
    for length in range(max(len(text), 1), 0, -1):
        runs = _runs(shortened(text, length), size)
        if sum(font.getlength(part) for part, font in runs) <= room:
            break
    return runs
