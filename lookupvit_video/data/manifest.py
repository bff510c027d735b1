"""Lists of videos: one table per split (path, label, optional start and end), and a list of class names.

Three forms are read: a CSV with the header ``path,label[,start,end]``; the headerless ``path label`` lines of
Kinetics' and SlowFast's files; a folder of class folders. ``tables.py`` says what else a CSV may look like.
"""

import codecs
import logging
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from fvcore.common.config import CfgNode

from lookupvit_video.data.file_check import allowed_bad, missing_files
from lookupvit_video.data.list_cache import cached_folder, cached_list
from lookupvit_video.data.plain_rows import Layout, NotPlain, add_plain_rows, located
from lookupvit_video.data.tables import (
    COLUMNS,
    Header,
    find_header,
    labelled_lines,
    lines_of,
    list_file,
    looks_like_header,
    possible_readings,
    read_list,
    table_rows,
)
from lookupvit_video.data.video_files import find_video_files, is_video_name, left_out_line, some_videos, video_names
from lookupvit_video.data.video_table import TableBuilder, Video, VideoTable, path_hashes
from lookupvit_video.errors import UserError
from lookupvit_video.remote import absolute, is_remote, joined
from lookupvit_video.text import is_utf8

__all__ = ["Video", "VideoTable", "allowed_bad", "missing_files"]  # from here they are imported elsewhere

logger = logging.getLogger(__name__)
LIST_ADVICE = "check DATA.PATH_TO_DATA_DIR and the DATA.*_LIST keys"
_HEAD = 1 << 20  # bytes of a list, in which its header is
_LABEL = re.compile(r'\s*("(?:[^"]|"")*"|(?!")[^|]*?)\s*(\||$)')  # one of several, up to the next


def read_class_list(path: str | Path) -> list[str]:
    """Read class names, one a line; the line number, from 0, is the label.

    Raises:
        UserError: the file is missing, empty, or names a class twice.
    """
    text = read_list(path, "the class list", "write one class name a line, or set DATA.CLASS_LIST")
    names = [_class_name(line) for line in lines_of(text)]
    while names and not names[-1]:
        names.pop()
    if not names:
        raise UserError(f"{path}: the class list is empty; write one class name a line")
    seen: dict[str, int] = {}
    for number, name in enumerate(names, start=1):
        if not name:
            raise UserError(f"{path}, line {number}: no class name; remove the empty line")
        if name in seen:
            raise UserError(f"{path}, line {number}: class {name!r} is on line {seen[name]} already")
        seen[name] = number
    return names


def _class_name(line: str) -> str:
    """Return a line without blanks around, and without the quotes that spreadsheets put around commas and quotes."""
    quoted = re.fullmatch(r'"((?:[^"]|"")*[,;\t"](?:[^"]|"")*)"', line.strip())
    return quoted[1].replace('""', '"').strip() if quoted else line.strip()


def read_manifest(
    path: str | Path, classes: Sequence[str], prefix: str = "", *, multi_label: bool = False
) -> list[Video]:
    """Read a list file or a folder of class folders as a Python list; see ``read_table``."""
    return list(read_table(path, classes, prefix, multi_label=multi_label))


def read_table(path: str | Path, classes: Sequence[str], prefix: str = "", *, multi_label: bool = False) -> VideoTable:
    """Read a list file or a folder of class folders.

    Relative paths are taken from ``prefix``, or from the list's own folder where that is empty. Labels are numbers
    from 0, or class names.

    Args:
        multi_label: a label is several of them with "|" in between, in double quotes where a name holds a "|" or a
            quote, or nothing; rows of the same file and span are merged.

    Raises:
        UserError: names the file, the line and how to fix it.
    """
    kind = (list(classes), prefix, multi_label)
    if os.path.isdir(path):
        folder = Path(path)
        return cached_folder(folder, kind, lambda seen: _read_class_folders(folder, classes, multi_label, seen))
    local = list_file(path, "the list of videos", LIST_ADVICE)
    reader = _Reader(path, prefix or os.path.dirname(path), classes, multi_label, is_remote(path) and not prefix)
    return cached_list(local, str(path), kind, lambda: _without_repeats(reader.table(local)))


class _Reader:
    """Reads a list into a table.

    Args:
        source: the list, for messages.
        folder: that relative paths start from.
        only_absolute: whether a relative path is an error.
    """

    def __init__(self, source: str | Path, folder: str, classes: Sequence[str], multi_label: bool, only_absolute: bool):
        self.source, self.folder, self.several, self.only_absolute = source, folder, multi_label, only_absolute
        self.numbers = {name: label for label, name in enumerate(classes)}
        self.is_label = partial(_are_labels if multi_label else _is_label, numbers=self.numbers)
        self.kinds: dict[bool, int] = {}

    def table(self, local: Path) -> VideoTable:
        """Return the rows of the list, whose copy on this machine is ``local``."""
        try:
            builder = self._plain(local)
        except NotPlain:
            builder = self._any(read_list(self.source, "the list of videos", LIST_ADVICE))
        if not builder.numbers["ends"]:
            raise UserError(f"{self.source}: the list holds no video")
        return builder.table()

    def _builder(self) -> TableBuilder:
        self.kinds = {}
        prefix = located(self.folder, "x")[:-1] if os.name != "nt" else ""
        return TableBuilder(str(self.source), prefix, several=self.several)

    def _plain(self, local: Path) -> TableBuilder:
        """Read a list that is plain, see ``plain_rows.py``."""
        layout = None if self.only_absolute else self._layout(local)
        if layout is None:
            raise NotPlain
        builder = self._builder()
        parse: dict[str, Callable[[str], object]] = {
            "label": self._cell_labels if layout.delimiter else self._line_labels,
            "group": str.strip,
            "start": partial(_cell_seconds, "start"),
            "end": partial(_cell_seconds, "end"),
            "fps": _cell_rate,
        }
        add_plain_rows(builder, local, layout, self.folder, parse)
        return builder

    def _layout(self, local: Path) -> Layout | None:
        """Return where the cells of a list are, by its beginning; None where it is not plain.

        Raises:
            UserError: its header is wrong.
        """
        with open(local, "rb") as file:
            head, more = file.read(_HEAD), file.read(1)
        mark = len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0
        if more:
            head = head[: head.rfind(b"\n") + 1]
        if head[:4] in (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE) or head[:2] in (codecs.BOM_UTF16_LE,
                        codecs.BOM_UTF16_BE) or b"\0" in head or head.count(b"\r") != head.count(b"\r\n"):  # fmt: skip
            return None
        text = head[mark:].decode("utf-8", "surrogateescape")
        if not text.strip() or (more and not head):
            return None
        form = _header(self.source, text, self.is_label)
        if isinstance(form, Header):
            begin = len(head) - len(form.rows.encode("utf-8", "surrogateescape"))
            return Layout(begin, form.line + 1, len(form.names), form.columns, form.delimiter)
        begin = sum(len(line) + 1 for line in head.split(b"\n")[:form]) or mark
        return Layout(begin, form + 1, 2, {"path": 0, "label": 1})

    def _line_labels(self, text: str) -> list[int]:
        """The label of a line ``path label``, without a header."""
        if not self.is_label(text):
            raise NotPlain
        return self._labels(text, "")

    def _cell_labels(self, text: str) -> list[int]:
        return self._labels(text.strip(), "")

    def _labels(self, text: str, where: str, line: int = 0) -> list[int]:
        """Return the labels that a cell names.

        Raises:
            UserError: it is none, or mixes numbers and names with cells before it.
        """
        if not self.several:
            return [_label(text, self.numbers, where)]
        parts = split_labels(text, where)
        labels = [_label(part, self.numbers, where) for part in parts]
        for part in parts:
            first = self.kinds.setdefault(part in self.numbers, line)
            if len(self.kinds) > 1:
                raise UserError(f"{where}: label {part!r} mixes numbers and names with line {first}; use one of them")
        return sorted(set(labels))

    def _path(self, name: str) -> str:
        if is_remote(name) or is_remote(self.folder):
            return located(self.folder, name.strip())
        return str(resolve(Path(self.folder), name))

    def _any(self, text: str) -> TableBuilder:
        """Read any list, row by row."""
        builder = self._builder()
        for line, fields in _rows(self.source, text, self.is_label):
            where = f"{self.source}, line {line}"
            if not fields["path"].strip():
                raise UserError(f"{where}: no path")
            if self.only_absolute and not os.path.isabs(fields["path"]) and not is_remote(fields["path"]):
                raise UserError(f"{where}: videos are local files; set DATA.PATH_PREFIX to the folder that they are in")
            start, end = (_seconds(fields.get(key), key, where) for key in ("start", "end"))
            if end is not None and end <= (start or 0.0):
                raise UserError(f"{where}: end {end} is not after start {start or 0.0}")
            labels = self._labels(fields["label"], where, line)
            builder.add(
                Video(
                    self._path(fields["path"]), labels[0] if labels else -1, start, end,
                    group=fields.get("group", ""), labels=tuple(labels) if self.several else None,
                    fps=_rate(fields.get("fps"), where),
                ),
                line,
            )  # fmt: skip
        return builder


def _cell_seconds(name: str, text: str) -> float:
    value = _seconds(text.strip(), name, "")
    return math.nan if value is None else value


def _cell_rate(text: str) -> float:
    value = _rate(text.strip(), "")
    return math.nan if value is None else value


def _without_repeats(table: VideoTable) -> VideoTable:
    """Put rows of the same file and span into one with the labels of all, where they may have several."""
    if "labels" not in table.columns:
        return table
    keys = path_hashes(table)
    for name in ("start", "end"):
        if name in table.columns:
            keys = keys * 1_000_003 + np.nan_to_num(table.columns[name], nan=-1.0).view(np.int64)
    if len(np.unique(keys)) == len(keys):
        return table
    builder = TableBuilder(table.source, table.prefix, several=True)
    lines = {(video.path, video.start, video.end): int(line)
             for video, line in zip(reversed(list(table)), table.columns["line"][::-1], strict=True)}  # fmt: skip
    for video in _merged(list(table), table.source):
        builder.add(video, lines[video.path, video.start, video.end])
    return builder.table()


def read_unlabelled(path: str | Path, prefix: str = "") -> VideoTable:
    """Read which videos a list or any folder holds, whatever else it says of them; every label is 0.

    A list is a table with a column of paths, or has a path a line, with or without a label.

    Args:
        prefix: see ``read_manifest``.

    Raises:
        UserError: names the file, the line and how to fix it.
    """
    builder = TableBuilder(str(path))
    if os.path.isdir(path):
        for file in some_videos(path, find_video_files(path)):
            builder.add(Video(str(file), 0))
        return builder.table()
    text = read_list(path, "the list of videos", LIST_ADVICE)
    folder = Path(prefix or os.path.dirname(path))
    header = find_header(text, path)
    for line, fields in table_rows(header, path) if header else _paths(text, path):
        where = f"{path}, line {line}"
        start, end = (_seconds(fields.get(key), key, where) for key in ("start", "end"))
        name = fields["path"]
        found = located(str(folder), name.strip()) if is_remote(name) else str(resolve(folder, name))
        builder.add(Video(found, 0, start, end, fps=_rate(fields.get("fps"), where)), line)
    if not builder.numbers["ends"]:
        raise UserError(f"{path}: the list holds no video")
    return builder.table()


def _paths(text: str, path: str | Path) -> Iterator[tuple[int, dict[str, str]]]:
    for number, line in enumerate(lines_of(text), start=1):
        readings = [line.strip(), *(name for name, _ in possible_readings(line.strip()))]
        if found := [name for name in readings if is_video_name(name)]:
            yield number, {"path": found[0]}
        elif line.strip():
            raise UserError(f"{path}, line {number}: no name of a video in {line.strip()!r}; write a path a line")


def has_several_labels(path: str | Path, classes: Sequence[str], *, repeats: bool = True) -> bool:
    """Return whether a list is one of MODEL.TASK multi_label: some label is "a|b". An empty one alone may be a mistake.

    Args:
        repeats: a file and span with rows of different labels is a sign too.

    Raises:
        UserError: see ``read_manifest``.
    """
    if os.path.isdir(path):
        return False
    text = read_list(path, "the list of videos", LIST_ADVICE)
    numbers = {name: label for label, name in enumerate(classes)}
    rows = [fields for _, fields in _rows(path, text, partial(_are_labels, numbers=numbers))]
    if any("|" in (fields["label"] or "") and fields["label"] not in numbers for fields in rows):
        return True
    spans = {(fields["path"], fields.get("start"), fields.get("end")) for fields in rows}
    return repeats and len({tuple(fields.values()) for fields in rows}) > len(spans)


def split_labels(text: str, where: str) -> list[str]:
    """Split a cell of labels, "a|b" or '"a|b"|c', into its parts; none for an empty one.

    Raises:
        UserError: a part is empty or occurs twice, or a quote is left open.
    """
    names: list[str] = []
    at = 0 if text.strip() else len(text) + 1
    while at <= len(text):
        part = _LABEL.match(text, at)
        if not part:
            raise UserError(
                f'{where}: a quote in the labels {text!r} is left open; write "a|b"|c, quotes in it doubled'
            )
        name = part[1][1:-1].replace('""', '"') if part[1].startswith('"') else part[1]
        if not name:
            raise UserError(f"{where}: an empty label in {text!r}; write a|b, or nothing for none of the classes")
        if name in names:
            raise UserError(f"{where}: label {name!r} is twice in {text!r}")
        names.append(name)
        at = part.end() if part[2] else len(text) + 1
    return names


def join_labels(names: Iterable[str]) -> str:
    """Return a cell of labels that ``split_labels`` takes apart."""
    return "|".join(f'"{name.replace(chr(34), chr(34) * 2)}"' if re.search(r'["|]', name) else name for name in names)


def label_cell(video: Video, classes: Sequence[str]) -> str:
    """Return the label of a video as a list has it: a name, or several."""
    names = [classes[label] for label in video.every_label]
    return names[0] if video.labels is None else join_labels(names)


def renumbered(video: Video, numbers: Mapping[int, int]) -> Video:
    """Return a row with other label numbers."""
    labels = [numbers[label] for label in video.every_label]
    return replace(video, label=labels[0]) if video.labels is None else _with_labels(video, labels)


def _with_labels(video: Video, labels: Iterable[int]) -> Video:
    every = tuple(sorted(set(labels)))
    return replace(video, label=every[0] if every else -1, labels=every)


def _merged(videos: Sequence[Video], path: str | Path) -> list[Video]:
    """Put rows of the same file and span into one with the labels of all."""
    merged: dict[tuple[str, float | None, float | None], Video] = {}
    for video in videos:
        key = (video.path, video.start, video.end)
        known = merged.get(key)
        merged[key] = _with_labels(known, (*known.every_label, *video.every_label)) if known else video
    if len(merged) < len(videos):
        logger.info("%s: merged %d rows into others of the same file and span", path, len(videos) - len(merged))
    return list(merged.values())


def resolve(folder: Path, name: str) -> Path:
    """Return the path that a list names, relative to a folder: without blanks around it, unless a file has them."""
    return folder / (name if name == name.strip() or os.path.lexists(folder / name) else name.strip())


def _rows(path: str | Path, text: str, is_label: Callable[[str], bool]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line number, fields) of a table with header, or of headerless ``path label`` lines."""
    form = _header(path, text, is_label)
    if isinstance(form, Header):
        yield from table_rows(form, path)
        return
    lines = lines_of(text)
    lines[:form] = [""] * form
    for number, video, label in labelled_lines("\n".join(lines), path, is_label):
        yield number, {"path": video, "label": label}


def _header(path: str | Path, text: str, is_label: Callable[[str], bool]) -> Header | int:
    """Return the header of a table; of ``path label`` lines, how many lines come before the first row.

    Raises:
        UserError: the header has no column of paths or labels.
    """
    lines = lines_of(text)
    first = next((number for number, line in enumerate(lines) if line.strip()), 0)
    # "video 3" is a row, not a header
    is_row = any(is_label(label) for _, label in possible_readings(lines[first].strip()))
    header = find_header(text, path)
    if header and not (is_row and "label" not in header.columns):
        if "label" not in header.columns:
            raise UserError(
                f"{path}, line {header.line}: the header {header.delimiter.join(header.names)!r} has no label column; "
                "write path,label"
            )
        return header
    names = lines[first].lower().split()
    if "youtube_id" in re.split(r'[,;\t "]+', lines[first]):
        raise UserError(
            f"{path}: these are Kinetics' official annotations, which name no files; write a list with "
            "the header path,label, or lines 'path label'"
        )
    if len(names) == 2 and names[0] in COLUMNS["path"] and names[1] in COLUMNS["label"]:
        return first + 1  # a header of 'path label' lines
    if looks_like_header(lines[first]) and not is_row:
        raise UserError(
            f"{path}, line {first + 1}: the header {lines[first].strip()!r} names no column of paths; write path,label "
            "(and start,end)"
        )
    return 0


def _is_label(text: str, numbers: dict[str, int]) -> bool:
    return text in numbers or re.fullmatch(r"[+-]?\d+", text) is not None


def _are_labels(text: str, numbers: dict[str, int]) -> bool:
    try:
        parts = split_labels(text, "")
    except UserError:
        return False
    return bool(parts) and all(_is_label(part, numbers) for part in parts)


def _label(text: str | None, numbers: dict[str, int], where: str) -> int:
    if text in numbers:
        return numbers[text]
    try:
        label = int(text or "")
    except ValueError:
        advice = "" if is_utf8(text or "") else "; it is not UTF-8: save the list as UTF-8"
        if not text or "|" in text:
            advice = "; for several labels a video, or none, set MODEL.TASK multi_label"
        raise UserError(f"{where}: label {text!r} is neither a number nor a name of the class list{advice}") from None
    if not 0 <= label < len(numbers):
        raise UserError(
            f"{where}: label {label} is out of range; there are {len(numbers)} classes, so labels go "
            f"from 0 to {len(numbers) - 1}"
        )
    return label


def _seconds(text: str | None, name: str, where: str) -> float | None:
    if not text:
        return None
    try:
        seconds = float(re.sub(r"^(\d+),(\d+)$", r"\1.\2", text))  # spreadsheets of many languages write 1,5
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise UserError(f"{where}: {name} {text!r} is not a number of seconds")
    return seconds


def _rate(text: str | None, where: str) -> float | None:
    rate = _seconds(text, "fps", where)
    if rate == 0.0:
        raise UserError(f"{where}: fps {text!r} is not a number of pictures a second")
    return rate


def class_folders(folder: Path) -> list[str]:
    """Return the sorted names of the class folders below a folder."""
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _read_class_folders(folder: Path, classes: Sequence[str], multi_label: bool, seen: dict[str, int]) -> VideoTable:
    """Read a folder of class folders; ``seen`` gets the time of the last change of each folder below it."""
    numbers = {name: label for label, name in enumerate(classes)}
    builder = TableBuilder(str(folder), str(folder / "x")[:-1], several=multi_label)
    left_out: Counter[str] = Counter()
    seen[str(folder)] = os.stat(folder).st_mtime_ns
    for name in class_folders(folder):
        if name not in numbers:
            raise UserError(f"{folder / name}: {name!r} is not in the class list; rename the folder or add the class")
        found, label = video_names(folder / name, left_out, seen), numbers[name]
        names = [f"{name}/{file}".encode("utf-8", "surrogateescape") for file in found]
        lengths = np.fromiter(map(len, names), np.int64, len(names))
        several = [(label,)] * len(names) if multi_label else ()
        builder.extend(b"".join(names), lengths, several, line=np.zeros(len(names)), label=np.full(len(names), label))
    skipped = left_out_line(left_out)
    if not builder.names:
        more = f" ({skipped})" if skipped else ""
        raise UserError(f"{folder}: no videos in class folders below it; expected {folder}/CLASS/VIDEO.mp4{more}")
    if skipped:
        logger.info("%s: %s", folder, skipped)
    stray = [entry for entry in sorted(folder.iterdir()) if is_video_name(entry) and not entry.is_dir()]
    if stray:
        logger.warning("%s: left out %d videos in no class folder, such as %s", folder, len(stray), stray[0])
    return builder.table()


def load_classes(cfg: CfgNode) -> list[str]:
    """Return the class names of a config's data set and check their number against MODEL.NUM_CLASSES.

    Without a class list file the names are those of the training list's class folders, or else the numbers.

    Raises:
        UserError: the names cannot be read or their number is not MODEL.NUM_CLASSES.
    """
    path, train = (joined(cfg.DATA.PATH_TO_DATA_DIR, name) for name in (cfg.DATA.CLASS_LIST, cfg.DATA.TRAIN_LIST))
    if is_remote(path) or os.path.isfile(path):
        classes = read_class_list(path)
    elif os.path.isdir(train) and cfg.TRAIN.TASK == "classify":
        path, classes = train, class_folders(Path(train))
    else:
        logger.warning("%s: no class list; classes are named by their numbers (set DATA.CLASS_LIST)", path)
        classes = [str(label) for label in range(cfg.MODEL.NUM_CLASSES)]
    if len(classes) != cfg.MODEL.NUM_CLASSES:
        raise UserError(
            f"MODEL.NUM_CLASSES is {cfg.MODEL.NUM_CLASSES}, but {path} names {len(classes)} classes; "
            f"set MODEL.NUM_CLASSES {len(classes)}"
        )
    return classes


def _without_skipped(videos: VideoTable, folder: Path, skip: str) -> VideoTable:
    """Leave out the videos that the list ``skip`` names, a CSV with a column ``path``, relative to ``folder``."""
    text = read_list(skip, "the list", "fix or empty DATA.SKIP_LIST")
    header = find_header(text, skip)
    rows = [fields["path"] for _, fields in table_rows(header, skip)] if header else []
    if not header or not all(row.strip() for row in rows):
        raise UserError(f"{skip}: DATA.SKIP_LIST is a CSV with a header and a column path in every row")
    skipped = {absolute(row if is_remote(row) else str(resolve(folder, row))) for row in rows}
    paths = (path.decode("utf-8", "surrogateescape") for path in videos.paths())
    kept = np.flatnonzero([absolute(path) not in skipped for path in paths])
    if not len(kept):
        raise UserError(f"{skip}: names every training video; fix or empty DATA.SKIP_LIST")
    logger.info("%s: %d of %d training videos skipped", skip, len(videos) - len(kept), len(videos))
    return videos.take(kept)


def load_split(cfg: CfgNode, split: str, classes: Sequence[str], *, check: bool = True) -> VideoTable:
    """Read the list of "train", "val" or "test" that the config names and check that its files exist.

    DATA.SKIP_LIST takes videos out of training only: in validation and test those that cannot be read count as wrong.

    Args:
        check: look for the files, as DATA.CHECK_FILES says; one process of a job does.

    Raises:
        UserError: names the file, line or key, and how to fix it.
    """
    path = joined(cfg.DATA.PATH_TO_DATA_DIR, cfg.DATA[f"{split.upper()}_LIST"])
    if split == "train" and cfg.TRAIN.TASK != "classify":
        videos = read_unlabelled(path, cfg.DATA.PATH_PREFIX)
    else:
        videos = read_table(path, classes, cfg.DATA.PATH_PREFIX, multi_label=cfg.MODEL.TASK == "multi_label")
    if cfg.DATA.FRAME_RATE:
        videos = videos.changed(frame_rate=cfg.DATA.FRAME_RATE)
    if split == "train" and cfg.DATA.SKIP_LIST:
        folder = path if os.path.isdir(path) else cfg.DATA.PATH_PREFIX or os.path.dirname(path)
        videos = _without_skipped(videos, Path(folder), joined(cfg.DATA.PATH_TO_DATA_DIR, cfg.DATA.SKIP_LIST))
    missing = missing_files(videos, cfg.DATA.MAX_BAD_FRACTION, cfg.DATA.CHECK_FILES) if check else []
    if missing:
        logger.warning(
            "%s: %d of %d videos do not exist, the first %s", path, len(missing), len(videos), missing[0].path
        )
    return videos
