"""Video file -> frames at given times, exactly.

The frame returned for a time is the one that a full decode, from the first packet to the last, shows then; or an error
is raised. Seeking alone does not give that: time stamps may be missing, out of order or shared, key frames may lean on
earlier pictures, damaged frames are dropped. So the way here is:

1. read the packets without decoding them: time stamps make the *expected* timeline, key flags the entry points;
2. seek to an entry point, decode forward, and compare every frame that arrives with the expected one;
3. at the first difference, or sign of damage, decode the whole file once: the frames that come out *are* the timeline
   from then on, and every request is served by decoding from the start.

Backends differ in step 2 only, so a new one overrides `PyAVReader._pick` and joins `BACKENDS`.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import stat
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import chain
from types import TracebackType
from typing import Any, ClassVar, NamedTuple

import av
import numpy as np
import torch
from av.stream import Disposition
from av.video.reformatter import VideoReformatter

logger = logging.getLogger(__name__)

# Codecs whose key frames need nothing decoded before them (pictures *shown* before a key frame may, and are left out).
# Any other codec is decoded from its first packet.
_SEEKABLE_CODECS = frozenset({"h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mpeg2video", "mjpeg"})
# Containers that store presentation times. Elsewhere (avi) libav guesses them; a decode from the start checks them.
_TIMED_CONTAINERS = frozenset({"mov", "mp4", "matroska", "webm", "mpegts", "flv"})
# Decord counts frames from a key frame on and never looks at their times: only where tests find that exact.
_DECORD_CODECS = frozenset({"h264", "vp8", "vp9"})
_DECORD_CONTAINERS = frozenset({"mov", "mp4", "matroska", "webm"})

_TIME_TOLERANCE = 1e-6  # seconds: a time computed as index / fps may fall a rounding error short of the frame's own
_SEEK_WORTH = 4  # frames: a seek refills the decoder's reordering delay, so shorter gaps are decoded through


class DecodeError(ValueError):
    """A video that cannot be read as it should; `path` and `reason` are kept apart for reports."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)  # both in args: it must survive pickling, on its way out of a loader worker
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class _Mismatch(Exception):
    """What the decoder delivers is not what the packets announced."""


@dataclass(frozen=True)
class VideoInfo:
    """What the file holds: pixels as displayed (after rotation), average rate in frames/s, duration in seconds."""

    codec: str
    width: int
    height: int
    fps: float
    duration: float
    num_frames: int


class _Key(NamedTuple):
    """An entry point: the first frame shown from there, its packet's time stamp, where to seek (empty: open anew)."""

    frame: int
    pts: int | None
    seek: tuple[int, ...]


@dataclass(frozen=True)
class _Timeline:
    """The frames of a video in the order shown: time stamps (in the stream's unit), seconds, entry points."""

    pts: list[int | None]
    times: np.ndarray
    keys: list[_Key]
    sequential: bool  # made of decoded frames, not of packets
    closed: bool  # every key packet is an entry point and no picture after it is shown before it; none is discarded


class VideoReader:
    """An open video, and a context manager that closes it; made by `open_video`.

    `times` holds the presentation times of its frames: float64 (N,), seconds, ascending, `times[0] == 0.0`. These are
    the packets' times until a decode contradicts them (a damaged file); `times` and `info` then become what is decoded.
    """

    info: VideoInfo
    times: np.ndarray

    def frames_at(self, seconds: Sequence[float]) -> torch.Tensor:
        """Frames shown at times in seconds, in any order, with repeats: uint8 (T, H, W, C), RGB, upright.

        The frame shown at t is the last one with time <= t; before the first frame the first, after the end the last.

        Raises:
            ValueError: a time is not finite, or the reader is closed.
            DecodeError: the file does not deliver its frames.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Let go of the file; closing twice is harmless."""
        raise NotImplementedError

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_backend(backend: str) -> None:
    """Find out, before any work, whether a backend can serve here; it is not imported for that.

    Raises:
        ValueError: an unknown backend, or its package is not installed.
    """
    if backend not in BACKENDS:
        raise ValueError(f"DATA.DECODING_BACKEND is {backend!r}; choose one of: {', '.join(BACKENDS)}")
    if importlib.util.find_spec(BACKENDS[backend].package) is None:
        raise ValueError(
            f"DATA.DECODING_BACKEND {backend}: its package is not installed here (decord has none for Arm); use pyav"
        )


def open_video(path: str | os.PathLike[str], backend: str = "pyav", in_memory: bool = False) -> VideoReader:
    """Open a local video file.

    Args:
        backend: "pyav" or "decord".
        in_memory: decode all of it the first time and keep it in this process's memory (3 bytes a pixel and frame).

    Raises:
        DecodeError: the file is missing, not a video, truncated, or has no frame that can be decoded.
        ValueError: an unknown backend.
        ImportError: the backend's package is not installed.
    """
    if backend not in BACKENDS:
        check_backend(backend)  # raises
    return _in_memory(os.fspath(path), backend) if in_memory else BACKENDS[backend](path)


def _checked_times(path: str, seconds: Sequence[float]) -> np.ndarray:
    at = np.asarray(seconds, dtype=np.float64).reshape(-1)
    if not np.isfinite(at).all():
        raise ValueError(f"{path}: a time is not finite: {at[~np.isfinite(at)][0]}")
    return at


def _shown_at(times: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Indices of the frames shown at some times."""
    return np.maximum(np.searchsorted(times, at + _TIME_TOLERANCE, side="right") - 1, 0)


class MemoryReader(VideoReader):
    """A decoded video; closing it does nothing, since the next one to ask shares it."""

    def __init__(self, path: str, backend: str) -> None:
        self.path = path
        with BACKENDS[backend](path) as reader:
            self.times = np.empty(0)
            while self.times is not reader.times:  # a decode that contradicts the packets corrects them
                self.times = reader.times
                self._frames = reader.frames_at(self.times.tolist())
            self.info = reader.info

    def frames_at(self, seconds: Sequence[float]) -> torch.Tensor:
        """See `VideoReader.frames_at`."""
        return self._frames[torch.from_numpy(_shown_at(self.times, _checked_times(self.path, seconds)))]

    def close(self) -> None:
        """See `VideoReader.close`."""


_in_memory = cache(MemoryReader)


class PyAVReader(VideoReader):
    """Decode with PyAV (libav), one thread: loaders run one decoder in each worker."""

    package: ClassVar[str] = "av"

    # libav objects, None while closed
    _container: Any = None
    _stream: Any = None
    _reformatter: Any = None
    # The cursor: `_frames` delivers what comes after `_current`, the frame at timeline index `_index`; frames before
    # time stamp `_floor` are left out. `_frames` is None where decoding has to start anew.
    _frames: Any = None
    _current: Any = None
    _index: int = -1
    _floor: int | None = None

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = _checked_path(path)
        try:
            with _plain_errors(self.path):
                self._open()
                self._use(self._scan() or self._play())
                try:
                    first = self._frame(0)
                except _Mismatch as mismatch:
                    self._fall_back(mismatch)
                    first = self._frame(0)
                self._coded_size = (first.width, first.height)
                self._quarter_turns = round(first.rotation / 90) % 4  # counter-clockwise, as np.rot90 turns
                self._describe()
        except BaseException:
            self.close()
            raise

    def frames_at(self, seconds: Sequence[float]) -> torch.Tensor:
        """See `VideoReader.frames_at`."""
        if self._container is None:
            raise ValueError(f"{self.path}: the reader is closed")
        at = _checked_times(self.path, seconds)
        with _plain_errors(self.path):
            try:
                return self._gather(at)
            except _Mismatch as mismatch:
                self._fall_back(mismatch)
                self._describe()
                return self._gather(at)

    def close(self) -> None:
        """See `VideoReader.close`."""
        container, self._container = self._container, None
        self._frames = self._current = self._stream = self._reformatter = None
        if container is not None:
            container.close()

    def _gather(self, at: np.ndarray) -> torch.Tensor:
        """Map times to timeline indices, decode each index once, and lay the frames out in the order asked."""
        wanted, place = np.unique(_shown_at(self.times, at), return_inverse=True)
        frames = self._pick(wanted)
        if not np.array_equal(place, np.arange(len(wanted))):
            frames = frames[place]
        return torch.from_numpy(frames)

    def _pick(self, wanted: np.ndarray) -> np.ndarray:
        """Frames at ascending timeline indices (T,): uint8 (T, H, W, 3); _Mismatch where the timeline is wrong."""
        frames = np.empty((len(wanted), self.info.height, self.info.width, 3), dtype=np.uint8)
        for slot, index in zip(frames, wanted.tolist(), strict=True):
            slot[...] = self._upright_rgb(self._frame(index))
        return frames

    def _upright_rgb(self, frame: av.VideoFrame) -> np.ndarray:
        width, height = self._coded_size  # a stream may change its size midway; the clip may not
        # one thread: swscale would take every core of the machine, in every loader worker
        rgb = self._reformatter.reformat(frame, width=width, height=height, format="rgb24", threads=1)
        return np.rot90(rgb.to_ndarray(), self._quarter_turns)

    def _frame(self, index: int) -> av.VideoFrame:
        """The frame at a timeline index, by decoding on or by seeking, whichever decodes less."""
        keys = self._timeline.keys
        key = keys[bisect_right(keys, index, key=lambda entry: entry.frame) - 1]
        if self._frames is None or index < self._index or key.frame - self._index > _SEEK_WORTH:
            self._start(key)
        while self._index < index:
            self._advance()
        return self._current

    def _start(self, key: _Key) -> None:
        """Set the cursor just before an entry point."""
        self._frames = None
        if key.seek:
            packets = self._packets_from(key)
        else:
            self._open()
            packets = _demux(self._container, self._stream)
        self._frames = _decode(packets, self._stream, forgive=not key.seek)
        self._floor = key.pts
        self._index = key.frame - 1

    def _packets_from(self, key: _Key) -> Iterator[Any]:
        """The packets from the very one meant on; a seek may land earlier, or later."""
        for at in key.seek:
            self._container.seek(at, stream=self._stream)
            packets = _demux(self._container, self._stream)
            entry = next((p for p in packets if p.is_keyframe and (p.pts is None or p.pts >= key.pts)), None)
            if entry is not None and entry.pts == key.pts:
                return chain([entry], packets)
        raise _Mismatch("a seek does not find the key frame")

    def _advance(self) -> None:
        """Move the cursor one frame on, and check that it is the frame the timeline names."""
        for frame in self._frames:
            if self._floor is not None and frame.pts is not None and frame.pts < self._floor:
                continue  # shown before the key frame: it may lean on pictures from before the seek
            due = self._timeline.pts[self._index + 1]
            if self._timeline.sequential:
                if frame.pts != due:
                    continue  # its time stamp is out of order: it has no place among the others
            elif frame.pts != due or frame.is_corrupt:
                break  # corrupt: mended from what came before, which after a seek is not what a full decode saw
            self._index += 1
            self._current = frame
            return
        self._frames = None
        raise _Mismatch(f"frame {self._index + 1} does not arrive as announced")

    def _open(self) -> None:
        """Open the file anew, with the decoder in its first state."""
        self.close()
        self._container = _open_container(self.path)
        self._stream = self._container.streams.best("video")
        if self._stream is None or self._stream.disposition & Disposition.attached_pic:  # an album's cover
            raise DecodeError(self.path, "holds no video stream")
        if self._stream.codec_context is None:
            raise DecodeError(self.path, "its video is in a codec that this build of PyAV cannot decode")
        self._stream.thread_type = "NONE"
        self._stream.codec_context.thread_count = 1
        self._reformatter = VideoReformatter()

    def _use(self, timeline: _Timeline) -> None:
        self._timeline = timeline
        self.times = timeline.times
        self._frames = None

    def _fall_back(self, mismatch: _Mismatch) -> None:
        """From the packets' timeline to that of a full decode."""
        if self._timeline.sequential:
            raise DecodeError(self.path, f"does not decode the same twice ({mismatch}); is it being written?")
        logger.info("%s: %s; decoding all of it", self.path, mismatch)
        self._use(self._play())

    def _describe(self) -> None:
        width, height = self._coded_size[::-1] if self._quarter_turns % 2 else self._coded_size
        count = len(self.times)
        fps = (count - 1) / float(self.times[-1]) if count > 1 else float(self._stream.average_rate or 1)
        self.info = VideoInfo(_codec(self._stream), width, height, fps, count / fps, count)

    def _scan(self) -> _Timeline | None:
        """The timeline the packets announce; None where their time stamps cannot order the frames.

        Raises:
            DecodeError: the file ends before the video does.
        """
        packets = [_PacketNote.of(p, self._stream) for p in _demux(self._container, self._stream)]
        _check_whole(self.path, self._container, self._stream, packets)
        pts = [p.pts for p in packets]
        if not packets or None in pts or not packets[0].entry:
            return None
        shown = np.array(sorted(p.pts for p in packets if not p.discard), dtype=np.int64)
        if len(shown) == 0 or len(set(pts)) < len(pts):
            return None
        in_order = (np.diff(pts) > 0).all() and (not self._is_timed() or all(p.pts == p.dts for p in packets))
        if self._stream.codec_context.has_b_frames and in_order:
            return None  # the frames are reordered, the time stamps are not: they belong to packets, not to pictures
        # libav seeks by presentation time in mp4 and mkv (and may land late where key frames are dense), by decoding
        # time elsewhere.
        by_pts = not _formats(self._container).isdisjoint({"mp4", "matroska"})
        first = packets[0].pts if packets[0].dts is None else packets[0].dts
        keys = []
        for p in packets:
            if p.entry:
                seek = (p.pts if by_pts else None, p.dts, first)
                keys.append(_Key(int(np.searchsorted(shown, p.pts)), p.pts, tuple(at for at in seek if at is not None)))
        if keys[0].frame != 0:
            return None  # pictures shown before the first key frame: the decoder may or may not deliver them
        # A key whose pictures are all cut off by an edit list shows nothing.
        keys = sorted(key for key in keys if key.frame < len(shown)) if self._may_seek() else keys[:1]
        earliest_after = np.minimum.accumulate(pts[::-1])[::-1]
        closed = all(
            not p.discard and (not p.key or (p.entry and p.pts == low))
            for p, low in zip(packets, earliest_after, strict=True)
        )
        times = (shown - shown[0]) * float(self._stream.time_base)
        return _Timeline(shown.tolist(), times, keys, sequential=False, closed=closed)

    def _is_timed(self) -> bool:
        return not _formats(self._container).isdisjoint(_TIMED_CONTAINERS)

    def _may_seek(self) -> bool:
        return self._is_timed() and _codec(self._stream) in _SEEKABLE_CODECS

    def _play(self) -> _Timeline:
        """The timeline of a full decode; it holds one frame at a time."""
        self._open()
        packets = _demux(self._container, self._stream)
        pts: list[int | None] = [frame.pts for frame in _decode(packets, self._stream, forgive=True)]
        if not pts:
            raise DecodeError(self.path, f"no frame of its {_codec(self._stream)} video can be decoded")
        rising = _longest_rise([stamp for stamp in pts if stamp is not None])
        if len(rising) > 0.8 * len(pts):  # a few stamps out of order are damage; many are not presentation times at all
            pts = list(rising)
            times = (np.array(rising, dtype=np.int64) - rising[0]) * float(self._stream.time_base)
        else:
            rate = self._stream.average_rate or self._stream.guessed_rate
            if not rate:
                raise DecodeError(self.path, "has neither usable time stamps nor a frame rate")
            times = np.arange(len(pts)) / float(rate)
        return _Timeline(pts, times, [_Key(0, None, ())], sequential=True, closed=False)


class DecordReader(PyAVReader):
    """Decode with decord where it is exact; what it would get wrong is decoded with PyAV and logged, once a reason.

    One thing cannot be told beforehand: where picture data is damaged, decord may return a neighbour, or a picture
    mended in its own way, and say nothing. PyAV notices; use it for files that are not known to be sound.
    """

    package: ClassVar[str] = "decord"

    _reported: ClassVar[set[str]] = set()

    def __init__(self, path: str | os.PathLike[str]) -> None:
        try:
            import decord
        except (ImportError, OSError) as error:  # OSError: a wheel for another platform
            raise ImportError(
                f"DATA.DECODING_BACKEND decord cannot be used here ({error}); decord has no packages for Arm: use pyav"
            ) from error
        super().__init__(path)
        decord.logging.set_level(decord.logging.QUIET)
        self._decord: Any = None
        distrust = self._distrust()
        if distrust is None:
            try:
                # fault_tol: one frame that decord would replace by a copy of another is an error
                reader = decord.VideoReader(self.path, ctx=decord.cpu(0), num_threads=1, fault_tol=1e-9)
                distrust = self._compare(reader)
                self._decord = reader if distrust is None else None
            except Exception as error:  # decord raises its own errors and RuntimeError; its message names C++ lines
                logger.debug("%s: decord: %s", self.path, error)
                distrust = "it cannot open the file"
        if distrust is not None:
            self._report(distrust)

    def close(self) -> None:
        """See `VideoReader.close`."""
        self._decord = None
        super().close()

    def _pick(self, wanted: np.ndarray) -> np.ndarray:
        if self._decord is not None and len(wanted):
            try:
                frames = self._decord.get_batch(wanted.tolist())
                # decord.bridge is global: PyTorchVideo switches it to torch
                return frames.numpy() if isinstance(frames, torch.Tensor) else frames.asnumpy()
            except Exception as error:
                logger.debug("%s: decord: %s", self.path, error)
                self._decord = None
                self._report("it fails on some frames")
        return super()._pick(wanted)

    def _distrust(self) -> str | None:
        """Why decord is not to be trusted with this file, seen from its packets."""
        if not _formats(self._container) & _DECORD_CONTAINERS or _codec(self._stream) not in _DECORD_CODECS:
            return f"it is not exact on {_codec(self._stream)} in {self._container.format.name}"
        if self._timeline.sequential or not self._timeline.closed:
            return "it is not exact where key frames or time stamps are irregular"
        if self._quarter_turns:
            return "it cannot turn pictures of every size upright"
        return None

    def _compare(self, reader: Any) -> str | None:
        """Why decord's own view of the file is not to be trusted."""
        if len(reader) != len(self.times):
            return "it counts other frames than the file holds"
        starts = np.asarray(reader.get_frame_timestamp(range(len(reader))), dtype=np.float64)[:, 0]
        if not np.allclose(starts - starts[0], self.times, rtol=1e-5, atol=1e-3):
            return "it reads other time stamps than the file holds"
        return None

    def _report(self, reason: str) -> None:
        if reason not in self._reported:
            self._reported.add(reason)
            logger.warning("%s: decoded with pyav, not decord: %s (said once)", self.path, reason)


BACKENDS: dict[str, type[PyAVReader]] = {"pyav": PyAVReader, "decord": DecordReader}


def _checked_path(path: str | os.PathLike[str]) -> str:
    """The path of a local file that may be a video, or DecodeError in plain words."""
    name = os.fspath(path)
    if "://" in name:
        raise DecodeError(name, "is a URL; only local files are read: download it first")
    try:
        status = os.stat(name)
        if stat.S_ISDIR(status.st_mode):
            raise DecodeError(name, "is a directory, not a video file")
        if not stat.S_ISREG(status.st_mode):
            raise DecodeError(name, "is not a regular file")
        if status.st_size == 0:
            raise DecodeError(name, "is empty (0 bytes): fetch it again")
        with open(name, "rb") as file:
            head = file.read(256)
    except FileNotFoundError as error:
        raise DecodeError(name, "no such file") from error
    except OSError as error:
        raise DecodeError(name, error.strerror or str(error)) from error
    if head.startswith(b"version https://git-lfs"):
        raise DecodeError(name, "is a git-lfs pointer, not the video: run `git lfs pull`")
    if all(byte >= 32 or byte in b"\t\r\n\f" for byte in head):
        start = head[:40].decode("utf-8", "replace").splitlines()[0]
        raise DecodeError(name, f"is text, not a video (it starts with {start!r})")
    return name


@contextmanager
def _plain_errors(path: str) -> Iterator[None]:
    """Turn what libav raises into DecodeError."""
    try:
        yield
    except av.FFmpegError as error:
        raise DecodeError(path, f"cannot be decoded: {error.strerror}") from error


def _open_container(path: str, **options: str) -> Any:
    """Open a file for reading, with no other file or address behind it."""
    try:
        # "file:" keeps a colon in a name from being read as a protocol; a playlist must not open a network address
        whole = {"protocol_whitelist": "file", **options}
        return av.open(f"file:{path}", options=whole, metadata_errors="replace")
    except av.FFmpegError as error:
        with open(path, "rb") as file:
            is_mp4 = file.read(8)[4:] == b"ftyp"
        why = "its index (moov) is missing: truncated, fetch it again" if is_mp4 else f"not a video ({error.strerror})"
        raise DecodeError(path, f"cannot be opened: {why}") from error


def _demux(container: Any, stream: Any) -> Iterator[Any]:
    """Packets of one stream (None: of all), up to the end or to where the container cannot be read on."""
    try:
        for packet in container.demux() if stream is None else container.demux(stream):
            if packet.size:  # an empty packet would tell the decoder that the stream is over
                yield packet
    except (av.FFmpegError, IndexError) as error:  # IndexError: PyAV, where damage made a stream appear midway
        logger.debug("%s: reading stops: %s", container.name, error)


def _decode(packets: Iterator[Any], stream: Any, *, forgive: bool) -> Iterator[av.VideoFrame]:
    """Frames of packets in the order shown; one that cannot be decoded is passed over, as players do, or _Mismatch."""
    for packet in chain(packets, [None]):  # None: the frames still held back
        try:
            frames = stream.decode(packet)
        except av.FFmpegError as error:
            if not forgive:
                raise _Mismatch("damaged data") from error
            continue
        yield from frames


class _PacketNote(NamedTuple):
    """What the timeline needs of a packet; `entry`: decoding can start here, `end`: when it stops being shown (s)."""

    pts: Any
    dts: Any
    key: bool
    entry: bool
    discard: bool
    corrupt: bool
    end: float

    @staticmethod
    def of(packet: Any, stream: Any) -> _PacketNote:
        """Take down a demuxed packet of PyAV."""
        key = packet.is_keyframe
        return _PacketNote(
            packet.pts,
            packet.dts,
            key,
            key and _is_entry(packet, stream),
            packet.is_discard,
            packet.is_corrupt,
            _end(packet),
        )


def _end(packet: Any) -> float:
    stamp = packet.pts if packet.pts is not None else packet.dts
    return float((stamp or 0) + (packet.duration or 0)) * float(packet.time_base)


def _is_entry(packet: Any, stream: Any) -> bool:
    """Whether a packet flagged as key is free of earlier pictures.

    In H.264 the flag also stands on recovery points, which need not be; only an IDR picture is. The first picture's NAL
    unit tells (ITU-T H.264, table 7-1: 1 to 5 are pictures, 5 is IDR).
    """
    if _codec(stream) != "h264":
        return True
    data, setup = bytes(packet), stream.codec_context.extradata or b""
    if setup[:1] == b"\x01":  # mp4, mkv: each unit is preceded by its length, in so many bytes
        size, at = (setup[4] & 3) + 1, 0
        while at + size < len(data):
            kind = data[at + size] & 31
            if 1 <= kind <= 5:
                return kind == 5
            at += size + int.from_bytes(data[at : at + size], "big")
        return False
    at = data.find(b"\0\0\1")
    while 0 <= at < len(data) - 3:
        kind = data[at + 3] & 31
        if 1 <= kind <= 5:
            return kind == 5
        at = data.find(b"\0\0\1", at + 3)
    return False


def _check_whole(path: str, container: Any, stream: Any, packets: list[_PacketNote]) -> None:
    """Raise DecodeError where the file holds less than its header states."""
    stated = stream.frames
    if stated and "mp4" in _formats(container):
        whole = sum(not p.corrupt for p in packets)
        if whole < stated:  # an edit list leaves packets out of a sound file: count without it
            with _open_container(path, ignore_editlist="1") as plain:
                whole = sum(not p.is_corrupt for p in _demux(plain, plain.streams[stream.index]))
        if whole < stated:
            raise DecodeError(path, f"truncated: holds {whole} of {stated} frames; fetch it again")
        return
    duration = (container.duration or 0) / 1e6  # libav shortens that of an avi which it finds cut off
    if stated and stream.average_rate:
        duration = max(duration, stated / float(stream.average_rate))
    slack = max(1.0, 0.05 * duration)
    if max((p.end for p in packets), default=0.0) >= duration - slack:
        return
    with _open_container(path) as other:  # the video may end long before the sound
        last = max((_end(p) for p in _demux(other, None)), default=0.0)
    if last < duration - slack:
        raise DecodeError(path, f"truncated: ends at {last:.1f} of {duration:.1f} s; fetch it again")


def _longest_rise(stamps: list[int]) -> list[int]:
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


def _codec(stream: Any) -> str:
    """The codec's name, whichever library decodes it."""
    return stream.codec_context.codec.canonical_name


def _formats(container: Any) -> set[str]:
    """The container's names: libav calls mp4 "mov,mp4,m4a,3gp,3g2,mj2"."""
    return set(container.format.name.split(","))
