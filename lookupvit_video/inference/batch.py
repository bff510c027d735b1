"""Many videos: from names to files; read in worker processes; answers written as they arrive."""

import csv
import glob
import io
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

import simplejson

from lookupvit_video.data.manifest import join_labels
from lookupvit_video.data.tables import find_header, table_rows
from lookupvit_video.data.video_files import find_video_files, some_videos
from lookupvit_video.decoding.reader import DecodeError
from lookupvit_video.decoding.sources.frame_folder import holds_pictures
from lookupvit_video.distributed.world import World, gather_objects
from lookupvit_video.errors import UserError
from lookupvit_video.files import atomic_write
from lookupvit_video.inference.views import Failure, Plan, Views, read_file
from lookupvit_video.processes.lock import only_writer
from lookupvit_video.processes.pool import run_isolated
from lookupvit_video.text import decode, open_text

logger = logging.getLogger(__name__)

MAX_LIST_BYTES = 256 << 20
_SLACK = 5.0  # seconds beyond the decoder's own limit, after which its process is ended


# What to read -------------------------------------------------------------------------------------------------------


def find_videos(names: Iterable[str], lists: Iterable[str] = ()) -> tuple[list[str], list[Failure]]:
    """Return the files that names refer to, each once, and the names without a file.

    Args:
        names: files; folders, for all video files below them; patterns such as "clips/**/*.mp4", unless a file has that
            very name; "-": paths from standard input, one a line.
        lists: text files with a path a line, or tables (CSV) with a column of paths, see ``data/tables.py``; relative
            paths start at the list's own folder.

    Raises:
        UserError: a list cannot be read.
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
            raise UserError(f"{name}: this list is not a regular file; for a pipe, use - (standard input)")
        try:
            file = open(name, "rb")  # noqa: SIM115 - catch errors of opening alone
        except (OSError, ValueError) as error:
            raise UserError(f"{name}: this list cannot be read ({getattr(error, 'strerror', None) or error})") from None
        with file:
            found |= dict.fromkeys(list_paths(file, name, os.path.dirname(name)))
    return list(found), failures


def _videos_below(folder: str, failures: list[Failure]) -> list[str]:
    try:
        return [str(video) for video in some_videos(folder, find_video_files(folder))]
    except UserError as error:
        if holds_pictures(folder):
            return [folder]
        failures.append(Failure(folder, str(error).removeprefix(f"{folder}: ")))
        return []


def list_paths(file: IO[bytes], name: str, folder: str) -> list[str]:
    """Return the paths in an open list, see ``find_videos``; also the output of ``find -print0``.

    Raises:
        UserError: it is too long or not text, or its rows do not fit its header.
    """
    data = file.read(MAX_LIST_BYTES + 1)
    if len(data) > MAX_LIST_BYTES:
        raise UserError(f"{name}: longer than {MAX_LIST_BYTES >> 20} MiB")
    if 0 < data.count(0) < len(data) // 3 and not data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return [os.path.join(folder, line.decode("utf-8", "surrogateescape")) for line in data.split(b"\0") if line]
    try:
        text = decode(data)
    except ValueError as error:
        raise UserError(f"{name}: this list cannot be read ({error})") from None
    header = find_header(text, name)
    if header and not (len(header.names) == 1 and os.path.isfile(os.path.join(folder, header.names[0]))):
        return [_located(folder, row["path"]) for _, row in table_rows(header, name) if row["path"].strip()]
    lines = text.split("\n") if "\n" in text else text.split("\r")  # a name may hold other line breaks
    return [_located(folder, line.removesuffix("\r")) for line in lines if line.strip()]


def _located(folder: str, line: str) -> str:
    """Return the path in a line: the exact text if there is such a file, else without blanks and quotes around it."""
    plain = line.strip()
    if len(plain) > 2 and plain[0] == plain[-1] == '"':
        plain = plain[1:-1].replace('""', '"')
    exact = os.path.join(folder, line)
    return exact if plain == line or os.path.lexists(exact) else os.path.join(folder, plain)


# Reading ------------------------------------------------------------------------------------------------------------


def read_videos(paths: Sequence[str], plan: Plan, processes: int) -> Iterator[Views | Failure]:
    """Yield the clips of each file, or the reason for none, in completion order.

    Args:
        processes: workers; a file that crashes or hangs one of them is one failure. 0: read in this process.
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
    """Return the clips of a file, or the reason for none."""
    try:
        return read_file(path, plan)
    except UserError as error:
        return Failure(path, error.reason if isinstance(error, DecodeError) else str(error))


# Answers ------------------------------------------------------------------------------------------------------------


class AnswerFile:
    """Answers in a file, written as they arrive: a killed run keeps its answers, and ``resume`` adds the missing ones.

    Args:
        path: the file; "-": standard output.
        columns: of a table (CSV); None: JSON lines.
        resume: keep the file's answers, but not its failures, which are tried again.

    Raises:
        UserError: the path is not a regular file, another process writes to it, or its columns differ on resume.
        OSError: the file cannot be written.
    """

    def __init__(self, path: str, columns: Sequence[str] | None = None, resume: bool = False):
        if path != "-" and os.path.lexists(path) and not os.path.isfile(path):
            raise UserError(f"{path}: not a regular file; write answers to a file, or to standard output (-)")
        self.columns, self.done = columns, set[str]()
        self._lock = ExitStack()
        if path != "-":
            folder, name = os.path.split(path)
            lock_file, fix = os.path.join(folder, f".{name}.lock"), "choose another file or stop it"
            self._lock.enter_context(only_writer(lock_file, path, fix))
        try:
            self._open(path, resume)
        except BaseException:
            self._lock.close()
            raise

    def _open(self, path: str, resume: bool) -> None:
        self._is_ours = path != "-"  # standard output is never closed; it may be another one at the end
        kept = self._kept(Path(path)) if resume and self._is_ours else []
        if not self._is_ours:
            self.file: IO[str] = sys.stdout
            if self.columns and isinstance(sys.stdout, io.TextIOWrapper):  # for programs: as in a file
                sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")
        elif kept:
            with atomic_write(path) as temporary, open_text(temporary, "w") as self.file:
                self._start(kept)
            for part in _parts(Path(path)):
                part.unlink()
            self.file = open_text(path, "a")
            return
        else:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            self.file = open_text(path, "w")
        self._start(kept)
        for part in _parts(Path(path)) if path != "-" else []:
            part.unlink()

    def _start(self, kept: Iterable[dict[str, Any]]) -> None:
        if self.columns:
            csv.DictWriter(self.file, self.columns).writeheader()
        for row in kept:
            self.write(row)

    def _kept(self, path: Path) -> list[dict[str, Any]]:
        """Return the answers of an earlier run of any number of processes, each video once."""
        kept = {}
        for file in (path, *_parts(path)):
            kept.update({row["path"]: row for row in self.rows_of(file) if not row.get("error")})
        self.done = set(kept)
        return list(kept.values())

    def rows_of(self, path: Path) -> list[dict[str, Any]]:
        """Return what is in a file of answers, without an incomplete last line.

        Raises:
            UserError: it has other columns.
        """
        if not path.exists():
            return []
        with open_text(path, "r") as file:
            if self.columns:
                reader = csv.DictReader(file)
                if reader.fieldnames is not None and list(reader.fieldnames) != list(self.columns):
                    raise UserError(f"{path}: --resume: the file has other columns; use the same --topk, or remove it")
                rows: list[dict[str, Any]] = [row for row in reader if None not in row and None not in row.values()]
            else:
                rows = [row for row in map(_parsed, file) if row is not None]
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

    def __exit__(self, *_: object) -> None:
        if self._is_ours:
            self.file.close()
        self._lock.close()


def _parts(path: Path) -> list[Path]:
    """The answers of the processes of a run that share a file, before they are put together."""
    prefix = f".{path.name}.part-"
    return sorted(file for file in path.parent.glob(".*") if file.name.startswith(prefix))


@contextmanager
def shared_answer_file(path: str, columns: Sequence[str] | None, resume: bool, world: World) -> Iterator[AnswerFile]:
    """Open the file that all processes write to, see ``AnswerFile``; its ``done`` is the same in all of them.

    Each process has a file of its own until all are finished; then the main one puts them together. What is left of a
    run that was killed is put together by the next one with ``resume``, whatever the number of its processes.
    """
    if world.size == 1:
        with AnswerFile(path, columns, resume) as file:
            yield file
        return
    with ExitStack() as stack:
        main = None
        error: UserError | None = None
        if world.is_main:
            try:
                main = stack.enter_context(AnswerFile(path, columns, resume))
            except UserError as raised:
                error = raised
        failed, done = gather_objects((str(error or ""), main.done if main is not None else set[str]()), world)[0]
        if failed:
            raise error or UserError(failed)
        folder, name = os.path.split(path)
        with AnswerFile(os.path.join(folder, f".{name}.part-{world.rank:04d}"), columns) as file:
            file.done = set(done)
            yield file
        gather_objects(None, world)  # all are finished
        if main is not None:
            for part in _parts(Path(path)):
                for row in main.rows_of(part):
                    main.write(row)
                part.unlink()


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        row = simplejson.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get("path"), str) else None


def csv_columns(topk: int, others: Sequence[str] = ()) -> list[str]:
    """Return the columns of a table of answers, one row per video, with some others: present, rejected, set."""
    best = [name for rank in range(1, topk + 1) for name in (f"label_{rank}", f"probability_{rank}")]
    return ["path", *others, *best, "seconds", "grid", "gmacs", "note", "error"]


def seconds_text(times: Sequence[Sequence[float]]) -> str:
    """Return the first and last second of each clip in time as text: "0.00-1.75, 2.00-3.75 s"."""
    return ", ".join(f"{first:.2f}-{last:.2f}" for first, last in times) + " s"


def csv_row(answer: dict[str, Any]) -> dict[str, Any]:
    """Return an answer, as JSON has it, as a row of such a table."""
    row = {
        name: value for name, value in answer.items() if name in ("path", "grid", "gmacs", "note", "error", "rejected")
    }
    if "times" in answer:
        row["seconds"] = seconds_text(answer["times"])
    row |= {name: join_labels(answer[name]) for name in ("present", "set") if name in answer}
    classes = sorted(answer.get("classes", {}).items(), key=lambda item: -item[1])  # of several labels: all
    for rank, (label, probability) in enumerate(classes, start=1):
        row |= {f"label_{rank}": label, f"probability_{rank}": f"{probability:.6f}"}
    return row
