"""Make videos smaller once, so that every epoch decodes less: H.264 in MP4, with key frames at a fixed distance.

What comes out shows what the source shows: upright, with square pixels, each frame at its own time (counted from the
first frame), no frame more or less, without sound. A file gets its name once complete: rerun to resume.
"""

import errno
import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from lookupvit_video.decoding.backends import DecodeError, open_video
from lookupvit_video.decoding.frame_filter import field_joiner
from lookupvit_video.decoding.opening import ANY_TAGS, SAFE
from lookupvit_video.decoding.orientation import UPRIGHT, Orientation, orientation_of_frame
from lookupvit_video.decoding.reader import Mismatch
from lookupvit_video.errors import RunFailure, UserError
from lookupvit_video.files import atomic_write, write_json
from lookupvit_video.processes.pool import run_isolated
from lookupvit_video.progress import progress

logger = logging.getLogger(__name__)

FRAME_SUFFIX = ".jpg"
FRAME_RATE = 12  # of videos kept as folders of pictures; Something-Something V1 states it
SETTINGS = "encoding.json"

_RUN_UP = 5.0  # seconds decoded before a cut: pictures that reference what came before the seek have recovered by then
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


@dataclass(frozen=True, slots=True)
class Encoding:
    """How videos are written.

    The short side is never enlarged; x264's scale of quality, crf, goes from 0 (none lost) to 51.
    """

    short_side: int
    gop: int = 30
    crf: int = 23

    def validate(self) -> None:
        """Raise UserError where no video can be written like this."""
        if self.short_side < 16 or self.short_side % 2:
            raise UserError(f"--short-side must be an even number of pixels from 16 on, not {self.short_side}")
        if self.gop < 1:
            raise UserError(f"--gop must be at least 1 frame, not {self.gop}")
        if not 0 <= self.crf <= 51:
            raise UserError(f"--crf must be from 0 (none lost) to 51, not {self.crf}")


@dataclass(frozen=True, slots=True)
class Job:
    """A file to write from another, or from a folder of numbered pictures; start and end in seconds, None: all."""

    source: Path
    target: Path
    start: float | None = None
    end: float | None = None


@dataclass(frozen=True)
class _Plan:
    """Which frames to write: indices first to last of times (N,) in seconds."""

    times: np.ndarray
    first: int
    last: int

    def stamps(self, time_base: Fraction) -> np.ndarray:
        """Time stamps of frames first to last and, at the end, when the last one stops being shown; from zero on."""
        times = self.times[self.first : self.last + 2]
        if self.last + 1 == len(self.times):
            step = times[-1] - times[-2] if len(times) > 1 else 1 / FRAME_RATE
            times = np.append(times, times[-1] + step)
        stamps: np.ndarray = np.rint((times - times[0]) / float(time_base)).astype(np.int64)
        return stamps


def reencode(job: Job, encoding: Encoding) -> None:
    """Write one video, completely or not at all.

    Raises:
        DecodeError: the source cannot be read, or not all of it.
        OSError: the target cannot be written.
    """
    plan = _plan_pictures(job.source) if job.source.is_dir() else _plan_video(job)
    # Frames before the cut need not be decoded, where the file can be sought in.
    if not job.source.is_dir() and plan.times[plan.first] > 2 * _RUN_UP:
        try:
            return _write(job, encoding, plan, seek=True)
        except Mismatch as mismatch:
            logger.debug("%s: %s; decoded from its start", job.source, mismatch)
    try:
        _write(job, encoding, plan, seek=False)
    except Mismatch as mismatch:
        raise DecodeError(str(job.source), f"{mismatch}: damaged") from None


def _plan_video(job: Job) -> _Plan:
    path = str(job.source)
    with open_video(path, timeout=0) as reader:  # whoever runs many videos sets the limit
        times = reader.times
    if job.end is None:
        return _Plan(times, 0, len(times) - 1)
    start = job.start or 0.0
    step = times[-1] - times[-2] if len(times) > 1 else 0.0
    if start >= times[-1] + step:
        raise DecodeError(path, f"is to be cut from {start:g} s on, but ends at {times[-1] + step:.1f} s")
    # The frame shown at the start is the last one that has begun; 1 us is a rounding error.
    first = max(int(np.searchsorted(times, start + 1e-6, side="right")) - 1, 0)
    last = max(int(np.searchsorted(times, job.end - 1e-6)) - 1, first)
    return _Plan(times, first, last)


def _plan_pictures(folder: Path) -> _Plan:
    names = sorted(p.name for p in folder.iterdir() if p.suffix.lower() == FRAME_SUFFIX)
    due = [f"{number:05d}{FRAME_SUFFIX}" for number in range(1, len(names) + 1)]
    if not names or names != due:
        gap = next((expected for name, expected in zip(names, due, strict=True) if name != expected), "00001.jpg")
        raise DecodeError(str(folder), f"{gap} is missing: pictures must be numbered without a gap")
    return _Plan(np.arange(len(names)) / FRAME_RATE, 0, len(names) - 1)


def _write(job: Job, encoding: Encoding, plan: _Plan, *, seek: bool) -> None:
    with atomic_write(job.target) as temporary:
        options = {"movflags": "+faststart"}
        with (
            _open(job.source) as source,
            av.open(f"file:{temporary}", "w", format="mp4", options=options) as container,
        ):
            stream = source.streams.best("video")
            stamps = plan.stamps(stream.time_base)
            if (np.diff(stamps) < 1).any():
                raise DecodeError(str(job.source), "has frames with equal times")
            writer: _Writer | None = None
            due = plan.first
            for index, frame, orientation in _decode(source, stream, plan, seek=seek):
                if index != due or due > plan.last:
                    raise Mismatch(f"frame {due} does not arrive as announced")
                writer = writer or _Writer(container, stream, frame, orientation, encoding)
                at = due - plan.first
                writer.add(frame, orientation, int(stamps[at]), int(stamps[at + 1] - stamps[at]))
                due += 1
            if writer is None or due != plan.last + 1:
                raise Mismatch(f"frame {due} does not arrive as announced")
            writer.finish(due - plan.first)


def _open(source: Path) -> Any:
    try:
        if source.is_dir():
            pattern = str(source).replace("%", "%%") + f"/%05d{FRAME_SUFFIX}"
            return av.open(pattern, format="image2", options={"framerate": str(FRAME_RATE), "start_number": "1"})
        # "file:" keeps a colon in a name from being read as a protocol
        return av.open(f"file:{source}", options=SAFE, **ANY_TAGS)
    except av.FFmpegError as error:
        raise DecodeError(str(source), f"cannot be opened: {error.strerror}") from error


def _decode(
    container: Any, stream: Any, plan: _Plan, *, seek: bool
) -> Iterator[tuple[int, av.VideoFrame, Orientation]]:
    """(index, frame, orientation) from plan.first to plan.last; by counting, or after a seek by the frames' times."""
    stream.thread_type = "NONE"  # one thread: there is a process for every core
    origin, orientation = None, UPRIGHT
    try:
        frames = container.decode(stream)
        if seek:
            origin = next(frames).pts
            if origin is None:
                raise Mismatch("it has no time stamps")
            run_up = (plan.times[plan.first] - _RUN_UP) / float(stream.time_base)
            container.seek(origin + round(run_up), stream=stream)
            frames = container.decode(stream)
        for count, frame in enumerate(frames):
            index, orientation = count, orientation_of_frame(frame, orientation)
            if seek:
                if frame.pts is None:
                    raise Mismatch("it has no time stamps")
                at = (frame.pts - origin) * float(stream.time_base)
                index = int(np.searchsorted(plan.times, at + 1e-6, side="right")) - 1
            if index >= plan.first:
                yield index, frame, orientation
            if index == plan.last and plan.last + 1 < len(plan.times):
                return  # of a video that is not cut, the end is read too: there may be more than was announced
    except av.FFmpegError as error:
        raise DecodeError(container.name, f"cannot be decoded: {error.strerror}") from error


class _Writer:
    """Frames of a source -> packets of an H.264 stream."""

    def __init__(
        self, container: Any, source: Any, first: av.VideoFrame, orientation: Orientation, encoding: Encoding
    ) -> None:
        self._container, self._packets = container, 0
        self._reformatter, self._joiner = VideoReformatter(), field_joiner()
        width, height = output_size(
            first.width, first.height, source.sample_aspect_ratio, orientation.transposed, encoding.short_side
        )
        # No B-frames: decoding order is showing order, so a seek finds its frame at once. No scene cuts: a key frame
        # every `gop` frames, no more.
        options = {"crf": str(encoding.crf), "preset": "veryfast", "threads": "1", "sc_threshold": "0", "bf": "0"}
        stream = self._stream = container.add_stream("libx264", options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        context = stream.codec_context
        context.time_base = self._time_base = source.time_base
        context.framerate = source.average_rate or FRAME_RATE
        context.gop_size = encoding.gop
        # Colors stay the same: RGB becomes BT.601, full range becomes the range of television.
        self._is_rgb = "yuv" not in first.format.name and "gray" not in first.format.name
        self._is_full = first.color_range == ColorRange.JPEG or first.format.name.startswith("yuvj")
        context.color_range = ColorRange.MPEG
        context.colorspace = Colorspace.ITU601 if self._is_rgb else first.colorspace
        context.color_primaries, context.color_trc = first.color_primaries, first.color_trc

    def add(self, frame: av.VideoFrame, orientation: Orientation, stamp: int, duration: int) -> None:
        """Encode a frame shown from ``stamp`` for ``duration``, both in the source's unit of time."""
        frame = self._reformat(frame, orientation)
        frame.pts, frame.time_base, frame.duration = stamp, self._time_base, duration
        frame.pict_type = 0  # of the source's encoder; this one chooses for itself
        self._mux(self._stream.encode(frame))

    def finish(self, frames: int) -> None:
        """Write what the encoder still holds; ``frames``: how many must have come out."""
        self._mux(self._stream.encode(None))
        assert self._packets == frames, f"{self._packets} packets of {frames} frames"

    def _mux(self, packets: Sequence[Any]) -> None:
        self._packets += len(packets)
        self._container.mux(packets)

    def _reformat(self, frame: av.VideoFrame, orientation: Orientation) -> av.VideoFrame:
        turned = orientation.transposed
        width, height = self._stream.width, self._stream.height
        small = self._reformatter.reformat(
            self._joiner.apply(frame) if frame.interlaced_frame else frame,
            width=height if turned else width,
            height=width if turned else height,
            format="yuv420p",
            dst_colorspace=Colorspace.ITU601 if self._is_rgb else None,
            src_color_range=ColorRange.JPEG if self._is_full or self._is_rgb else ColorRange.MPEG,
            dst_color_range=ColorRange.MPEG,
            interpolation=Interpolation.BICUBIC,
            threads=1,
        )
        return small if orientation == UPRIGHT else _turned(small, orientation)


def output_size(
    width: int, height: int, pixel_aspect: Fraction | None, quarter_turns: int, short_side: int
) -> tuple[int, int]:
    """Return (width, height) in square pixels, upright, both even; the short side is at most `short_side`."""
    shape = [width * float(pixel_aspect or 1), float(height)]
    if quarter_turns % 2:
        shape.reverse()
    scale = min(1.0, short_side / min(shape))
    wide, high = (max(2, 2 * round(side * scale / 2)) for side in shape)
    return wide, high


def _turned(frame: av.VideoFrame, orientation: Orientation) -> av.VideoFrame:
    """Turn and mirror a yuv420p frame, plane by plane."""
    height, width = frame.height, frame.width
    data = frame.to_ndarray().ravel()
    bounds = np.cumsum([height * width, height * width // 4])
    shapes = [(height, width), (height // 2, width // 2), (height // 2, width // 2)]
    planes = [
        orientation.upright(part.reshape(shape)).ravel()
        for part, shape in zip(np.split(data, bounds), shapes, strict=True)
    ]
    if orientation.transposed:
        height, width = width, height
    turned = av.VideoFrame.from_ndarray(np.concatenate(planes).reshape(height * 3 // 2, width), format="yuv420p")
    turned.colorspace, turned.color_range = frame.colorspace, frame.color_range
    return turned


# Many -----------------------------------------------------------------------------------------------------------------


def reencode_all(
    jobs: Sequence[Job], encoding: Encoding, folder: Path, *, processes: int, timeout: float = 3600.0
) -> dict[Path, str]:
    """Write every target that is not there yet; return target -> reason for those that could not be written.

    Args:
        jobs: their targets lie below `folder`; jobs of one target must be the same.
        folder: keeps the settings, so that videos of different settings are never mixed. One run at a time.
        processes: videos written at once.
        timeout: seconds for one video.

    Raises:
        UserError: the folder holds videos of other settings.
        RunFailure: the disk is full.
    """
    encoding.validate()
    if processes < 1:
        raise UserError(f"--processes must be at least 1, not {processes}")
    _claim(folder, encoding)
    for torn in folder.rglob(".*.tmp.mp4"):  # left by a run that was killed
        torn.unlink(missing_ok=True)
    there = {entry for parent in {job.target.parent for job in jobs} for entry in _files(parent)}
    todo = list({job.target: job for job in jobs if str(job.target) not in there}.values())
    if len(todo) < len(jobs):
        logger.info("re-encoding: %d of %d videos are done already", len(jobs) - len(todo), len(jobs))
    failed: dict[Path, str] = {}
    outcomes = run_isolated(partial(_attempt, encoding=encoding), todo, processes=processes, timeout=timeout)
    for outcome in progress(outcomes, total=len(todo), label="re-encoding", unit="videos"):
        full, reason = outcome.answer or (False, outcome.lost.detail if outcome.lost else "")
        if full:
            raise RunFailure(f"{reason}; free space and rerun the command to resume")
        if reason:
            failed[todo[outcome.number].target] = reason
    return failed


def _files(folder: Path) -> Iterator[str]:
    if folder.is_dir():
        with os.scandir(folder) as entries:
            for entry in entries:
                yield entry.path


def _claim(folder: Path, encoding: Encoding) -> None:
    settings = folder / SETTINGS
    if settings.exists():
        try:
            found = json.loads(settings.read_text(encoding="utf-8"))
        except ValueError:
            found = None
        if found != asdict(encoding):
            raise UserError(f"{folder} holds videos of other settings ({found}); choose another --out, or remove it")
        return
    write_json(settings, asdict(encoding), indent=None)


def _attempt(job: Job, encoding: Encoding) -> tuple[bool, str]:
    """Write one video: (whether no other can be written either, why this one was not)."""
    try:
        reencode(job, encoding)
    except DecodeError as error:
        return False, error.reason
    except OSError as error:
        if error.errno in _DISK_FULL:
            return True, f"{job.target}: {error.strerror}"
        return False, f"{type(error).__name__}: {error}"
    return False, ""
