"""What a list of many videos costs: CPU time up to the first batch, and the memory of each process (PSS, Linux only).

Every figure stands next to that of a list of 1000 rows; the difference is what the rows cost. The files are symbolic
links to a few videos.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from lookupvit_video.benchmarks.videos import make_videos
from lookupvit_video.config import load_config
from lookupvit_video.data.dataset import Sample, VideoDataset
from lookupvit_video.data.loader import Loader, TrainBatchSampler, build_train_loader
from lookupvit_video.data.manifest import load_classes, load_split
from lookupvit_video.data.video_table import Video
from lookupvit_video.text import aligned_table, write_text

SMALL = 1000
WORKERS = 2
_CHILD = "from lookupvit_video.benchmarks.reading.lists import child; child()"
_BATCH = 8


def make_links(folder: Path, rows: int) -> Path:
    """Make class folders with links to four videos, 1000 a class, and lists of them; return their folder."""
    place = folder / f"links_{rows}"
    if (place / "train.csv").exists():
        return place
    videos = [os.path.abspath(path) for path in make_videos(folder, ["gop12"], 4)["gop12"]]
    names = []
    for label in range(-(-rows // 1000)):
        (place / "videos" / f"c{label:04d}").mkdir(parents=True, exist_ok=True)
        for number in range(min(1000, rows - 1000 * label)):
            name = f"videos/c{label:04d}/some_name_of_a_video_{number:06d}.mp4"
            if not os.path.lexists(place / name):
                os.symlink(videos[number % len(videos)], place / name)
            names.append(f"{name},{label}")
    write_text(place / "classes.txt", "".join(f"c{label:04d}\n" for label in range(-(-rows // 1000))))
    write_text(place / "train.csv", "\n".join(["path,label", *names, ""]))
    return place


def measure_lists(folder: Path, rows: int, samples: int) -> list[dict[str, Any]]:
    """Measure a CSV and class folders, of few rows and of many, cold and cached.

    Args:
        samples: that the workers read the rows of, without decoding, to see whether memory grows.
    """
    measured = []
    for kind in ("train.csv", "videos"):
        for count in (SMALL, rows):
            place = make_links(folder, count)
            shutil.rmtree(place / "cache", ignore_errors=True)
            for file in [*place.glob(".train.csv.*.rows"), *place.glob(".train.csv.*.checked")]:
                file.unlink()
            with _running(place, kind, samples) as cold:
                facts: dict[str, Any] = {"list": kind, "rows": count, "cold_s": cold.seconds}
            with _running(place, kind, samples) as first:
                facts |= {"cached_s": first.seconds, "first_mib": first.memory()}
                with _running(place, kind, samples) as second:
                    facts["next_mib"] = first.memory() + second.memory() - facts["first_mib"]
                facts["later_mib"] = first.after_samples()
            measured.append(facts)
    return measured


def report(measured: Sequence[dict[str, Any]]) -> str:
    """Return a table of what the rows cost, over the small list."""
    names = ("cold_s", "cached_s", "first_mib", "later_mib", "next_mib")
    lines: list[tuple[str, ...]] = [
        ("list", "rows", "cold, s", "cached, s", "first, MiB", "after the samples, MiB", "second, MiB")
    ]
    for pair in zip(measured[::2], measured[1::2], strict=True):
        rows: list[tuple[Any, ...]] = [
            (facts["list"], str(facts["rows"]), *(facts[name] for name in names)) for facts in pair
        ]
        rows.append(("", "difference", *(pair[1][name] - pair[0][name] for name in names)))
        lines += [(kind, count, *(f"{value:.1f}" for value in values)) for kind, count, *values in rows]
    return aligned_table(lines)


class _Family:
    """A process of a training, and its workers."""

    def __init__(self, process: subprocess.Popen[str]):
        assert process.stdout is not None
        self.process, self.lines = process, process.stdout
        self.seconds = float(json.loads(self.lines.readline())["cpu_s"])
        self.lines.readline()  # its workers have read a batch each

    def memory(self) -> float:
        """MiB that the process and its workers take for themselves and for the table; libraries do not count."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return sum(map(_pss, [pid, *map(int, children)]))

    def after_samples(self) -> float:
        """Let it read the samples; return its memory then."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.lines.readline()
        return self.memory()


@contextmanager
def _running(place: Path, kind: str, samples: int) -> Iterator[_Family]:
    """Start a process and yield it when it has its first batches."""
    command = [sys.executable, "-c", _CHILD, str(place), kind, str(samples)]
    environment = {**os.environ, "LOOKUPVIT_CACHE": str(place / "cache")}
    process = subprocess.Popen(  # noqa: S603 - this program
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        yield _Family(process)
    finally:
        process.kill()
        process.communicate()


def _pss(pid: int) -> float:
    """MiB of proportional set size: shared pages are divided among those who share them."""
    kib, of_table = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text(errors="replace").splitlines():
        name, *rest = line.split()
        if "-" in name and not name.endswith(":"):
            of_table = line.endswith(".rows")
        elif name == "Pss:" and of_table:
            kib += int(rest[0])
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss_Anon:"):
            kib += int(line.split()[1])
    return kib / 1024


class _RowsOnly(VideoDataset):
    """Reads rows, and no video."""

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        assert isinstance(key, tuple)
        return Sample(torch.zeros(1, 1, 1, 1, 1, dtype=torch.uint8), [self.videos[key[1]].label], key[1])


def child() -> None:
    """Be one process of a training: read the list, take one batch, then the rows of some samples."""
    place, kind, samples = sys.argv[1], sys.argv[2], int(sys.argv[3])
    cfg = load_config(None, [
        "DATA.PATH_TO_DATA_DIR", place, "DATA.TRAIN_LIST", kind, "MODEL.NUM_CLASSES", str(_classes(place)),
        "TRAIN.BATCH_SIZE", str(_BATCH), "DATA.TRAIN_CROP_SIZE", "32", "DATA.TEST_CROP_SIZE", "32",
        "DATA.NUM_FRAMES", "2", "MODEL.COMPRESSED_GRID", "[1, 1, 1]",
        "DATA_LOADER.NUM_WORKERS", str(WORKERS), "DATA_LOADER.PIN_MEMORY", "False",
    ])  # fmt: skip
    videos: Sequence[Video] = load_split(cfg, "train", load_classes(cfg))
    next(iter(build_train_loader(cfg, videos, total_steps=1)))
    print(json.dumps({"cpu_s": time.process_time()}), flush=True)
    order = TrainBatchSampler(len(videos), batch_size=_BATCH, seed=0, total_steps=len(videos) // _BATCH)
    times, shape = lambda duration: None, (1, 1, 1, 1, 1)
    rows = _RowsOnly(videos, times=times, transform=times, shape=shape)  # type: ignore[arg-type]
    batches = iter(Loader(rows, order, workers=WORKERS, prefetch=2, timeout=0, pin_memory=False))
    for part in (2 * WORKERS, (samples - 2 * WORKERS) // _BATCH):
        for _ in islice(batches, part):
            pass
        print("read", flush=True)
        sys.stdin.readline()


def _classes(place: str) -> int:
    return Path(place, "classes.txt").read_text().count("\n")
