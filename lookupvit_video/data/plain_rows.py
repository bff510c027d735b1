"""Rows of plain lists, many at a time: the fast way through what almost every large list is.

Plain: no quotes, as many cells in every row as in the header, or lines ``path label`` with one break in each. Whatever
else there is raises ``NotPlain``, and ``tables.py`` reads the list row by row, with the same result, or names the line
that is wrong.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lookupvit_video.data.video_table import TableBuilder
from lookupvit_video.errors import UserError
from lookupvit_video.remote import is_remote, joined

_PIECE = 4 << 20  # bytes that are parsed at a time
_LONGEST = 100_000  # bytes of a line; Python's csv takes no more than 131,072 a cell
_BREAKS = np.isin(np.arange(256), list(b",;\t "))


class NotPlain(Exception):
    """The list is not plain, or something is wrong in it."""


@dataclass(frozen=True)
class Layout:
    """Where the cells of the rows are.

    Args:
        begin, line: byte and number of the first line with a row.
        width: cells in a row.
        columns: place of each column.
        delimiter: between two cells; empty: any one of comma, semicolon, tab and blank.
    """

    begin: int
    line: int
    width: int
    columns: Mapping[str, int]
    delimiter: str = ""


class _Memo(dict[bytes, Any]):
    """What cells mean, each different one parsed once."""

    def __init__(self, parse: Callable[[str], Any]):
        super().__init__()
        self.parse = parse

    def __missing__(self, cell: bytes) -> Any:
        try:
            value = self[cell] = self.parse(cell.decode("utf-8", "surrogateescape"))
        except UserError:
            raise NotPlain from None
        return value


def add_plain_rows(
    builder: TableBuilder, path: Path, layout: Layout, folder: str, parse: Mapping[str, Callable[[str], Any]]
) -> None:
    """Add all rows of a list.

    Args:
        folder: that relative paths start from; its text is the builder's prefix.
        parse: what a cell of each column but the path means, a number or nothing, or for "label" the labels; raises
            UserError.

    Raises:
        NotPlain: and the builder is of no use any more.
    """
    labels, line = _Memo(parse["label"]), layout.line
    for data in _pieces(path, layout.begin):
        memos = {name: _Memo(parse[name]) for name in layout.columns if name not in ("path", "label")}
        line += _add_piece(builder, data, layout, folder, {**memos, "label": labels}, line)


def _pieces(path: Path, begin: int) -> Iterator[bytes]:
    """Yield the bytes of a file from some byte on, each piece with complete lines, without carriage returns."""
    rest = b""
    with open(path, "rb") as file:
        file.seek(begin)
        while piece := file.read(_PIECE):
            data, end, rest = (rest + piece).rpartition(b"\n")
            if end:
                yield _plain(data + end)
            if len(rest) > _LONGEST:
                raise NotPlain
    if rest:
        yield _plain(rest + b"\n")


def _plain(data: bytes) -> bytes:
    if b'"' in data or b"\0" in data or data.count(b"\r") != data.count(b"\r\n"):
        raise NotPlain
    return data.replace(b"\r\n", b"\n")


def _add_piece(
    builder: TableBuilder, data: bytes, layout: Layout, folder: str, memos: Mapping[str, _Memo], line: int
) -> int:
    """Add the rows of some complete lines, the first of which has the number ``line``; return how many lines it was."""
    letters = np.frombuffer(data, np.uint8)
    stops = np.flatnonzero(letters == 10)
    starts = np.concatenate([[0], stops[:-1] + 1])
    filled = stops > starts
    lines, count = line + np.flatnonzero(filled), len(stops)
    starts, stops = starts[filled], stops[filled]
    if not len(starts):
        return count
    is_break = letters == ord(layout.delimiter) if layout.delimiter else _BREAKS[letters]
    breaks = np.flatnonzero(is_break)
    if len(breaks) != len(starts) * (layout.width - 1) or (stops - starts).max() > _LONGEST:
        raise NotPlain
    bounds = np.concatenate([starts[:, None] - 1, breaks.reshape(len(starts), -1), stops[:, None]], axis=1)
    if (np.diff(bounds, axis=1) < 1).any():  # a line with too few, and another with too many
        raise NotPlain

    def cells(name: str) -> list[bytes]:
        place = layout.columns[name]
        return [data[first:last] for first, last in zip(
            (bounds[:, place] + 1).tolist(), bounds[:, place + 1].tolist(), strict=True)]  # fmt: skip

    names = _names(data, letters, bounds, layout.columns["path"], folder, cells("path"))
    labels = [memos["label"][cell] for cell in cells("label")]
    columns: dict[str, Any] = {"line": lines, "label": np.fromiter((row[0] if row else -1 for row in labels), np.int32)}
    for name in ("start", "end", "fps"):
        if name in layout.columns:
            columns[name] = np.fromiter((memos[name][cell] for cell in cells(name)), np.float64)
    if "group" in layout.columns:
        columns["group"] = [
            builder.groups.setdefault(memos["group"][cell], len(builder.groups)) for cell in cells("group")
        ]
    if "end" in columns and (columns["end"] <= np.nan_to_num(columns.get("start", np.zeros(1)))).any():
        raise NotPlain
    lengths = np.fromiter(map(len, names), np.int64, len(names))
    builder.extend(b"".join(names), lengths, labels if builder.several else (), **columns)
    return count


def _names(
    data: bytes, letters: np.ndarray, bounds: np.ndarray, place: int, folder: str, cells: Sequence[bytes]
) -> Sequence[bytes]:
    """Return the names in a column of paths as ``pathlib`` writes them."""
    begins, ends = bounds[:, place] + 1, bounds[:, place + 1]
    if (begins == ends).any():
        raise NotPlain
    edges = np.stack([letters[begins], letters[ends - 1]])
    for row in np.flatnonzero(((edges <= 32) | (edges >= 127)).any(0)).tolist():
        name = cells[row].decode("utf-8", "surrogateescape")
        if name != name.strip():  # a file may be called so
            raise NotPlain
    if os.name == "nt":
        raise NotPlain
    if (
        b"//" not in data
        and b"/./" not in data
        and not (edges == ord("/"))[1].any()
        and not (edges == ord("."))[0].any()
    ):
        return cells
    prefix = os.fsencode(located(folder, "x"))[:-1]
    return [os.fsencode(located(folder, os.fsdecode(name))).removeprefix(prefix) for name in cells]


def located(folder: str, name: str) -> str:
    """Return the path that a list names, relative to a folder; either may be remote."""
    return joined(folder, name) if is_remote(name) or is_remote(folder) else str(Path(folder, name))
