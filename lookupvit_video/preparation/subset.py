"""A smaller label set of Moving Digits."""

import os
from collections.abc import Sequence
from pathlib import Path

from lookupvit_video.data.manifest import Video, read_class_list, read_manifest
from lookupvit_video.errors import UserError
from lookupvit_video.preparation.moving_digits import SPLITS
from lookupvit_video.text import write_csv, write_text


def write_subset(
    source: Path, out: Path, classes: Sequence[str], num_train: int | None, long_tail: float = 1.0, *, skip: int = 0
) -> dict[Path, int]:
    """Write the lists of some classes, renumbered in the order given; return each list and its number of videos.

    Args:
        classes: those to keep; none: all.
        num_train: the first videos of the training list; None: all.
        long_tail: how many times as many training videos the first class keeps as the last; in between their number
            falls exponentially (Cao et al., 1906.07413).
        skip: leave out so many training videos before those, for another draw of the same size.

    Raises:
        UserError: a class does not exist, or no training video is left.
    """
    names = read_class_list(source / "classes.txt")
    if missing := [name for name in classes if name not in names]:
        raise UserError(f"--classes: {missing[0]!r} is not in {source / 'classes.txt'}; it has {', '.join(names)}")
    classes, written = classes or names, {}
    for split in SPLITS:
        videos = [v for v in read_manifest(source / f"{split}.csv", names) if names[v.label] in classes]
        if split == "train":
            if skip >= len(videos):
                raise UserError(f"--skip {skip} leaves none of the {len(videos)} training videos")
            videos = videos[skip:][:num_train]
            videos = _thinned(videos, [names.index(name) for name in classes], long_tail)
        path = out / f"{split}.csv"
        rows = [(os.path.relpath(video.path, out), classes.index(names[video.label])) for video in videos]
        write_csv(path, ("path", "label"), rows)
        written[path] = len(videos)
    write_text(out / "classes.txt", "".join(f"{name}\n" for name in classes))
    return written


def _thinned(videos: Sequence[Video], labels: Sequence[int], ratio: float) -> list[Video]:
    """Return the first videos of each label, 1 / ``ratio`` as many of the last label as of the first."""
    if ratio == 1:
        return list(videos)
    most = min(sum(video.label == label for video in videos) for label in labels)
    left = {
        label: max(1, round(most * ratio ** (-place / max(len(labels) - 1, 1)))) for place, label in enumerate(labels)
    }
    kept = []
    for video in videos:
        if left[video.label]:
            left[video.label] -= 1
            kept.append(video)
    return kept
