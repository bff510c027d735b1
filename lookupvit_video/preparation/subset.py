"""A smaller label set of Moving Digits."""

import os
from collections.abc import Sequence
from pathlib import Path

from lookupvit_video.data.manifest import read_class_list, read_manifest
from lookupvit_video.errors import UserError
from lookupvit_video.preparation.moving_digits import SPLITS
from lookupvit_video.text import write_csv, write_text


def write_subset(source: Path, out: Path, classes: Sequence[str], num_train: int | None) -> dict[Path, int]:
    """Write the lists of some classes, renumbered in the order given; return each list and its number of videos.

    Args:
        num_train: the first videos of the training list; None: all.

    Raises:
        UserError: a class does not exist.
    """
    names = read_class_list(source / "classes.txt")
    if missing := [name for name in classes if name not in names]:
        raise UserError(f"--classes: {missing[0]!r} is not in {source / 'classes.txt'}; it has {', '.join(names)}")
    written = {}
    for split in SPLITS:
        videos = [v for v in read_manifest(source / f"{split}.csv", names) if names[v.label] in classes]
        kept = videos[:num_train] if split == "train" else videos
        path = out / f"{split}.csv"
        rows = [(os.path.relpath(video.path, out), classes.index(names[video.label])) for video in kept]
        write_csv(path, ("path", "label"), rows)
        written[path] = len(kept)
    write_text(out / "classes.txt", "".join(f"{name}\n" for name in classes))
    return written
