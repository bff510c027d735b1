"""What a list of many videos costs: CPU time up to the first batch, and the memory of each process (PSS, Linux only).

Every figure stands next to that of a list of 1000 rows; the difference is what the rows cost. The files are symbolic
links to a few videos.
"""

import json
import os
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
_CHILD = "from lookupvit_video.benchmarks.lists import child; child()"
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
            for file in [*place.glob(".train.csv.*.rows"), *place.glob(".train.csv.*.checked")]:
                file.unlink()
            cache = place / "cache"
            subprocess.run(["rm", "-rf", str(cache)], check=True)  # noqa: S603, S607 - a folder made here
            with _running(place, kind, 0) as (_, cold):
                facts = {"list": kind, "rows": count, "cold_s": cold["cpu_s"]}
            with _running(place, kind, samples) as (first, cached):
                facts |= {"cached_s": cached["cpu_s"], "first_mib": _pss(first.pid)}
                facts["later_mib"] = _sum_after(first)
                facts["workers_mib"] = [_pss(pid) for pid in _children(first.pid)]
                with _running(place, kind, 0) as (second, _):
                    facts["both_mib"] = sum(_pss(pid) for one in (first, second) for pid in _family(one.pid))
                facts["one_mib"] = sum(_pss(pid) for pid in _family(first.pid))
            measured.append(facts)
    return measured


def report(measured: Sequence[dict[str, Any]]) -> str:
    """Return a table of what the rows cost, over the small list."""
    lines: list[tuple[str, ...]] = [
        ("list", "rows", "cold, s", "cached, s", "first process, MiB", "after the samples", "next process")
    ]
    for small, large in zip(measured[::2], measured[1::2], strict=True):
        for facts in (small, large):
            lines.append((
                facts["list"], str(facts["rows"]), f"{facts['cold_s']:.1f}", f"{facts['cached_s']:.1f}",
                *(f"{value:.0f}" for value in (facts["first_mib"], facts["later_mib"], _next(facts))),
            ))  # fmt: skip
        lines.append((
            "", "difference", f"{large['cold_s'] - small['cold_s']:.1f}",
            f"{large['cached_s'] - small['cached_s']:.1f}",
            *(f"{large[name] - small[name]:.0f}" for name in ("first_mib", "later_mib")),
            f"{_next(large) - _next(small):.1f}",
        ))  # fmt: skip
    return aligned_table(lines)


def _next(facts: dict[str, Any]) -> float:
    """MiB that a second process with its workers adds."""
    return float(facts["both_mib"] - facts["one_mib"])


@contextmanager
def _running(place: Path, kind: str, samples: int) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """Start a process and yield it when it has its first batch, with what it says."""
    command = [sys.executable, "-c", _CHILD, str(place), kind, str(samples)]
    environment = {**os.environ, "LOOKUPVIT_CACHE": str(place / "cache")}
    process = subprocess.Popen(  # noqa: S603 - this program
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    try:
        yield process, json.loads(process.stdout.readline())
    finally:
        process.communicate("\n")


def _sum_after(process: subprocess.Popen[str]) -> float:
    """Wait for the samples; return the PSS of the process then."""
    assert process.stdout is not None
    process.stdout.readline()
    return _pss(process.pid)


def _family(pid: int) -> list[int]:
    return [pid, *_children(pid)]


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _pss(pid: int) -> float:
    """Proportional set size in MiB: shared pages are divided among those who share them."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise OSError(f"no PSS of process {pid}")


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
    if samples:
        order = TrainBatchSampler(len(videos), batch_size=_BATCH, seed=0, total_steps=len(videos) // _BATCH)
        times, shape = lambda duration: None, (1, 1, 1, 1, 1)
        rows = _RowsOnly(videos, times=times, transform=times, shape=shape)  # type: ignore[arg-type]
        loader = Loader(rows, order, workers=WORKERS, prefetch=2, timeout=0, pin_memory=False)
        batches = iter(loader)
        for _ in islice(batches, samples // _BATCH):
            pass
        print("done", flush=True)
    sys.stdin.readline()


def _classes(place: str) -> int:
    return Path(place, "classes.txt").read_text().count("\n")
