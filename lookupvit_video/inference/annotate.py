"""Videos with answers drawn in, written picture by picture as H.264."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import av
import matplotlib
import numpy as np
from fvcore.common.config import CfgNode
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lookupvit_video.errors import UserError
from lookupvit_video.files import atomic_write
from lookupvit_video.inference.draw import attention_at, class_colours, overlay
from lookupvit_video.inference.timeline import Segment, Timeline, open_forward
from lookupvit_video.progress import progress
from lookupvit_video.text import shortened

SMALLEST_WIDTH = 480  # pixels: smaller videos are enlarged, or nobody could read what is written below them
SUFFIXES = (".mp4", ".mov", ".mkv")
_TICKS = 90_000  # per second: the usual frame rates are whole numbers of them
_PAPER, _INK, _PALE = (22, 22, 26), (240, 240, 240), (90, 90, 96)
_LINE = 480  # pixels of width for which the sizes below are meant; wider videos get larger letters
_PANEL_HEIGHT = 84


class VideoWriter(NamedTuple):
    """An H.264 file that is being written, see ``open_writer``."""

    container: Any
    stream: Any

    def write(self, picture_HWC: np.ndarray, seconds: float) -> None:
        """Add a picture (H, W, 3) uint8 RGB, shown from a time on; times ascend."""
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture_HWC), format="rgb24")
        frame.pts, frame.time_base = round(seconds * _TICKS), Fraction(1, _TICKS)
        self.container.mux(self.stream.encode(frame))


def check_video_name(path: str | Path) -> None:
    """Raise ValueError for a name that does not tell a container that H.264 is written to."""
    if Path(path).suffix.lower() not in SUFFIXES:
        raise UserError(f"{path}: the name of a video to be written must end in {', '.join(SUFFIXES)}")


@contextmanager
def open_writer(path: str | Path, *, width: int, height: int, fps: float) -> Iterator[VideoWriter]:
    """Open an H.264 file to write pictures to one by one; it appears, whole, when the block succeeds.

    Args:
        path: its suffix chooses the container.
        width, height: in pixels, even, since the colour planes have half of them.
        fps: what the header tells; the pictures' own times are kept.

    Raises:
        UserError: a suffix of another kind, or a PyAV without an H.264 encoder.
    """
    check_video_name(path)
    with atomic_write(path) as temporary, av.open(str(temporary), "w") as container:
        try:
            options = {"crf": "20", "preset": "veryfast"}
            stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=options)
        except av.codec.codec.UnknownCodecError:
            raise UserError("this build of PyAV cannot write H.264 (libx264); pip install av") from None
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = Fraction(1, _TICKS)
        yield VideoWriter(container, stream)
        container.mux(stream.encode(None))


def annotate_video(timeline: Timeline, segments: Sequence[Segment], cfg: CfgNode, out: str | Path) -> None:
    """Write a video with label, confidence bar and time line below its pictures, at their times, without sound.

    Only one picture is held at a time. Narrow videos are enlarged by a whole factor.

    Args:
        timeline, segments: of the video at ``timeline.path``.

    Raises:
        DecodeError: the video cannot be read.
        UserError: see ``open_writer``.
    """
    check_video_name(out)
    with open_forward(timeline.path, cfg) as reader:
        info = reader.info
        factor = -(-SMALLEST_WIDTH // info.width) if info.width < SMALLEST_WIDTH else 1
        panel = Panel(timeline, segments, info.width * factor)
        height = info.height * factor + panel.height
        times = reader.times.tolist()
        pictures = progress(reader.walk(times), total=len(times), label="drawing", unit="frames")
        size = {"width": panel.width + panel.width % 2, "height": height + height % 2}
        with open_writer(out, **size, fps=info.fps) as writer:
            for seconds, picture in zip(times, pictures, strict=True):
                picture = picture.repeat(factor, 0).repeat(factor, 1)
                drawn = np.concatenate([picture, panel.draw(seconds)])
                writer.write(even(drawn), seconds)


def write_overlay(frames_THWC: np.ndarray, heat_thw: Tensor, path: str | Path, fps: float = 4.0) -> None:
    """Write the frames of a clip as H.264, beside them the same with a heat map laid over, enlarged to be looked at.

    Args:
        frames_THWC: uint8 RGB.
        heat_thw: (t, h, w), see ``draw.overlay``.
        fps: of the video written; slow, since a clip is short.

    Raises:
        UserError: see ``open_writer``.
    """
    height, width = frames_THWC.shape[1:3]
    factor = max(1, -(-SMALLEST_WIDTH // (2 * width)))
    size = {"width": 2 * width * factor, "height": height * factor + height * factor % 2}
    with open_writer(path, **size, fps=fps) as writer:
        for index, frame in enumerate(frames_THWC.repeat(factor, 1).repeat(factor, 2)):
            heat_hw = attention_at(heat_thw, index, len(frames_THWC))
            writer.write(even(np.concatenate([frame, overlay(frame, heat_hw)], axis=1)), index / fps)


def even(picture_HWC: np.ndarray) -> np.ndarray:
    """Repeat the last row or column of a picture (H, W, C) that has an odd number of them."""
    height, width = picture_HWC.shape[:2]
    return np.pad(picture_HWC, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")


class Panel:
    """What stands below the pictures of an annotated video.

    Args:
        width: in pixels.
    """

    def __init__(self, timeline: Timeline, segments: Sequence[Segment], width: int):
        self.timeline, self.segments, self.width = timeline, segments, width
        self.scale = max(1.0, width / _LINE / 1.5)  # letters grow less than the picture
        self.height = round(_PANEL_HEIGHT * self.scale)
        self._starts = np.array([segment.start for segment in segments])
        self.colours = {
            name: tuple(round(255 * value) for value in colour)
            for name, colour in class_colours(timeline, segments).items()
        }
        self._strip = self._draw_strip()

    def segment_at(self, seconds: float) -> Segment | None:
        """Return the segment that a time lies in, if any."""
        index = int(np.searchsorted(self._starts, seconds, side="right")) - 1
        if index < 0 or seconds >= self.segments[index].end:
            last = self.segments and index == len(self.segments) - 1 and seconds >= self.timeline.duration
            return self.segments[-1] if last else None
        return self.segments[index]

    def draw(self, seconds: float) -> np.ndarray:
        """Return the panel at a time: uint8 (height, width, 3)."""
        image = Image.new("RGB", (self.width, self.height), _PAPER)
        pen = ImageDraw.Draw(image)
        segment = self.segment_at(seconds)
        if segment is not None:
            label = self.timeline.classes.index(segment.label)
            share = float(self.timeline.probabilities[self.timeline.at(seconds), label])
            self._write_answer(pen, segment.label, share)
        top, strip = self._y(54), self._strip
        image.paste(strip, (self._x(8), top))
        cursor = self._x(8) + round(seconds / self.timeline.duration * (strip.width - 1))
        pen.rectangle((cursor - 1, top - self._y(3), cursor + 1, top + strip.height + self._y(3)), fill=_INK)
        clock = f"{as_clock(seconds)} / {as_clock(self.timeline.duration)}"
        pen.text((self._x(8), self._y(68)), clock, fill=_INK, font=_font(self._y(11)))
        return np.asarray(image)

    def _write_answer(self, pen: ImageDraw.ImageDraw, name: str, share: float) -> None:
        font, right = _font(self._y(20)), self.width - self._x(8)
        percent = f"{share:.0%}"
        room = right - self._x(8) - font.getlength(percent + "  ")
        pen.text((self._x(8), self._y(6)), _fitted(name, font, room), fill=_INK, font=font)
        pen.text((right, self._y(6)), percent, fill=_INK, font=font, anchor="ra")
        left, top, bottom = self._x(8), self._y(36), self._y(45)
        pen.rectangle((left, top, right, bottom), fill=_PALE)
        pen.rectangle((left, top, left + round(share * (right - left)), bottom), fill=self.colours[name])

    def _draw_strip(self) -> Image.Image:
        """Return the time line: the colour of the segment at each of its columns."""
        width = self.width - 2 * self._x(8)
        columns = np.empty((1, width, 3), dtype=np.uint8)
        for x in range(width):
            segment = self.segment_at((x + 0.5) / width * self.timeline.duration)
            columns[0, x] = self.colours[segment.label] if segment else _PALE
        return Image.fromarray(columns.repeat(self._y(10), axis=0))

    def _x(self, pixels: int) -> int:
        return round(pixels * self.scale)

    _y = _x


def as_clock(seconds: float) -> str:
    """Return a time as people write it: 75.2 -> "1:15", 3700 -> "1:01:40"."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """Return matplotlib's own font, which is on every machine that has it, and has most alphabets."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans-Bold.ttf")), size)


def _fitted(text: str, font: ImageFont.FreeTypeFont, room: float) -> str:
    length = len(text)
    while length > 1 and font.getlength(shortened(text, length)) > room:
        length -= 1
    return shortened(text, length)
