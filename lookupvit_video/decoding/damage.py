"""Signs of damage in a video file, and how the libraries are made to show them.

libav hides most damage: it conceals what it cannot decode, or returns what a buffer held before, and at most logs a
line. In addition to errors and frames marked corrupt, three signs are read here that cost next to nothing:

- its error messages: a counter while frames are served, the lines themselves once a damaged file is decoded again;
- HEVC: a slice decoder that lost its place runs past the end of its data without an error. `arm_hevc` appends bytes
  that no sound slice reads, and that are an error to one that does;
- VP9: libvpx compares where a frame's data ends with where its decoder stopped, libav's own decoder does not. Their
  pictures are the same.
"""

from __future__ import annotations

import itertools
import re
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import av
import av.logging
import numpy as np

from lookupvit_video.decoding.file_end import may_turn_pictures
from lookupvit_video.decoding.orientation import UPRIGHT, orientation_of_frame
from lookupvit_video.decoding.reader import CONTAINER, PICTURE_DATA, PICTURE_SIZE, DamageList, DecodeError
from lookupvit_video.decoding.timeline import codec_name, format_names

NOT_LOOKED_AT = "not on whitelist 'none'"  # what libav logs where a reader keeps it from looking at a picture


# libav's messages -----------------------------------------------------------------------------------------------------

_lock = threading.Lock()
_listeners = 0
_level_before: int | None = None
_files = itertools.count(1)  # no two marks are equal: PyAV would pass over the second


def count_errors() -> None:
    """Make PyAV count libav's errors from now on: with the level at None it would drop them uncounted.

    At PANIC nothing that occurs is passed on to Python's logging, so nothing else changes.
    """
    if av.logging.get_level() is None:
        av.logging.set_level(av.logging.PANIC)


def errors_so_far() -> int:
    """How many errors libav has logged in this process, in all threads: equal numbers mean none in between."""
    count: int = av.logging.get_last_error()[0]
    return count


@contextmanager
def listening() -> Iterator[list[str]]:
    """Collect the errors that libav logs in this thread; an outer listener gets them as well."""
    global _listeners, _level_before
    with _lock:
        if not _listeners:
            _level_before = av.logging.get_level()
            if _level_before is None or _level_before < av.logging.ERROR:
                av.logging.set_level(av.logging.ERROR)
        _listeners += 1
        before = _level_before
    messages: list[str] = []
    lines: list[tuple[int, str, str]] = []
    try:
        with av.logging.Capture(local=True) as lines:
            # PyAV reports how often a line was repeated once another one follows: that of an earlier file comes now
            mark = (av.logging.FATAL, "lookupvit_video", f"file {next(_files)}")
            av.logging.log(*mark)
            earlier = lines.index(mark)
            del lines[earlier]
            yield messages
            messages += [
                f"{name}: {' '.join(text.split())}"
                for level, name, text in lines[earlier:]
                if level <= av.logging.ERROR and NOT_LOOKED_AT not in text
            ]
    finally:
        with _lock:
            _listeners -= 1
            if not _listeners:
                av.logging.set_level(_level_before)
        for level, name, text in lines:
            if before is not None and level <= before:
                av.logging.log(level, name, text)


# Decoders that notice more --------------------------------------------------------------------------------------------

Arm = Callable[[Any], Any]
"""Packet of PyAV -> the packet to decode in its place."""

# All ones decode to the rarest symbols of CABAC; the escape codes among them are soon longer than any may be. 64 bytes:
# measured, more finds no more.
_TAIL = b"\xff" * 64
_HEVC_SLICES = range(22)  # NAL unit types with picture data (ITU-T H.265, table 7-1)
_START_CODE = re.compile(b"(\0\0\1)")
_NEVER_INSIDE = re.compile(b"\0\0[\0-\2](?!\0*$)")  # emulation prevention keeps it out (7.4.2.1); zeros may follow
_INVALID_DATA = 1094995529  # AVERROR_INVALIDDATA


def open_decoder(path: str, container: Any, stream: Any) -> tuple[Any, Arm | None]:
    """The codec context to decode a stream with, and what its packets must pass through first (None: nothing)."""
    codec = codec_name(stream)
    decoder, arm = stream.codec_context, None
    if codec == "hevc":
        arm = partial(arm_hevc, size=length_of_lengths(decoder.extradata or b""))
    elif codec == "vp9" and _has_libvpx() and not may_turn_pictures(path, format_names(container)):
        # libav passes the orientation of pictures only to the decoder that it sets up itself
        decoder = av.CodecContext.create("libvpx-vp9", "r")
        decoder.extradata = stream.codec_context.extradata or b""
    decoder.options = {"err_detect": "crccheck"}  # where pictures have checksums, compare them
    return decoder, arm


def fresh_decoder(stream: Any, threads: int) -> Any:
    """A decoder for a stream that has decoded nothing yet. It does not know how the container turns the pictures."""
    own: Any = stream.codec_context
    decoder: Any = av.CodecContext.create(own.codec.name, "r")
    decoder.extradata = own.extradata or b""
    decoder.thread_type, decoder.thread_count = ("NONE" if threads else "AUTO"), threads
    decoder.options = {"err_detect": "crccheck"}
    return decoder


def length_of_lengths(setup: bytes) -> int:
    """How many bytes before each NAL unit of HEVC hold its length, by its extradata; 0: a start code is there."""
    return (setup[21] & 3) + 1 if setup[:1] == b"\x01" and len(setup) > 22 else 0


@cache
def _has_libvpx() -> bool:
    try:
        return bool(av.codec.Codec("libvpx-vp9", "r").is_decoder)
    except av.codec.codec.UnknownCodecError:
        return False


def arm_hevc(packet: Any, size: int) -> Any:
    """Lengthen each slice of an HEVC packet, so that reading past its end is an error that libav reports.

    Args:
        size: of the length before each NAL unit, in bytes; 0: a start code is there.

    Raises:
        av.InvalidDataError: a slice holds what it cannot hold.
    """
    if packet.is_discard or any(part.data_type != "mpegts_stream_id" for part in packet.iter_sidedata()):
        return packet  # what PyAV cannot carry over
    data = bytes(packet)
    armed = av.Packet(_with_tails(data, size) if size else _with_tails_between_codes(data))
    armed.pts, armed.dts, armed.time_base = packet.pts, packet.dts, packet.time_base
    armed.duration, armed.is_keyframe, armed.is_corrupt = packet.duration or 0, packet.is_keyframe, packet.is_corrupt
    return armed


def _with_tails(data: bytes, size: int) -> bytes:
    parts, at = [], 0
    while at + size < len(data):
        start = at + size
        end = start + int.from_bytes(data[at:start], "big")
        longer = end - start + len(_TAIL)
        if end > len(data) or longer >> 8 * size:  # damaged, as the decoder will say, or no room for the length
            break
        if end - start > 2 and data[start] >> 1 & 63 in _HEVC_SLICES:
            if _NEVER_INSIDE.search(data, start, end):
                raise av.InvalidDataError(_INVALID_DATA, "a sequence of bytes that no slice holds")
            parts += [longer.to_bytes(size, "big"), data[start:end], _TAIL]
        else:
            parts.append(data[at:end])
        at = end
    return b"".join([*parts, data[at:]])


def _with_tails_between_codes(data: bytes) -> bytes:
    first, *rest = _START_CODE.split(data)
    parts = [first]
    for code, unit in zip(rest[::2], rest[1::2], strict=True):
        parts += [code, unit]
        if len(unit) > 2 and unit[0] >> 1 & 63 in _HEVC_SLICES:
            slice_data = unit.rstrip(b"\0")  # zeros before the next start code are no part of it
            parts[-1:] = [slice_data, _TAIL, unit[len(slice_data) :]]
    return b"".join(parts)


class FrameKeeper:
    """Keeps the pictures that were decoded last in use.

    libav takes memory for pictures zeroed from the system, and again from pictures that are no longer in use. What of a
    damaged picture is not decoded then shows zeros, or after 64 MiB what follows from the order of decoding alone,
    not from the requests.
    """

    _KEPT = 64 << 20  # bytes

    def __init__(self) -> None:
        self._kept: deque[Any] = deque()
        self._bytes = 0

    def keep(self, frames: list[Any]) -> None:
        """Take in frames that were decoded just now."""
        for frame in frames:
            size = 2 * frame.planes[0].buffer_size
            self._kept.append((frame, size))
            self._bytes += size
            while self._bytes > self._KEPT:
                self._bytes -= self._kept.popleft()[1]


class UnfilledWatch(FrameKeeper):
    """Finds pictures with parts that were never decoded: a damaged HEVC slice may end early without an error.

    All zero is a green outside the colors of video.
    """

    _STEP = 16  # pixels: of the smallest blocks that slices are made of

    def has_unfilled(self, frames: list[Any]) -> bool:
        """Whether one of some frames, decoded just now, has a part that is not filled."""
        self.keep(frames)
        found = False
        for frame in frames:
            planes = frame.planes
            # slices go from the upper left to the lower right: usually the last pixel shows that all is filled
            if memoryview(planes[0])[planes[0].line_size * (planes[0].height - 1) + frame.width - 1] == 0:
                found = found or self._has_zeros(frame, planes)
        return found

    def _has_zeros(self, frame: Any, planes: Any) -> bool:
        if len(planes) != 3 or not frame.format.name.startswith("yuv"):
            return False  # zero is black there
        kind = np.uint8 if frame.format.components[0].bits == 8 else np.uint16
        step = self._STEP
        zero: Any = True
        for plane in planes:
            lines = np.frombuffer(plane, kind).reshape(plane.height, -1)
            down, across = step * plane.height // frame.height, step * plane.width // frame.width
            zero = zero & (lines[down // 2 :: down, across // 2 : plane.width : across] == 0)
        return bool(np.any(zero))


# Pictures -------------------------------------------------------------------------------------------------------------


class PictureWatch:
    """What a full decode shows of a file's pictures."""

    def __init__(self) -> None:
        self.sizes: Counter[tuple[int, int]] = Counter()
        self.formats: Counter[str] = Counter()
        self.corrupt = self.failed = self.unfilled = 0
        self.interlaced = False
        self.remark: str | None = None  # on a change of orientation
        self._own = UPRIGHT  # orientation of the last frame

    def see(self, frame: Any) -> None:
        """Take note of a frame."""
        own = orientation_of_frame(frame, self._own)
        if self.sizes and own != self._own and not self.remark:
            self.remark = f"frame {self.sizes.total()} and others are {own}, those before are {self._own}"
        self._own = own
        self.interlaced |= frame.interlaced_frame
        self.sizes[frame.width, frame.height] += 1
        self.formats[frame.format.name] += 1
        self.corrupt += frame.is_corrupt

    @property
    def usual_size(self) -> tuple[int, int]:
        """The (width, height) of most pictures."""
        return self.sizes.most_common(1)[0][0]

    def report(self, damage: DamageList, messages: list[str]) -> None:
        """Note what was wrong.

        Args:
            messages: errors that libav logged meanwhile.
        """
        if messages or self.failed or self.corrupt or self.unfilled:
            more = f" (and {len(messages) - 1} more times)" if len(messages) > 1 else ""
            says = [f"the decoder reports: {messages[0]}{more}"] if messages else []
            says += [f"{self.failed} packets cannot be decoded"] if self.failed else []
            says += [f"{self.corrupt} frames are marked corrupt"] if self.corrupt else []
            says += [f"{self.unfilled} frames are decoded in part"] if self.unfilled else []
            damage.note(PICTURE_DATA, ", ".join(says))
        if len(self.sizes) > 1:
            sizes = " and ".join(f"{width}x{height}" for width, height in self.sizes)
            damage.note(PICTURE_SIZE, f"changes between {sizes}")
        elif len(self.formats) > 1:
            damage.note(PICTURE_SIZE, f"how pixels are stored changes between {' and '.join(self.formats)}")


def refuse_damaged_hevc(path: str, stream: Any, damage: DamageList) -> None:
    """Raise DecodeError for damaged HEVC: libav fills what it cannot decode from memory, differently at each read."""
    if codec_name(stream) == "hevc" and {PICTURE_DATA, CONTAINER} & {found.kind for found in damage}:
        raise DecodeError(path, f"damaged: {damage}; fetch it again")
