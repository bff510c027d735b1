"""The rows of a list as columns: one compact table a split, in memory or mapped from a file that processes share.

As Python objects a million rows take a gigabyte in each process, and all of it is copied into each worker as reference
counts change. Columns take 80 MB once a machine. A row becomes an object when it is read.
"""

import json
import math
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np

from lookupvit_video.files import atomic_write

_DTYPES = {"U8": "<u1", "I32": "<i4", "I64": "<i8", "F64": "<f8"}  # their names in the safetensors format
_COLUMNS = {"ends": "q", "line": "i", "label": "i", "start": "d", "end": "d", "fps": "d", "group": "i"}
_OPTIONAL = ("start", "end", "fps")


@dataclass(frozen=True, slots=True)
class Video:
    """One row of a list."""

    path: str
    label: int
    start: float | None = None
    """Seconds; None: the beginning of the file."""
    end: float | None = None
    """Seconds; None: the end of the file."""
    source: str = ""
    """Where the row is, for messages: ``train.csv, line 3``."""
    group: str = ""
    """What it has in common with other rows, such as a recording, so that one split takes all of them; or nothing."""
    labels: tuple[int, ...] | None = None
    """MODEL.TASK multi_label: all labels, in ascending order, perhaps none; ``label`` is the first of them, or -1."""
    fps: float | None = None
    """Frames/s of a folder of pictures; None: not given."""

    @property
    def every_label(self) -> tuple[int, ...]:
        """All labels, in either task."""
        return (self.label,) if self.labels is None else self.labels

    def span(self, duration: float) -> tuple[float, float]:
        """Return the first and last second of this row in a file of some duration."""
        return self.start or 0.0, min(self.end or math.inf, duration)


class VideoTable(Sequence[Video]):
    """Rows of a list, read-only.

    Args:
        columns: ``names`` (bytes) uint8, all names one after the other; (N,) each: ``ends`` int64, where they end;
            ``line`` int32, 0: the row is a file of a class folder; ``label`` int32; perhaps ``start``, ``end`` and
            ``fps`` float64, nan: not given; ``group`` int32; ``label_ends`` int64, where the row's part of ``labels``
            int32 ends.
        source: the list, for messages.
        prefix: put before each name that is not absolute or remote.
        groups: what ``group`` refers to.
        file: that the columns are mapped from.
        rows: those that count, in order; None: all.
        frame_rate: ``fps`` of rows that have none; 0: not known.
    """

    def __init__(
        self,
        columns: Mapping[str, np.ndarray],
        *,
        source: str,
        prefix: str = "",
        groups: Sequence[str] = ("",),
        file: Path | None = None,
        rows: np.ndarray | None = None,
        frame_rate: float = 0.0,
    ):
        self.columns, self.source, self.prefix, self.groups = columns, source, prefix, list(groups)
        self.file, self.rows, self.frame_rate = file, rows, frame_rate
        self._prefix = prefix.encode("utf-8", "surrogateescape")

    def __len__(self) -> int:
        return len(self.columns["ends"] if self.rows is None else self.rows)

    @overload
    def __getitem__(self, at: int) -> Video: ...
    @overload
    def __getitem__(self, at: slice) -> list[Video]: ...
    def __getitem__(self, at: int | slice) -> Video | list[Video]:
        """Return a row, or a list of rows."""
        if isinstance(at, slice):
            return [self[row] for row in range(*at.indices(len(self)))]
        row = range(len(self))[at] if self.rows is None else int(self.rows[at])
        columns, line = self.columns, int(self.columns["line"][row])
        path = self._path(row).decode("utf-8", "surrogateescape")
        start, end, fps = (_value(columns.get(name), row) for name in _OPTIONAL)
        fps = fps or self.frame_rate or None
        return Video(
            path, int(columns["label"][row]), start, end, f"{self.source}, line {line}" if line else path,
            self.groups[columns["group"][row]] if "group" in columns else "", self._labels(row), fps,
        )  # fmt: skip

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # as lists

    def __reduce__(self) -> tuple[Any, ...]:
        if self.file is not None:  # a process that is not forked maps the same file
            return _reopened, (self.file, self.rows, self.frame_rate)
        return _rebuilt, (dict(self.columns), self.source, self.prefix, self.groups, self.rows, self.frame_rate)

    def _path(self, row: int) -> bytes:
        ends = self.columns["ends"]
        name = self.columns["names"][ends[row - 1] if row else 0 : ends[row]].tobytes()
        return name if name.startswith(b"/") or b"://" in name else self._prefix + name

    def _labels(self, row: int) -> tuple[int, ...] | None:
        if "label_ends" not in self.columns:
            return None
        ends = self.columns["label_ends"]
        return tuple(self.columns["labels"][ends[row - 1] if row else 0 : ends[row]].tolist())

    def paths(self, rows: np.ndarray | None = None) -> Iterator[bytes]:
        """Yield the paths of all rows, or of some, as the system knows them; no row is made."""
        chosen = np.arange(len(self)) if rows is None else rows
        names, ends, prefix = self.columns["names"].data, self.columns["ends"], self._prefix
        for first in range(0, len(chosen), 65536):
            part = chosen[first : first + 65536]
            part = part if self.rows is None else self.rows[part]
            starts = np.where(part > 0, ends[part - 1], 0).tolist()
            for start, stop in zip(starts, ends[part].tolist(), strict=True):
                name = bytes(names[start:stop])
                yield name if name.startswith(b"/") or b"://" in name else prefix + name

    def every_label(self) -> np.ndarray:
        """Return the labels of all rows, int32; of several labels a video, those of one row after those of another."""
        if "labels" not in self.columns:
            return self.columns["label"] if self.rows is None else self.columns["label"][self.rows]
        if self.rows is None:
            return self.columns["labels"]
        return np.fromiter((label for row in self.rows for label in self._labels(row) or ()), np.int32)

    def take(self, rows: np.ndarray) -> "VideoTable":
        """Return some rows, by their numbers in this table."""
        return self.changed(rows=rows.astype(np.int32) if self.rows is None else self.rows[rows])

    def changed(self, **options: Any) -> "VideoTable":
        """Return the same columns with other ``rows`` or another ``frame_rate``."""
        own = {"rows": self.rows, "frame_rate": self.frame_rate, "file": self.file, "groups": self.groups}
        return VideoTable(self.columns, source=self.source, prefix=self.prefix, **{**own, **options})

    def save(self, path: Path, facts: Mapping[str, Any]) -> None:
        """Write all rows as a safetensors file, completely or not at all.

        Args:
            facts: about the list, which ``load_table`` returns.

        Raises:
            OSError: the folder cannot be written to.
        """
        names = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
        columns = sorted(self.columns.items(), key=lambda item: -item[1].itemsize)  # aligned
        about = {"source": self.source, "prefix": self.prefix, "groups": self.groups, **facts}
        header: dict[str, Any] = {"__metadata__": {"table": json.dumps(about)}}
        at = 0
        for name, column in columns:
            size = column.nbytes
            header[name] = {"dtype": names[column.dtype], "shape": list(column.shape), "data_offsets": [at, at + size]}
            at += size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for _, column in columns:
                file.write(column.data)


def table_facts(path: Path) -> dict[str, Any]:
    """Return what a table's file says about its list.

    Raises:
        OSError, ValueError, KeyError: there is no such file, or it is none of these.
    """
    facts: dict[str, Any] = json.loads(_header(path)[1]["__metadata__"]["table"])
    return facts


def load_table(path: Path) -> VideoTable:
    """Map a table from its file.

    Raises:
        OSError, ValueError, KeyError: there is no such file, or it is none of these.
    """
    begin, header = _header(path)
    about = json.loads(header.pop("__metadata__")["table"])
    data = np.asarray(np.memmap(path, np.uint8, "r", offset=begin))
    columns = {}
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        columns[name] = data[first:last].view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return VideoTable(columns, source=about["source"], prefix=about["prefix"], groups=about["groups"], file=path)


def _header(path: Path) -> tuple[int, dict[str, Any]]:
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > 1 << 28:
            raise ValueError("not a table")
        return 8 + size, json.loads(file.read(size))


def _reopened(file: Path, rows: np.ndarray | None, frame_rate: float) -> VideoTable:
    return load_table(file).changed(rows=rows, frame_rate=frame_rate)


def _rebuilt(
    columns: dict[str, np.ndarray], source: str, prefix: str, groups: list[str], rows: np.ndarray | None,
    frame_rate: float,
) -> VideoTable:  # fmt: skip
    return VideoTable(columns, source=source, prefix=prefix, groups=groups, rows=rows, frame_rate=frame_rate)


def _value(column: np.ndarray | None, row: int) -> float | None:
    value = math.nan if column is None else float(column[row])
    return None if math.isnan(value) else value


class TableBuilder:
    """Collects rows; each costs about 60 bytes and its name.

    Args:
        source, prefix: see ``VideoTable``.
        several: each row may have several labels.
    """

    def __init__(self, source: str, prefix: str = "", *, several: bool = False):
        self.source, self.prefix, self.several = source, prefix, several
        self.names = bytearray()
        self.numbers = {name: array(code) for name, code in _COLUMNS.items()}
        self.label_ends, self.labels = array("q"), array("i")
        self.groups: dict[str, int] = {"": 0}

    def add(self, video: Video, line: int = 0) -> None:
        """Add a row, from a line of the list; 0: from a class folder."""
        path = video.path.removeprefix(self.prefix) if self.prefix else video.path
        self.names += path.encode("utf-8", "surrogateescape")
        values: dict[str, Any] = {
            "ends": len(self.names), "line": line, "label": video.label,
            "group": self.groups.setdefault(video.group, len(self.groups)),
            **{name: math.nan if (value := getattr(video, name)) is None else value for name in _OPTIONAL},
        }  # fmt: skip
        for name, value in values.items():
            self.numbers[name].append(value)
        if self.several:
            self.labels.extend(video.every_label)
            self.label_ends.append(len(self.labels))

    def extend(self, names: bytes, lengths: np.ndarray, several: Sequence[Sequence[int]], **columns: Any) -> None:
        """Add many rows.

        Args:
            names: one after the other, each relative to the prefix, or absolute.
            lengths: of each, in bytes.
            several: labels of each row, where it may have several.
            columns: ``line`` and ``label``, and those of ``start``, ``end``, ``fps`` and ``group`` that are given.
        """
        columns["ends"] = len(self.names) + np.cumsum(lengths)
        self.names += names
        for name, numbers in self.numbers.items():
            default = math.nan if name in _OPTIONAL else 0
            column = columns[name] if name in columns else np.full(len(lengths), default)
            numbers.frombytes(np.asarray(column, dtype=_DTYPES_OF[numbers.typecode]).tobytes())
        for labels in several:
            self.labels.extend(labels)
            self.label_ends.append(len(self.labels))

    def table(self) -> VideoTable:
        """Return the rows; columns that no row uses are left out."""
        columns = {name: np.frombuffer(numbers, _DTYPES_OF[numbers.typecode]) for name, numbers in self.numbers.items()}
        for name in _OPTIONAL:
            if np.isnan(columns[name]).all():
                del columns[name]
        if not columns["group"].any():
            del columns["group"]
        if self.several:
            columns["label_ends"] = np.frombuffer(self.label_ends, "<i8")
            columns["labels"] = np.frombuffer(self.labels, "<i4")
        columns["names"] = np.frombuffer(self.names, "<u1")
        return VideoTable(columns, source=self.source, prefix=self.prefix, groups=list(self.groups))


_DTYPES_OF = {"q": "<i8", "i": "<i4", "d": "<f8"}


def first_label(videos: Sequence[Video]) -> np.ndarray:
    """Return ``Video.label`` of all videos (N,), as integers."""
    if not isinstance(videos, VideoTable):
        return np.array([video.label for video in videos])
    labels = videos.columns["label"]
    return labels if videos.rows is None else labels[videos.rows]


def every_label(videos: Sequence[Video]) -> np.ndarray:
    """Return the labels of all videos as integers; of several labels a video, one video's after another's."""
    if isinstance(videos, VideoTable):
        return videos.every_label()
    return np.array([label for video in videos for label in video.every_label], dtype=np.int32)


def path_hashes(videos: Sequence[Video]) -> np.ndarray:
    """Return a number (N,) int64 for each video's path; equal ones are of equal paths, but for chance."""
    if isinstance(videos, VideoTable):
        return np.fromiter(map(hash, videos.paths()), np.int64, len(videos))
    return np.fromiter((hash(video.path.encode("utf-8", "surrogateescape")) for video in videos), np.int64, len(videos))
