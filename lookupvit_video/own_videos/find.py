"""A user's videos -> rows with a class and a group, in the splits that are there or in one list that is to be split.

Understood are folders or lists named train, val and test, a folder of class folders, and a single list.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lookupvit_video.data.manifest import (
    Video,
    class_folders,
    has_several_labels,
    read_class_list,
    read_manifest,
    renumbered,
    split_labels,
)
from lookupvit_video.data.tables import COLUMNS, find_header, labelled_lines, read_list, table_rows
from lookupvit_video.data.video_files import find_video_files, is_video_name
from lookupvit_video.errors import UserError
from lookupvit_video.text import shown

SPLITS = {
    "train": ("train", "training"), "val": ("val", "valid", "validation", "dev"), "test": ("test", "testing"),
}  # fmt: skip
ALL = "all"
"""Name of the one list that is to be split."""
_CLASS_LISTS = ("classes.txt", "labels.txt")
_EXPECTED = "expected FOLDER/CLASS/VIDEO.mp4, FOLDER/train/CLASS/VIDEO.mp4, or a list with the header path,label"


@dataclass(frozen=True)
class FoundVideos:
    """What lies in a user's folder."""

    classes: list[str]
    splits: Mapping[str, list[Video]]
    """"train" and perhaps "val", "test"; or ``ALL``. Each video has a group."""
    hints: list[str]
    multi_label: bool = False
    """Whether the lists give videos several labels, or none."""


def find_videos(place: Path, group_by: str = "") -> FoundVideos:
    """Find the videos, classes and splits of a folder, or of one list.

    Args:
        group_by: regular expression, searched in each path below ``place``; what its first group (or all of it)
            matches names the video's group. Empty: the list's column "group", else each file is a group of its own.

    Raises:
        UserError: there are no labeled videos, or ``group_by`` matches none.
    """
    sources, hints = _sources(place)
    folder = next(iter(sources.values())).parent if place.is_file() or ALL not in sources else sources[ALL]
    named = next((folder / name for name in _CLASS_LISTS if (folder / name).is_file()), None)
    classes = read_class_list(named) if named else _classes_of(list(sources.values()))
    multi_label = any(has_several_labels(source, classes) for source in sources.values())
    splits = {split: read_manifest(source, classes, multi_label=multi_label) for split, source in sources.items()}
    if not named:
        classes, splits = _without_empty(classes, splits, hints)
    root = place if place.is_dir() else place.parent
    splits = {split: _grouped(videos, root, group_by, hints) for split, videos in splits.items()}
    return FoundVideos(classes, splits, hints, multi_label)


def _sources(place: Path) -> tuple[dict[str, Path], list[str]]:
    """Return the list or folder of class folders of each split, and hints."""
    if place.is_file():
        return {ALL: place}, []
    if not place.is_dir():
        raise UserError(f"{place}: no such folder or list of videos; {_EXPECTED}")
    entries = sorted(entry for entry in place.iterdir() if not entry.name.startswith("."))
    folders = [entry for entry in entries if entry.is_dir()]
    lists = [entry for entry in entries if _is_list(entry)]
    splits = {
        split: entry
        for split, names in SPLITS.items()
        for entry in (*[folder for folder in folders if class_folders(folder)], *lists)  # of both, the list counts
        if (entry.name if entry.is_dir() else entry.stem).lower() in names
    }
    if "train" in splits:
        return splits, []
    if any(find_video_files(folder).videos for folder in folders) and not (lists and _is_plain(folders)):
        if len(folders) == 1 and class_folders(folders[0]):  # as unpacked archives are
            return _sources(folders[0])
        grouped = [entry for entry in lists if "group" in _columns(entry)]
        return {ALL: place}, [f"{entry} has a column group; to split by it: --data {entry}" for entry in grouped]
    if len(lists) == 1:
        return {ALL: lists[0]}, []
    what = f"{len(lists)} lists ({shown(entry.name for entry in lists)})" if lists else "no class folders and no list"
    more = "; its videos are in no class folder" if any(map(is_video_name, entries)) else ""
    raise UserError(f"{place}: {what}{more}; {_EXPECTED}")


def _is_plain(folders: Sequence[Path]) -> bool:
    """Whether there is one folder, with videos directly in it: the place of a list's videos, not a class."""
    return len(folders) == 1 and not class_folders(folders[0])


def _is_list(path: Path) -> bool:
    if not path.is_file() or path.suffix.lower() not in (".csv", ".tsv", ".txt") or path.name in _CLASS_LISTS:
        return False
    columns = _columns(path)
    return {"path", "label"} <= columns or (not columns and path.stem.lower() in sum(SPLITS.values(), ()))


def _columns(path: Path) -> set[str]:
    """Return the known columns of a table; empty where it has no header, or is none."""
    try:
        header = find_header(read_list(path, "the list", ""), path)
    except UserError:
        return set()
    return set(header.columns) if header else set()


def _classes_of(sources: Sequence[Path]) -> list[str]:
    """Return the names of the class folders, or the labels in lists; of labels that are numbers, all up to the last."""
    names: set[str] = set()
    for source in sources:
        if source.is_dir():
            names |= set(class_folders(source))
            continue
        text = read_list(source, "the list of videos", "check --data")
        header = find_header(text, source)
        if header and "label" in header.columns:
            rows = table_rows(header, source)
            names |= {name for line, row in rows for name in split_labels(row["label"], f"{source}, line {line}")}
        else:
            lines = labelled_lines(text, source, _is_one_word)
            names |= {label for _, path, label in lines if path.lower() not in COLUMNS["path"]}  # a header's
    if names and all(name.isdecimal() for name in names) and not any(source.is_dir() for source in sources):
        return [str(number) for number in range(max(map(int, names)) + 1)]
    return sorted(names)


def _is_one_word(text: str) -> bool:
    return re.fullmatch(r"[^\s,;]+", text) is not None


def _without_empty(
    classes: Sequence[str], splits: Mapping[str, list[Video]], hints: list[str]
) -> tuple[list[str], dict[str, list[Video]]]:
    """Leave out classes of which no split has a video."""
    used = sorted({label for videos in splits.values() for video in videos for label in video.every_label})
    empty = [name for label, name in enumerate(classes) if label not in used]
    if empty:
        hints.append(f"{len(empty)} classes have no video and are left out: {shown(empty)}")
    numbers = {label: number for number, label in enumerate(used)}
    return [classes[label] for label in used], {
        split: [renumbered(video, numbers) for video in videos] for split, videos in splits.items()
    }


def _grouped(videos: Sequence[Video], root: Path, group_by: str, hints: list[str]) -> list[Video]:
    """Return the videos with their groups."""
    if not group_by:
        return [replace(video, group=video.group or video.path) for video in videos]
    try:
        pattern = re.compile(group_by)
    except re.error as error:
        raise UserError(f"--group-by {group_by!r}: not a regular expression ({error})") from None
    found = []
    for video in videos:
        path = Path(video.path)
        match = pattern.search((path.relative_to(root) if path.is_relative_to(root) else path).as_posix())
        found.append(match and (match[1] if pattern.groups else match[0]))
    missing = [video.path for video, group in zip(videos, found, strict=True) if not group]
    if len(missing) == len(videos):
        raise UserError(f"--group-by {group_by!r} matches no path, such as {videos[0].path}; fix the pattern")
    if missing:
        hints.append(f"--group-by matches {len(videos) - len(missing)} of {len(videos)} paths; not {missing[0]}")
    return [replace(video, group=group or video.path) for video, group in zip(videos, found, strict=True)]
