"""Whether the files of a list exist: looked up in parallel, by one process a job, and once for a list that is long."""

import logging
import os
import stat
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from lookupvit_video.data.list_cache import keep_missing, known_missing
from lookupvit_video.data.video_table import Video, VideoTable
from lookupvit_video.decoding.reader import DecodeError
from lookupvit_video.decoding.sources.frame_folder import holds_pictures
from lookupvit_video.decoding.sources.shards import find_member, split_member
from lookupvit_video.errors import UserError
from lookupvit_video.progress import progress
from lookupvit_video.remote import is_remote
from lookupvit_video.text import is_utf8

logger = logging.getLogger(__name__)
SAMPLE = 1000  # rows of DATA.CHECK_FILES sample, and of later looks at a list that was checked completely
_PART = 2000  # rows that a thread looks up at a time


def allowed_bad(count: int, max_fraction: float) -> int:
    """Return how many of ``count`` videos may be unreadable: DATA.MAX_BAD_FRACTION of them.

    In a short list, where 1 % is less than one video, a few may be in any case: 3, but no more than a tenth of it. A
    fraction of 0 allows none.
    """
    return max(int(max_fraction * count), min(3, count // 10)) if max_fraction else 0


def missing_files(videos: Sequence[Video], max_missing_fraction: float, how: str = "all") -> list[Video]:
    """Return the videos whose file does not exist.

    Args:
        how: DATA.CHECK_FILES: "all", of which a table in a file is looked up once, and only by a sample at later
            starts; "sample": up to 1000 rows, spread evenly; "none".

    Raises:
        UserError: more are missing than ``allowed_bad`` says; names the first.
    """
    if how == "none":
        return []
    sample = np.unique(np.linspace(0, len(videos) - 1, SAMPLE).astype(np.int64))
    known = known_missing(videos) if how == "all" and isinstance(videos, VideoTable) else None
    if how == "sample":
        rows = missing_rows(videos, sample)
        count = len(sample)
    else:
        count = len(videos)
        if known is not None and np.array_equal(missing_rows(videos, np.union1d(sample, known)), known):
            rows = known
        else:
            rows = missing_rows(videos, np.arange(count))
            if isinstance(videos, VideoTable):
                keep_missing(videos, rows)
    missing = [videos[row] for row in rows.tolist()]
    if len(missing) > allowed_bad(count, max_missing_fraction):
        first = missing[0]
        more = f" (and {len(missing) - 1} more of {count})" if len(missing) > 1 else ""
        advice = "" if is_utf8(first.path) else "; its name is not UTF-8 in the list: is it on the disk?"
        if os.path.isdir(first.path) and holds_pictures(first.path):
            raise UserError(
                f"{first.source}: video {first.path} is a folder of pictures without a rate{more}; give the pictures a "
                "second in a column fps, or in DATA.FRAME_RATE"
            )
        raise UserError(
            f"{first.source}: video {first.path} does not exist{more}; fix the list, set "
            f"DATA.PATH_PREFIX, or allow more with DATA.MAX_BAD_FRACTION{advice}"
        )
    return missing


def missing_rows(videos: Sequence[Video], rows: np.ndarray) -> np.ndarray:
    """Return which of some rows have no file; a long look shows its progress."""
    parts = [rows[first : first + _PART] for first in range(0, len(rows), _PART)]

    def look_up(part: np.ndarray) -> list[int]:
        found = zip(part.tolist(), _paths(videos, part), strict=True)
        return [row for row, path in found if not _is_file(path) and not (os.path.isdir(path) and videos[row].fps)]

    with ThreadPoolExecutor(16) as pool:  # on network file systems one look-up takes milliseconds
        found = pool.map(look_up, parts)
        shown = progress(found, total=len(rows), step=_PART, label="check", unit="files") if len(parts) > 50 else found
        return np.array([row for part in shown for row in part], dtype=np.int64)


def _paths(videos: Sequence[Video], rows: np.ndarray) -> Iterable[str | bytes]:
    if isinstance(videos, VideoTable):
        return videos.paths(rows)
    return (videos[row].path for row in rows)


def _is_file(path: str | bytes) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except (OSError, ValueError):  # ValueError: a null character in the name
        name = os.fsdecode(path)
    if is_remote(name):  # looked at when it is read
        return True
    try:
        return split_member(name) is not None and find_member(name)[1] > 0
    except DecodeError:
        return False
