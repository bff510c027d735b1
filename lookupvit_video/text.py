"""Text that is read, written and shown: one convention for names of files and classes; grids; tables of results.

A file name is a sequence of bytes, in any encoding. In this package it is the string that Python itself makes of it:
UTF-8, and each byte that is not UTF-8 as one of the characters U+DC80 to U+DCFF ("surrogateescape"). Text files that
hold names are read and written with the functions below, so that every byte comes out as it went in. JSON is written in
ASCII: such a byte is the escape ``\\udc80`` to ``\\udcff``, which ``json.loads`` turns into the same string.
"""

import codecs
import csv
import io
import os
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from lookupvit_video.errors import UserError

_MARKS = (  # UTF-32 first: its mark begins with that of UTF-16
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_JOINERS = "\u200c\u200d"  # part of words in Persian, Hindi and others


def open_text(path: str | Path, mode: str = "r") -> IO[str]:
    """Open a text file that holds names, for reading ("r"), writing ("w") or appending ("a"); line breaks are kept."""
    return open(path, mode, encoding="utf-8", errors="surrogateescape", newline="")


@contextmanager
def _replaced(path: str | Path) -> Iterator[IO[str]]:
    from lookupvit_video.files import atomic_write  # here: models need the names of grids, and no files

    with atomic_write(path) as temporary, open_text(temporary, "w") as file:
        yield file


def write_text(path: str | Path, text: str) -> None:
    """Write a text that holds names, completely or not at all.

    Raises:
        OSError: the folder cannot be written to or the disk is full.
    """
    with _replaced(path) as file:
        file.write(text)


def write_csv(path: str | Path, header: Sequence[str], rows: Iterable[Sequence[object]], end: str = "\r\n") -> None:
    """Write a table, completely or not at all; each row ends with ``end``.

    Raises:
        OSError: see ``write_text``.
    """
    with _replaced(path) as file:
        writer = csv.writer(file, lineterminator=end)
        writer.writerow(header)
        writer.writerows(rows)


def decode(data: bytes) -> str:
    """Return the text of a file that people or other programs wrote: UTF-8, or what its byte order mark says.

    Raises:
        UserError: it is no text.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            text = data[len(mark) :].decode(encoding, "surrogateescape" if encoding == "utf-8" else "strict")
            break
    else:
        text = data.decode("utf-8", "surrogateescape")
    if "\0" in text:
        raise UserError("it holds zero bytes: no text, or UTF-16 without a byte order mark; save it as UTF-8")
    return text


def is_utf8(text: str) -> bool:
    """Return whether a name is free of bytes that are not UTF-8."""
    return not any("\udc80" <= letter <= "\udcff" for letter in text)


def printable(text: str) -> str:
    """Return text that a picture can show: "?" for line breaks, bytes of no alphabet and the like."""
    return "".join(letter if letter.isprintable() or letter in _JOINERS else "?" for letter in text)


def shortened(text: str, length: int, keep_end: bool = False) -> str:
    """Return printable text of at most ``length`` letters: its beginning, or its end."""
    text = printable(text)
    if len(text) <= length:
        return text
    return "…" + text[len(text) - length + 1 :] if keep_end else text[: length - 1] + "…"


def one_line(text: str) -> str:
    r"""Return text that a terminal shows on one line: control characters and bytes of no alphabet as \n, \x1b, \xff."""
    return "".join(map(_visible, text))


def visible(text: str) -> str:
    """Return text as ``one_line`` does, with its line breaks kept."""
    return "\n".join(map(one_line, text.split("\n")))


def _visible(letter: str) -> str:
    if letter.isprintable() or unicodedata.category(letter) not in ("Cc", "Cs", "Zl", "Zp"):
        return letter
    if "\udc80" <= letter <= "\udcff":
        return f"\\x{ord(letter) - 0xDC00:02x}"
    return ascii(letter)[1:-1]


def shown(names: Iterable[str], limit: int = 10) -> str:
    """Return names as one line, the first few of many."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(map(one_line, names[:limit])) + more


def grid_name(grid: Sequence[int]) -> str:
    """Return a grid as text: (4, 7, 7) -> "4x7x7"."""
    return "x".join(map(str, grid))


def parse_grid(text: str) -> tuple[int, ...]:
    """Return the grid that a text such as "4x7x7" names.

    Raises:
        UserError: it names none.
    """
    parts = text.split("x")
    if len(parts) not in (2, 3) or not all(part.isascii() and part.isdecimal() and len(part) < 6 for part in parts):
        raise UserError(f"grid {text!r}: write t x h x w as 4x7x7, or h x w as 7x7 for a factorized encoder")
    return tuple(map(int, parts))


def markdown_table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table with a line break at its end."""
    head, *lines = (f"| {' | '.join(map(str, cells))} |" for cells in (titles, *rows))
    return "\n".join([head, "|" + "---|" * len(titles), *lines]) + "\n"


def aligned_table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as lines of text, the first column to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([f"{first:<{widths[0]}}", *cells]).rstrip())
    return "\n".join(lines) + "\n"


def make_streams_tolerant() -> None:
    """Let standard output and error take any text: what their encoding lacks is written as a backslash escape."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def use_utf8() -> None:
    """Start this process again in Python's UTF-8 mode where file names are not UTF-8 (LC_ALL=C with PYTHONUTF8=0).

    There Python can neither open nor print a name that is not ASCII, whatever this package does.
    """
    if sys.getfilesystemencoding().lower().replace("-", "") == "utf8" or os.name == "nt" or sys.flags.utf8_mode:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    arguments = [sys.executable, "-X", "utf8", *sys.orig_argv[1:]]
    os.execve(sys.executable, arguments, {**os.environ, "PYTHONUTF8": "1"})  # noqa: S606 - this program, its arguments
