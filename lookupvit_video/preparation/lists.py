"""Official annotations and the files that are there -> lists for training, and a report of what does not match.

Nothing is invented: a video gets the label that its annotation gives, or none; a file that could be two videos is
neither. `missing.csv` names every annotated video without a usable file, `extra.csv` every file without an annotation.
"""

import logging
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from lookupvit_video.data.video_files import VideoFiles, find_video_files, some_videos
from lookupvit_video.errors import UserError
from lookupvit_video.preparation.reencode import FRAME_SUFFIX, Encoding, Job, reencode_all
from lookupvit_video.progress import progress
from lookupvit_video.text import write_csv, write_text

logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
_FILES = ("train.csv", "val.csv", "test.csv", "test_official.csv", "test_unlabelled.txt")


class Key(NamedTuple):
    """What names a clip: the video it is from and, in full seconds, its span there; None: not known."""

    video: str
    start: int | None = None
    end: int | None = None

    def __str__(self) -> str:
        return self.video if self.start is None else f"{self.video}_{self.start:06d}_{self.end:06d}"


@dataclass(frozen=True, slots=True)
class Annotation:
    """One annotated clip; label None: not published."""

    key: Key
    split: str
    label: str | None
    source: str
    """Where it is written: ``train.csv, line 3``."""


@dataclass(frozen=True, slots=True)
class Found:
    """An annotated clip and its file; start and end: seconds of the file that are meant, None: all of it."""

    annotation: Annotation
    path: Path
    start: float | None = None
    end: float | None = None


@dataclass
class Account:
    """What became of annotations and files."""

    found: list[Found] = field(default_factory=list)
    missing: list[tuple[Annotation, str]] = field(default_factory=list)
    extra: list[tuple[Path, str]] = field(default_factory=list)


# What is there --------------------------------------------------------------------------------------------------------


def files_below(folders: Iterable[Path], *, pictures: bool = False) -> list[Path]:
    """Return the video files below some folders, sorted in each; with `pictures` also folders of a video's frames.

    Hidden files and folders are left out. Symbolic links are followed, each folder once.

    Raises:
        UserError: a folder does not exist, or nothing is below them.
    """
    seen, found = set[tuple[int, int]](), VideoFiles([], Counter())
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; --videos names the folder that holds the videos")
        logger.info("looking for videos below %s", folder)
        below = find_video_files(folder.resolve(), seen, FRAME_SUFFIX if pictures else "")
        found = VideoFiles(found.videos + below.videos, found.left_out + below.left_out)
    return some_videos(folder, found, "; check --videos")


def empty_files(paths: Sequence[Path]) -> set[Path]:
    """Return those of no bytes, and links to nothing."""

    def is_empty(path: Path) -> bool:
        try:
            return path.stat().st_size == 0
        except OSError:
            return True

    with ThreadPoolExecutor(16) as pool:  # on network file systems one look-up takes milliseconds
        results = progress(pool.map(is_empty, paths), total=len(paths), label="checking", unit="files")
        return {path for path, empty in zip(paths, results, strict=True) if empty}


# Annotations and files ------------------------------------------------------------------------------------------------


def merge(annotations: Iterable[Annotation]) -> tuple[list[Annotation], list[tuple[Annotation, str]]]:
    """Take out what is annotated twice: (each clip once per split, those annotated with different labels and why).

    A label replaces a missing one of the same clip.
    """
    clips: dict[Key, dict[str, Annotation]] = defaultdict(dict)  # key -> split -> annotation
    labels: dict[Key, dict[str, str]] = defaultdict(dict)  # key -> label -> where it is written
    for annotation in annotations:
        known = clips[annotation.key].get(annotation.split)
        if known is None or known.label is None:
            clips[annotation.key][annotation.split] = annotation
        if annotation.label is not None:
            labels[annotation.key].setdefault(annotation.label, annotation.source)
    unique: list[Annotation] = []
    conflicts: list[tuple[Annotation, str]] = []
    for key, splits in clips.items():
        if len(labels[key]) > 1:
            why = "annotated as " + " and as ".join(f"{name!r} ({where})" for name, where in labels[key].items())
            conflicts += [(annotation, why) for annotation in splits.values()]
            continue
        unique += splits.values()
    shared = [f"{key} ({' and '.join(splits)})" for key, splits in clips.items() if len(splits) > 1]
    if shared:
        logger.warning("%d clips are annotated in more than one split, the first %s", len(shared), shared[0])
    return unique, conflicts


def match(
    annotations: Iterable[Annotation],
    files: Sequence[Path],
    key_of: Callable[[Path], Key],
    *,
    classes: Collection[str] = (),
    whole: bool = False,
) -> Account:
    """Find the file of each annotated clip.

    Args:
        key_of: what a file's name says of it.
        classes: where the folder of a file is called like one of these, the annotation must agree.
        whole: a file whose name has no span is the full video that holds the annotated span.
    """
    unique, conflicts = merge(annotations)
    account = Account(missing=list(conflicts))
    matcher = _Matcher({_squash(name): name for name in classes}, whole, empty_files(files))
    for path in files:
        matcher.files[key_of(path)].append(path)
    for annotation in unique:
        matcher.clips[annotation.key.video].append(annotation)
    used = set()
    for annotation in unique:
        chosen, why = matcher.choose(annotation)
        if chosen is None:
            account.missing.append((annotation, why))
            continue
        used.add(chosen)
        start, end = annotation.key[1:] if whole and key_of(chosen).start is None else (None, None)
        account.found.append(Found(annotation, chosen, start, end))
    disputed = {annotation.key.video for annotation, _ in conflicts}
    for path in files:
        if path not in used:
            video = key_of(path).video
            why = "not annotated"
            if video in matcher.clips or video in disputed:
                why = "its video is annotated, but with another span or different labels"
            account.extra.append((path, matcher.rejected.get(path, why)))
    return account


@dataclass
class _Matcher:
    """Which file shows an annotated clip, if any does beyond doubt."""

    folders: dict[str, str]
    """Squashed folder name -> class."""
    whole: bool
    empty: set[Path]
    files: dict[Key, list[Path]] = field(default_factory=lambda: defaultdict(list))
    clips: dict[str, list[Annotation]] = field(default_factory=lambda: defaultdict(list))
    """Video -> what is annotated of it."""
    rejected: dict[Path, str] = field(default_factory=dict)

    def choose(self, annotation: Annotation) -> tuple[Path | None, str]:
        """The file to take, or None and why."""
        names = dict.fromkeys((annotation.key, Key(annotation.key.video)))
        candidates = [path for name in names for path in self.files.get(name, ())]
        candidates.sort(key=lambda path: not _is_replacement(path))  # the sort is stable: names with a span stay first
        chosen, why = None, "no file"
        for path in candidates:
            objection = self._objection(path, annotation)
            if objection:
                why = f"{path}: {objection}"
            elif chosen is None:
                chosen = path
                continue
            self.rejected[path] = objection or f"the same clip as {chosen}"
        return chosen, why

    def _objection(self, path: Path, annotation: Annotation) -> str | None:
        if not self._in_place(path, annotation):
            return f"in class folder {path.parent.name!r}, but annotated {annotation.label!r}"
        if path in self.empty:
            return "empty (0 bytes), or a link to nothing"
        if not self.whole and path in self.files.get(Key(annotation.key.video), ()):
            spans = {clip.key for clip in self.clips[annotation.key.video] if self._in_place(path, clip)}
            if len(spans) > 1:
                return f"may be any of {len(spans)} annotated spans; put the seconds into its name"
        return None

    def _in_place(self, path: Path, annotation: Annotation) -> bool:
        folder = self.folders.get(_squash(path.parent.name))
        return None in (folder, annotation.label) or folder == annotation.label


def _squash(name: str) -> str:
    """A class name as folders spell it: without what people replace or leave out."""
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _is_replacement(path: Path) -> bool:
    """Whether a file is one of those that CVDF offers in place of corrupted ones."""
    return any(part.startswith("replacement") for part in path.parts[:-1])


# What is written ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Options:
    """What the commands have in common."""

    out: Path
    encoding: Encoding | None = None
    """How to re-encode; None: keep the files as they are."""
    trim: bool = False
    """Re-encode only the annotated span of full videos."""
    processes: int = 1
    test_on: str = "val"
    """Which annotated split test.csv is: "val" or "test"."""


def finish(
    account: Account, classes: Sequence[str], options: Options, published: Mapping[str, int | None], expected: int
) -> int:
    """Re-encode if asked, write everything, print the counts; return 1 where a video could not be re-encoded, else 0.

    Args:
        published: split -> number of videos in the publication, None: not known.
        expected: number of classes of the data set.
    """
    if not account.found:
        raise UserError(_nothing_found(account))
    out = options.out.resolve()
    before = len(account.missing)
    if options.encoding:
        _reencode(account, out / "videos", options, options.encoding)
    failed = account.missing[before:]
    write_lists(out, classes, account, options.test_on)
    print(counts(account, published))
    if len(classes) != expected:
        print(f"note: {len(classes)} classes are annotated, not {expected}: the labels are numbered among these alone")
    print(f"files in no annotation, or not used: {len(account.extra):,} (extra.csv)")
    for annotation, reason in failed[:20]:
        print(f"could not be re-encoded: {annotation.key}: {reason}")
    if len(failed) > 20:
        print(f"... and {len(failed) - 20:,} more, see missing.csv")
    print(f"wrote {options.out}")
    return 1 if failed else 0


def _nothing_found(account: Account) -> str:
    files = f"for instance {account.extra[0][0]} ({account.extra[0][1]})" if account.extra else "no file"
    wanted = f"for instance {account.missing[0][0].key} ({account.missing[0][1]})" if account.missing else "nothing"
    return f"no annotated video is there: annotated is {wanted}, found is {files}; check --videos and the annotations"


def _reencode(account: Account, folder: Path, options: Options, encoding: Encoding) -> None:
    """Replace the files of `account.found` by re-encoded ones; what cannot be re-encoded goes to `missing`."""
    jobs = []
    for clip in account.found:
        keeps_rest = clip.end is not None and not options.trim  # a full video that may hold several clips
        name = clip.annotation.key.video if keeps_rest else str(clip.annotation.key)
        span = (None, None) if keeps_rest else (clip.start, clip.end)
        jobs.append(Job(clip.path, folder / clip.annotation.split / f"{name}.mp4", *span))
    failed = reencode_all(jobs, encoding, folder, processes=options.processes)
    found, account.found = account.found, []
    for clip, job in zip(found, jobs, strict=True):
        if job.target in failed:
            account.missing.append((clip.annotation, f"{clip.path}: {failed[job.target]}"))
        elif job.end is None:
            account.found.append(replace(clip, path=job.target))
        else:
            account.found.append(replace(clip, path=job.target, start=None, end=None))


def write_lists(out: Path, classes: Sequence[str], account: Account, test_on: str = "val") -> None:
    """Write classes.txt, the lists of each split, missing.csv and extra.csv into `out`, each atomically.

    Lists of an earlier run that would now be empty are removed. Paths are relative to `out`, save in
    test_unlabelled.txt, which is for the command line.
    """
    out.mkdir(parents=True, exist_ok=True)
    out = out.resolve()
    numbers = {name: number for number, name in enumerate(classes)}
    rows: dict[str, list[list[str]]] = {name: [] for name in _FILES}
    for clip in account.found:
        split, label = clip.annotation.split, clip.annotation.label
        path = _one_line(os.path.relpath(clip.path, out))
        if label is None:
            rows["test_unlabelled.txt"].append([_one_line(str(clip.path.absolute()))])
            continue
        span = [] if clip.end is None else [f"{clip.start:g}", f"{clip.end:g}"]
        rows["test_official.csv" if split == "test" else f"{split}.csv"].append([path, str(numbers[label]), *span])
    rows["test.csv"] = rows["test_official.csv" if test_on == "test" else "val.csv"]
    write_text(out / "classes.txt", "".join(f"{name}\n" for name in classes))
    for name, lines in rows.items():
        if not lines:
            (out / name).unlink(missing_ok=True)
        elif name.endswith(".txt"):
            write_text(out / name, "".join(f"{line[0]}\n" for line in lines))
        else:
            has_span = any(len(line) > 2 for line in lines)
            header = ["path", "label", "start", "end"] if has_span else ["path", "label"]
            write_csv(out / name, header, [line + [""] * (len(header) - len(line)) for line in lines], end="\n")
    write_csv(
        out / "missing.csv",
        ["video", "start", "end", "split", "label", "annotated", "reason"],
        [[*a.key, a.split, a.label, a.source, reason] for a, reason in account.missing],
        end="\n",
    )
    write_csv(out / "extra.csv", ["path", "reason"], account.extra, end="\n")


def counts(account: Account, published: Mapping[str, int | None]) -> str:
    """Return a table: videos of each split as published, annotated, found and missing."""
    lines = [f"{'split':<6}{'published':>12}{'annotated':>12}{'found':>12}{'missing':>12}"]
    for split in SPLITS:
        found = sum(clip.annotation.split == split for clip in account.found)
        missing = sum(annotation.split == split for annotation, _ in account.missing)
        number = published.get(split)
        stated = "-" if number is None else f"{number:,}"
        lines.append(f"{split:<6}{stated:>12}{found + missing:>12,}{found:>12,}{missing:>12,}")
    return "\n".join(lines)


def _one_line(path: str) -> str:
    if len(path.splitlines()) != 1 or path != path.strip():
        raise UserError(f"{path!r}: a path with a line break or a space at its end cannot be in a list; rename it")
    return Path(path).as_posix()
