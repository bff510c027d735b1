"""Many videos: from what a user names to files; read in processes of their own; answers written as they come."""

import csv
import glob
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import simplejson

from lookupvit_video.data.isolated import run_isolated
from lookupvit_video.data.reader import DecodeError
from lookupvit_video.data.video_files import find_video_files, left_out_line, no_video_below
from lookupvit_video.files import written_whole
from lookupvit_video.inference.views import Failure, Plan, Views, read_file

logger = logging.getLogger(__name__)

MAX_LIST_BYTES = 256 << 20
_SLACK = 5.0  # seconds beyond the decoder's own limit, after which its process is ended


# What to read -------------------------------------------------------------------------------------------------------


def find_videos(names: Iterable[str], lists: Iterable[str] = ()) -> tuple[list[str], list[Failure]]:
    """Return the files that names stand for, each once, and the names that stand for none.

    Args:
        names: files; folders, for all files below them that have a video's suffix; patterns such as "clips/**/*.mp4",
            where there is no file of that very name; "-": paths from standard input, one a line.
        lists: text files with a path a line, or tables (CSV) with a column named path; relative paths are taken from
            the list's own folder.

    Raises:
        ValueError: a list cannot be read.
    """
    found: dict[str, None] = {}
    failures: list[Failure] = []
    for name in names:
        files = [name]
        if name == "-":
            files = list_paths(sys.stdin.buffer, "standard input", "")
        elif os.path.isdir(name):
            files = _videos_below(name, failures)
        elif glob.has_magic(name) and not os.path.lexists(name):
            files = sorted(file for file in glob.glob(name, recursive=True) if not os.path.isdir(file))
            if not files:
                failures.append(Failure(name, "no file matches this pattern"))
        found |= dict.fromkeys(files)
    for name in lists:
        if os.path.exists(name) and not os.path.isfile(name):
            raise ValueError(f"{name}: this list is no regular file; for a pipe, write - for standard input")
        try:
            with open(name, "rb") as file:
                found |= dict.fromkeys(list_paths(file, name, os.path.dirname(name)))
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{name}: this list cannot be read ({getattr(error, 'strerror', None) or error})"
            ) from None
    return list(found), failures


def _videos_below(folder: str, failures: list[Failure]) -> list[str]:
    try:
        videos, left_out = find_video_files(folder)
    except ValueError as error:
        failures.append(Failure(folder, str(error)))
        return []
    if not videos:
        failures.append(Failure(folder, no_video_below(left_out)))
    elif left_out:
        logger.info("%s: %s", folder, left_out_line(left_out))
    return [str(video) for video in videos]


def list_paths(file: IO[bytes], name: str, folder: str) -> list[str]:
    """Return the paths in a list that is open for reading, see ``find_videos``.

    Raises:
        ValueError: it is too long to be one.
    """
    data = file.read(MAX_LIST_BYTES + 1)
    if len(data) > MAX_LIST_BYTES:
        raise ValueError(f"{name}: longer than {MAX_LIST_BYTES >> 20} MiB")
    lines = data.decode("utf-8-sig", errors="surrogateescape").split("\n")  # a name may hold other line breaks
    lines = [line.removesuffix("\r") for line in lines]
    columns = [column.strip() for column in lines[0].split(",")]
    if "path" in columns:
        lines = [row[columns.index("path")] for row in csv.reader(lines[1:]) if len(row) == len(columns)]
    return [os.path.join(folder, line) for line in lines if line.strip()]


# Reading ------------------------------------------------------------------------------------------------------------


def read_videos(paths: Sequence[str], plan: Plan, processes: int) -> Iterator[Views | Failure]:
    """Yield the clips of each file, or why there are none, as they are done.

    Args:
        processes: that read; what crashes or hangs one of them is one failure. 0: read in this process.
    """
    if not processes:
        yield from (read_or_fail(plan, path) for path in paths)
        return
    timeout = 2 * (plan.timeout + _SLACK) if plan.timeout else float("inf")  # opening and decoding have a limit each
    for outcome in run_isolated(partial(read_or_fail, plan), paths, processes=processes, timeout=timeout):
        if outcome.lost is not None:
            yield Failure(paths[outcome.number], outcome.lost.detail)
        elif outcome.answer is not None:
            yield outcome.answer


def read_or_fail(plan: Plan, path: str) -> Views | Failure:
    """Return the clips of a file, or why there are none."""
    try:
        return read_file(path, plan)
    except DecodeError as error:
        return Failure(path, error.reason)


# Answers ------------------------------------------------------------------------------------------------------------


class AnswerFile:
    """Answers in a file, written as they come: a killed run keeps what it had, and ``resume`` goes on from there.

    Args:
        path: the file; "-": standard output.
        columns: of a table (CSV); None: JSON lines.
        resume: keep the answers that the file holds. Failures are forgotten, so that they are tried again.

    Raises:
        ValueError: the path is no regular file, or what is there to resume has other columns.
        OSError: the file cannot be written.
    """

    def __init__(self, path: str, columns: Sequence[str] | None = None, resume: bool = False):
        if path != "-" and os.path.lexists(path) and not os.path.isfile(path):
            raise ValueError(f"{path}: answers go into a regular file, or to standard output (-)")
        self.columns, self.done = columns, set[str]()
        kept = self._kept(Path(path)) if resume and path != "-" else []
        if path == "-":
            self.file: IO[str] = sys.stdout
        elif kept:
            with written_whole(path) as temporary, self._opened(temporary, "w") as self.file:
                self._start(kept)
            self.file = self._opened(Path(path), "a")
            return
        else:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            self.file = self._opened(Path(path), "w")
        self._start(kept)

    def _opened(self, path: Path, mode: str) -> IO[str]:
        return path.open(mode, encoding="utf-8", errors="surrogateescape", newline="" if self.columns else None)

    def _start(self, kept: Iterable[dict[str, Any]]) -> None:
        if self.columns:
            csv.DictWriter(self.file, self.columns).writeheader()
        for row in kept:
            self.write(row)

    def _kept(self, path: Path) -> list[dict[str, Any]]:
        """Return the answers that an earlier run left; the line that it was killed over is none."""
        if not path.exists():
            return []
        with self._opened(path, "r") as file:
            if self.columns:
                reader = csv.DictReader(file)
                if reader.fieldnames is not None and list(reader.fieldnames) != list(self.columns):
                    raise ValueError(f"{path}: --resume: its columns are others; use the same --topk, or remove it")
                rows: list[dict[str, Any]] = [row for row in reader if None not in row and None not in row.values()]
            else:
                rows = [row for row in map(_parsed, file) if row is not None]
        rows = [row for row in rows if not row.get("error")]
        self.done = {row["path"] for row in rows}
        return rows

    def write(self, row: dict[str, Any]) -> None:
        """Append an answer."""
        if self.columns:
            csv.DictWriter(self.file, self.columns).writerow(row)
        else:
            self.file.write(simplejson.dumps(row) + "\n")
        self.file.flush()

    def __enter__(self) -> "AnswerFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.file is not sys.stdout:
            self.file.close()


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        row = simplejson.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get("path"), str) else None


def csv_columns(topk: int) -> list[str]:
    """Return the columns of a table of answers: a row for each video."""
    best = [name for rank in range(1, topk + 1) for name in (f"label_{rank}", f"probability_{rank}")]
    return ["path", *best, "grid", "gmacs", "note", "error"]


def csv_row(answer: dict[str, Any]) -> dict[str, Any]:
    """Return an answer, as JSON holds it, as a row of such a table."""
    row = {name: value for name, value in answer.items() if name in ("path", "grid", "gmacs", "note", "error")}
    for rank, (label, probability) in enumerate(answer.get("classes", {}).items(), start=1):
        row |= {f"label_{rank}": label, f"probability_{rank}": f"{probability:.6f}"}
    return row
