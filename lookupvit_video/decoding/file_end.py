"""Is a video file as long as announced, and do its parts match their checksums?

The same rule holds for reading and for checking: where the container announces the number of frames or their end, a
file without the last frame is refused (`ends_early`); where it announces bytes, a missing byte is reported
(`missing_bytes`). MPEG transport and program streams announce nothing: a cut between two packets cannot be noticed
there, and the log says so.
"""

from __future__ import annotations

import logging
import mmap
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from operator import gt
from typing import Any, BinaryIO

import numpy as np

from lookupvit_video.decoding.reader import CONTAINER, CUT, TIME_STAMPS, DecodeError
from lookupvit_video.decoding.timeline import PacketNote, format_names, packet_end

logger = logging.getLogger(__name__)

_ROUNDING = 0.0025  # s: matroska and flv count in milliseconds, and two such counts are compared
SOUND_SLACK = 0.1  # s: how far the announced end and the end of the last packet of sound may be apart
_UNSURE = 1.0  # s: for containers whose announcements were not examined
_EXAMINED = frozenset({"matroska", "webm", "avi", "flv", "asf", "mp4"})
ANNOUNCES_NOTHING = frozenset({"mpegts", "mpeg", "h264", "hevc", "m4v", "mpegvideo", "obu", "mjpeg"})
_SMALL_HEAD, _HEAD = 1 << 12, 1 << 16  # bytes: where the header of a file is looked for
_LARGEST_SIZE = 1 << 62
_logged: set[str] = set()

_SEGMENT, _CLUSTER = b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75"  # IDs of elements of matroska (RFC 9559)
_DURATION, _CRC_32 = b"\x44\x89", b"\xbf\x84"  # the second with its size, 4 bytes
_PROJECTION = (_SEGMENT, b"\x16\x54\xae\x6b", b"\xae", b"\xe0", b"\x76\x70")  # in a track's description of its video
_ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_UPRIGHT = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)  # the matrix of a track (ISO 14496-12)


def check_file(
    path: str, container: Any, stream: Any, packets: list[PacketNote], reread: Callable[..., Iterator[Any]], damage: Any
) -> None:
    """Compare what a container announces with the packets that were read of a video, and note what does not match.

    Args:
        reread: (index of a stream or None for all, options of libav) -> packets from another look at the file.
        damage: a `DamageList`.

    Raises:
        DecodeError: the file ends before the video does.
    """
    names = format_names(container)
    reason = ends_early(path, container, stream, packets, reread)
    if reason:
        raise DecodeError(path, f"truncated: {reason}; fetch it again")
    missing = missing_bytes(path, names)
    if missing:
        damage.note(CUT, missing)
    elif names & ANNOUNCES_NOTHING:
        _log_once(path, container.format.name)
    corrupt = sum(packet.corrupt for packet in packets)
    if corrupt:
        damage.note(CONTAINER, f"{corrupt} of {len(packets)} packets are marked corrupt: parts of them are missing")
    if "matroska" in names:
        bad = bad_checksums(path)
        if bad:
            damage.note(CONTAINER, bad)
    stamps = [packet.dts for packet in packets if packet.dts is not None]
    resets = sum(map(gt, stamps, stamps[1:]))
    if resets:
        damage.note(TIME_STAMPS, f"jump back {resets} times: joined from pieces that count from zero, or damaged")


def _log_once(path: str, container: str) -> None:
    if container not in _logged:
        _logged.add(container)
        logger.info(
            "%s: %s announces no length: whether its end is missing is not known (logged once)", path, container
        )


# In time --------------------------------------------------------------------------------------------------------------


def frame_seconds(stamps: list[int | None], stream: Any) -> float:
    """How long a frame usually lasts: the median step between time stamps given in any order, or by the header."""
    steps = np.diff(np.unique(np.array([stamp for stamp in stamps if stamp is not None], dtype=np.int64)))
    usual = float(np.median(steps) * float(stream.time_base)) if len(steps) else 0.0
    return max(usual, 1 / float(stream.average_rate) if stream.average_rate else 0.0)


def tolerance(names: set[str], frame: float, knows_last: bool) -> float:
    """How many seconds the last frame may end before the announced end.

    Half a frame; one more where packets do not say how long they are shown.
    """
    return (0.5 if knows_last else 1.5) * frame + (_ROUNDING if names & _EXAMINED else _UNSURE)


def announced_seconds(path: str, names: set[str], container: Any, stream: Any) -> float:
    """When a video ends by its header, in seconds; 0: that is not announced."""
    if names & ANNOUNCES_NOTHING or ("matroska" in names and _DURATION not in _matroska_header(path)):
        return 0.0  # libav guesses it from the bit rate
    seconds = float(container.duration or 0) / 1e6  # libav shortens that of an avi which it finds cut off
    if stream.frames and stream.average_rate:
        seconds = max(seconds, stream.frames / float(stream.average_rate))
    return seconds


def ends_early(
    path: str, container: Any, stream: Any, packets: list[PacketNote], reread: Callable[..., Iterator[Any]]
) -> str:
    """Return how much less a file holds than its header announces, in frames or seconds; empty: nothing is missing."""
    names, stated = format_names(container), stream.frames
    if stated and "mp4" in names:
        held = sum(not packet.corrupt for packet in packets)
        if held < stated:  # an edit list leaves packets out of a sound file: count without it
            held = sum(not packet.is_corrupt for packet in reread(stream.index, ignore_editlist="1"))
        return f"holds {held} of {stated} frames" if held < stated else ""
    announced = announced_seconds(path, names, container, stream)
    last = max(packets, key=lambda packet: packet.end, default=None)
    if not announced or (last is not None and last.end >= announced - _ROUNDING):
        return ""
    frame = frame_seconds([packet.pts for packet in packets], stream)
    slack = tolerance(names, frame, last is not None and last.knows_end)
    if last is not None and last.end >= announced - slack:
        return ""
    end = max((packet_end(packet, float(packet.time_base)) for packet in reread(None)), default=0.0)
    if end >= announced - max(slack, SOUND_SLACK):  # the video may end long before the sound
        return ""
    return f"ends at {end:.2f} of {announced:.2f} s"


# In bytes -------------------------------------------------------------------------------------------------------------


def missing_bytes(path: str, names: set[str]) -> str:
    """What of the bytes that a file announces is missing, in words; empty: nothing, or nothing is announced."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        if "matroska" in names:
            end = _matroska_end(file.read(_SMALL_HEAD))
        elif "mp4" in names:
            end = _chunks_end(file, size, _mp4_box)
        elif "avi" in names:
            end = _chunks_end(file, size, _riff_chunk)
        elif "flv" in names:
            end = _flv_end(file.read(_HEAD))
        elif "asf" in names:
            end = _asf_end(file.read(_HEAD))
        elif "mpegts" in names and all(size % packet for packet in (188, 192, 204)):
            return "its last packet is cut off"
        else:
            end = 0
    return f"announces {end} bytes, holds {size}" if end > size else ""


def _matroska_end(head: bytes) -> int:
    at = head.find(_SEGMENT)
    if at < 0:
        return 0
    size, start = _vint(head, at + 4)
    return start + size if size < _LARGEST_SIZE else 0


def _vint(data: Any, at: int) -> tuple[int, int]:
    """The size at a place of a matroska file, and where it ends; a size that is not known is larger than any."""
    first = data[at] if at < len(data) else 0
    width = 9 - first.bit_length()
    if width > 8:
        return _LARGEST_SIZE, at + 1
    value = int.from_bytes(data[at : at + width], "big") & (1 << 7 * width) - 1
    return (_LARGEST_SIZE if value == (1 << 7 * width) - 1 else value), at + width


def _chunks_end(file: BinaryIO, size: int, read: Any) -> int:
    """Where the last of the chunks ends that a file is made of; 0: not known."""
    at = 0
    while at < size:
        file.seek(at)
        length = read(file.read(16))
        if not length:
            return 0 if at == 0 else at  # what follows is no chunk: padding
        at += length
    return at


def _mp4_box(head: bytes) -> int:
    """The length of a box from its first 16 bytes; 0: it reaches to the end, or this is not a box."""
    if len(head) < 8:
        return 8  # cut off within its header
    length = int.from_bytes(head[:4], "big")
    if length == 1 and len(head) == 16:
        length = int.from_bytes(head[8:], "big")
    return length if length >= 8 and head[4:8].isalnum() else 0


def _riff_chunk(head: bytes) -> int:
    if head[:4] != b"RIFF" or len(head) < 8:
        return 0
    length = int.from_bytes(head[4:8], "little")
    return 8 + length if length else 0


def _flv_end(head: bytes) -> int:
    at = head.find(b"filesize\0")
    if at < 0 or at + 17 > len(head):
        return 0
    end = struct.unpack(">d", head[at + 9 : at + 17])[0]
    return int(end) if 0 < end < _LARGEST_SIZE else 0


def _asf_end(head: bytes) -> int:
    at = head.find(_ASF_FILE_PROPERTIES)
    return int.from_bytes(head[at + 40 : at + 48], "little") if at >= 0 else 0


# Inside ---------------------------------------------------------------------------------------------------------------


def bad_checksums(path: str) -> str:
    """Compare the checksums that a matroska file may hold, of each of its large parts; in words what differs.

    FFmpeg and mkvmerge write them into .mkv, into .webm nobody does.
    """
    bad = seen = 0
    with open(path, "rb") as file:
        if b"webm" in file.read(64):
            return ""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for start, end in _parts_with_checksum(data):
            stated = int.from_bytes(data[start + 2 : start + 6], "little")
            with memoryview(data) as view:
                bad += zlib.crc32(view[start + 6 : end]) != stated
            seen += 1
    return f"{bad} of {seen} parts do not match their checksums" if bad else ""


def _parts_with_checksum(data: Any) -> Iterator[tuple[int, int]]:
    """(start, end) of the content of each part of a matroska file that begins with its checksum."""
    head = data.find(_SEGMENT, 0, _SMALL_HEAD)
    if head < 0:
        return
    _, at = _vint(data, head + 4)
    while at + 6 < len(data):
        width = 9 - data[at].bit_length()  # of the ID
        size, start = _vint(data, at + width)
        if width > 4 or size >= _LARGEST_SIZE or start + size > len(data):
            return  # no element, of open length, or cut off
        if size >= 6 and data[start : start + 2] == _CRC_32:
            yield start, start + size
        at = start + size


def _matroska_header(path: str) -> bytes:
    with open(path, "rb") as file:
        head = file.read(_SMALL_HEAD)
        if _CLUSTER not in head:
            head += file.read(1 << 20)
    return head.partition(_CLUSTER)[0]


def _holds_element(data: bytes, at: int, end: int, nested: Sequence[bytes]) -> bool:
    """Whether an element is there, within those that the others of ``nested`` name.

    The bytes of its ID alone are not enough: they occur in texts such as "libvpx" too.
    """
    while at < end:
        width = 9 - data[at].bit_length()
        size, start = _vint(data, at + width)
        if data[at : at + width] == nested[0] and (
            len(nested) == 1 or _holds_element(data, start, min(start + size, end), nested[1:])
        ):
            return True
        at = start + size
    return False


def may_turn_pictures(path: str, names: set[str]) -> bool:
    """Whether a container may hold a matrix that turns or mirrors its pictures."""
    if "matroska" in names:
        header = _matroska_header(path)
        return _holds_element(header, 0, len(header), _PROJECTION)
    if "mp4" not in names:
        return True
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for track in re.finditer(b"tkhd", data):
            at = track.end() + (52 if data[track.end()] == 1 else 40)
            if data[at : at + 36] != _UPRIGHT:
                return True
    return False
