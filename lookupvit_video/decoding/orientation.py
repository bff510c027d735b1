"""Decoded pictures -> pixels as displayed: upright and square, by display matrices as FFmpeg's command line reads them.

A matrix comes from the container (mp4, mov, 3gp, mkv, webm: one for the video), from the pictures' own data (H.264 and
HEVC display orientation messages, EXIF in JPEG pictures), or from both; the container's holds then. Turns that are no
quarter turns are rounded to the nearest one, with a remark.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from itertools import count
from typing import Any, NamedTuple

import av
import numpy as np
from av.sidedata.sidedata import Type
from av.video.format import VideoFormat
from av.video.reformatter import Interpolation, VideoReformatter

from lookupvit_video.decoding.encryption import ENCRYPTED
from lookupvit_video.decoding.frame_filter import FrameFilter, field_joiner
from lookupvit_video.decoding.reader import PICTURE_SIZE, PIXEL_SHAPE, DamageList, DecodeError
from lookupvit_video.decoding.timeline import codec_name, length_size

_TOLERANCE = 0.5  # degrees: what FFmpeg's command line rounds to a quarter turn
_ORIENTATION_MESSAGE = 47  # payload type of a display orientation SEI message (ITU-T H.264 and H.265, annex D)
# Type of the NAL units that hold such messages; the one before a key picture holds up to the next key picture.
_MESSAGE_NAL = {"h264": 6, "hevc": 39}
_ALWAYS_PER_PICTURE = frozenset({"mjpeg"})

# Pixels this close to square are left alone: scaling to even sizes leaves such ratios behind, and nobody sees them.
NEARLY_SQUARE = 0.02
ODDEST_PIXEL = 3  # times as wide as high, or as high as wide (32:11 is the oddest in use): beyond, it is damage
_PADDING = 16  # pixels: headers may count what encoders add to fill blocks
_RGB, _BICUBIC = VideoFormat("rgb24"), int(Interpolation.BICUBIC)  # PyAV would look the names up for each picture


_UNKNOWN_TYPES = set(range(64)) - {kind.value for kind in Type}
_DROP_UNKNOWN = [("sidedata", f"mode=delete:type={number}") for number in sorted(_UNKNOWN_TYPES)]


class Orientation(NamedTuple):
    """How a stored picture becomes upright: transposed first, then rows or columns reversed."""

    transposed: bool = False
    rows_reversed: bool = False
    columns_reversed: bool = False

    def upright(self, picture: np.ndarray) -> np.ndarray:
        """View a stored picture (H, W, ...) upright."""
        if self.transposed:
            picture = picture.swapaxes(0, 1)
        rows = slice(None, None, -1 if self.rows_reversed else 1)
        columns = slice(None, None, -1 if self.columns_reversed else 1)
        return picture[rows, columns]

    @property
    def mirrored(self) -> bool:
        """Whether left and right are exchanged, in addition to any turn."""
        return bool((self.transposed + self.rows_reversed + self.columns_reversed) % 2)

    @property
    def degrees(self) -> int:
        """Degrees clockwise by which a player turns the stored picture, after it was mirrored left to right if so."""
        if self.transposed:
            return 90 if self.columns_reversed else 270
        return 180 if self.rows_reversed else 0

    def __str__(self) -> str:
        return f"turned by {self.degrees} degrees{', mirrored' * self.mirrored}"


UPRIGHT = Orientation()


def orientation_of_frame(frame: Any, before: Orientation = UPRIGHT) -> Orientation:
    """The orientation of a decoded frame of PyAV.

    Args:
        before: that of the frame before it; it holds up to the next key frame where a frame carries none of its own.
    """
    matrix = _matrix(frame)
    if matrix is None:
        return UPRIGHT if frame.key_frame else before
    return orientation_of_matrix(matrix)[0]


def remark_on_frame(frame: Any) -> str | None:
    """What a decoded frame's matrix requires and is not done; None: nothing."""
    matrix = _matrix(frame)
    return None if matrix is None else orientation_of_matrix(matrix)[1]


def _matrix(frame: Any) -> tuple[int, ...] | None:
    # The first of several is the container's, and the one that libav's own tools take.
    for data in entries(_side_data(frame)):
        if data.type is Type.DISPLAYMATRIX:
            return struct.unpack("=9i", bytes(data))
    return None


def entries(side_data: Any) -> Iterator[Any]:
    """Each entry of a frame's side data, by position: since PyAV 19 it iterates over types, and names each once."""
    for position in count():
        try:
            yield side_data[position]
        except IndexError:
            return


def _side_data(frame: Any) -> Any:
    try:
        found = frame.side_data
    except ValueError:  # PyAV, of a kind that it does not know, such as EXIF
        found = FrameFilter(_DROP_UNKNOWN).apply(frame).side_data
    return found


def orientation_of_matrix(matrix: tuple[int, ...]) -> tuple[Orientation, str | None]:
    """The nearest of the eight right-angled orientations, and a remark where it is not what the matrix says.

    Args:
        matrix: nine numbers (a b u, c d v, x y w) in rows (ISO 14496-12, 6.2.2): a stored picture's column p and row q
            are shown at column a p + c q + x and row b p + d q + y. Scale (libav makes it the pixels' shape) and
            offset do not count.
    """
    a, b, u, c, d, v = matrix[:6]
    along_x, along_y = math.hypot(a, b), math.hypot(c, d)  # of a stored row, of a stored column
    transposed = abs(b) * along_y + abs(c) * along_x > abs(a) * along_y + abs(d) * along_x
    to_row, to_column = (b, c) if transposed else (d, a)
    if not to_row or not to_column:
        return UPRIGHT, "its display matrix shows nothing: the pictures are left as they are stored"
    orientation = Orientation(transposed, to_row < 0, to_column < 0)
    off = [math.degrees(math.atan2(*pair)) for pair in (_aside(a, b, transposed), _aside(d, c, transposed))]
    if u or v or max(off) > _TOLERANCE:
        turn = math.degrees(math.atan2(b, a)) % 360
        return orientation, f"its display matrix turns by {turn:.3g} degrees, no quarter turn: {orientation} instead"
    return orientation, None


def _aside(straight: int, across: int, transposed: bool) -> tuple[int, int]:
    pair = abs(across), abs(straight)
    return pair[::-1] if transposed else pair


class KeyWatch:
    """Looks at the key packets of a stream: refuses encrypted ones, notes whether they carry their orientation."""

    def __init__(self, path: str, stream: Any) -> None:
        self.path, self._codec, self._size = path, codec_name(stream), length_size(stream)
        self.oriented = self._codec in _ALWAYS_PER_PICTURE

    def __call__(self, packet: Any) -> None:
        """Look at one packet.

        Raises:
            DecodeError: it is encrypted.
        """
        if packet.has_sidedata("encryption_info"):
            raise DecodeError(self.path, ENCRYPTED)
        self.oriented = self.oriented or carries_message(packet, self._codec, self._size)


def carries_message(packet: Any, codec: str, length_size: int) -> bool:
    """Whether an H.264 or HEVC packet, up to its first picture, holds a display orientation message.

    Args:
        packet: anything with bytes in it, such as a packet of PyAV.
        length_size: bytes before each NAL unit that hold its length; 0: start codes.
    """
    if codec not in _MESSAGE_NAL:
        return False
    if length_size:
        view = memoryview(packet)
        if len(view) > length_size and _is_picture(view[length_size], codec):
            return False  # most packets begin with their picture
    for unit in filter(None, _units_before_picture(bytes(packet), codec, length_size)):
        kind = unit[0] & 31 if codec == "h264" else unit[0] >> 1 & 63
        messages = unit[1 if codec == "h264" else 2 :].replace(b"\0\0\3", b"\0\0")  # without emulation prevention
        if kind == _MESSAGE_NAL[codec] and _ORIENTATION_MESSAGE in _payload_types(messages):
            return True
    return False


def _is_picture(first: int, codec: str) -> bool:
    """Whether a NAL unit with this first byte holds picture data (table 7-1 of either standard)."""
    return 1 <= first & 31 <= 5 if codec == "h264" else first >> 1 & 63 < 32


def _units_before_picture(data: bytes, codec: str, length_size: int) -> Iterator[bytes]:
    first = data.find(b"\0\0\1")
    at = length_size if length_size else first + 3 if first >= 0 else len(data)
    while at < len(data):
        if _is_picture(data[at], codec):
            return
        if length_size:
            end = at + int.from_bytes(data[at - length_size : at], "big")
            following = end + length_size
        else:
            end = data.find(b"\0\0\1", at)
            following = end + 3 if end >= 0 else len(data)
            end = end if end >= 0 else len(data)
        yield data[at:end]
        at = following


def _payload_types(messages: bytes) -> Iterator[int]:
    """The types of the messages in one NAL unit (ITU-T H.264, 7.3.2.3.1)."""
    at = 0
    while at + 2 <= len(messages) and messages[at] != 0x80:
        numbers = []
        for _ in range(2):  # type and size: 255 for each byte 0xff, and the byte that ends the number
            value = 0
            while at < len(messages) and messages[at] == 255:
                value, at = value + 255, at + 1
            numbers.append(value + (messages[at] if at < len(messages) else 0))
            at += 1
        yield numbers[0]
        at += numbers[1]


class RgbConverter:
    """Converts the frames of one video to one size, that of the picture given to ``fit``."""

    def __init__(self) -> None:
        self.stored_size: tuple[int, int] | None = None
        """(width, height) in square pixels before turning; None: not known yet."""
        self.orientation = UPRIGHT
        """That of the first picture, and of all that carry none of their own."""
        self.square = True
        self._reformatter: Any = VideoReformatter()
        self._joiner = field_joiner()

    def fit(self, size: tuple[int, int], orientation: Orientation, pixel_aspect: float) -> None:
        """Take over (width, height) and orientation of the pictures, and how wide a pixel is for its height."""
        self.square = not NEARLY_SQUARE < abs(pixel_aspect - 1) or not 1 / ODDEST_PIXEL <= pixel_aspect <= ODDEST_PIXEL
        self.orientation = orientation
        self.stored_size = (max(1, round(size[0] * (1.0 if self.square else pixel_aspect))), size[1])

    @property
    def upright_size(self) -> tuple[int, int]:
        """(width, height) as displayed."""
        assert self.stored_size is not None
        width, height = self.stored_size
        return (height, width) if self.orientation.transposed else (width, height)

    def convert(self, frame: av.VideoFrame, orientation: Orientation) -> np.ndarray:
        """Return a frame as uint8 (H, W, 3), RGB, upright."""
        assert self.stored_size is not None
        width, height = self.stored_size  # a stream may change its size midway; the clip may not
        if orientation.transposed != self.orientation.transposed:
            width, height = height, width
        if frame.interlaced_frame:
            frame = self._joiner.apply(frame)
        # one thread: swscale would take every core of the machine, in every loader worker
        picture = self._reformatter.reformat(
            frame, width=width, height=height, format=_RGB, interpolation=_BICUBIC, threads=1
        )
        plane = picture.planes[0]
        strides = (plane.line_size, 3, 1)  # a line may be longer than its pixels
        pixels: np.ndarray = np.ndarray((height, width, 3), np.uint8, buffer=plane, strides=strides)
        return orientation.upright(pixels)


def note_contradictions(
    damage: DamageList, size: tuple[int, int], stated: tuple[int, int], pixel_aspect: float
) -> None:
    """Note where a picture's (width, height) contradicts the header's, or its pixels have no shape that is in use."""
    if min(stated) > 0 and max(abs(one - other) for one, other in zip(size, stated, strict=True)) >= _PADDING:
        damage.note(PICTURE_SIZE, f"{size[0]}x{size[1]}, in the header {stated[0]}x{stated[1]}")
    if not 1 / ODDEST_PIXEL <= pixel_aspect <= ODDEST_PIXEL:
        damage.note(PIXEL_SHAPE, f"a pixel {pixel_aspect:.3g} times as wide as high: treated as square")
