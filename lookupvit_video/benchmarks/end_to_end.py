"""Video files to answers, as complete processes that take turns: `lookupvit predict`, and what others offer.

A process that is measured begins with ``python`` and ends with its exit; it imports, loads weights, reads and answers.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import simplejson

from lookupvit_video.benchmarks.rivals import RIVALS
from lookupvit_video.errors import RunFailure, UserError
from lookupvit_video.text import markdown_table

ROOT = Path(__file__).parents[2]
RESULT = {"commit", "processor", "cores", "rows"}
ROW = {"name", "videos", "first", "all", "peak_bytes"}
OURS, MODEL = "LookupViT", "LookupViT, model alone"

# Between this process and the measured one: the system counts the memory of the process that starts another as its own.
_LAUNCH = """import os, sys, time
start = time.perf_counter()
pid = os.spawnv(os.P_NOWAIT, sys.argv[1], sys.argv[1:])
_, status, usage = os.wait4(pid, 0)
print(time.perf_counter() - start, usage.ru_maxrss, file=sys.stderr)
sys.exit(os.waitstatus_to_exitcode(status) % 256)"""


@dataclass(frozen=True)
class Entrant:
    """A command that answers videos, whose paths follow its words."""

    name: str
    command: tuple[str, ...]
    root: Path = ROOT
    """The folder whose code runs."""


@dataclass(frozen=True)
class Run:
    """What one process took."""

    seconds: float
    peak_bytes: int
    """The largest amount of memory of its largest process, files that are mapped included."""
    printed: str


FLOOR = Entrant("import of torch alone", (sys.executable, "-c", "import torch"))
"""What no process that answers with torch can be faster than."""


def make_checkpoint(path: Path, settings: Sequence[str] = ()) -> Path:
    """Write a LookupViT-B for Kinetics-400, or with other settings, with random weights, unless it exists."""
    if not path.exists():
        import torch

        from lookupvit_video.checkpoints.checkpoint import save_checkpoint
        from lookupvit_video.config import load_config
        from lookupvit_video.models.build import build_model

        torch.manual_seed(0)
        cfg = load_config("k400_lvit", list(settings))
        classes = [f"class {label}" for label in range(cfg.MODEL.NUM_CLASSES)]
        save_checkpoint(path, cfg=cfg, classes=classes, model=build_model(cfg))
    return path


def lookupvit(checkpoint: str, name: str = OURS, root: Path = ROOT) -> Entrant:
    """Return `lookupvit predict` with one view a video, of the code in a folder."""
    words = ("predict", "--checkpoint", checkpoint, "--views", "1", "--crops", "1", "--json", "-")
    return Entrant(name, (sys.executable, "-m", "lookupvit_video", *words), root)


def rival(name: str, folder: Path) -> Entrant:
    """Return another project's model, with random weights in a folder; they are made if there are none.

    Raises:
        UserError: its package is not installed.
    """
    module = (sys.executable, "-m", "lookupvit_video.benchmarks.rivals", name, str(folder / name))
    entrant = Entrant(RIVALS[name].title, module)
    try:
        run_once(entrant, [])
    except RunFailure as failure:
        raise UserError(f"--only {name}: {failure}; install what it needs, or leave it out") from None
    return entrant


@contextmanager
def at_commits(commits: Sequence[str], checkpoint: str) -> Iterator[list[Entrant]]:
    """Check commits out into temporary folders; yield `lookupvit predict` of each.

    Raises:
        UserError: this is not a clone of the repository, or has no such commit.
    """
    with tempfile.TemporaryDirectory() as folder:
        places = [Path(folder, str(number)) for number in range(len(commits))]
        try:
            for commit, place in zip(commits, places, strict=True):
                _git("worktree", "add", "--detach", str(place), commit)
            yield [lookupvit(checkpoint, commit, place) for commit, place in zip(commits, places, strict=True)]
        finally:
            for place in places:
                if place.exists():
                    _git("worktree", "remove", "--force", str(place))


def _git(*words: str) -> None:
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)  # noqa: S603, S607
    if done.returncode:
        raise UserError(f"--commits: git {words[0]} {words[1]} failed ({done.stderr.strip().splitlines()[-1]})")


def run_once(entrant: Entrant, videos: Sequence[str]) -> Run:
    """Run a process to its end.

    Raises:
        RunFailure: it failed; with the last line that it wrote.
    """
    words = [sys.executable, "-S", "-c", _LAUNCH, *entrant.command, *videos]
    environment = {**os.environ, "PYTHONPATH": str(entrant.root)}
    done = subprocess.run(words, cwd=entrant.root, env=environment, capture_output=True, text=True, check=False)  # noqa: S603
    *lines, found = done.stderr.strip().splitlines() or [""]
    if done.returncode:
        raise RunFailure(f"{entrant.name}: exit code {done.returncode} ({(lines or ['no message'])[-1]})")
    seconds, peak = found.split()
    return Run(float(seconds), int(peak) * (1 if sys.platform == "darwin" else 1024), done.stdout)


def race(entrants: Sequence[Entrant], videos: Sequence[str], rounds: int) -> list[dict[str, Any]]:
    """Return a row for each entrant: ``first`` seconds for one video, ``all`` for all of them, by round.

    In each round all of them take their turn, and another one begins.

    Raises:
        RunFailure: a process failed.
    """
    rows: list[dict[str, Any]] = [
        {"name": entrant.name, "videos": len(videos), "first": [], "all": [], "peak_bytes": []} for entrant in entrants
    ]
    turns = list(zip(entrants, rows, strict=True))
    for entrant in entrants:
        run_once(entrant, videos[:1])  # files are read from the disk once, before the first round
    for number in range(rounds):
        for entrant, row in turns[number % len(turns) :] + turns[: number % len(turns)]:
            row["first"].append(run_once(entrant, videos[:1]).seconds)
            run = run_once(entrant, videos)
            row["all"].append(run.seconds)
            row["peak_bytes"].append(run.peak_bytes)
    return rows


def model_alone(checkpoint: str, clips: int, rounds: int) -> list[float]:
    """Return the seconds that the model takes for this many clips in batches of eight, loaded and warm, by round."""
    code = f"from lookupvit_video.benchmarks.rivals import time_model; time_model({checkpoint!r}, {clips})"
    entrant = Entrant(MODEL, (sys.executable, "-c", code))
    return [float(run_once(entrant, []).printed) for _ in range(rounds)]


def ratios(rows: Sequence[dict[str, Any]], key: str) -> list[list[float]]:
    """Return the seconds of each row over those of the first one, by round."""
    return [[other / own for other, own in zip(row[key], rows[0][key], strict=True)] for row in rows]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return rows of ``race`` as a Markdown table: medians; ratios are those of the same round."""
    lines = []
    for row, first, complete in zip(rows, ratios(rows, "first"), ratios(rows, "all"), strict=True):
        steady = [(row["videos"] - 1) / max(1e-9, a - b) for a, b in zip(row["all"], row["first"], strict=True)]
        has_more = row["videos"] > 1 and row["name"] != FLOOR.name
        lines.append([
            row["name"], f"{median(row['first']):.2f}", f"{median(first):.2f}", f"{_spread(row['all'])}",
            f"{median(complete):.2f}", f"{median(steady):.2f}" if has_more else "-",
            f"{max(row['peak_bytes']) / 2**20:.0f}",
        ])  # fmt: skip
    titles = ("pipeline", "first answer, s", "times", f"{rows[0]['videos']} videos, s", "times", "then videos/s", "MiB")
    return markdown_table(titles, lines)


def report(rows: Sequence[dict[str, Any]], model_seconds: Sequence[float]) -> str:
    """Return the table, and the model's share of the time for all videos where its seconds are given."""
    if not model_seconds:
        return table(rows)
    share = median(model_seconds) / median(rows[0]["all"])
    return (
        f"{table(rows)}\nThe model alone: {_spread(model_seconds)} s, {100 * share:.0f} % of {rows[0]['name']}'s time."
    )


def read_result(path: Path) -> dict[str, Any]:
    """Read what the benchmark wrote with --json.

    Raises:
        UserError: it cannot be read, or is something else.
    """
    try:
        found: dict[str, Any] = simplejson.loads(path.read_text(encoding="utf-8"))
        complete = RESULT <= found.keys() and all(ROW <= row.keys() for row in found["rows"])
    except (OSError, ValueError, TypeError, AttributeError):
        complete = False
    if not complete:
        raise UserError(f"{path}: not a result of lookupvit benchmark end-to-end --json")
    return found


def _spread(values: Sequence[float]) -> str:
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def comparison(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Return a Markdown table of two results of this benchmark: new over old for what is in both.

    Raises:
        UserError: they have nothing in common.
    """
    before = {row["name"]: row for row in old["rows"]}
    shared = [(before[row["name"]], row) for row in new["rows"] if row["name"] in before]
    shared = [(a, b) for a, b in shared if a["videos"] == b["videos"]]
    if not shared:
        raise UserError("these results share no pipeline with the same number of videos")
    lines = []
    for a, b in shared:
        for key, what in (("first", "first answer, s"), ("all", f"{a['videos']} videos, s")):
            pair = (median(a[key]), median(b[key]))
            lines.append([a["name"], what, _spread(a[key]), _spread(b[key]), f"{pair[1] / pair[0]:.2f}"])
    return markdown_table(("pipeline", "what", "before", "after", "after / before"), lines)
