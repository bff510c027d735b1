"""Output of a run: log lines on the terminal, JSON lines in OUTPUT_DIR/log.jsonl, TensorBoard, bad_videos.csv."""

import csv
import logging
import os
import sys
import time
from collections.abc import Iterable, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import simplejson
import torch

from lookupvit_video.errors import UserError
from lookupvit_video.files import named_failures
from lookupvit_video.remote import absolute
from lookupvit_video.text import is_utf8, one_line, open_text, visible, write_csv

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


def setup_logging(is_main: bool = True) -> None:
    """Send log lines to stderr: everything from the main process, warnings from the others."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Visible("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(handlers=[handler], force=True, level=logging.INFO if is_main else logging.WARNING)


class _Visible(logging.Formatter):
    """Shows control characters as escapes: a file name may contain any, also those that control a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        if isinstance(record.args, tuple) and record.msg != "%s":  # a report of several lines
            record = copy(record)
            record.args = tuple(
                one_line(str(arg)) if isinstance(arg, (str, Path)) else arg for arg in record.args or ()
            )
        return visible(super().format(record))


class JsonLines:
    """Appends one JSON object a line."""

    def __init__(self, path: Path, enabled: bool = True):
        self.path, self.enabled = path, enabled
        if enabled and _ends_within_a_line(path):  # left by a killed run
            with named_failures(path), open_text(path, "a") as file:
                file.write("\n")

    def write(self, kind: str, **values: Any) -> None:
        """Append {"kind": kind, "time": seconds since 1970, ...}; numbers that are not finite become null."""
        if self.enabled:
            line = simplejson.dumps({"kind": kind, "time": round(time.time(), 3), **values}, ignore_nan=True)
            with named_failures(self.path), open_text(self.path, "a") as file:
                file.write(line + "\n")


def _ends_within_a_line(path: Path) -> bool:
    if not path.is_file() or not path.stat().st_size:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


class Journal:
    """What a run measures, for programs: JSON lines always, TensorBoard where asked for.

    Args:
        folder: OUTPUT_DIR.
        tensorboard: TENSORBOARD.ENABLE.
        enabled: in the main process only.
        step: the run starts there; TensorBoard hides later steps, of a run that was killed.

    Raises:
        UserError: TensorBoard is not installed, or cannot write to a folder of that name.
    """

    def __init__(self, folder: str, *, tensorboard: bool, enabled: bool = True, step: int = 0):
        self.lines = JsonLines(Path(folder) / "log.jsonl", enabled)
        self._board = None
        self._board_folder = Path(folder) / "tensorboard"
        if tensorboard and enabled:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise UserError(
                    "TENSORBOARD.ENABLE is True, but TensorBoard is not installed: pip install -e .[tensorboard]"
                ) from None
            if not is_utf8(folder):
                raise UserError(
                    f"OUTPUT_DIR {folder} is not UTF-8; TensorBoard cannot write there: choose another OUTPUT_DIR or "
                    "set TENSORBOARD.ENABLE False"
                )
            with named_failures(self._board_folder):
                self._board = SummaryWriter(str(self._board_folder), purge_step=step + 1)

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Write the numbers of a step: {"kind": kind, "step": step, ...}, and curves of the same names."""
        self.lines.write(kind, step=step, **values)
        if self._board:
            with named_failures(self._board_folder):
                for name, value in values.items():
                    if isinstance(value, (int, float)):
                        self._board.add_scalar(f"{kind}/{name}", value, step)
                self._board.flush()

    def close(self) -> None:
        """Finish TensorBoard's file."""
        if self._board:
            self._board.close()


def read_json_lines(path: Path, kind: str) -> list[dict[str, Any]]:
    """Return the entries of a kind, one a step: where a resumed run wrote a step again, the later entry."""
    if not path.is_file():
        return []
    entries = {}
    for line in path.read_bytes().splitlines():
        try:
            entry = simplejson.loads(line)
        except ValueError:
            continue  # a line that a killed run left unfinished
        if entry.get("kind") == kind:
            entries[entry["step"]] = entry
    return [entries[step] for step in sorted(entries)]


_BAD_COLUMNS = ("split", "path", "reason")


def record_bad_videos(output_dir: Path, rows: Iterable[tuple[str, str, str]]) -> None:
    """Append (split, path, reason) rows to OUTPUT_DIR/bad_videos.csv, each video once; any process may.

    The file can be a DATA.SKIP_LIST: its paths are absolute, so that it can be read from any folder.
    """
    path = output_dir / "bad_videos.csv"
    listed = {(row["split"], row["path"]) for row in _bad_videos(path)}
    new = [(split, absolute(video), reason) for split, video, reason in rows]
    new = [row for row in new if row[:2] not in listed]
    if not new:
        return
    with named_failures(path), open_text(path, "a") as file:
        writer = csv.writer(file)
        if file.tell() == 0:
            writer.writerow(_BAD_COLUMNS)
        writer.writerows(new)


def forget_bad_videos(output_dir: Path, splits: Sequence[str], skip_list: Path) -> None:
    """Remove the rows of some splits, of an earlier run, from OUTPUT_DIR/bad_videos.csv; no rows, no file.

    Args:
        skip_list: DATA.SKIP_LIST; if it is this file, the rows stay.
    """
    path = output_dir / "bad_videos.csv"
    rows = _bad_videos(path)
    if not path.is_file() or os.path.realpath(path) == os.path.realpath(skip_list):
        return
    kept = [tuple(row[name] for name in _BAD_COLUMNS) for row in rows if row["split"] not in splits]
    if not kept:
        path.unlink()
    elif len(kept) < len(rows):
        write_csv(path, _BAD_COLUMNS, kept)


def _bad_videos(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with open_text(path) as file:
        return [row for row in csv.DictReader(file) if row.keys() == set(_BAD_COLUMNS) and None not in row.values()]


def peak_memory_gib(device: torch.device) -> float:
    """Return the most memory this process has held so far: on its GPU, or in RAM on a CPU (0 where unknown)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if resource is None:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB, on macOS bytes
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def clock(seconds: float) -> str:
    """Return a duration as h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
