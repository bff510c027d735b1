"""Decode with PyAV: the frame returned for a time is the one that a full decode shows then, or an error is raised.

Seeking alone does not give that: time stamps may be missing, out of order or shared, key frames may lean on earlier
pictures, damaged frames are dropped. So the way here is:

1. read the packets without decoding them: time stamps make the *expected* timeline, key flags the entry points;
2. seek to an entry point, decode forward, and compare every frame that arrives with the expected one;
3. at the first difference, or sign of damage, decode the whole file once: the frames that come out *are* the timeline
   from then on, and every request is served by decoding from the start.

What makes it fast is what it leaves out: pictures that are neither asked for nor leaned on by others are not decoded,
pictures that are not asked for are not converted to RGB, and the header is believed until a picture contradicts it.

Readers of other libraries differ in step 2 only: they override `PyAVReader._pick`.
"""

from __future__ import annotations

import logging
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import chain, dropwhile, islice
from typing import Any, ClassVar, TypeVar

import av
import numpy as np
import torch
from av.stream import Disposition
from av.video.format import VideoFormat
from av.video.reformatter import Interpolation, VideoReformatter

from lookupvit_video.decoding.damage import (
    Arm,
    FrameKeeper,
    PictureWatch,
    UnfilledWatch,
    count_errors,
    errors_so_far,
    fresh_decoder,
    length_of_lengths,
    listening,
    open_decoder,
)
from lookupvit_video.decoding.encryption import ENCRYPTED, refuse_encrypted
from lookupvit_video.decoding.file_end import check_file
from lookupvit_video.decoding.frame_filter import field_joiner
from lookupvit_video.decoding.hevc_slices import pictures_not_read_to_their_end
from lookupvit_video.decoding.opening import checked_path, demux, open_container, opened, plain_errors
from lookupvit_video.decoding.orientation import (
    ALWAYS_PER_PICTURE,
    MAY_CARRY_MESSAGES,
    UPRIGHT,
    Orientation,
    carries_message,
    orientation_of_frame,
    remark_on_frame,
)
from lookupvit_video.decoding.reader import (
    CONTAINER,
    PICTURE_DATA,
    PICTURE_SIZE,
    PIXEL_SHAPE,
    Box,
    Damage,
    DamageList,
    Deadline,
    DecodeError,
    VideoInfo,
    VideoReader,
    checked_times,
    shown_at,
)
from lookupvit_video.decoding.timeline import (
    Key,
    Timeline,
    announced_stamps,
    codec_name,
    index_path,
    is_unreferenced,
    length_size,
    load_timeline,
    nal_layout,
    note_packets,
    save_timeline,
    timeline_of_frames,
    timeline_of_packets,
)
from lookupvit_video.errors import UserError

logger = logging.getLogger(__name__)

_SEEK_WORTH = 4  # frames: a seek refills the decoder's reordering delay, so shorter gaps are decoded through
# Pixels this close to square are left alone: scaling to even sizes leaves such ratios behind, and nobody sees them.
NEARLY_SQUARE = 0.02
# Codecs of which damage may go unnoticed and show what a buffer held before: each key frame meets a decoder that has
# decoded nothing yet, so that a picture depends on nothing that was read before it.
_FROM_KEY_TO_KEY = frozenset({"hevc", "vp8"})
_FROM_KEY_TO_KEY_ONCE_DAMAGED = frozenset({"mjpeg"})  # each of its pictures is a key frame: too slow for sound files
_SMALL_FILE = 8 << 20  # bytes: packets of files up to this are kept from the first reading on until they are decoded
_RGB, _BICUBIC = VideoFormat("rgb24"), int(Interpolation.BICUBIC)  # PyAV would look the names up for each picture
ODDEST_PIXEL = 3  # times as wide as high, or as high as wide (32:11 is the oddest in use): beyond, it is damage
_PADDING = 16  # pixels: headers may count what encoders add to fill blocks


_T = TypeVar("_T")


def _whole(height: int, width: int) -> Box:
    return Box(0, 0, height, width)


class _Mismatch(Exception):
    """What the decoder delivers is not what the packets announced."""


class PyAVReader(VideoReader):
    """Decode with PyAV (libav), one thread: loaders run one decoder in each worker."""

    package: ClassVar[str] = "av"

    @classmethod
    def missing(cls) -> str | None:
        """Why this reader cannot be used here, in a few words; None: it can."""
        return None

    # libav objects, None while closed
    _container: Any = None
    _stream: Any = None
    _reformatter: Any = None
    _decoder: Any = None  # codec context; the stream's own, or that of a stricter library
    _arm: Arm | None = None  # what packets pass through before they are decoded
    _threads: int = 1  # 0: as many as libav likes, until there is damage
    _read: Sequence[Any] = ()  # all packets, while the decoder has seen none of them
    # The cursor: `_frames` delivers what comes after `_current`, the frame at timeline index `_index`; frames before
    # time stamp `_floor` are left out. `_frames` is None where decoding has to start anew. Of the time stamps passed
    # by since, pictures at `_spared` were not decoded, since only those at `_shown` are asked for (None: all).
    _frames: Any = None
    _current: Any = None
    _index: int = -1
    _entry: Key | None = None  # from which the cursor started
    _is_remembered: bool = False  # whether the timeline comes from an index, not from the file
    _announced_span: tuple[float, int] | None = None  # seconds from the first to the last frame announced, and how many
    _has_decoded: bool = False  # since the file was opened
    _floor: int | None = None
    _shown: set[int | None] | None = None
    _spared: set[int | None]
    _from_key_to_key: bool = False
    _usual_size: tuple[int, int] | None = None  # of most pictures, where all were decoded
    _lying_size: tuple[int, int] | None = None  # (width, height) before turning; None: no picture was decoded yet
    _orientation: Orientation = UPRIGHT  # of the first picture, and of all that do not carry one of their own
    _own: Orientation = UPRIGHT  # of the picture decoded last, where `_timeline.oriented`
    _oriented: bool = False  # what the packets read so far say of that

    def __init__(
        self, path: str | os.PathLike[str], *, timeout: float = 0.0, index_cache: str | os.PathLike[str] = ""
    ) -> None:
        self.path = checked_path(path)
        self._deadline = Deadline(self.path, timeout)
        self._damage = DamageList()
        count_errors()
        try:
            with plain_errors(self._deadline):
                self._open()
                self._use(self._remembered(index_cache) if index_cache else self._explore())
        except BaseException:
            self.close()
            raise

    @property
    def info(self) -> VideoInfo:
        """See `VideoReader.info`."""
        if self._lying_size is None:
            self._settled(partial(self._measure, [0]))
        width, height = self._upright_size()
        codec, count = codec_name(self._stream), len(self.times)
        return VideoInfo(codec, width, height, count / self.duration, self.duration, count)

    @property
    def damage(self) -> Sequence[Damage]:
        """See `VideoReader.damage`."""
        return tuple(self._damage)

    def frames_at(self, seconds: Sequence[float], window: Callable[[int, int], Box] | None = None) -> torch.Tensor:
        """See `VideoReader.frames_at`."""
        at = checked_times(self.path, seconds)
        # cached: what it draws at random stays, where the work is done once more
        return self._settled(partial(self._gather, at, cache(window or _whole)))

    def look_at_all(self) -> None:
        """Decode the complete file once, so that `damage` holds all that can be noticed.

        Raises:
            DecodeError: no frame can be decoded, or not in the time allowed.
        """
        if self._container is not None and self._usual_size is None:
            self._settled(self._scan)

    def _scan(self) -> None:
        is_decoded = self._timeline.sequential
        found = self._play(self._announced(), None if is_decoded else self._timeline)
        self._frames = None
        if codec_name(self._stream) == "hevc":
            self._open()
            setup = self._decoder.extradata or b""
            unread = pictures_not_read_to_their_end(self._packets(), setup, length_of_lengths(setup))
            if unread:
                self._damage.note(PICTURE_DATA, f"{unread} pictures are over before their data is")
        if self._damage:
            self._use(replace(found, oriented=self._timeline.oriented))

    def _settled(self, work: Callable[[], _T]) -> _T:
        """Do what needs decoding; where the decoder contradicts the packets, once more with its own timeline."""
        if self._container is None:
            raise UserError(f"{self.path}: the reader is closed")
        self._deadline.restart()
        try:
            with plain_errors(self._deadline):
                try:
                    return work()
                except _Mismatch as mismatch:
                    self._fall_back(mismatch)
                    return work()
        except DecodeError:
            self._frames = None  # the decoder stands somewhere midway
            raise

    def close(self) -> None:
        """See `VideoReader.close`."""
        self._let_threads_finish()
        container, self._container = self._container, None
        self._frames = self._current = self._stream = self._reformatter = self._decoder = None
        self._read = ()
        if container is not None:
            container.close()

    def _let_threads_finish(self) -> None:
        """Wait for the decoder's threads without the GIL: PyAV ends them with it, and one that logs errors needs it."""
        if self._decoder is not None and not self._threads:
            self._decoder.flush_buffers()

    def _gather(self, at: np.ndarray, window: Callable[[int, int], Box]) -> torch.Tensor:
        """Map times to timeline indices, decode each index once, and lay the frames out in the order asked."""
        asked = shown_at(self.times, at).tolist()
        wanted = sorted(set(asked))
        frames = self._pick(wanted, window)
        if asked != wanted:
            frames = frames[np.searchsorted(wanted, asked)]
        return torch.from_numpy(frames)

    def _pick(self, wanted: list[int], window: Callable[[int, int], Box]) -> np.ndarray:
        """Part of the frames at ascending timeline indices (T,): uint8 (T, H, W, 3).

        Raises:
            _Mismatch: the timeline is wrong.
        """
        if self._lying_size is None:
            self._measure(wanted or [0])
        self._ask_for(wanted)
        width, height = self._upright_size()
        box = window(height, width)
        frames = np.empty((len(wanted), box.height, box.width, 3), dtype=np.uint8)
        for slot, index in zip(frames, wanted, strict=True):
            slot[...] = box.cut(self._upright_rgb(self._frame(index)))
        return frames

    def _measure(self, indices: list[int]) -> None:
        """Note how pictures lie, from the first asked for, or from the video's first where the header differs."""
        self._ask_for(indices)
        frame = self._frame(indices[0])
        size = (frame.width, frame.height)
        if indices[0] and (self._timeline.oriented or size != self._stated_size):
            self._ask_for([0])
            frame = self._frame(0)
            size = (frame.width, frame.height)
        self._check_shape(size)
        if self._usual_size:
            size = self._usual_size
        self._orientation = orientation_of_frame(frame)
        self.remark = remark_on_frame(frame)
        if self.remark:
            logger.info("%s: %s", self.path, self.remark)
        self._lying_size = (max(1, round(size[0] * self._squares)), size[1])

    def _check_shape(self, size: tuple[int, int]) -> None:
        """Note what contradicts in what is said about size and pixels, and how wide a pixel is shown."""
        stated = self._stated_size
        if min(stated) > 0 and max(abs(one - other) for one, other in zip(size, stated, strict=True)) >= _PADDING:
            self._damage.note(PICTURE_SIZE, f"{size[0]}x{size[1]}, in the header {stated[0]}x{stated[1]}")
        ratio = float(self._stream.sample_aspect_ratio or 1)
        self._squares = ratio if abs(ratio - 1) > NEARLY_SQUARE else 1.0
        if not 1 / ODDEST_PIXEL <= ratio <= ODDEST_PIXEL:
            self._squares = 1.0
            self._damage.note(PIXEL_SHAPE, f"a pixel {ratio:.3g} times as wide as high: taken for square")

    def _upright_size(self) -> tuple[int, int]:
        assert self._lying_size is not None
        width, height = self._lying_size
        return (height, width) if self._orientation.transposed else (width, height)

    def _upright_rgb(self, frame: av.VideoFrame) -> np.ndarray:
        assert self._lying_size is not None
        width, height = self._lying_size  # a stream may change its size midway; the clip may not
        orientation = self._own if self._timeline.oriented else self._orientation
        if orientation.transposed != self._orientation.transposed:
            width, height = height, width
        if frame.interlaced_frame:
            self.interlaced = True
            frame = self._joiner.apply(frame)
        # one thread: swscale would take every core of the machine, in every loader worker
        picture = self._reformatter.reformat(
            frame, width=width, height=height, format=_RGB, interpolation=_BICUBIC, threads=1
        )
        plane = picture.planes[0]
        strides = (plane.line_size, 3, 1)  # a line may be longer than its pixels
        pixels: np.ndarray = np.ndarray((height, width, 3), np.uint8, buffer=plane, strides=strides)
        return orientation.upright(pixels)

    def _ask_for(self, indices: list[int]) -> None:
        """Say which timeline indices `_frame` will be asked for, so that other pictures may be spared."""
        if self._timeline.sequential:
            self._shown = None  # which packet shows which frame is not known
            return
        self._shown = {self._timeline.pts[index] for index in indices}
        if self._frames is not None and not self._shown.isdisjoint(self._spared):
            self._frames = None

    def _frame(self, index: int) -> av.VideoFrame:
        """The frame at a timeline index, by decoding on or by seeking, whichever decodes less."""
        keys = self._timeline.keys
        key = keys[bisect_right(keys, index, key=lambda entry: entry.frame) - 1]
        is_near = self._index <= index and key.frame - self._index <= _SEEK_WORTH
        if self._frames is None or not is_near or (self._from_key_to_key and key is not self._entry):
            self._start(key)
        while self._index < index:
            self._advance()
        return self._current

    def _start(self, key: Key) -> None:
        """Set the cursor just before an entry point."""
        self._frames = None
        packets = self._packets_from(key)
        self._spared = set()
        self._frames = self._decoded(self._needed(packets))
        self._floor, self._entry = key.pts, key
        self._index = key.frame - 1

    def _packets_from(self, key: Key) -> Iterator[Any]:
        """The packets from the very one meant on; a seek may land earlier, or later."""
        if self._read:
            read, self._read = self._read, ()
            first = next(place for place, p in enumerate(read) if p.is_keyframe and p.pts == key.pts)
            return islice(read, first, None)
        if not key.seek or self._timeline.sequential:
            self._open()
        elif self._from_key_to_key and self._has_decoded:
            if self._lying_size is None:
                self._open()
            else:  # how the pictures lie is known, which a decoder of our own would not say
                self._let_threads_finish()
                self._decoder = fresh_decoder(self._stream, self._threads)
        if not key.seek:
            return self._packets()
        if self._timeline.sequential:  # seeking in a damaged file is a matter of luck
            return dropwhile(lambda packet: not (packet.is_keyframe and packet.pts == key.pts), self._packets())
        for at in key.seek:
            self._container.seek(at, stream=self._stream)
            self._decoder.flush_buffers()
            packets = self._packets()
            entry = next((p for p in packets if p.is_keyframe and (p.pts is None or p.pts >= key.pts)), None)
            if entry is not None and entry.pts == key.pts:
                return chain([entry], packets)
        raise _Mismatch("a seek does not find the key frame")

    def _needed(self, packets: Iterator[Any]) -> Iterator[Any]:
        """Leave out packets of pictures that nobody asks for and no other picture leans on."""
        for packet in packets:
            self._deadline.check()
            if self._shown is None or packet.pts in self._shown or not is_unreferenced(packet, self._nal):
                yield packet
            else:
                self._spared.add(packet.pts)

    def _advance(self) -> None:
        """Move the cursor to the next frame decoded, and check that it is the one the timeline names."""
        pts = self._timeline.pts
        for frame in self._frames:
            if self._timeline.oriented:
                self._own = orientation_of_frame(frame, self._own)
            if self._floor is not None and frame.pts is not None and frame.pts < self._floor:
                continue  # shown before the key frame: it may lean on pictures from before the seek
            due = self._index + 1
            while due < len(pts) - 1 and pts[due] in self._spared:
                due += 1
            if self._timeline.sequential:
                if frame.pts != pts[due]:
                    continue  # its time stamp is out of order: it has no place among the others
            elif frame.pts != pts[due] or frame.is_corrupt or (frame.width, frame.height) != self._size_so_far(frame):
                break  # corrupt: concealed by what came before, which after a seek is not what a full decode saw
            self._index, self._current = due, frame
            return
        self._frames = None
        raise _Mismatch(f"frame {self._index + 1} does not arrive as announced")

    def _open(self) -> None:
        """Open the file anew, with the decoder in its first state."""
        self.close()
        self._container = open_container(self._deadline)
        self._stream = self._container.streams.best("video")
        if self._stream is None or self._stream.disposition & Disposition.attached_pic:  # an album's cover
            refuse_encrypted(self.path, self._container, None)
            raise DecodeError(self.path, "holds no video stream")
        if self._stream.codec_context is None:
            refuse_encrypted(self.path, self._container, None)
            raise DecodeError(self.path, "its video is in a codec that this build of PyAV cannot decode")
        self._decoder, self._arm = open_decoder(self.path, self._container, self._stream)
        self._decoder.thread_type = "NONE" if self._threads else "AUTO"
        self._decoder.thread_count = self._threads
        self._first_size: tuple[int, int] | None = None
        self._from_key_to_key |= codec_name(self._stream) in _FROM_KEY_TO_KEY
        self._has_decoded = False
        self._stated_size = (self._stream.codec_context.width, self._stream.codec_context.height)
        self._nal = nal_layout(self._stream)
        self._reformatter, self._joiner = VideoReformatter(), field_joiner()

    def _packets(self) -> Iterator[Any]:
        return demux(self._container, self._stream, self._deadline, self._damage)

    def _size_so_far(self, frame: av.VideoFrame) -> tuple[int, int]:
        """The size of the first picture since the file was opened."""
        if self._first_size is None:
            self._first_size = (frame.width, frame.height)
        return self._first_size

    def _decoded(self, packets: Iterator[Any], watch: PictureWatch | None = None) -> Iterator[av.VideoFrame]:
        """Frames of packets in the order shown.

        In a decode of the complete file a packet that cannot be decoded is passed over, as players do, and noted in
        ``watch``.

        Raises:
            _Mismatch: a sign of damage, elsewhere.
        """
        forgive = watch is not None or self._timeline.sequential
        self._has_decoded = True
        decode, arm, errors = self._decoder.decode, self._arm, errors_so_far()
        unfilled = UnfilledWatch() if arm else None
        keeper = FrameKeeper() if (forgive or self._from_key_to_key) and not arm else None
        for packet in chain(packets, [None]):  # None: the frames still held back
            try:
                frames = decode(arm(packet) if arm and packet is not None else packet)
            except av.FFmpegError as error:
                if not forgive:
                    raise _Mismatch("damaged data") from error
                if watch:
                    watch.failed += 1
                continue
            if not forgive and errors_so_far() != errors:
                raise _Mismatch("libav reports an error")
            if unfilled is not None and unfilled.has_unfilled(frames):
                if not forgive:
                    raise _Mismatch("a part of a picture is not decoded")
                if watch:
                    watch.unfilled += 1
            if keeper:
                keeper.keep(frames)
            yield from frames
            if self._threads:  # elsewhere the decoder's threads work on in between
                errors = errors_so_far()  # another video may have been decoded in between

    def _use(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self.times = timeline.times
        last, count = float(self.times[-1]), len(self.times)
        if timeline.sequential and self._announced_span is not None:
            last, count = self._announced_span  # frames may be lost at the end
        self.duration = last * count / (count - 1) if count > 1 else 1 / float(self._stream.average_rate or 1)
        self._frames = None

    def _fall_back(self, mismatch: _Mismatch) -> None:
        """From the packets' timeline to that of a full decode."""
        if self._timeline.sequential:
            raise DecodeError(self.path, f"does not decode the same twice ({mismatch}); is it being written?")
        logger.info("%s: %s; decoding all of it", self.path, mismatch)
        self._lying_size = None
        if self._is_remembered:  # perhaps of another file
            self._open()
            self._use(self._explore())
        if not self._timeline.sequential:
            oriented = self._timeline.oriented
            self._use(replace(self._play(self._announced(), self._timeline), oriented=oriented))

    def _announced(self) -> list[int] | None:
        """The time stamps of all frames, where the timeline is that of the packets."""
        return None if self._timeline.sequential else [stamp for stamp in self._timeline.pts if stamp is not None]

    def _remembered(self, folder: str | os.PathLike[str]) -> Timeline:
        """What an earlier opening found out about this very file, or what this one does."""
        path = index_path(folder, self.path)
        timeline = load_timeline(path)
        self._is_remembered = timeline is not None
        if timeline is None:
            timeline = self._explore()
            if not self._damage:  # it would be forgotten
                save_timeline(path, timeline)
        return timeline

    def _explore(self) -> Timeline:
        """The timeline that the packets announce, or that of a full decode where they do not order the frames.

        Raises:
            DecodeError: the file ends before the video does.
        """
        errors = errors_so_far()
        if self._container.size <= _SMALL_FILE:
            self._read = list(self._packets())
        refuse_encrypted(self.path, self._container, self._stream)
        packets = note_packets(self._read or self._packets(), self._stream, self._key_watch())
        has_errors = errors_so_far() != errors
        if packets or self._stream.frames:  # tables without entries promise nothing that could be missing
            check_file(self.path, self._container, self._stream, packets, self._reread, self._damage)
            self._refuse_damaged_hevc()
        if not packets:
            raise DecodeError(self.path, f"holds no frames: a header for {codec_name(self._stream)} video without any")
        timeline = timeline_of_packets(packets, self._container, self._stream)
        if timeline is None or has_errors:
            timeline = self._play(announced_stamps(packets, self._container, self._stream), timeline)
        return replace(timeline, oriented=self._oriented)

    def _key_watch(self) -> Callable[[Any], None]:
        """What looks at key packets: refuses those that are encrypted, notes whether they carry their orientation."""
        codec, size = codec_name(self._stream), length_size(self._stream)
        self._oriented = codec in ALWAYS_PER_PICTURE
        may_carry = codec in MAY_CARRY_MESSAGES

        def look(packet: Any) -> None:
            if packet.has_sidedata("encryption_info"):
                raise DecodeError(self.path, ENCRYPTED)
            if may_carry and not self._oriented:
                self._oriented = carries_message(packet, codec, size)

        return look

    def _reread(self, index: int | None, **options: str) -> Iterator[Any]:
        """The packets of a stream (None: of all) from another look at the file."""
        with opened(self._deadline, **options) as other:
            yield from demux(other, None if index is None else other.streams[index], self._deadline)

    def _play(self, announced: list[int] | None, timeline: Timeline | None) -> Timeline:
        """The timeline of a full decode, and what that shows of damage; it holds one frame at a time.

        Args:
            announced: time stamps of the packets, where they are those of frames: times count from the first.
            timeline: of the packets, where they order the frames.
        """
        watch, self._threads = PictureWatch(), 1  # one thread: what others log cannot be told from other videos'
        pts: list[int | None] = []
        own = UPRIGHT
        with listening() as said:
            self._open()
            for frame in self._decoded(self._packets(), watch):
                watch.see(frame)
                own = self._note_look(frame, len(pts), own)
                pts.append(frame.pts)
        if not pts:
            raise DecodeError(self.path, f"no frame of its {codec_name(self._stream)} video can be decoded")
        watch.report(self._damage, said)
        if announced:
            unit = float(self._stream.time_base)
            self._announced_span = (announced[-1] - announced[0]) * unit, len(announced)
        self._usual_size = watch.usual_size
        found = timeline_of_frames(pts, announced, self._stream, self._damage)
        if found is None:
            raise DecodeError(self.path, "has neither usable time stamps nor a frame rate")
        self._refuse_damaged_hevc()
        if self._damage and codec_name(self._stream) in _FROM_KEY_TO_KEY_ONCE_DAMAGED:
            self._from_key_to_key = True
        if self._damage and timeline is not None and self._from_key_to_key:
            return self._play_from_keys(timeline)
        return found

    def _refuse_damaged_hevc(self) -> None:
        """What of an HEVC picture is not decoded is taken from memory, and differs at each read."""
        if codec_name(self._stream) == "hevc" and any(
            found.kind in (PICTURE_DATA, CONTAINER) for found in self._damage
        ):
            raise DecodeError(self.path, f"damaged: {self._damage}; fetch it again")

    def _note_look(self, frame: av.VideoFrame, number: int, before: Orientation) -> Orientation:
        """Note interlaced frames and a change of orientation; returns the frame's orientation."""
        own = orientation_of_frame(frame, before)
        self.interlaced |= frame.interlaced_frame
        if number and own != before and not self.remark:
            self.remark = f"frame {number} and others are {own}, those before are {before}"
        return own

    def _play_from_keys(self, announced: Timeline) -> Timeline:
        """The timeline of a damaged file, decoded from each entry point on up to the next one.

        A frame is what follows from its entry point alone: the same before the damage was noticed and after.
        """
        stamps = [stamp for stamp in announced.pts if stamp is not None]
        self._use(Timeline(announced.pts, announced.times, announced.keys, sequential=True, closed=False))
        ends = [*(key.pts for key in announced.keys[1:]), None]
        pts: list[int | None] = []
        keys, last = [], stamps[0] - 1
        for key, end in zip(announced.keys, ends, strict=True):
            first = len(pts)
            for frame in self._decoded(self._packets_from(key)):
                if end is not None and frame.pts is not None and frame.pts >= end:
                    break
                if frame.pts is not None and frame.pts > last:
                    pts.append(frame.pts)
                    last = frame.pts
            if len(pts) > first:
                keys.append(Key(first, key.pts, key.seek))
        found = timeline_of_frames(pts, stamps, self._stream, self._damage)
        if found is None:
            raise DecodeError(self.path, f"no frame of its {codec_name(self._stream)} video can be decoded")
        return replace(found, keys=keys)
