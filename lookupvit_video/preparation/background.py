"""`lookupvit prepare background`: the time between labelled spans of untrimmed videos, as a class of its own."""

import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from lookupvit_video.data.manifest import Video, label_cell, read_class_list, read_manifest
from lookupvit_video.decoding.backends import open_video
from lookupvit_video.errors import UserError
from lookupvit_video.text import write_csv, write_text


def gaps(spans: Iterable[tuple[float, float]], duration: float, shortest: float) -> list[tuple[float, float]]:
    """Return what lies between spans of a video, where it lasts long enough."""
    found, at = [], 0.0
    for start, end in [*sorted(spans), (duration, duration)]:
        if start - at >= shortest:
            found.append((at, start))
        at = max(at, end)
    return found


def add_background(
    source: Path,
    out: Path,
    label: str,
    *,
    shortest: float,
    window: float,
    follow: Callable[[Sequence[Any]], Iterable[Any]],
) -> tuple[int, int]:
    """Write OUT/all.csv and OUT/classes.txt: a list's rows, and rows of the class ``label`` between them.

    Args:
        shortest: seconds; what lasts less between two spans, such as a pause, is left out.
        window: seconds, about, of the equal parts that the time between is cut into; 0: one row each.
        follow: passes the videos through; a progress bar.

    Returns:
        how many rows the list had, and how many were added.

    Raises:
        UserError: the list cannot be read, or has such a class.
        DecodeError: a video cannot be read.
    """
    names = source.parent / "classes.txt"
    if not names.is_file():
        raise UserError(f"{names}: no such file; write the class names there, one a line")
    classes = read_class_list(names)
    if label in classes:
        raise UserError(f"{names}: has a class {label!r} already; choose another --label")
    videos = read_manifest(source, classes)
    of_file: dict[str, list[Video]] = defaultdict(list)
    for video in videos:
        of_file[os.path.abspath(video.path)].append(video)
    rows: list[list[object]] = []
    for path in follow(list(of_file)):
        its = of_file[path]
        with open_video(path) as reader:
            empty = gaps([video.span(reader.duration) for video in its], reader.duration, shortest)
        rows += [[path, label_cell(v, classes), *("" if t is None else t for t in (v.start, v.end))] for v in its]
        for start, end in empty:
            parts = max(1, math.floor((end - start) / window)) if window else 1
            step = (end - start) / parts
            rows += [[path, label, start + i * step, end if i == parts - 1 else start + (i + 1) * step]
                     for i in range(parts)]  # fmt: skip
    write_text(out / "classes.txt", "".join(f"{name}\n" for name in [*classes, label]))
    write_csv(out / "all.csv", ["path", "label", "start", "end"], rows, end="\n")
    return len(videos), len(rows) - len(videos)
