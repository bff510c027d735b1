"""Is a file a video that can be read, as long as it says?

A file is opened as the loader opens it (`open_video`: all packets, then the first, middle and last frame), while errors
of the decoder are recorded; a thorough inspection decodes every frame. Reported is what the reader knows of damage and
of a missing end (`VideoReader.damage`). Damage that leaves the data valid for its codec shows as a wrong picture only,
and no decoder can notice it: docs/reliability.md reports how often that is, by codec. Only checksums kept with the
files find all of it.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import av
import av.logging
import numpy as np

from lookupvit_video.decoding.backends import DecodeError, VideoReader, open_video
from lookupvit_video.decoding.damage import NOT_LOOKED_AT
from lookupvit_video.decoding.opening import ANY_TAGS, SAFE
from lookupvit_video.decoding.orientation import orientation_of_frame
from lookupvit_video.decoding.reader import CUT, Damage


class ProblemKind(NamedTuple):
    """A kind of problem: whether the file cannot be used as it is, and what to do about it."""

    bad: bool
    advice: str


KINDS = {
    "missing": ProblemKind(True, "fetch these files, or fix the list or DATA.PATH_PREFIX"),
    "no permission": ProblemKind(True, "make these files readable (chmod, or ask their owner)"),
    "no file": ProblemKind(True, "folders, pipes and the like: take them out of the list"),
    "empty": ProblemKind(True, "downloads or copies that failed: fetch these files again"),
    "text": ProblemKind(True, "mostly an error page saved in the place of a video: fetch these files again"),
    "git-lfs pointer": ProblemKind(True, "run `git lfs pull` where these files came from"),
    "not a video": ProblemKind(True, "unknown to libav, or damaged at the beginning: fetch these files again"),
    "picture": ProblemKind(True, "single pictures under a video's name: take them out of the list"),
    "no video stream": ProblemKind(True, "sound without pictures: fetch these files again, with the video"),
    "unknown codec": ProblemKind(True, "re-encode these files, for example to H.264"),
    "encrypted": ProblemKind(True, "copy protection, or a stream saved without its key: get copies without it"),
    "no frames": ProblemKind(True, "only a header, as in the first segment of a stream: join them, or fetch again"),
    "truncated": ProblemKind(True, "cut off in a download or copy: fetch these files again"),
    "damaged": ProblemKind(True, "players hide such frames, training takes them as true: fetch these files again"),
    "unreadable": ProblemKind(True, "see the reason given with each file"),
    "timeout": ProblemKind(True, "took too long twice: a disk that hangs, or a long video: use a larger --timeout"),
    "memory": ProblemKind(True, "a header that requests a giant picture, or too many processes: try again with fewer"),
    "error": ProblemKind(True, "this check itself failed on them: please report it"),
    "crash": ProblemKind(True, "the decoder crashed: skip these files, or fetch them again"),
    "span": ProblemKind(False, "fix start and end in the list: training and test count such rows as unreadable"),
    "short": ProblemKind(False, "the last frame is repeated to fill the clip: if there are many, lower "
                                "DATA.SAMPLING_RATE or DATA.NUM_FRAMES"),
    "blank": ProblemKind(False, "one color in all frames inspected: see for yourself"),
    "still": ProblemKind(False, "all frames inspected are alike: see for yourself"),
    "orientation": ProblemKind(False, "turned by other than quarter turns, or differently from some frame on: see for "
                                      "yourself"),
    "interlaced": ProblemKind(False, "each frame holds two fields, not separated: moving edges look like combs; "
                                     "if there are many, deinterlace them (ffmpeg -vf bwdif)"),
    "suffix": ProblemKind(False, "read by content all the same: rename these files if other programs fail on them"),
    "train and test": ProblemKind(False, "the same video in training and in validation or test inflates the accuracy: "
                                         "take it out of one of them"),
    "two labels": ProblemKind(False, "the same video under several labels: at most one is right"),
    "frozen": ProblemKind(False, "the same picture for a second or more, and a quarter of the video or more: see for "
                                 "yourself"),
    "label": ProblemKind(False, "a classifier that was trained on the other videos names another class: look at them"),
    "copy": ProblemKind(False, "a cut, mirrored or re-encoded copy in training and in validation or test inflates the "
                               "accuracy: give both the same group and split again"),
    "twice": ProblemKind(False, "the same video several times in a split counts more than others: keep one"),
}  # fmt: skip

# What `open_video` says, by kind; the first that is found counts.
_REASONS = {
    "no such file": "missing",
    "Permission denied": "no permission",
    "is a directory|not a regular file": "no file",
    "is empty": "empty",
    "git-lfs": "git-lfs pointer",
    "is text": "text",
    "is encrypted": "encrypted",
    "holds no frames|is a fragment": "no frames",
    "truncated": "truncated",
    "no video stream": "no video stream",
    "codec that this build": "unknown codec",
    "is damaged or cut off": "damaged",
    "cannot be opened": "not a video",
    "cannot be decoded|cannot be read|no frame|frame rate|the same twice": "damaged",
    "longer than": "timeout",
}
# Suffixes that say something else than the container inside does.
_SUFFIXES = {
    "mov": {".mp4", ".mov", ".m4v", ".3gp", ".3g2", ".m4a", ".mj2"},
    "matroska": {".mkv", ".webm", ".mka"},
    "avi": {".avi", ".divx"},
    "mpegts": {".ts", ".m2ts", ".mts"},
    "mpeg": {".mpg", ".mpeg", ".vob"},
    "flv": {".flv", ".f4v"},
    "asf": {".wmv", ".asf"},
}
_ENDS_EARLY = re.compile("ended prematurely|partial file", re.IGNORECASE)
_MPEGTS_SIGNS = re.compile("Continuity check failed|TEI flag set")  # lost packets, which libav mentions in passing


class Problem(NamedTuple):
    """What is wrong with a file, one of `KINDS`, and the particulars."""

    kind: str
    detail: str


@dataclass
class FileReport:
    """What was found out about one file; pixels as displayed, zeros and empty text where it could not be read."""

    bytes: int = 0
    container: str = ""
    codec: str = ""
    width: int = 0
    height: int = 0
    fps: float = 0.0
    duration: float = 0.0
    """Seconds."""
    frames: int = 0
    variable_rate: bool = False
    rotation: int = 0
    """Degrees clockwise by which a player turns the first picture, after mirroring it where `mirrored`."""
    mirrored: bool = False
    """Whether a player mirrors the first picture left to right, before it turns it."""
    interlaced: bool = False
    """Whether a frame that was inspected holds two fields."""
    pixel_aspect: str = "1:1"
    """Width to height of a stored pixel."""
    problems: list[Problem] = field(default_factory=list)


def inspect_file(path: str, thorough: bool = False, frame_rate: float = 0.0, remote: bool = False) -> FileReport:
    """Open a file, decode its first, middle and last frame, or all of them, and return what was found.

    Every failure of the file becomes a problem; nothing is raised for it.

    Args:
        frame_rate, remote: see ``open_video``.
    """
    report = FileReport()
    if os.path.isfile(path):
        report.bytes = os.path.getsize(path)
    elif os.path.islink(path) and not os.path.exists(path):
        report.problems.append(Problem("missing", f"is a link to {os.readlink(path)}, where no file is"))
        return report
    problem, failed = None, 0
    damage: Sequence[Damage] = ()
    with _decoder_messages() as messages:
        try:
            with open_video(
                path, timeout=0, frame_rate=frame_rate, remote=remote
            ) as reader:  # the process has a time limit of its own
                _decode_three(report, reader)
                if thorough:
                    reader.look_at_all()
                damage, report.interlaced = reader.damage, reader.interlaced
                if reader.remark:
                    report.problems.append(Problem("orientation", reader.remark))
            failed = _read_packets(report, path) if os.path.isfile(path) else 0
        except DecodeError as error:
            kind = next((kind for words, kind in _REASONS.items() if re.search(words, error.reason)), "unreadable")
            problem = Problem(kind, error.reason)
        except av.FFmpegError as error:
            problem = Problem("damaged", f"cannot be read: {error.strerror}")
    said = messages[0] if messages else ""
    if problem:
        report.problems.append(Problem(problem.kind, f"{problem.detail} ({said})" if said else problem.detail))
    elif damage:
        for found in damage:
            report.problems.append(Problem("truncated" if found.kind == CUT else "damaged", str(found)))
    elif messages:
        kind = "truncated" if _ENDS_EARLY.search(said) else "damaged"
        more = f" (and {len(messages) - 1} more times)" if len(messages) > 1 else ""
        report.problems.append(Problem(kind, f"the decoder reports: {said}{more}"))
    elif failed:
        report.problems.append(Problem("damaged", f"{failed} packets or frames are damaged"))
    return report


@contextmanager
def _decoder_messages() -> Iterator[list[str]]:
    """Collect what libav says is wrong, in all threads."""
    level, skips = av.logging.get_level(), av.logging.get_skip_repeated()
    av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)  # else the complaint that ended the last file is left out of this one
    found: list[str] = []
    try:
        with av.logging.Capture(local=False) as lines:
            yield found
        found += [
            f"{name}: {' '.join(text.split())}"
            for level_of, name, text in lines
            if (level_of <= av.logging.ERROR and NOT_LOOKED_AT not in text) or _MPEGTS_SIGNS.search(text)
        ]
    finally:
        av.logging.set_skip_repeated(skips)
        av.logging.set_level(level)


def _decode_three(report: FileReport, reader: VideoReader) -> None:
    """Decode the first, middle and last frame, and note what the reader says of the video."""
    times = reader.times
    places = sorted({0, len(times) // 2, len(times) - 1})
    frames_THWC = reader.frames_at(times[places].tolist()).numpy()
    info, times = reader.info, reader.times  # the decode may have corrected both
    report.codec, report.width, report.height = info.codec, info.width, info.height
    report.fps, report.duration, report.frames = round(info.fps, 3), round(info.duration, 3), info.num_frames
    gaps = np.diff(times)
    report.variable_rate = bool(len(gaps) and gaps.max() - gaps.min() > 0.002)  # containers round to milliseconds
    if len(places) == 1:
        return
    if frames_THWC.std(axis=(1, 2)).max() < 2:
        report.problems.append(Problem("blank", f"one color in each of the {len(places)} frames inspected"))
    elif _largest_change(frames_THWC) < 8:
        report.problems.append(Problem("still", f"the same picture in the {len(places)} frames inspected"))


def _largest_change(frames_THWC: np.ndarray, block: int = 8) -> float:
    """How much the mean of some 8 x 8 pixels changes, in gray levels: single pixels change by compression alone."""
    height, width = (max(block, side // block * block) for side in frames_THWC.shape[1:3])
    gray_THW = frames_THWC[:, :height, :width].mean(axis=-1, dtype=np.float32)
    rows, columns = (max(1, side // block) for side in gray_THW.shape[1:])
    means = gray_THW.reshape(len(gray_THW), rows, -1, columns, gray_THW.shape[2] // columns).mean(axis=(2, 4))
    return float(np.abs(means[1:] - means[0]).max())


def _read_packets(report: FileReport, path: str) -> int:
    """Go through all packets in the file's order, of all streams, and decode the first frame.

    Notes what the container says; returns how many packets or frames are damaged.
    """
    with av.open(f"file:{path}", options=SAFE, **ANY_TAGS) as container:
        stream: Any = container.streams.best("video")
        stream.thread_type = "NONE"
        _note_container(report, path, container, stream)
        if report.container == "mpegts":
            av.logging.set_level(av.logging.DEBUG)
        damaged, shown, before = 0, 0, None
        for packet in _packets(path, container):
            if packet.stream is not stream:
                continue
            if packet.dts is not None:
                damaged += packet.is_corrupt or (before is not None and packet.dts < before)
                before = packet.dts
            if not shown:
                try:
                    frames: Any = packet.decode()
                    for frame in frames:
                        if not shown:
                            orientation = orientation_of_frame(frame)
                            report.rotation, report.mirrored = orientation.degrees, orientation.mirrored
                        report.interlaced |= frame.interlaced_frame
                        damaged += frame.is_corrupt
                        shown += 1
                except av.FFmpegError:
                    damaged += 1
    if report.interlaced:
        report.problems.append(Problem("interlaced", "its frames hold two fields each"))
    return damaged


def _packets(path: str, container: Any) -> Iterator[Any]:
    try:
        yield from container.demux()
    except IndexError as error:  # PyAV, where damage made a stream appear midway
        raise DecodeError(path, "cannot be read: its streams change") from error


def _note_container(report: FileReport, path: str, container: Any, stream: Any) -> None:
    names, suffix = container.format.name.split(","), Path(path).suffix.lower()
    report.container = _container_name(names, path)
    if stream.sample_aspect_ratio:
        report.pixel_aspect = f"{stream.sample_aspect_ratio.numerator}:{stream.sample_aspect_ratio.denominator}"
    if names[0].endswith("_pipe") or names[0] == "image2":
        report.problems.append(Problem("picture", f"is a picture ({names[0].removesuffix('_pipe')}), not a video"))
    elif any(suffix in suffixes for name, suffixes in _SUFFIXES.items() if name not in names):
        report.problems.append(Problem("suffix", f"is named {suffix}, but it is a {report.container} file"))


def _container_name(names: list[str], path: str) -> str:
    """libav has one name for several: that of the suffix if it is among them, else the first."""
    suffix = Path(path).suffix.lower().removeprefix(".")
    return suffix if suffix in names else {"mov": "mp4"}.get(names[0], names[0])
