"""Is every file of a data set a video that can be used, and do the lists fit the files and each other?"""

import hashlib
import logging
import os
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from lookupvit_video.data.manifest import (
    Video,
    class_folders,
    has_several_labels,
    label_cell,
    read_class_list,
    read_manifest,
    split_labels,
)
from lookupvit_video.data.sampling import TimeSampler
from lookupvit_video.data.video_files import find_video_files, is_video_name, some_videos
from lookupvit_video.preparation.inspect_file import KINDS, FileReport, Problem, inspect_file
from lookupvit_video.processes.pool import run_isolated
from lookupvit_video.remote import absolute

logger = logging.getLogger(__name__)


@dataclass
class ListedVideo:
    """One row of a list, what is known of its file, and the row's own problems."""

    split: str
    video: Video
    label: str
    file: FileReport = field(default_factory=FileReport)
    problems: list[Problem] = field(default_factory=list)

    @property
    def all_problems(self) -> list[Problem]:
        """Those of the file, then those of the row."""
        return [*self.file.problems, *self.problems]

    @property
    def is_bad(self) -> bool:
        """Whether the file cannot be used as it is."""
        return any(KINDS[problem.kind].bad for problem in self.file.problems)


# Which files ----------------------------------------------------------------------------------------------------------


def rows_of_lists(lists: Mapping[str, str], classes: Sequence[str], prefix: str = "") -> list[ListedVideo]:
    """Return the rows of the lists of some splits; a list that serves two of them is read once.

    Args:
        lists: split -> path.
        prefix: see ``read_manifest``.

    Raises:
        UserError: names the file, the line and how to fix it.
    """
    rows: list[ListedVideo] = []
    seen: dict[str, str] = {}
    for split, path in lists.items():
        if path in seen:
            logger.info("%s: the same list as %s, checked once", split, seen[path])
            continue
        seen[path] = split
        rows += [ListedVideo(split, video, label) for video, label in _named(path, classes, prefix)]
    return rows


def _named(path: str | Path, classes: Sequence[str], prefix: str = "") -> list[tuple[Video, str]]:
    """The rows of a list, each with the names of its classes."""
    several = has_several_labels(path, classes, repeats=False)
    videos = read_manifest(path, classes, prefix, multi_label=several)
    return [(video, label_cell(video, classes)) for video in videos]


def rows_of_path(path: str | Path) -> list[ListedVideo]:
    """Return the rows of a list, of a folder (labels: the folders in it, if any) or of a single video.

    Class names come from classes.txt next to the list, or are the labels' numbers.

    Raises:
        UserError: names the file, the line and how to fix it.
    """
    path = Path(path)
    if path.is_dir():
        files = some_videos(path, find_video_files(path))
        folders = class_folders(path)
        inner = [file.relative_to(path).parts for file in files]
        return [
            ListedVideo(path.name, Video(str(file), -1, source=str(file)), parts[0] if parts[0] in folders else "")
            for file, parts in zip(files, inner, strict=True)
        ]
    if is_video_name(path):
        return [ListedVideo("", Video(str(path), -1, source="command line"), "")]
    names = path.parent / "classes.txt"
    classes = read_class_list(names) if names.is_file() else [str(number) for number in range(100_000)]
    return [ListedVideo(path.stem, video, label) for video, label in _named(path, classes)]


def inspect_files(
    rows: Sequence[ListedVideo],
    *,
    processes: int,
    timeout: float = 30.0,
    thorough: bool = False,
    rank: int = 0,
    world_size: int = 1,
    gather: Callable[[dict[str, FileReport]], list[dict[str, FileReport]]] = lambda found: [found],
    follow: Callable[[Iterator[Any], int], Iterable[Any]] = lambda outcomes, total: outcomes,
) -> None:
    """Examine the file of every row, each file once, and note the findings in the rows.

    Args:
        timeout: seconds for one file, see `run_isolated`; tried a second time, alone, before it counts as a time-out.
        rank, world_size: this process and how many share the files.
        gather: returns the findings of all of them.
        follow: given the outcomes as they come and their number, passes them through; a progress bar.
    """
    of_file = defaultdict(list)
    for row in rows:
        path = row.video.path
        of_file[absolute(path)].append(row)
    paths = list(of_file)[rank::world_size]
    reports: dict[str, FileReport] = {}
    look = partial(_inspected, thorough)
    tasks = [(path, next((row.video.fps for row in of_file[path] if row.video.fps), 0.0)) for path in paths]
    outcomes = run_isolated(look, tasks, processes=processes, timeout=timeout, second_try=True)
    for number, file, lost in follow(outcomes, len(paths)):
        if file is None:
            assert lost is not None
            file = FileReport(problems=[Problem(lost.cause, lost.detail)])
        reports[paths[number]] = file
    for path, file in (item for share in gather(reports) for item in share.items()):
        for row in of_file[path]:
            row.file = file


def _inspected(thorough: bool, task: tuple[str, float]) -> FileReport:
    path, frame_rate = task
    return inspect_file(path, thorough, frame_rate, remote=True)


# Rows, their files, and other rows -----------------------------------------------------------------------------


def check_spans(rows: Iterable[ListedVideo], times: TimeSampler | None) -> None:
    """Note rows whose start and end lie outside of their video, and those shorter than a clip of ``times``."""
    for row in rows:
        video, file = row.video, row.file
        if row.is_bad or not file.frames:
            continue
        start, end = video.span(file.duration)
        if start >= end:
            row.problems.append(Problem("span", f"starts at {start:g} s, but the video ends at {file.duration:g} s"))
            continue
        if video.end and video.end > file.duration + 1:
            row.problems.append(Problem("span", f"ends at {video.end:g} s, but the video at {file.duration:g} s"))
        missing = _falls_short(end - start, file, times)
        if missing:
            row.problems.append(Problem("short", missing))


def _falls_short(seconds: float, file: FileReport, times: TimeSampler | None) -> str:
    if file.frames == 1:
        return "holds a single frame"
    if times is None:
        return ""
    frames = round(seconds * file.fps)
    if times.mode == "segments":
        wanted = times.num_frames
        return f"holds {frames} frames; DATA.NUM_FRAMES is {wanted}" if frames < wanted else ""
    clip = (times.num_frames - 1) * times.step
    return f"lasts {seconds:.2f} s; a clip of the config takes {clip:.2f} s" if seconds + 1e-3 < clip else ""


def file_digests(rows: Iterable[ListedVideo]) -> Iterator[tuple[str, str]]:
    """Yield (path, digest of the content) of the readable files that share their size with another file."""
    sizes = defaultdict(set)
    for row in rows:
        if not row.is_bad:
            sizes[row.file.bytes].add(row.video.path)
    paths = [path for same in sizes.values() if len(same) > 1 for path in sorted(same)]
    with ThreadPoolExecutor(4) as pool:
        yield from zip(paths, pool.map(_digest, paths), strict=True)


def _digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


# How two rows of the same video can be at odds. Validation and test may share theirs; training shares with neither.
_AT_ODDS: dict[str, Callable[[ListedVideo, ListedVideo], bool]] = {
    "train and test": lambda row, other: row.split != other.split and {row.split, other.split} != {"val", "test"},
    "two labels": lambda row, other: row.label != other.label and _span(row) == _span(other),
    "twice": lambda row, other: row.split == other.split and _span(row) == _span(other),
}


def _span(row: ListedVideo) -> tuple[float | None, float | None]:
    return row.video.start, row.video.end


def check_repeats(rows: Iterable[ListedVideo], digests: dict[str, str]) -> None:
    """Note videos that are in several rows: the same path, or with ``digests`` the same content.

    Training must share no part of a video with validation or test; in one split, only equal spans are repeats.
    """
    groups = defaultdict(list)
    for row in rows:
        groups[digests.get(row.video.path, os.path.abspath(row.video.path))].append(row)
    for same in groups.values():
        if len(same) > 1:
            _note_repeats(same)


def _note_repeats(same: Sequence[ListedVideo]) -> None:
    """Note what is wrong with the rows of one video."""
    kinds = defaultdict(list)
    for row in same:
        kinds[row.split, row.label, _span(row)].append(row)
    alike = [row for rows in kinds.values() for row in rows[:2]]  # thousands may be the same placeholder
    by_span, by_split = defaultdict(list), {row.split: row for row in alike}
    for row in alike:
        by_span[_span(row)].append(row)
    for row in same:
        others = (*by_span[_span(row)], *by_split.values())  # a video of a thousand spans stays cheap
        for kind, at_odds in _AT_ODDS.items():
            other = next((other for other in others if other is not row and at_odds(row, other)), None)
            if other is not None:
                part = "" if _span(row) == _span(other) else ", other seconds of it"
                named = f"{other.split}{', ' * bool(other.label)}{other.label}{part}"
                row.problems.append(Problem(kind, f"the same video as {other.video.path} ({named})"))


# Summary ------------------------------------------------------------------------------------------


def summarize(rows: Sequence[ListedVideo], classes: Sequence[str] = ()) -> dict[str, Any]:
    """Count what there is and what is wrong; of each kind of problem the rows that have it.

    Args:
        classes: all class names, to find those without a video; empty: those that occur.
    """
    readable = {os.path.abspath(row.video.path): row.file for row in rows if row.file.frames}
    files = list(readable.values())
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
        "bytes": sum(file.bytes for file in files),
        "hours": sum(file.duration for file in files) / 3600,
        "codecs": _counts(f"{file.codec} in {file.container}" for file in files),
        "sizes": _counts(f"{file.width}x{file.height}" for file in files),
        "rates": _counts(f"{file.fps:.4g}" for file in files if not file.variable_rate),
        "short_side": _spread([min(file.width, file.height) for file in files]),
        "duration": _spread([file.duration for file in files]),
        "frames": _spread([file.frames for file in files]),
        "variable_rate": sum(file.variable_rate for file in files),
        "rotated": sum(file.rotation != 0 for file in files),
        "mirrored": sum(file.mirrored for file in files),
        "interlaced": sum(file.interlaced for file in files),
        "not_square_pixels": sum(file.pixel_aspect not in ("1:1", "0:1") for file in files),
        "problems": {kind: numbers for kind, numbers in problems.items() if numbers},
    }


def _summarize_split(rows: Sequence[ListedVideo], classes: Sequence[str]) -> dict[str, Any]:
    of_class = Counter(
        name
        for row in rows
        for name in ([row.label] if row.video.labels is None else split_labels(row.label, row.video.source))
    )
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


def table_row(row: ListedVideo) -> dict[str, Any]:
    """Return all that is known of a row, flat, for a table."""
    file = asdict(row.file)
    del file["problems"]
    return {
        "split": row.split,
        "path": row.video.path,
        "label": row.label,
        "source": row.video.source,
        "start": row.video.start,
        "end": row.video.end,
        **file,
        "bad": row.is_bad,
        "problems": "; ".join(f"{kind}: {detail}" for kind, detail in row.all_problems),
    }
