"""`lookupvit prepare split`: lists for training, validation and test that share no recording, or k folds of them."""

import csv
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from lookupvit_video.data.manifest import Video, read_class_list, read_manifest
from lookupvit_video.errors import UserError
from lookupvit_video.own_videos.find import ALL, FoundVideos, find_videos
from lookupvit_video.own_videos.split import shared_names, split_by_group, write_splits
from lookupvit_video.text import open_text, shown

SPLITS = ("train", "val", "test")
TimeKey = tuple[tuple[float, str], ...]
"""What sorts by time: numbers and words in turn, which never compare with one another."""


@dataclass(frozen=True)
class SplitOptions:
    """How to split; see the options of the command."""

    shares: Sequence[float] = (0.7, 0.15, 0.15)
    """Of train, val and test; two numbers: test is val."""
    folds: int = 0
    """0: no cross-validation."""
    order_by: str = ""
    """"mtime", or a regular expression on the path: the newest groups are tested. Empty: at random."""
    keep: Path | None = None
    """Folder of earlier lists, whose files stay in their splits."""
    seed: int = 0
    copies: Path | None = None
    """copies.csv of ``lookupvit check --copies``, whose pairs stay together."""

    def validate(self) -> None:
        """Raise UserError where the options do not fit one another."""
        if not 2 <= len(self.shares) <= 3 or min(self.shares) <= 0 or not math.isclose(sum(self.shares), 1):
            raise UserError(
                f"--shares {' '.join(map(str, self.shares))}: write two or three that sum to 1: 0.7 0.15 0.15"
            )
        if self.folds and (self.folds < 2 or self.order_by or self.keep):
            raise UserError(f"--folds {self.folds}: from 2 on, and without --order-by and --keep")


def prepare_split(place: Path, out: Path, group_by: str, options: SplitOptions) -> tuple[list[str], list[str]]:
    """Split the videos of a folder or list and write the lists; folds: to OUT/0, OUT/1, ...

    Args:
        group_by: see ``find_videos``.

    Returns:
        a line for each list that was written, and hints.

    Raises:
        UserError: names what does not fit.
    """
    options.validate()
    found = find_videos(place, group_by)
    videos = [video for split in found.splits.values() for video in split]
    if options.copies:
        videos = join_groups(videos, _pairs(options.copies))
    hints = [*found.hints, *filter(None, [shared_names(videos)])]
    if ALL not in found.splits:
        hints.append(f"{place} has splits already ({', '.join(found.splits)}); all of its videos were split again")
    if options.folds:
        names = _split(videos, {str(fold): 1 / options.folds for fold in range(options.folds)}, options.seed)
        folds = {
            out / str(fold): _by_split(videos, ["val" if name == str(fold) else "train" for name in names])
            for fold in range(options.folds)
        }
    else:
        shares = dict(zip(SPLITS, options.shares, strict=False))
        fixed = _kept(options.keep, videos, found) if options.keep else {}
        if options.order_by:
            names = split_by_time(videos, shares, _time_key(options.order_by), fixed)
        else:
            names = _split(videos, shares, options.seed, fixed)
        folds = {out: _by_split(videos, names)}
    return [line for folder, splits in folds.items() for line in _write(folder, found.classes, splits)], hints


def join_groups(videos: Sequence[Video], pairs: Sequence[tuple[str, str]]) -> list[Video]:
    """Return the videos with one group for all that pairs of files link; it has the name of the first of them."""
    names = sorted({video.group for video in videos})
    number = {name: at for at, name in enumerate(names)}
    group_of = {os.path.abspath(video.path): number[video.group] for video in videos}
    known = [(group_of[a], group_of[b]) for a, b in pairs if a in group_of and b in group_of]
    first, second = np.array(known, int).reshape(-1, 2).T
    links = coo_array((np.ones(len(known)), (first, second)), shape=(len(names), len(names)))
    part_of = connected_components(links, directed=False)[1]
    name_of = dict(zip(reversed(part_of), reversed(names), strict=True))
    return [replace(video, group=name_of[part_of[number[video.group]]]) for video in videos]


def _pairs(path: Path) -> list[tuple[str, str]]:
    """Return the pairs of files in a copies.csv.

    Raises:
        UserError: it cannot be read, or is not one.
    """
    try:
        with open_text(path, "r") as file:
            return [(os.path.abspath(row["path"]), os.path.abspath(row["copy_of"])) for row in csv.DictReader(file)]
    except OSError as error:
        raise UserError(f"--copies {path}: cannot be read ({error.strerror})") from None
    except (KeyError, TypeError):
        raise UserError(f"--copies {path}: give the copies.csv that lookupvit check --copies wrote") from None


def _split(
    videos: Sequence[Video], shares: Mapping[str, float], seed: int, fixed: Mapping[str, str] | None = None
) -> list[str]:
    labels = [video.every_label or (-1,) for video in videos]
    return split_by_group(labels, [video.group for video in videos], shares, seed, fixed)


def split_by_time(
    videos: Sequence[Video],
    shares: Mapping[str, float],
    time_of: Callable[[Video], TimeKey],
    fixed: Mapping[str, str] | None = None,
) -> list[str]:
    """Return the split of each video: the newest groups are in the last split, the oldest in the first.

    Args:
        shares: split -> its share of the videos.
        time_of: what videos are sorted by; a group is as new as its newest video.
    """
    newest: dict[str, TimeKey] = {}
    counts: Counter[str] = Counter()
    for video in videos:
        newest[video.group] = max(newest.get(video.group, ()), time_of(video))
        counts[video.group] += 1
    split_of = dict(fixed or {})
    splits = list(shares)[::-1]
    room = {split: shares[split] * len(videos) for split in splits}
    for group, split in split_of.items():
        room[split] -= counts[group]
    for group in sorted((group for group in counts if group not in split_of), key=newest.__getitem__, reverse=True):
        while len(splits) > 1 and room[splits[0]] < counts[group] / 2:
            del splits[0]
        split_of[group] = splits[0]
        room[splits[0]] -= counts[group]
    return [split_of[video.group] for video in videos]


def _time_key(order_by: str) -> Callable[[Video], TimeKey]:
    if order_by == "mtime":
        return lambda video: ((os.stat(video.path).st_mtime, ""),)
    try:
        pattern = re.compile(order_by)
    except re.error as error:
        raise UserError(f"--order-by {order_by!r}: neither mtime nor a regular expression ({error})") from None

    def key(video: Video) -> TimeKey:
        match = pattern.search(video.path)
        if not match:
            raise UserError(f"--order-by {order_by!r} does not match {video.path}")
        text = match[1] if pattern.groups else match[0]
        words = re.findall(r"\d+|\D+", text)  # 2 before 10
        return tuple((float(word), "") if word.isdecimal() else (-1.0, word) for word in words)

    return key


def _kept(folder: Path, videos: Sequence[Video], found: FoundVideos) -> dict[str, str]:
    """Return the split of each group that the lists of a folder name.

    Raises:
        UserError: there are none, or they put a group into two splits.
    """
    names = folder / "classes.txt"
    classes = read_class_list(names) if names.is_file() else found.classes
    lists = {split: folder / f"{split}.csv" for split in SPLITS if (folder / f"{split}.csv").is_file()}
    if not lists:
        raise UserError(f"--keep {folder}: holds no train.csv, val.csv or test.csv")
    split_of = {
        os.path.abspath(video.path): split
        for split, path in lists.items()
        for video in read_manifest(path, classes, multi_label=found.multi_label)
    }
    groups: dict[str, dict[str, str]] = defaultdict(dict)
    for video in videos:
        if split := split_of.get(os.path.abspath(video.path)):
            groups[video.group].setdefault(split, video.path)
    for group, places in groups.items():
        if len(places) > 1:
            where = shown(f"{path} ({split})" for split, path in places.items())
            raise UserError(f"--keep {folder}: group {group!r} is in two splits, {where}; correct these lists first")
    return {group: next(iter(places)) for group, places in groups.items()}


def _by_split(videos: Sequence[Video], names: Sequence[str]) -> dict[str, list[Video]]:
    """Return the videos of each split; without test ones, those of validation serve as test too.

    Raises:
        UserError: a split would be empty.
    """
    splits = {split: [v for v, name in zip(videos, names, strict=True) if name == split] for split in SPLITS}
    splits["test"] = splits["test"] or splits["val"]
    for split, rows in splits.items():
        if not rows:
            raise UserError(f"{split} would be empty: there are too few groups ({len({v.group for v in videos})})")
    return splits


def _write(folder: Path, classes: Sequence[str], splits: Mapping[str, Sequence[Video]]) -> list[str]:
    """Write the lists of one split, and return a line on each."""
    write_splits(folder, classes, splits)
    return [
        f"{folder / split}.csv: {len(rows)} videos, {len({v.group for v in rows})} groups, "
        f"{len({label for v in rows for label in v.every_label})} of {len(classes)} classes"
        for split, rows in splits.items()
    ]
