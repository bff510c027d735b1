"""Tables of long lists and large folders, kept in files: the first process parses, and all others map the same pages.

The file lies next to the list (``.train.csv.1a2b3c4d.rows``), or in the user's cache where that folder is read-only or
the list is a folder. It is made again when the list changes.
"""

import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lookupvit_video.data.video_table import VideoTable, load_table, table_facts
from lookupvit_video.files import atomic_write, cache_folder

logger = logging.getLogger(__name__)
CACHED_BYTES = 1 << 20  # of a list: shorter ones are parsed in less time than it takes to be sure of a file
CACHED_ROWS = 20_000  # of a folder
_VERSION = 1
_SETTLED = 2.0  # seconds: a file changed that shortly before may change again with the same time
_NO_TABLE = (OSError, ValueError, KeyError, TypeError)


def cached_list(local: Path, source: str, kind: object, make: Callable[[], VideoTable]) -> VideoTable:
    """Return the table of a list, from its file if the list is the same by size and time, or else by checksum.

    Args:
        local: the list on this machine.
        source: its name in messages.
        kind: what else its rows depend on.
    """
    state = os.stat(local)
    if state.st_size < CACHED_BYTES:
        return make()
    places = [local.with_name(f".{local.name}.{_key(source, kind)}.rows"), _in_cache(local, source, kind)]
    for place in places:
        try:
            facts = table_facts(place)
            if facts["size"] == state.st_size and (
                facts["time"] == state.st_mtime_ns or facts["checksum"] == _checksum(local)
            ):
                return load_table(place)
        except _NO_TABLE as error:
            logger.debug("%s: %s", place, error)
    checksum = _checksum(local)
    settled = time.time() - state.st_mtime > _SETTLED
    facts = {"size": state.st_size, "time": state.st_mtime_ns if settled else 0, "checksum": checksum}
    return _kept(make(), places, facts)


def cached_folder(folder: Path, kind: object, make: Callable[[dict[str, int]], VideoTable]) -> VideoTable:
    """Return the table of a folder of class folders, from its file if no folder below it has changed.

    Args:
        kind: see ``cached_list``.
        make: adds to the dictionary each folder that it looks at, with the time of its last change in nanoseconds.
    """
    place = _in_cache(folder, str(folder), kind)
    try:
        facts = table_facts(place)
        if all(os.stat(name).st_mtime_ns == changed for name, changed in facts["folders"].items()):
            return load_table(place)
    except _NO_TABLE as error:
        logger.debug("%s: %s", place, error)
    folders: dict[str, int] = {}
    begun = time.time()
    table = make(folders)
    if len(table) < CACHED_ROWS or begun - max(folders.values()) / 1e9 < _SETTLED:
        return table
    return _kept(table, [place], {"folders": folders})


def _kept(table: VideoTable, places: list[Path], facts: dict[str, Any]) -> VideoTable:
    """Write a table to the first place that can be written to, and map it from there."""
    for place in places:
        try:
            table.save(place, facts)
            _checked(place).unlink(missing_ok=True)
            return load_table(place)
        except OSError as error:
            logger.debug("%s: %s", place, error)
    logger.info("%s: its table can be kept nowhere, so that each process makes its own", table.source)
    return table


def known_missing(table: VideoTable) -> np.ndarray | None:
    """Return the rows without a file that a complete check of a table in a file found; None: there was none."""
    if table.file is None:
        return None
    try:
        rows: np.ndarray = np.load(_checked(table.file), allow_pickle=False)
        return rows
    except (OSError, ValueError, EOFError):
        return None


def keep_missing(table: VideoTable, rows: np.ndarray) -> None:
    """Keep what a complete check of a table in a file found."""
    if table.file is not None:
        with _ignored_disk(), atomic_write(_checked(table.file)) as temporary, open(temporary, "wb") as file:
            np.save(file, rows)


@contextmanager
def _ignored_disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        logger.debug("%s", error)


def _checked(place: Path) -> Path:
    return place.with_suffix(".checked")


def _key(source: str, kind: object) -> str:
    return hashlib.sha256(repr((_VERSION, source, kind)).encode("utf-8", "surrogateescape")).hexdigest()[:8]


def _in_cache(place: Path, source: str, kind: object) -> Path:
    name = _key(os.path.abspath(place), (source, kind))
    return cache_folder() / "lists" / f"{name}{_key(source, kind)}.rows"


def _checksum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()
