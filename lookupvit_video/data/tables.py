"""Tables from Excel and other programs, in any usual encoding, with any usual delimiter and column names.

A table that can be read in one way only is read; anything else is an error that names file and line.
"""

import csv
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from lookupvit_video.errors import UserError
from lookupvit_video.remote import local_copy
from lookupvit_video.text import decode

DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab"}
COLUMNS = {
    "path": "path video_path videopath file_path filepath file_name filename file video video_file".split(),
    "label": "label labels class class_name classname class_id category target".split(),
    "start": "start start_time time_start start_seconds".split(),
    "end": "end end_time time_end end_seconds".split(),
    "group": ["group"],
    "fps": "fps frame_rate framerate".split(),
}
"""Names of columns that are understood, in any case, with blanks or hyphens for "_"; the first is ours and counts where
several are there."""
_FILE_NAME = re.compile(r"[/\\]|\.[A-Za-z]\w{1,4}$")
_VIDEO_NAME = re.compile(r"\.[A-Za-z0-9]{2,5}$")
_QUOTED = re.compile(r'"((?:[^"]|"")*)"')
_BREAK = re.compile(r"\s*[,;\t ]\s*")


class Header(NamedTuple):
    """The first line of a table."""

    names: list[str]
    """As written."""
    columns: dict[str, int]
    """Where the columns of ``COLUMNS`` are that it has."""
    delimiter: str
    line: int
    """Its number, from 1."""
    rows: str
    """The text after it."""


def list_file(path: str | Path, what: str, advice: str) -> Path:
    """Return where a list is on this machine; its path may be remote.

    Args:
        what, advice: "the class list", and how to fix it, for the error.

    Raises:
        UserError: there is no such file.
    """
    try:
        local = local_copy(path)
        local.open("rb").close()
        return local
    except (OSError, ValueError) as error:
        raise _unread(path, what, advice, error) from None


def read_list(path: str | Path, what: str, advice: str) -> str:
    """Return the text of a list; see ``list_file``.

    Raises:
        UserError: there is no such file, or it is not text.
    """
    try:
        return decode(local_copy(path).read_bytes())
    except (OSError, ValueError) as error:
        raise _unread(path, what, advice, error) from None


def _unread(path: str | Path, what: str, advice: str, error: Exception) -> UserError:
    return UserError(f"{path}: {what} cannot be read ({getattr(error, 'strerror', None) or error}); {advice}")


def lines_of(text: str) -> list[str]:
    """Split at line breaks of all systems, and at nothing else: names may hold what ``str.splitlines`` splits at."""
    return re.split(r"\r\n|\n|\r", text)


def find_header(text: str, source: str | Path) -> Header | None:
    """Return the header of a table, or None where the first line holds no name of a path's column.

    Args:
        source: for messages.

    Raises:
        UserError: two columns may be the same one.
    """
    offset, line, only = 0, 0, None
    for part in io.StringIO(text, newline=""):
        offset, line = offset + len(part), line + 1
        mark = re.fullmatch(r"sep=(.)", part.strip("\r\n"))  # Excel's own
        if mark and only is None:
            only = mark[1]
        elif part.strip(" \t,;\r\n"):
            break
    else:
        return None
    for delimiter in [only] if only else DELIMITERS:
        names = [
            name.strip()
            for name in next(csv.reader([part.strip(" \r\n")], delimiter=delimiter, skipinitialspace=True), [])
        ]
        while names and not names[-1]:  # empty columns at the end, which spreadsheets write
            names.pop()
        if any(_FILE_NAME.search(name) for name in names):
            continue
        columns = _columns(names, f"{source}, line {line}")
        if "path" in columns:
            return Header(names, columns, delimiter, line, text[offset:])
    return None


def _columns(names: list[str], where: str) -> dict[str, int]:
    found = {}
    plain = [re.sub(r"[ -]+", "_", name.lower()) for name in names]
    for column, known in COLUMNS.items():
        places = [place for place, name in enumerate(plain) if name in known]
        if len(places) > 1:
            own = [place for place in places if plain[place] == column]
            if len(own) != 1:
                both = " and ".join(repr(names[place]) for place in places)
                raise UserError(f"{where}: the columns {both} may both be the {column}; name one of them {column}")
            places = own
        if places:
            found[column] = places[0]
    return found


def looks_like_header(text: str) -> bool:
    """Return whether some cell of a line is the name of a column, of a path or of anything else that is known."""
    cells = re.split(r"[,;\t ]+", text.strip().lower().replace('"', ""))
    known = {name for names in COLUMNS.values() for name in names}
    return 1 < len(cells) and not _FILE_NAME.search(text) and any(cell in known for cell in cells)


def table_rows(header: Header, source: str | Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (number of the line where it begins, fields by their names in ``COLUMNS``) of each row.

    All fields but the path are stripped of blanks.

    Raises:
        UserError: a row has another number of fields, or a quote is left open.
    """
    width, name = len(header.names), DELIMITERS.get(header.delimiter, "delimiter")
    for line, cells in _records(header, source):
        while len(cells) > width and not cells[-1].strip():
            cells.pop()
        if len(cells) != width:
            raise UserError(
                f"{source}, line {line}: expected {width} fields ({header.delimiter.join(header.names)}), "
                f"quote a path that holds a {name}"
            )
        yield line, {key: cells[at] if key == "path" else cells[at].strip() for key, at in header.columns.items()}


def _records(header: Header, source: str | Path) -> Iterator[tuple[int, list[str]]]:
    """Yield the records that are not empty. Strict: a quote left open must not swallow the rows after it."""
    rows = header.rows
    try:
        list(csv.reader(io.StringIO(rows, newline=""), delimiter=header.delimiter, strict=True, skipinitialspace=True))
    except csv.Error:  # blanks after a closing quote, if it is no more than that
        rows = re.sub(r'"[ \t]+(?=[,;\t\r\n]|$)' if header.delimiter != "\t" else r'" +(?=[\t\r\n]|$)', '"', rows)
    reader = csv.reader(io.StringIO(rows, newline=""), delimiter=header.delimiter, strict=True, skipinitialspace=True)
    before = 0
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield header.line + before + 1, cells
            before = reader.line_num
    except csv.Error as error:
        raise UserError(f"{source}, line {header.line + before + 1}: {error}; is a quote left open?") from None


# Lists without a header -----------------------------------------------------------------------------------------------


def labelled_lines(text: str, source: str | Path, is_label: Callable[[str], bool]) -> Iterator[tuple[int, str, str]]:
    """Yield (line, path, label) of lines ``path label``, apart by a comma, semicolon, tab or blanks.

    Path and label may hold each of these, and may be quoted: what follows the path must be a label.

    Args:
        is_label: whether a text is one.

    Raises:
        UserError: a line has no label, or can be read in several ways.
    """
    for number, line in _logical_lines(text, source):
        where = f"{source}, line {number}"
        ways = dict.fromkeys(way for way in possible_readings(line) if is_label(way[1]))
        if len(ways) > 1:  # such as the classes "jump" and "long jump"
            named = [way for way in ways if _VIDEO_NAME.search(way[0])]
            if len(named) != 1:
                first, second = list(ways)[:2]
                raise UserError(
                    f"{where}: the label may be {first[1]!r} or {second[1]!r}; write a table with the header path,label"
                )
            ways = dict.fromkeys(named)
        if ways:
            yield number, *next(iter(ways))
            continue
        last = re.fullmatch(r"(.+?)\s*[,\t ;]\s*([^,\t ;]+)", line, re.DOTALL)
        if not last:
            raise UserError(f"{where}: expected 'path label', got {line!r}")
        yield number, last[1], last[2]


def _logical_lines(text: str, source: str | Path) -> Iterator[tuple[int, str]]:
    """Yield (number, text) of each line that is not empty; a quoted path at its beginning may hold line breaks."""
    begun, parts = 0, list[str]()
    for number, line in enumerate(lines_of(text), start=1):
        if not parts:
            begun = number
        parts.append(line)
        joined = "\n".join(parts).strip()
        if joined.startswith('"') and joined.count('"') % 2:
            continue
        parts = []
        if joined.strip(" \t,;"):
            yield begun, joined
    if parts:
        raise UserError(f"{source}, line {begun}: a quote is left open")


def possible_readings(line: str) -> Iterator[tuple[str, str]]:
    """Yield each (path, label) that a line without header may mean, if what is the label is one."""
    quoted = _QUOTED.match(line)
    if quoted:
        rest = _BREAK.match(line, quoted.end())
        if rest:
            yield quoted[1].replace('""', '"'), _unquoted(line[rest.end() :])
        return
    for gap in _BREAK.finditer(line):
        if gap.start():
            yield line[: gap.start()].rstrip(" \t,;"), _unquoted(line[gap.end() :])


def _unquoted(text: str) -> str:
    quoted = _QUOTED.fullmatch(text.strip())
    return quoted[1].replace('""', '"').strip() if quoted else text.strip()
