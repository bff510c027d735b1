"""Is every file of a data set a video that can be read, as long and as many as the lists say?

A file is looked at as the loader reads it (`open_video`: all packets, then the first, middle and last frame), while
errors of the decoder are recorded; a thorough look decodes every frame. What the reader knows of damage and of a
missing end (`VideoReader.damage`) is what is reported here. Damage that leaves the data valid for its codec shows as a
wrong picture and as nothing else, and no decoder can know: docs/reliability.md says how often that is, by codec. Only
checksums kept with the files find all of it.
"""

import hashlib
import logging
import os
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import av
import av.logging
import numpy as np

from lookupvit_video.data.manifest import Video, class_folders, read_class_list, read_manifest
from lookupvit_video.data.sampling import TimeSampler
from lookupvit_video.data.video_files import find_video_files, is_video_name, left_out_line, no_video_below
from lookupvit_video.decoding.backends import DecodeError, VideoReader, open_video
from lookupvit_video.decoding.damage import NOT_LOOKED_AT
from lookupvit_video.decoding.opening import SAFE
from lookupvit_video.decoding.orientation import orientation_of_frame
from lookupvit_video.decoding.reader import CUT, Damage
from lookupvit_video.errors import UserError
from lookupvit_video.processes.pool import run_isolated

logger = logging.getLogger(__name__)


class Kind(NamedTuple):
    """A kind of problem: whether the file cannot be used as it is, and what to do about it."""

    bad: bool
    advice: str


KINDS = {
    "missing": Kind(True, "fetch these files, or mend the list or DATA.PATH_PREFIX"),
    "no permission": Kind(True, "make these files readable (chmod, or ask whose they are)"),
    "no file": Kind(True, "folders, pipes and the like: take them out of the list"),
    "empty": Kind(True, "downloads or copies that failed: fetch these files again"),
    "text": Kind(True, "mostly an error page saved in the place of a video: fetch these files again"),
    "git-lfs pointer": Kind(True, "run `git lfs pull` where these files came from"),
    "not a video": Kind(True, "not in a form that libav knows, or the beginning is damaged: fetch these files again"),
    "picture": Kind(True, "single pictures under a video's name: take them out of the list"),
    "no video stream": Kind(True, "sound without pictures: fetch these files again, with the video"),
    "unknown codec": Kind(True, "re-encode these files, for example to H.264"),
    "encrypted": Kind(True, "copy protection, or a stream saved without its key: get copies without it"),
    "no frames": Kind(True, "headers without a picture, such as the initial segment of a stream: join the segments, or "
                            "fetch these files again"),
    "truncated": Kind(True, "cut off in a download or copy: fetch these files again"),
    "damaged": Kind(True, "players hide such frames, training takes them for true: fetch these files again"),
    "unreadable": Kind(True, "the reason stands with each file"),
    "timeout": Kind(True, "took too long twice, the second time alone: a hung disk, or a long video: try again with a "
                          "larger --timeout"),
    "memory": Kind(True, "a header that asks for a giant picture, or too many processes: try again with fewer"),
    "error": Kind(True, "this check itself failed on them: please report it"),
    "crash": Kind(True, "the decoder itself fell over: leave these files out, or fetch them again"),
    "span": Kind(False, "mend start and end in the list: training and test count such rows as unreadable"),
    "short": Kind(False, "the last frame is repeated to fill the clip: lower DATA.SAMPLING_RATE or DATA.NUM_FRAMES "
                         "if there are many"),
    "blank": Kind(False, "nothing but one colour in the frames looked at: see for yourself"),
    "still": Kind(False, "the frames looked at are all alike: see for yourself"),
    "orientation": Kind(False, "turned by other than quarter turns, or in another way from some frame on: see "
                                "for yourself"),
    "interlaced": Kind(False, "two fields in each frame, which are not taken apart: moving edges look like combs; "
                              "deinterlace these files (ffmpeg -vf bwdif) if there are many"),
    "suffix": Kind(False, "read all the same, by content: rename these files if other programs stumble"),
    "train and test": Kind(False, "the same video in training and in validation or test flatters the accuracy: "
                                  "take it out of one of them"),
    "two labels": Kind(False, "the same video under several labels: at most one is right"),
    "twice": Kind(False, "the same video more than once in a split counts more than others: drop all but one"),
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
    "cannot be decoded|no frame|frame rate|the same twice": "damaged",
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
class Facts:
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
    """Whether a frame that was looked at holds two fields."""
    pixel_aspect: str = "1:1"
    """Width to height of a stored pixel."""
    problems: list[Problem] = field(default_factory=list)


@dataclass
class Row:
    """One row of a list, what is known of its file, and the row's own problems."""

    split: str
    video: Video
    label: str
    facts: Facts = field(default_factory=Facts)
    problems: list[Problem] = field(default_factory=list)

    @property
    def all_problems(self) -> list[Problem]:
        """Those of the file, then those of the row."""
        return [*self.facts.problems, *self.problems]

    @property
    def is_bad(self) -> bool:
        """Whether the file cannot be used as it is."""
        return any(KINDS[problem.kind].bad for problem in self.facts.problems)


# Which files ----------------------------------------------------------------------------------------------------------


def rows_of_lists(lists: Mapping[str, str], classes: Sequence[str], prefix: str = "") -> list[Row]:
    """Return the rows of the lists of some splits; a list that serves two of them is read once.

    Args:
        lists: split -> path.
        prefix: see ``read_manifest``.

    Raises:
        UserError: names the file and line of what is wrong, and the mend.
    """
    rows: list[Row] = []
    seen: dict[str, str] = {}
    for split, path in lists.items():
        if path in seen:
            logger.info("%s: the same list as %s, looked at once", split, seen[path])
            continue
        seen[path] = split
        rows += [Row(split, v, classes[v.label]) for v in read_manifest(path, classes, prefix)]
    return rows


def rows_of_path(path: str | Path) -> list[Row]:
    """Return the rows of a list, of a folder (labels: the folders in it, if any) or of a single video.

    Class names come from classes.txt beside the list, or are the labels' numbers.

    Raises:
        UserError: names the file and line of what is wrong, and the mend.
    """
    path = Path(path)
    if path.is_dir():
        files, left_out = find_video_files(path)
        if not files:
            raise UserError(f"{path}: {no_video_below(left_out)}")
        if left_out:
            logger.info("%s: %s", path, left_out_line(left_out))
        folders = class_folders(path)
        inner = [file.relative_to(path).parts for file in files]
        return [
            Row(path.name, Video(str(file), -1, source=str(file)), parts[0] if parts[0] in folders else "")
            for file, parts in zip(files, inner, strict=True)
        ]
    if is_video_name(path):
        return [Row("", Video(str(path), -1, source="command line"), "")]
    names = path.parent / "classes.txt"
    classes = read_class_list(names) if names.is_file() else [str(number) for number in range(100_000)]
    return [Row(path.stem, video, classes[video.label]) for video in read_manifest(path, classes)]


# One file -------------------------------------------------------------------------------------------------------------


def examine(path: str, thorough: bool = False) -> Facts:
    """Open a file, decode its first, middle and last frame, or all of them, and return what was found.

    Every failure of the file becomes a problem; nothing is raised for it.
    """
    facts = Facts()
    if os.path.isfile(path):
        facts.bytes = os.path.getsize(path)
    elif os.path.islink(path) and not os.path.exists(path):
        facts.problems.append(Problem("missing", f"is a link to {os.readlink(path)}, where no file is"))
        return facts
    problem, failed = None, 0
    damage: Sequence[Damage] = ()
    with _complaints() as complaints:
        try:
            with open_video(path, timeout=0) as reader:  # the process has a time limit of its own
                _look(facts, reader)
                if thorough:
                    reader.look_at_all()
                damage, facts.interlaced = reader.damage, reader.interlaced
                if reader.remark:
                    facts.problems.append(Problem("orientation", reader.remark))
            failed = _walk(facts, path)
        except DecodeError as error:
            kind = next((kind for words, kind in _REASONS.items() if re.search(words, error.reason)), "unreadable")
            problem = Problem(kind, error.reason)
        except (av.FFmpegError, IndexError) as error:  # IndexError: PyAV, where damage made a stream appear midway
            problem = Problem("damaged", f"cannot be read: {getattr(error, 'strerror', 'its streams change')}")
    said = complaints[0] if complaints else ""
    if problem:
        facts.problems.append(Problem(problem.kind, f"{problem.detail} ({said})" if said else problem.detail))
    elif damage:
        for found in damage:
            facts.problems.append(Problem("truncated" if found.kind == CUT else "damaged", str(found)))
    elif complaints:
        kind = "truncated" if _ENDS_EARLY.search(said) else "damaged"
        more = f" (and {len(complaints) - 1} more times)" if len(complaints) > 1 else ""
        facts.problems.append(Problem(kind, f"the decoder complains: {said}{more}"))
    elif failed:
        facts.problems.append(Problem("damaged", f"{failed} packets or frames are damaged"))
    return facts


@contextmanager
def _complaints() -> Iterator[list[str]]:
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


def _look(facts: Facts, reader: VideoReader) -> None:
    """Decode the first, middle and last frame, and note what the reader says of the video."""
    times = reader.times
    places = sorted({0, len(times) // 2, len(times) - 1})
    frames_THWC = reader.frames_at(times[places].tolist()).numpy()
    info, times = reader.info, reader.times  # the decode may have corrected both
    facts.codec, facts.width, facts.height = info.codec, info.width, info.height
    facts.fps, facts.duration, facts.frames = round(info.fps, 3), round(info.duration, 3), info.num_frames
    gaps = np.diff(times)
    facts.variable_rate = bool(len(gaps) and gaps.max() - gaps.min() > 0.002)  # containers round to milliseconds
    if len(places) == 1:
        return
    if frames_THWC.std(axis=(1, 2)).max() < 2:
        facts.problems.append(Problem("blank", f"one colour in each of the {len(places)} frames looked at"))
    elif _largest_change(frames_THWC) < 8:
        facts.problems.append(Problem("still", f"the same picture in the {len(places)} frames looked at"))


def _largest_change(frames_THWC: np.ndarray, block: int = 8) -> float:
    """How much the mean of some 8 x 8 pixels changes, in grey levels: single pixels change by compression alone."""
    height, width = (max(block, side // block * block) for side in frames_THWC.shape[1:3])
    grey_THW = frames_THWC[:, :height, :width].mean(axis=-1, dtype=np.float32)
    rows, columns = (max(1, side // block) for side in grey_THW.shape[1:])
    means = grey_THW.reshape(len(grey_THW), rows, -1, columns, grey_THW.shape[2] // columns).mean(axis=(2, 4))
    return float(np.abs(means[1:] - means[0]).max())


def _walk(facts: Facts, path: str) -> int:
    """Go through all packets in the file's order, of all streams, and decode the first frame.

    Notes the container's side of the facts; returns how many packets or frames are damaged.
    """
    with av.open(f"file:{path}", options=SAFE, metadata_errors="replace") as container:
        stream: Any = container.streams.best("video")
        stream.thread_type = "NONE"
        _note_container(facts, path, container, stream)
        if facts.container == "mpegts":
            av.logging.set_level(av.logging.DEBUG)
        damaged, shown, before = 0, 0, None
        for packet in container.demux():
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
                            facts.rotation, facts.mirrored = orientation.degrees, orientation.mirrored
                        facts.interlaced |= frame.interlaced_frame
                        damaged += frame.is_corrupt
                        shown += 1
                except av.FFmpegError:
                    damaged += 1
    if facts.interlaced:
        facts.problems.append(Problem("interlaced", "its frames hold two fields each"))
    return damaged


def _note_container(facts: Facts, path: str, container: Any, stream: Any) -> None:
    names, suffix = container.format.name.split(","), Path(path).suffix.lower()
    facts.container = _container_name(names, path)
    if stream.sample_aspect_ratio:
        facts.pixel_aspect = f"{stream.sample_aspect_ratio.numerator}:{stream.sample_aspect_ratio.denominator}"
    if names[0].endswith("_pipe") or names[0] == "image2":
        facts.problems.append(Problem("picture", f"is a picture ({names[0].removesuffix('_pipe')}), not a video"))
    elif any(suffix in suffixes for name, suffixes in _SUFFIXES.items() if name not in names):
        facts.problems.append(Problem("suffix", f"is named {suffix}, but it is a {facts.container} file"))


def _container_name(names: list[str], path: str) -> str:
    """libav has one name for several: that of the suffix if it is among them, else the first."""
    suffix = Path(path).suffix.lower().removeprefix(".")
    return suffix if suffix in names else {"mov": "mp4"}.get(names[0], names[0])


def check_files(
    rows: Sequence[Row],
    *,
    processes: int,
    timeout: float = 30.0,
    thorough: bool = False,
    follow: Callable[[Iterator[Any], int], Iterable[Any]] = lambda outcomes, total: outcomes,
) -> None:
    """Examine the file of every row, each file once, and note the findings in the rows.

    Args:
        timeout: seconds for one file, see `run_isolated`; tried a second time, alone, before it counts as a time-out.
        follow: given the outcomes as they come and their number, passes them through; a progress bar.
    """
    of_file = defaultdict(list)
    for row in rows:
        of_file[os.path.abspath(row.video.path)].append(row)
    paths = list(of_file)
    look = partial(examine, thorough=thorough)
    outcomes = run_isolated(look, paths, processes=processes, timeout=timeout, second_try=True)
    for number, facts, lost in follow(outcomes, len(paths)):
        if facts is None:
            assert lost is not None
            facts = Facts(problems=[Problem(lost.cause, lost.detail)])
        for row in of_file[paths[number]]:
            row.facts = facts


# Rows against their files, and each other -----------------------------------------------------------------------------


def check_spans(rows: Iterable[Row], times: TimeSampler | None) -> None:
    """Note rows whose start and end lie outside of their video, and those shorter than a clip of ``times``."""
    for row in rows:
        video, facts = row.video, row.facts
        if row.is_bad or not facts.frames:
            continue
        start, end = video.span(facts.duration)
        if start >= end:
            row.problems.append(Problem("span", f"starts at {start:g} s, but the video ends at {facts.duration:g} s"))
            continue
        if video.end and video.end > facts.duration + 1:
            row.problems.append(Problem("span", f"ends at {video.end:g} s, but the video at {facts.duration:g} s"))
        missing = _falls_short(end - start, facts, times)
        if missing:
            row.problems.append(Problem("short", missing))


def _falls_short(seconds: float, facts: Facts, times: TimeSampler | None) -> str:
    if facts.frames == 1:
        return "holds a single frame"
    if times is None:
        return ""
    frames = round(seconds * facts.fps)
    if times.mode == "segments":
        wanted = times.num_frames
        return f"holds {frames} frames; DATA.NUM_FRAMES is {wanted}" if frames < wanted else ""
    clip = (times.num_frames - 1) * times.step
    return f"lasts {seconds:.2f} s; a clip of the config takes {clip:.2f} s" if seconds + 1e-3 < clip else ""


def file_digests(rows: Iterable[Row]) -> Iterator[tuple[str, str]]:
    """Yield (path, digest of the content) of the readable files that share their size with another file."""
    sizes = defaultdict(set)
    for row in rows:
        if not row.is_bad:
            sizes[row.facts.bytes].add(row.video.path)
    paths = [path for same in sizes.values() if len(same) > 1 for path in sorted(same)]
    with ThreadPoolExecutor(4) as pool:
        yield from zip(paths, pool.map(_digest, paths), strict=True)


def _digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


# How two rows of the same video can be at odds. Validation and test may share theirs; training shares with neither.
_AT_ODDS: dict[str, Callable[[Row, Row], bool]] = {
    "train and test": lambda row, other: row.split != other.split and {row.split, other.split} != {"val", "test"},
    "two labels": lambda row, other: row.label != other.label,
    "twice": lambda row, other: row.split == other.split,
}


def check_repeats(rows: Iterable[Row], digests: dict[str, str]) -> None:
    """Note videos that stand in several rows: the same path and span, or with ``digests`` the same content."""
    groups = defaultdict(list)
    for row in rows:
        path = os.path.abspath(row.video.path)
        groups[digests.get(row.video.path, path), row.video.start, row.video.end].append(row)
    for same in groups.values():
        kinds = defaultdict(list)
        for row in same:
            kinds[row.split, row.label].append(row)
        others = [row for alike in kinds.values() for row in alike[:2]]  # thousands may be the same placeholder
        for row in same:
            for kind, at_odds in _AT_ODDS.items():
                other = next((other for other in others if other is not row and at_odds(row, other)), None)
                if other is not None:
                    what = (
                        f"the same video as {other.video.path} ({other.split}{', ' * bool(other.label)}{other.label})"
                    )
                    row.problems.append(Problem(kind, what))


# What is said of all of them ------------------------------------------------------------------------------------------


def summarize(rows: Sequence[Row], classes: Sequence[str] = ()) -> dict[str, Any]:
    """Count what there is and what is wrong; of each kind of problem the rows that have it.

    Args:
        classes: all class names, to find those without a video; empty: those that occur.
    """
    readable = {os.path.abspath(row.video.path): row.facts for row in rows if row.facts.frames}
    facts = list(readable.values())
    problems: dict[str, list[int]] = {kind: [] for kind in KINDS}
    for number, row in enumerate(rows):
        for kind in dict.fromkeys(problem.kind for problem in row.all_problems):
            problems[kind].append(number)
    return {
        "splits": {
            split: _summarize_split([row for row in rows if row.split == split], classes)
            for split in dict.fromkeys(row.split for row in rows)
        },
        "files": len({os.path.abspath(row.video.path) for row in rows}),
        "bytes": sum(fact.bytes for fact in facts),
        "hours": sum(fact.duration for fact in facts) / 3600,
        "codecs": _counts(f"{fact.codec} in {fact.container}" for fact in facts),
        "sizes": _counts(f"{fact.width}x{fact.height}" for fact in facts),
        "rates": _counts(f"{fact.fps:.4g}" for fact in facts if not fact.variable_rate),
        "short_side": _spread([min(fact.width, fact.height) for fact in facts]),
        "duration": _spread([fact.duration for fact in facts]),
        "frames": _spread([fact.frames for fact in facts]),
        "variable_rate": sum(fact.variable_rate for fact in facts),
        "rotated": sum(fact.rotation != 0 for fact in facts),
        "mirrored": sum(fact.mirrored for fact in facts),
        "interlaced": sum(fact.interlaced for fact in facts),
        "not_square_pixels": sum(fact.pixel_aspect not in ("1:1", "0:1") for fact in facts),
        "problems": {kind: numbers for kind, numbers in problems.items() if numbers},
    }


def _summarize_split(rows: Sequence[Row], classes: Sequence[str]) -> dict[str, Any]:
    of_class = Counter(row.label for row in rows)
    counts = [of_class[name] for name in classes or sorted(of_class)]
    return {
        "videos": len(rows),
        "bad": sum(row.is_bad for row in rows),
        "classes": sum(count > 0 for count in counts),
        "per_class": _spread(counts),
        "without_video": [name for name in classes if not of_class[name]],
    }


def _counts(values: Iterable[str]) -> dict[str, int]:
    return dict(Counter(values).most_common())


def _spread(values: Sequence[float]) -> list[float]:
    """[least, median, most] of some values; of none, zeros."""
    return [min(values), statistics.median(values), max(values)] if values else [0, 0, 0]


def report_of(row: Row) -> dict[str, Any]:
    """Return all that is known of a row, flat, for a table."""
    facts = asdict(row.facts)
    del facts["problems"]
    return {
        "split": row.split,
        "path": row.video.path,
        "label": row.label,
        "source": row.video.source,
        "start": row.video.start,
        "end": row.video.end,
        **facts,
        "bad": row.is_bad,
        "problems": "; ".join(f"{kind}: {detail}" for kind, detail in row.all_problems),
    }
