"""What a run says: lines for people on the terminal, JSON lines for programs in OUTPUT_DIR/log.jsonl."""

import csv
import logging
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import simplejson
import torch

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


def setup_logging(is_main: bool = True) -> None:
    """Send log lines to stderr: everything from the main process, warnings from the others."""
    logging.basicConfig(
        format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr, force=True,
        level=logging.INFO if is_main else logging.WARNING,
    )  # fmt: skip


class JsonLines:
    """Appends one JSON object a line; each line is on disk before ``write`` returns control for long."""

    def __init__(self, path: Path, enabled: bool = True):
        self.path, self.enabled = path, enabled

    def write(self, kind: str, **values: Any) -> None:
        """Append {"kind": kind, "time": seconds since 1970, ...}."""
        if self.enabled:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(simplejson.dumps({"kind": kind, "time": round(time.time(), 3), **values}) + "\n")


def read_json_lines(path: Path, kind: str) -> list[dict[str, Any]]:
    """Return the entries of a kind, one a step: where a resumed run wrote a step again, the later entry."""
    if not path.is_file():
        return []
    entries = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = simplejson.loads(line)
        except simplejson.JSONDecodeError:
            continue  # the line that a killed run left half written
        if entry.get("kind") == kind:
            entries[entry["step"]] = entry
    return [entries[step] for step in sorted(entries)]


def record_bad_videos(output_dir: Path, rows: Iterable[tuple[str, str, str]]) -> None:
    """Append (split, path, reason) rows to OUTPUT_DIR/bad_videos.csv; any process may."""
    path = output_dir / "bad_videos.csv"
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if file.tell() == 0:
            writer.writerow(("split", "path", "reason"))
        writer.writerows(rows)


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
