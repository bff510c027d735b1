"""Decode with PyAV: the frame returned for a time is the one that a full decode shows then, or an error is raised.

Seeking alone does not give that: time stamps may be missing, out of order or shared, key frames may depend on earlier
pictures, damaged frames are dropped. The reader therefore

1. reads the packets without decoding them: time stamps make the *expected* timeline, key flags the entry points;
2. seeks to an entry point, decodes forward, and compares every frame that arrives with the expected one;
3. at the first difference, or sign of damage, decodes the complete file once: the frames that come out *are* the
   timeline from then on, and every request is served by decoding from the start.

It is fast because of what it leaves out: pictures that are neither requested nor referenced by others are not decoded,
pictures that are not requested are not converted to RGB, and the header is believed until a picture contradicts it.
"""

from __future__ import annotations

import logging
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import replace
from functools import cache, partial
from itertools import chain, dropwhile, islice
from typing import Any, TypeVar

import av
import numpy as np
import torch

from lookupvit_video.decoding.damage import (
    PictureWatch,
    count_errors,
    errors_so_far,
    length_of_lengths,
    listening,
    refuse_damaged_hevc,
)
from lookupvit_video.decoding.encryption import refuse_encrypted
from lookupvit_video.decoding.file_end import check_file
from lookupvit_video.decoding.hevc_slices import pictures_not_read_to_their_end
from lookupvit_video.decoding.opening import VideoFile, checked_path, plain_errors
from lookupvit_video.decoding.orientation import (
    UPRIGHT,
    KeyWatch,
    Orientation,
    RgbConverter,
    note_contradictions,
    orientation_of_frame,
    remark_on_frame,
)
from lookupvit_video.decoding.reader import (
    PICTURE_DATA,
    Box,
    Damage,
    DamageList,
    Deadline,
    DecodeError,
    Mismatch,
    VideoInfo,
    VideoReader,
    checked_times,
    shown_at,
)
from lookupvit_video.decoding.timeline import (
    FrameTimeline,
    Key,
    announced_stamps,
    codec_name,
    format_names,
    index_path,
    is_unreferenced,
    load_timeline,
    note_packets,
    save_timeline,
    timeline_of_frames,
    timeline_of_packets,
)
from lookupvit_video.errors import UserError

logger = logging.getLogger(__name__)

_SEEK_WORTH = 4  # frames: a seek refills the decoder's reordering delay, so shorter gaps are decoded through
# Decoded from key frame to key frame once damaged; all of its pictures are key frames: too slow for sound files.
_FROM_KEY_TO_KEY_ONCE_DAMAGED = frozenset({"mjpeg"})
_SMALL_FILE = 8 << 20  # bytes: packets of files up to this are kept from the first reading on until they are decoded
# Where every version of libav converts to RGB alike: elsewhere they bring halved colors to full size in several ways.
_PLAIN_PIXELS = frozenset({"yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p"})
_T = TypeVar("_T")


class PyAVReader(VideoReader):
    """Decode with PyAV (libav).

    Args:
        timeout, index_cache: see ``open_video``.
        threads: of the decoder; loaders run one in each worker. 0: as many as libav chooses, until there is damage.
    """

    @classmethod
    def missing(cls) -> str | None:
        """Why this reader cannot be used here, in a few words; None: it can."""
        return None

    _read: Sequence[Any] = ()  # all packets, while the decoder has seen none of them
    # The cursor: `_frames` delivers what comes after `_current`, the frame at timeline index `_index`; frames before
    # time stamp `_floor` are left out. `_frames` is None where decoding has to restart. Since the entry point, pictures
    # at the time stamps `_skipped` were not decoded: only those at `_shown` are requested (None: all).
    _frames: Any = None
    _current: Any = None
    _index: int = -1
    _entry: Key | None = None  # from which the cursor started
    _floor: int | None = None
    _shown: set[int | None] | None = None
    _skipped: set[int | None]
    _is_remembered: bool = False  # whether the timeline comes from an index, not from the file
    _announced_span: tuple[float, int] | None = None  # seconds from the first to the last frame announced, and how many
    _usual_size: tuple[int, int] | None = None  # of most pictures, where all were decoded
    _own: Orientation = UPRIGHT  # of the picture decoded last, where `_timeline.oriented`

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        timeout: float = 0.0,
        index_cache: str | os.PathLike[str] = "",
        threads: int = 1,
    ) -> None:
        self.path = checked_path(path)
        self._deadline = Deadline(self.path, timeout)
        self._damage, self._rgb = DamageList(), RgbConverter()
        self.file = VideoFile(self._deadline, self._damage, threads)
        count_errors()
        try:
            with plain_errors(self._deadline):
                self._open()
                self._use(self._remembered(index_cache) if index_cache else self._read_timeline())
        except BaseException:
            self.close()
            raise

    @property
    def info(self) -> VideoInfo:
        """See `VideoReader.info`."""
        if self._rgb.stored_size is None:
            self._with_fallback(partial(self._measure, [0]))
        width, height = self._rgb.upright_size
        codec, count = codec_name(self.file.stream), len(self.times)
        return VideoInfo(codec, width, height, count / self.duration, self.duration, count)

    @property
    def damage(self) -> Sequence[Damage]:
        """See `VideoReader.damage`."""
        return tuple(self._damage)

    def irregularity(self, codecs: Set[str], containers: Set[str]) -> str | None:
        """Return why a library may show other frames than this reader although it knows the codec; None: it does not.

        Args:
            codecs, containers: those that it is exact on.

        Raises:
            DecodeError: the first frame cannot be decoded.
        """
        codec, container = codec_name(self.file.stream), self.file.container
        if not format_names(container) & containers or codec not in codecs:
            return f"it is not exact on {codec} in {container.format.name}"
        info = self.info  # decodes a picture: only then the rest is known
        if self._damage:
            return "the file is damaged"
        if self._timeline.sequential or not self._timeline.closed:
            return "it is not exact where key frames or time stamps are irregular"
        if self._timeline.oriented or self._rgb.orientation != UPRIGHT or self.remark:
            return "it cannot turn and mirror pictures of every size upright"
        if not self._rgb.square:
            return "it does not make oblong pixels square"
        if self.file.decoder.pix_fmt not in _PLAIN_PIXELS or info.height % 2:
            return "it converts pictures of odd height, or of more than 8 bits, to other colors"
        return None

    def frames_at(self, seconds: Sequence[float], window: Callable[[int, int], Box] | None = None) -> torch.Tensor:
        """See `VideoReader.frames_at`."""
        at = checked_times(self.path, seconds)
        # cached: where the work is repeated, what the window draws at random stays
        return self._with_fallback(partial(self._gather, at, cache(window) if window else None))

    def walk(self, seconds: Sequence[float]) -> Iterator[np.ndarray]:
        """Yield what ``frames_at`` returns for ascending times, one by one: uint8 (H, W, 3), RGB, upright.

        Raises:
            DecodeError: the file does not deliver its frames, or one of them not in the time allowed.
        """
        at = checked_times(self.path, seconds)
        requested: object = None

        def picture(time: float) -> np.ndarray:
            nonlocal requested
            if requested is not self._timeline:  # at first, and once more where a decode contradicted the packets
                self._request(shown_at(self.times, at).tolist())
                requested = self._timeline
            return self._upright_rgb(self._frame(int(shown_at(self.times, np.array(time)))))

        for time in at.tolist():
            yield self._with_fallback(partial(picture, time))

    def look_at_all(self) -> None:
        """See `VideoReader.look_at_all`."""
        if self.file.container is not None and self._usual_size is None:
            self._with_fallback(self._scan)

    def _scan(self) -> None:
        is_decoded = self._timeline.sequential
        found = self._full_decode_timeline(self._announced(), None if is_decoded else self._timeline)
        self._frames = None
        if codec_name(self.file.stream) == "hevc":
            self._open()
            setup = self.file.decoder.extradata or b""
            unread = pictures_not_read_to_their_end(self.file.packets(), setup, length_of_lengths(setup))
            if unread:
                self._damage.note(PICTURE_DATA, f"{unread} pictures end before their data")
        if self._damage:
            self._use(replace(found, oriented=self._timeline.oriented))

    def _with_fallback(self, work: Callable[[], _T]) -> _T:
        """Do what needs decoding; where the decoder contradicts the packets, repeat it with its own timeline."""
        if self.file.container is None:
            raise UserError(f"{self.path}: the reader is closed")
        self._deadline.restart()
        try:
            with plain_errors(self._deadline):
                try:
                    return work()
                except Mismatch as mismatch:
                    self._fall_back(mismatch)
                    return work()
        except DecodeError:
            self._frames = None  # the decoder stopped somewhere midway
            raise

    def close(self) -> None:
        """See `VideoReader.close`."""
        self._frames = self._current = None
        self._read = ()
        self.file.close()

    def _open(self) -> None:
        """Open the file again, with the decoder in its first state."""
        self.close()
        self.file.open()

    def _gather(self, at: np.ndarray, window: Callable[[int, int], Box] | None) -> torch.Tensor:
        """Map times to timeline indices, decode each index once, and lay the frames out in the order requested.

        Raises:
            Mismatch: the timeline is wrong.
        """
        indices = shown_at(self.times, at).tolist()
        wanted = sorted(set(indices))
        self._request(wanted or [0])
        width, height = self._rgb.upright_size
        box = window(height, width) if window else Box(0, 0, height, width)
        frames = np.empty((len(wanted), box.height, box.width, 3), dtype=np.uint8)
        for slot, index in zip(frames, wanted, strict=True):
            slot[...] = box.cut(self._upright_rgb(self._frame(index)))
        return torch.from_numpy(frames if indices == wanted else frames[np.searchsorted(wanted, indices)])

    def _request(self, indices: list[int]) -> None:
        """Prepare for pictures at ascending timeline indices: know their size, decode no others than needed."""
        if self._rgb.stored_size is None:
            self._measure(indices)
        self._announce(indices)

    def _measure(self, indices: list[int]) -> None:
        """Note how pictures are stored, from the first one requested, or from the video's first if the header differs.

        What the header and the picture say of sizes may contradict: that is damage.
        """
        self._announce(indices)
        frame = self._frame(indices[0])
        if indices[0] and (self._timeline.oriented or (frame.width, frame.height) != self.file.stated_size):
            self._announce([0])
            frame = self._frame(0)
        size, pixel_aspect = (frame.width, frame.height), float(self.file.stream.sample_aspect_ratio or 1)
        note_contradictions(self._damage, size, self.file.stated_size, pixel_aspect)
        self.remark = remark_on_frame(frame)
        if self.remark:
            logger.info("%s: %s", self.path, self.remark)
        self._rgb.fit(self._usual_size or size, orientation_of_frame(frame), pixel_aspect)

    def _upright_rgb(self, frame: av.VideoFrame) -> np.ndarray:
        self.interlaced |= frame.interlaced_frame
        return self._rgb.convert(frame, self._own if self._timeline.oriented else self._rgb.orientation)

    def _announce(self, indices: list[int]) -> None:
        """Say which timeline indices `_frame` will be called with, so that other pictures may be skipped."""
        if self._timeline.sequential:
            self._shown = None  # which packet shows which frame is not known
            return
        self._shown = {self._timeline.pts[index] for index in indices}
        if self._frames is not None and not self._shown.isdisjoint(self._skipped):
            self._frames = None

    def _frame(self, index: int) -> av.VideoFrame:
        """The frame at a timeline index, by decoding on or by seeking, whichever decodes less."""
        keys = self._timeline.keys
        key = keys[bisect_right(keys, index, key=lambda entry: entry.frame) - 1]
        is_near = self._index <= index and key.frame - self._index <= _SEEK_WORTH
        if self._frames is None or not is_near or (self.file.from_key_to_key and key is not self._entry):
            self._start(key)
        while self._index < index:
            self._advance()
        frame: av.VideoFrame = self._current
        return frame

    def _start(self, key: Key) -> None:
        """Set the cursor just before an entry point."""
        self._frames = None
        packets = self._packets_from(key)
        self._skipped = set()
        self._frames = self.file.decoded(self._needed(packets), forgive=self._timeline.sequential)
        self._floor, self._entry = key.pts, key
        self._index = key.frame - 1

    def _packets_from(self, key: Key) -> Iterator[Any]:
        """The packets from that of an entry point on; a seek may end up earlier, or later."""
        if self._read:
            read, self._read = self._read, ()
            first = next(place for place, p in enumerate(read) if p.is_keyframe and p.pts == key.pts)
            return islice(read, first, None)
        if not key.seek or self._timeline.sequential:
            self._open()
        elif self.file.from_key_to_key and self.file.has_decoded:
            if self._rgb.stored_size is None:
                self._open()
            else:  # the orientation is known, which a new decoder would not report
                self.file.renew_decoder()
        if not key.seek:
            return self.file.packets()
        if self._timeline.sequential:  # seeking in a damaged file is not reliable
            return dropwhile(lambda packet: not (packet.is_keyframe and packet.pts == key.pts), self.file.packets())
        for at in key.seek:
            self.file.container.seek(at, stream=self.file.stream)
            self.file.decoder.flush_buffers()
            packets = self.file.packets()
            entry = next((p for p in packets if p.is_keyframe and (p.pts is None or p.pts >= key.pts)), None)
            if entry is not None and entry.pts == key.pts:
                return chain([entry], packets)
        raise Mismatch("a seek does not find the key frame")

    def _needed(self, packets: Iterator[Any]) -> Iterator[Any]:
        """Skip packets of pictures that are neither requested nor referenced by others."""
        for packet in packets:
            self._deadline.check()
            if self._shown is None or packet.pts in self._shown or not is_unreferenced(packet, self.file.nal):
                yield packet
            else:
                self._skipped.add(packet.pts)

    def _advance(self) -> None:
        """Move the cursor to the next frame decoded, and check that it is the one the timeline names."""
        pts = self._timeline.pts
        for frame in self._frames:
            if self._timeline.oriented:
                self._own = orientation_of_frame(frame, self._own)
            if self._floor is not None and frame.pts is not None and frame.pts < self._floor:
                continue  # shown before the key frame: it may reference pictures from before the seek
            due = self._index + 1
            while due < len(pts) - 1 and pts[due] in self._skipped:
                due += 1
            if self._timeline.sequential:
                if frame.pts != pts[due]:
                    continue  # its time stamp is out of order: it has no place among the others
            elif frame.pts != pts[due] or frame.is_corrupt or not self.file.has_first_size(frame):
                break  # corrupt: concealed by what came before, which after a seek is not what a full decode saw
            self._index, self._current = due, frame
            return
        self._frames = None
        raise Mismatch(f"frame {self._index + 1} does not arrive as announced")

    def _use(self, timeline: FrameTimeline) -> None:
        self._timeline = timeline
        self.times = timeline.times
        last, count = float(self.times[-1]), len(self.times)
        if timeline.sequential and self._announced_span is not None:
            last, count = self._announced_span  # frames may be lost at the end
        self.duration = last * count / (count - 1) if count > 1 else 1 / float(self.file.stream.average_rate or 1)
        self._frames = None

    def _fall_back(self, mismatch: Mismatch) -> None:
        """Replace the packets' timeline by that of a full decode."""
        if self._timeline.sequential:
            raise DecodeError(self.path, f"does not decode the same twice ({mismatch}); is it being written?")
        logger.info("%s: %s; decoding all of it", self.path, mismatch)
        self._rgb.stored_size = None
        if self._is_remembered:  # perhaps of another file
            self._open()
            self._use(self._read_timeline())
        if not self._timeline.sequential:
            oriented = self._timeline.oriented
            self._use(replace(self._full_decode_timeline(self._announced(), self._timeline), oriented=oriented))

    def _announced(self) -> list[int] | None:
        """The time stamps of all frames, where the timeline is that of the packets."""
        return None if self._timeline.sequential else [stamp for stamp in self._timeline.pts if stamp is not None]

    def _remembered(self, folder: str | os.PathLike[str]) -> FrameTimeline:
        """The timeline of this very file in the index, or else read from the file and added to the index."""
        path = index_path(folder, self.path)
        timeline = load_timeline(path)
        self._is_remembered = timeline is not None
        if timeline is None:
            timeline = self._read_timeline()
            if not self._damage:  # it would be forgotten
                save_timeline(path, timeline)
        return timeline

    def _read_timeline(self) -> FrameTimeline:
        """The timeline that the packets announce, or that of a full decode where they do not order the frames.

        Raises:
            DecodeError: the file ends before the video does.
        """
        container, stream = self.file.container, self.file.stream
        errors = errors_so_far()
        if container.size <= _SMALL_FILE:
            self._read = list(self.file.packets())
        refuse_encrypted(self.path, container, stream)
        watch = KeyWatch(self.path, stream)
        packets = note_packets(self._read or self.file.packets(), stream, watch)
        has_errors = errors_so_far() != errors
        if packets or stream.frames:  # tables without entries promise nothing that could be missing
            check_file(self.path, container, stream, packets, self.file.reread, self._damage)
            refuse_damaged_hevc(self.path, self.file.stream, self._damage)
        if not packets:
            raise DecodeError(self.path, f"holds no frames: a header for {codec_name(stream)} video without any")
        timeline = timeline_of_packets(packets, container, stream)
        if timeline is None or has_errors:
            stamps = announced_stamps(packets, container, stream)
            timeline = self._full_decode_timeline(stamps, timeline)
        return replace(timeline, oriented=watch.oriented)

    def _full_decode_timeline(self, announced: list[int] | None, timeline: FrameTimeline | None) -> FrameTimeline:
        """The timeline of a full decode, and what that shows of damage; it holds one frame at a time.

        Args:
            announced: time stamps of the packets, where they are those of frames: times count from the first.
            timeline: of the packets, where they order the frames.
        """
        watch = PictureWatch()
        self.file.threads = 1  # the messages of other threads cannot be assigned to a video
        pts: list[int | None] = []
        with listening() as said:
            self._open()
            for frame in self.file.decoded(self.file.packets(), forgive=True, watch=watch):
                watch.see(frame)
                pts.append(frame.pts)
        if not pts:
            raise DecodeError(self.path, f"no frame of its {codec_name(self.file.stream)} video can be decoded")
        watch.report(self._damage, said)
        self.interlaced |= watch.interlaced
        self.remark = self.remark or watch.remark
        if announced:
            unit = float(self.file.stream.time_base)
            self._announced_span = (announced[-1] - announced[0]) * unit, len(announced)
        self._usual_size = watch.usual_size
        found = timeline_of_frames(pts, announced, self.file.stream, self._damage)
        if found is None:
            raise DecodeError(self.path, "has neither usable time stamps nor a frame rate")
        refuse_damaged_hevc(self.path, self.file.stream, self._damage)
        if self._damage and codec_name(self.file.stream) in _FROM_KEY_TO_KEY_ONCE_DAMAGED:
            self.file.from_key_to_key = True
        if self._damage and timeline is not None and self.file.from_key_to_key:
            return self._timeline_from_keys(timeline)
        return found

    def _timeline_from_keys(self, announced: FrameTimeline) -> FrameTimeline:
        """The timeline of a damaged file, decoded from each entry point on up to the next one.

        A frame is what follows from its entry point alone: the same before the damage was noticed and after.
        """
        stamps = [stamp for stamp in announced.pts if stamp is not None]
        self._use(FrameTimeline(announced.pts, announced.times, announced.keys, sequential=True, closed=False))
        ends = [*(key.pts for key in announced.keys[1:]), None]
        pts: list[int | None] = []
        keys, last = [], stamps[0] - 1
        for key, end in zip(announced.keys, ends, strict=True):
            first = len(pts)
            for frame in self.file.decoded(self._packets_from(key), forgive=True):
                if end is not None and frame.pts is not None and frame.pts >= end:
                    break
                if frame.pts is not None and frame.pts > last:
                    pts.append(frame.pts)
                    last = frame.pts
            if len(pts) > first:
                keys.append(Key(first, key.pts, key.seek))
        found = timeline_of_frames(pts, stamps, self.file.stream, self._damage)
        if found is None:
            raise DecodeError(self.path, f"no frame of its {codec_name(self.file.stream)} video can be decoded")
        return replace(found, keys=keys)
