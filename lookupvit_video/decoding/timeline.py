"""Which frame of a video is shown when, and where decoding can begin: from its packets, or from a small index file."""

from __future__ import annotations

import hashlib
import logging
import os
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from operator import lt
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np

from lookupvit_video.decoding.reader import LOST_FRAMES, TIME_STAMPS, DamageList
from lookupvit_video.files import atomic_write

logger = logging.getLogger(__name__)

# Codecs whose key frames need nothing decoded before them (pictures *shown* before a key frame may, and are left out).
# Any other codec is decoded from its first packet.
_SEEKABLE_CODECS = frozenset({"h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mpeg2video", "mjpeg"})
# Containers that store presentation times. Elsewhere (avi) libav guesses them; a decode from the start checks them.
_TIMED_CONTAINERS = frozenset({"mov", "mp4", "matroska", "webm", "mpegts", "flv"})

_NONE = -(1 << 63)  # None in an index file, as in libav


class Key(NamedTuple):
    """An entry point: the first frame shown from there, its packet's time stamp, where to seek (empty: reopen)."""

    frame: int
    pts: int | None
    seek: tuple[int, ...]


@dataclass(frozen=True)
class FrameTimeline:
    """The frames of a video in the order shown: time stamps (in the stream's unit), seconds, entry points."""

    pts: list[int | None]
    times: np.ndarray
    keys: list[Key]
    sequential: bool  # made of decoded frames, not of packets
    closed: bool  # every key packet is an entry point and no picture after it is shown before it; none is discarded
    oriented: bool = False  # pictures may carry an orientation each, in addition to the container's


class PacketNote(NamedTuple):
    """What the timeline needs of a packet; `entry`: decoding can start here, `end`: when it stops being shown (s)."""

    pts: Any
    dts: Any
    key: bool
    entry: bool
    discard: bool
    corrupt: bool
    end: float
    knows_end: bool  # by its duration


def note_packets(
    packets: Iterable[Any], stream: Any, look_at_key: Callable[[Any], None] = lambda packet: None
) -> list[PacketNote]:
    """Note what the timeline needs of the packets of a stream; ``look_at_key`` gets those flagged as key."""
    nal, unit, notes = nal_layout(stream), float(stream.time_base), []
    for packet in packets:  # a loop with few accesses: there may be 100,000 of them
        pts, dts, duration, is_key, is_entry = packet.pts, packet.dts, packet.duration, packet.is_keyframe, False
        if is_key:
            look_at_key(packet)
            is_entry = _is_entry(packet, nal)
        end = ((pts if pts is not None else dts or 0) + (duration or 0)) * unit
        notes.append(PacketNote(pts, dts, is_key, is_entry, packet.is_discard, packet.is_corrupt, end, bool(duration)))
    return notes


def packet_end(packet: Any, unit: float) -> float:
    """The second at which a packet of PyAV stops being shown; ``unit``: of its time stamps, in seconds."""
    stamp = packet.pts if packet.pts is not None else packet.dts
    return ((stamp or 0) + (packet.duration or 0)) * unit


def codec_name(stream: Any) -> str:
    """The codec's name, whichever library decodes it."""
    name: str = stream.codec_context.codec.canonical_name
    return name


def format_names(container: Any) -> set[str]:
    """The container's names: libav calls mp4 "mov,mp4,m4a,3gp,3g2,mj2"."""
    return set(container.format.name.split(","))


# From packets -----------------------------------------------------------------------------------------------------


def timeline_of_packets(packets: list[PacketNote], container: Any, stream: Any) -> FrameTimeline | None:
    """The timeline the packets announce; None where their time stamps cannot order the frames."""
    pts = [p.pts for p in packets]
    if not packets or None in pts or not packets[0].entry:
        return None
    shown = sorted(p.pts for p in packets if not p.discard)
    if not shown or len(set(pts)) < len(pts):
        return None
    if _belong_to_packets(packets, container, stream):
        return None
    is_timed = not format_names(container).isdisjoint(_TIMED_CONTAINERS)
    keys = _entry_points(packets, shown, container)
    if keys[0].frame != 0:
        return None  # pictures shown before the first key frame: the decoder may or may not deliver them
    # A key whose pictures are all cut off by an edit list shows nothing.
    may_seek = is_timed and codec_name(stream) in _SEEKABLE_CODECS
    keys = sorted(key for key in keys if key.frame < len(shown)) if may_seek else keys[:1]
    earliest_after = list(accumulate(reversed(pts), min))[::-1]
    closed = all(
        not p.discard and (not p.key or (p.entry and p.pts == low))
        for p, low in zip(packets, earliest_after, strict=True)
    )
    times = (np.array(shown, dtype=np.int64) - shown[0]) * float(stream.time_base)
    return FrameTimeline(shown, times, keys, sequential=False, closed=closed)


def _entry_points(packets: list[PacketNote], shown: list[int], container: Any) -> list[Key]:
    # libav seeks by presentation time in mp4 and mkv (and may land late where key frames are dense), by decoding
    # time elsewhere.
    by_pts = not format_names(container).isdisjoint({"mp4", "matroska"})
    first = packets[0].pts if packets[0].dts is None else packets[0].dts
    keys = []
    for p in packets:
        if p.entry:
            seek = (p.pts if by_pts else None, p.dts, first)
            keys.append(Key(bisect_left(shown, p.pts), p.pts, tuple(at for at in seek if at is not None)))
    return keys


def _is_entry(packet: Any, nal: int | None) -> bool:
    """Whether a packet flagged as key is free of earlier pictures.

    In H.264 recovery points are flagged too, which need not be; only an IDR picture (a NAL unit of type 5) is.
    """
    return nal is None or next(_picture_headers(bytes(packet), nal), 0) & 31 == 5


def is_unreferenced(packet: Any, nal: int | None) -> bool:
    """Whether no other picture is predicted from that of a packet, so that it can be left out; False: not known.

    In H.264 nal_ref_idc is then 0 in all of its NAL units (ITU-T H.264, 7.4.1).
    """
    if nal is None:
        return False
    headers = list(_picture_headers(bytes(packet), nal))
    return bool(headers) and not any(header & 0x60 for header in headers)


def nal_layout(stream: Any) -> int | None:
    """How many bytes before each NAL unit hold its length (0: start codes); None: not H.264."""
    return length_size(stream) if codec_name(stream) == "h264" else None


def length_size(stream: Any) -> int:
    """How many bytes before each NAL unit of H.264 or HEVC hold its length; 0: start codes."""
    setup = stream.codec_context.extradata or b""
    at = 21 if codec_name(stream) == "hevc" else 4
    return (setup[at] & 3) + 1 if setup[:1] == b"\x01" and len(setup) > at else 0  # 1: as in mp4 and mkv


def _picture_headers(data: bytes, nal: int) -> Iterator[int]:
    """The first byte of each NAL unit with picture data (ITU-T H.264, table 7-1: types 1 to 5)."""
    at = nal or _after_start_code(data, 0)
    while 0 < at < len(data):
        if 1 <= data[at] & 31 <= 5:
            yield data[at]
        at = at + int.from_bytes(data[at - nal : at], "big") + nal if nal else _after_start_code(data, at)


def _after_start_code(data: bytes, start: int) -> int:
    at = data.find(b"\0\0\1", start)
    return at + 3 if at >= 0 else -1


def longest_rise(stamps: list[int]) -> list[int]:
    """The longest strictly ascending subsequence."""
    tails: list[int] = []  # for each length, the lowest stamp that a rise of it can end in
    lengths = []
    for stamp in stamps:
        length = bisect_left(tails, stamp)
        tails[length : length + 1] = [stamp]
        lengths.append(length)
    rise: list[int] = []
    for stamp, length in zip(reversed(stamps), reversed(lengths), strict=True):
        if length == len(tails) - 1 - len(rise) and (not rise or stamp < rise[-1]):
            rise.append(stamp)
    return rise[::-1]


def announced_stamps(packets: list[PacketNote], container: Any, stream: Any) -> list[int] | None:
    """The time stamps of all frames that are to be decoded, ascending; None where the packets do not say.

    What a sound file may begin with and not show is left out: pictures before the first in decoding order, which need
    others that were cut off; in a recording, whatever comes before the first key frame.
    """
    pts = [p.pts for p in packets]
    is_file = not format_names(container).isdisjoint({"mp4", "matroska", "flv"})
    first = next((p.pts for p in packets if p.key or is_file), None)
    if first is None or None in pts or len(set(pts)) < len(pts) or _belong_to_packets(packets, container, stream):
        return None
    return sorted(p.pts for p in packets if not p.discard and p.pts >= first)


def _belong_to_packets(packets: list[PacketNote], container: Any, stream: Any) -> bool:
    """Whether frames are reordered and time stamps are not: they belong to packets then, not to pictures."""
    pts = [p.pts for p in packets]
    is_timed = not format_names(container).isdisjoint(_TIMED_CONTAINERS)
    in_order = all(map(lt, pts, pts[1:])) and (not is_timed or all(p.pts == p.dts for p in packets))
    return bool(stream.codec_context.has_b_frames and in_order)


# From frames --------------------------------------------------------------------------------------------------------


def timeline_of_frames(
    pts: list[int | None], announced: list[int] | None, stream: Any, damage: DamageList
) -> FrameTimeline | None:
    """The timeline of frames as they were decoded one after the other; None where neither stamps nor a rate order them.

    Args:
        pts: of each frame.
        announced: stamps of the packets, ascending: times count from the first, frames that do not arrive are noted.
        damage: what is wrong with the time stamps is added here.
    """
    rising = longest_rise([stamp for stamp in pts if stamp is not None])
    if announced is not None:
        lost = len(set(announced).difference(rising))
        if lost:
            damage.note(LOST_FRAMES, f"{lost} of {len(announced)} frames are not decoded")
    if rising and (announced is not None or len(rising) > 0.8 * len(pts)):
        # a few stamps out of order are damage; many are not presentation times at all
        if len(rising) < len(pts):
            damage.note(TIME_STAMPS, f"{len(pts) - len(rising)} of {len(pts)} frames have none, or out of order")
        origin = min(rising[0], announced[0]) if announced else rising[0]
        times = (np.array(rising, dtype=np.int64) - origin) * float(stream.time_base)
        times[0] = 0.0  # the first that is decoded is shown from the start on
        return FrameTimeline(list(rising), times, [Key(0, None, ())], sequential=True, closed=False)
    rate = stream.average_rate or stream.guessed_rate
    if not rate:
        return None
    return FrameTimeline(pts, np.arange(len(pts)) / float(rate), [Key(0, None, ())], sequential=True, closed=False)


# Kept on disk -----------------------------------------------------------------------------------------------------


def index_path(folder: str | os.PathLike[str], video: str) -> Path:
    """Where a folder keeps the timeline of a video: another name once the file or libav is another."""
    state = os.stat(video)
    facts = (2, os.path.abspath(video), state.st_size, state.st_mtime_ns, av.library_versions)  # 2: of the format below
    name = hashlib.sha256(repr(facts).encode()).hexdigest()[:32]
    return Path(folder, name[:2], f"{name[2:]}.npz")  # folders of hundreds of thousands of files are slow


def save_timeline(path: Path, timeline: FrameTimeline) -> None:
    """Write a timeline completely or not at all (an .npz of four plain arrays)."""
    keys = np.full((len(timeline.keys), 5), _NONE, dtype=np.int64)
    for row, key in zip(keys, timeline.keys, strict=True):
        row[0], row[1] = key.frame, _NONE if key.pts is None else key.pts
        row[2 : 2 + len(key.seek)] = key.seek
    pts = np.array([_NONE if stamp is None else stamp for stamp in timeline.pts], dtype=np.int64)
    flags = np.array([timeline.sequential, timeline.closed, timeline.oriented])
    with atomic_write(path) as temporary:
        np.savez(temporary, pts=pts, times=timeline.times, keys=keys, flags=flags)


def load_timeline(path: Path) -> FrameTimeline | None:
    """Read a timeline back; None where the file is missing or damaged."""

    def known(stamp: int) -> int | None:
        return None if stamp == _NONE else stamp

    try:
        with np.load(path, allow_pickle=False) as arrays:
            pts, times, keys, flags = (arrays[name] for name in ("pts", "times", "keys", "flags"))
        return FrameTimeline(
            pts=[known(stamp) for stamp in pts.tolist()],
            times=times,
            keys=[Key(row[0], known(row[1]), tuple(at for at in row[2:] if at != _NONE)) for row in keys.tolist()],
            sequential=bool(flags[0]),
            closed=bool(flags[1]),
            oriented=bool(flags[2]),
        )
    except (
        Exception
    ) as error:  # a damaged file makes zipfile, zlib and numpy raise all sorts of errors; it is written again
        logger.debug("%s: %s", path, error)
        return None
