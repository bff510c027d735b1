"""HEVC slices of which the end is never read: damage that leaves no other sign.

A slice decoder that lost its place may reach the last block of a picture before the data ends; libav takes that for a
sound picture. Here the last bytes of a slice are changed and the picture decoded again: a sound picture changes with
them. Only pictures that no other is predicted from can be tried so, and key frames by themselves, at the price of a
second decode: this is for a thorough check of files, not for reading them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import av
import numpy as np

_CHANGED = bytes(range(0x5A, 0x6A))  # no zeros among them, which would have a meaning of their own
_SHORTEST = 64  # bytes: of a slice that is tried
_SLICES, _SUBLAYER_NON_REFERENCE = range(22), frozenset(range(0, 15, 2))  # NAL unit types (ITU-T H.265, table 7-1)


def pictures_not_read_to_their_end(packets: Iterable[Any], setup: bytes, size: int) -> int:
    """Count the pictures that stay the same when the last bytes of their slices change.

    Args:
        packets: of the stream, from its first key frame on.
        setup: extradata of the stream.
        size: of the length before each NAL unit, in bytes; 0: a start code is there.
    """
    plain, changed = _decoder(setup), _decoder(setup)
    waiting: dict[int, np.ndarray | None] = {}  # time stamp of a picture that was changed -> its pixels
    count = 0
    for packet in packets:
        other, is_unreferenced = _with_other_ends(packet, size)
        if other is not None and packet.is_keyframe:
            first, second = _first_picture(setup, packet), _first_picture(setup, other)
            count += first is not None and second is not None and np.array_equal(first, second)
        is_tried = other is not None and is_unreferenced and packet.pts is not None
        if is_tried:
            waiting[packet.pts] = None
        frames = _frames(plain, packet)
        others = {frame.pts: frame for frame in _frames(changed, other if is_tried else packet)}
        for frame in frames:
            if frame.pts in waiting:
                waiting.pop(frame.pts)
                if frame.pts in others:
                    count += np.array_equal(frame.to_ndarray(), others[frame.pts].to_ndarray())
    return count


def _decoder(setup: bytes) -> Any:
    decoder: Any = av.CodecContext.create("hevc", "r")
    decoder.extradata = setup
    decoder.thread_type, decoder.thread_count = "NONE", 1
    return decoder


def _frames(decoder: Any, packet: Any) -> list[Any]:
    try:
        return list(decoder.decode(packet))
    except av.FFmpegError:
        return []


def _first_picture(setup: bytes, packet: Any) -> np.ndarray | None:
    """A key frame, decoded by itself."""
    decoder = _decoder(setup)
    frames = [*_frames(decoder, packet), *_frames(decoder, None)]
    return frames[0].to_ndarray() if frames else None


def _with_other_ends(packet: Any, size: int) -> tuple[Any, bool]:
    """A packet with other last bytes in its slices (None: they are too short), and whether no picture refers to it."""
    data = bytearray(bytes(packet))
    types = set()
    for start, end in _units(data, size):
        kind = data[start] >> 1 & 63
        if kind not in _SLICES:
            continue
        types.add(kind if data[start + 1] & 7 == 1 else -1)  # another temporal layer may refer to it
        if end - start < _SHORTEST or data[end - 3 : end] == b"\0\0\3":
            return None, False
        data[end - 1 - len(_CHANGED) : end - 1] = _CHANGED
    if not types:
        return None, False
    other = av.Packet(bytes(data))
    other.pts, other.dts, other.time_base = packet.pts, packet.dts, packet.time_base
    return other, types <= _SUBLAYER_NON_REFERENCE


def _units(data: bytearray, size: int) -> list[tuple[int, int]]:
    """(start, end) of each NAL unit."""
    found, at = [], 0
    if size:
        while at + size + 2 < len(data):
            start = at + size
            at = start + int.from_bytes(data[at:start], "big")
            if at > len(data) or at < start + 2:
                break
            found.append((start, at))
        return found
    start = data.find(b"\0\0\1")
    while start >= 0:
        end = data.find(b"\0\0\1", start + 3)
        stop = end if end >= 0 else len(data)
        while stop > start + 3 and data[stop - 1] == 0:  # zeros before the next start code
            stop -= 1
        if stop - start > 5:
            found.append((start + 3, stop))
        start = end
    return found
