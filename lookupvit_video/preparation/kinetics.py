"""Kinetics-400, -600, -700 and -700-2020: official annotations and any usual layout of the files -> lists.

Annotations: arXiv 1705.06950, 1808.01340, 1907.06987, 2010.10864. Classes are numbered in the alphabetical order of
their names (that of their code points), as the published label maps of the field are.
"""

import csv
import json
import logging
import re
import shutil
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import av

from lookupvit_video.data.manifest import read_class_list
from lookupvit_video.data.video_files import is_video_name
from lookupvit_video.decoding.opening import ANY_TAGS
from lookupvit_video.errors import UserError
from lookupvit_video.files import atomic_write
from lookupvit_video.preparation.lists import Annotation, Found, Key, Options, files_below, finish, match
from lookupvit_video.progress import progress

logger = logging.getLogger(__name__)

CLASSES = {"k400": 400, "k600": 600, "k700": 700, "k700-2020": 700}
# Videos of each split as published; the README names the sources. None: not published split by split.
PUBLISHED: dict[str, dict[str, int | None]] = {
    "k400": {"train": 246_245, "val": 20_000, "test": 40_000},
    "k600": {"train": 392_622, "val": 30_000, "test": 60_000},
    "k700": {"train": 545_317, "val": 35_000, "test": 70_000},
    "k700-2020": {},
}
_SPLIT_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "validate": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
_COLUMNS = ("youtube_id", "time_start", "time_end", "split")
_SPAN = re.compile(r"(.+)_(\d+)_(\d+)")


# Annotations ----------------------------------------------------------------------------------------------------------


def read_annotations(path: Path) -> list[Annotation]:
    """Read an official CSV (label,youtube_id,time_start,time_end,split[,is_cc]) or JSON ({youtube_id: {...}}) file.

    The content decides which one it is. The label may be missing in the test split, nowhere else.

    Raises:
        UserError: names the file, and the line or video, of what is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', error)}); check --annotations") from None
    rows = _json_rows(path, text) if text.lstrip().startswith("{") else _csv_rows(path, text)
    annotations = [_annotation(where, *row) for where, row in rows]
    if not annotations:
        raise UserError(f"{path}: holds no annotation")
    return annotations


def _csv_rows(path: Path, text: str) -> Iterator[tuple[str, tuple[Any, ...]]]:
    reader = csv.DictReader(text.splitlines(), skipinitialspace=True)
    absent = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
    if absent:
        raise UserError(
            f"{path}, line 1: no column {', '.join(absent)}; the official files begin with "
            "label,youtube_id,time_start,time_end,split"
        )
    for row in reader:
        where = f"{path}, line {reader.line_num}"
        if None in row or any(row[name] is None for name in _COLUMNS):
            raise UserError(f"{where}: expected {len(reader.fieldnames or ())} fields; is a quote left open?")
        yield where, (row["youtube_id"], row.get("label"), row["time_start"], row["time_end"], row["split"])


def _json_rows(path: Path, text: str) -> Iterator[tuple[str, tuple[Any, ...]]]:
    try:
        videos = json.loads(text, object_pairs_hook=_each_once)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    for video, entry in videos.items():
        where = f"{path}, video {video}"
        try:
            details = entry["annotations"]
            start, end = details["segment"]
            yield where, (video, details.get("label"), start, end, entry["subset"])
        except (KeyError, TypeError, ValueError, AttributeError):
            raise UserError(
                f'{where}: expected {{"annotations": {{"label": ..., "segment": [start, end]}}, "subset": ...}}'
            ) from None


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) < len(pairs):  # Python would keep the last one and say nothing
        keys = [key for key, _ in pairs]
        raise UserError(f"{next(key for key in keys if keys.count(key) > 1)!r} occurs twice in one object")
    return names


def _annotation(where: str, video: Any, label: Any, start: Any, end: Any, split: Any) -> Annotation:
    name = _SPLIT_NAMES.get(str(split).strip().lower())
    if name is None:
        raise UserError(f"{where}: split {split!r} is not one of {', '.join(_SPLIT_NAMES)}")
    if not isinstance(video, str) or not video.strip():
        raise UserError(f"{where}: no youtube_id")
    try:
        seconds = [float(start), float(end)]
    except (TypeError, ValueError):
        seconds = [0.0, 0.0]
    if not 0 <= seconds[0] < seconds[1] < float("inf"):
        raise UserError(f"{where}: {start!r} to {end!r} is not a span of seconds")
    label = label.strip() if isinstance(label, str) else ""
    if not label and name != "test":
        raise UserError(f"{where}: no label; only the test split may have none")
    return Annotation(Key(video.strip(), int(seconds[0]), int(seconds[1])), name, label or None, where)


# Files ----------------------------------------------------------------------------------------------------------------


def key_of(path: Path, videos: set[str]) -> Key:
    """What a file's name says: ``ID_000001_000011.mp4`` or ``ID.mp4``. IDs may themselves hold _ and digits."""
    if path.stem in videos:
        return Key(path.stem)
    parts = _SPAN.fullmatch(path.stem)
    return Key(parts[1], int(parts[2]), int(parts[3])) if parts else Key(path.stem)


def extract(folder: Path, out: Path) -> list[str]:
    """Unpack the videos of every .tar.gz, .tgz and .tar below `folder` into `out`, in the same subfolders.

    Only plain files are taken, and none outside `out`. What is there already is not unpacked again; a tarball that is
    damaged is reported, and what comes before the damage is kept.

    Returns:
        What is wrong, a line for each damaged tarball.

    Raises:
        UserError: no tarball is there, or one would write outside `out`.
    """
    tarballs = sorted(p for p in folder.rglob("*") if p.name.endswith((".tar.gz", ".tgz", ".tar")) and p.is_file())
    if not tarballs:
        raise UserError(f"{folder}: no .tar.gz, .tgz or .tar below it; check --tarballs")
    damaged = []
    for tarball in progress(tarballs, total=len(tarballs), label="unpacking", unit="tarballs"):
        target = out / tarball.parent.relative_to(folder)
        done = target / f".{tarball.name}.{tarball.stat().st_size}.unpacked"
        if done.exists():
            continue
        try:
            _unpack(tarball, target)
        except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk, not the tarball
            damaged.append(f"{tarball}: damaged ({error}); fetch it again")
            continue
        with atomic_write(done) as temporary:
            temporary.touch()
    return damaged


def _unpack(tarball: Path, target: Path) -> None:
    with tarfile.open(tarball, "r|*") as archive:  # the content decides on the compression: one part is a plain tar
        for member in archive:
            name = PurePosixPath(member.name)
            if not is_video_name(name):
                continue
            if name.is_absolute() or ".." in name.parts or "\\" in member.name or ":" in member.name:
                raise UserError(f"{tarball}: {member.name!r} would be written outside {target}; do not use it")
            path = target / name
            content = archive.extractfile(member) if member.isreg() else None
            if content is None or (path.is_file() and path.stat().st_size == member.size):
                continue
            if not path.parent.resolve().is_relative_to(target.resolve()):
                raise UserError(f"{tarball}: {member.name!r} leads outside {target} by a link; remove the link")
            with atomic_write(path) as temporary, open(temporary, "wb") as file:
                shutil.copyfileobj(content, file)


def span_warning(found: Sequence[Found], whole: bool) -> str | None:
    """Look at 20 files whose name has no span; return a warning where most of them contradict `whole`."""
    unsaid = [clip for clip in found if clip.path.stem == clip.annotation.key.video]
    wrong = known = 0
    for clip in unsaid[:: max(1, len(unsaid) // 20)][:20]:
        _, start, end = clip.annotation.key
        try:
            with av.open(f"file:{clip.path}", **ANY_TAGS) as container:
                duration = (container.duration or 0) / 1e6
        except av.FFmpegError:
            continue
        assert start is not None
        assert end is not None
        known += 1
        wrong += duration < end - 1 if whole else duration > 1.5 * (end - start) + 2
    if wrong <= known / 2:
        return None
    if whole:
        return f"{wrong} of {known} files end before their spans; if they are clips, leave out --whole-videos"
    return f"{wrong} of {known} files are much longer than their spans; if they are full videos, add --whole-videos"


# The data set ---------------------------------------------------------------------------------------------------------


def prepare_kinetics(
    dataset: str,
    annotations: Sequence[Path],
    videos: Sequence[Path],
    options: Options,
    *,
    tarballs: Path | None = None,
    whole: bool = False,
    classes: Path | None = None,
) -> int:
    """Write the lists of a Kinetics data set; see `datasets/kinetics/README.md`.

    Args:
        dataset: one of `CLASSES`.
        annotations: official CSV or JSON files.
        videos: folders that hold the videos.
        tarballs: folder of tarballs to unpack first, into `options.out`/unpacked.
        whole: files whose name has no span are full YouTube videos.
        classes: a class list to use instead of the annotated labels in alphabetical order.

    Returns:
        The exit code: 1 where a tarball is damaged or a video could not be re-encoded, else 0.
    """
    if options.trim and not (options.encoding and whole):
        raise UserError("--trim cuts full videos while they are re-encoded: give --short-side and --whole-videos")
    clips = [clip for path in annotations for clip in read_annotations(path)]
    names = _class_names(clips, classes)
    damaged: list[str] = []
    folders = list(videos)
    if tarballs:
        folders.append(options.out / "unpacked")
        damaged = extract(tarballs, folders[-1])
    if not folders:
        raise UserError("no videos: give --videos, --tarballs or both")
    ids = {clip.key.video for clip in clips}
    account = match(clips, files_below(folders), partial(key_of, videos=ids), classes=names, whole=whole)
    warning = span_warning(account.found, whole)
    code = finish(account, names, options, PUBLISHED[dataset], CLASSES[dataset])
    for line in [*damaged, *([f"warning: {warning}"] if warning else [])]:
        print(line)
    return 1 if damaged else code


def _class_names(clips: Sequence[Annotation], path: Path | None) -> list[str]:
    labels = sorted({clip.label for clip in clips if clip.label is not None})
    if path is None:
        if not labels:
            raise UserError("the annotations hold no label; add those of the training split, or --classes")
        return labels
    names = read_class_list(path)
    unknown = set(labels) - set(names)
    if unknown:
        raise UserError(f"{path}: does not name {sorted(unknown)[0]!r}, which is annotated")
    return names
