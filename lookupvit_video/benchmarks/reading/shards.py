"""Videos as single files and in tar shards, from the local disk and over HTTP: clips/s of the workers of a training.

Both read the same clips in the same order and take turns. On the disk they alternate batch by batch in one process;
over HTTP epoch by epoch, with several workers, and the cache of remote files is empty at the start of each.
"""

import os
import random
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from lookupvit_video.benchmarks.pipelines import FRAMES, SIZE, STEP
from lookupvit_video.benchmarks.reading.server import served
from lookupvit_video.benchmarks.videos import GEOMETRIES, make_videos
from lookupvit_video.config import load_config
from lookupvit_video.data.dataset import VideoDataset
from lookupvit_video.data.loader import Loader, TrainBatchSampler
from lookupvit_video.data.manifest import Video, read_manifest, read_table
from lookupvit_video.data.sampling import TimeSampler
from lookupvit_video.data.transforms import train_transform
from lookupvit_video.decoding.sources.held_bytes import read_held
from lookupvit_video.errors import RunFailure
from lookupvit_video.preparation.shards import make_shards
from lookupvit_video.progress import progress
from lookupvit_video.text import markdown_table, write_text

BATCH = 8
LISTS = ("files", "packed")
SHARD_BYTES = 100_000_000


def make_lists(folder: Path, kind: str, count: int) -> Path:
    """Make ``count`` video files of a kind (copies of four), and shards of them; return the folder of both."""
    place = folder / f"shards_{kind}_{count}"
    originals = make_videos(folder, [kind], 4)[kind]
    names = [f"files/{number:06d}{originals[0].suffix}" for number in range(count)]
    for number, name in enumerate(names):
        if not (place / name).exists():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(originals[number % len(originals)], place / name)
    write_text(place / "files.csv", "\n".join(["path,label", *(f"{name},0" for name in names), ""]))
    make_shards(read_table(place / "files.csv", ["one"]), ["one"], place, "packed", SHARD_BYTES)
    return place


def read_clips_of(videos: Sequence[Video], workers: int, size: int = SIZE) -> Iterator[int]:
    """Read one clip of each video as a training does; yield the clips of each batch.

    Args:
        size: height and width of a clip in pixels.

    Raises:
        RunFailure: a video cannot be read.
    """
    sizes = ["DATA.TRAIN_CROP_SIZE", str(size), "DATA.TEST_CROP_SIZE", str(size)]
    cfg = load_config(None, [*sizes, "MODEL.COMPRESSED_GRID", "[1, 1, 1]"])
    dataset = VideoDataset(
        videos, times=TimeSampler(FRAMES, STEP, "clip", training=True), transform=train_transform(cfg),
        shape=(1, 3, FRAMES, size, size),
    )  # fmt: skip
    order = TrainBatchSampler(len(videos), batch_size=BATCH, seed=0, total_steps=len(videos) // BATCH)
    for batch in Loader(dataset, order, workers=workers, prefetch=2, timeout=600, pin_memory=False):
        if batch.errors:
            raise RunFailure(batch.errors[0][1])
        yield len(batch.indices)


def on_disk(place: Path, size: int) -> dict[str, list[tuple[float, float]]]:
    """Return clock and CPU seconds of each batch, of files and of shards, read from the disk in one process."""
    for file in [*place.glob("files/*"), *place.glob("*.tar")]:
        _leave_page_cache(file)
    turns = {name: read_clips_of(read_table(place / f"{name}.csv", ["one"]), 0, size) for name in LISTS}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in turns}
    names = list(turns)
    while names:
        for name in list(names):
            start, cpu = time.perf_counter(), time.process_time()
            if next(turns[name], 0):
                seconds[name].append((time.perf_counter() - start, time.process_time() - cpu))
            else:
                names.remove(name)
        names.reverse()  # the one that was second is first in the next turn
    return {name: spent[1:] for name, spent in seconds.items()}  # without what the first batch imports


def _leave_page_cache(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def over_http(videos: Sequence[Video], read: Callable[[Sequence[Video]], int]) -> float:
    """Return videos/s of one epoch over HTTP with an empty cache, the start of workers included.

    Args:
        read: reads the videos, and returns how many.
    """
    import fsspec.implementations.http  # noqa: F401 - once, not in each worker

    before = os.environ.get("LOOKUPVIT_CACHE")
    with tempfile.TemporaryDirectory(prefix="lookupvit-") as cache:
        os.environ["LOOKUPVIT_CACHE"] = cache
        try:
            start = time.perf_counter()
            return read(videos) / (time.perf_counter() - start)
        finally:
            os.environ.pop("LOOKUPVIT_CACHE")
            if before is not None:
                os.environ["LOOKUPVIT_CACHE"] = before


def read_bytes_of(videos: Sequence[Video]) -> int:
    """Fetch each video, in a random order, without decoding it; return how many."""
    for row in random.Random(0).sample(range(len(videos)), len(videos)):
        read_held(videos[row].path)
    return len(videos)


def measure_shards(
    folder: Path, kinds: Sequence[str], *, count: int, rounds: int, workers: int, latency: float
) -> list[dict[str, Any]]:
    """Measure both ways of keeping videos, from the disk and over HTTP.

    Args:
        count: videos of each kind.
        latency: seconds from a request to the first byte of its answer.
    """
    measured = []
    todo = iter(progress(range(2 * rounds * len(kinds)), total=2 * rounds * len(kinds), label="shards", unit="rounds"))
    for kind in kinds:
        place, size = make_lists(folder, kind, count), min(SIZE, *GEOMETRIES[kind].size)
        of_way: dict[str, dict[str, list[float]]] = defaultdict(lambda: {name: [] for name in LISTS})
        for _ in range(rounds):
            next(todo)
            for name, batches in on_disk(place, size).items():
                for clock, spent in zip(("", ", CPU time"), zip(*batches, strict=True), strict=True):
                    of_way[f"disk, 1 process{clock}"][name].append(BATCH * len(spent) / sum(spent))
        http = f"HTTP, {1000 * latency:g} ms, "
        ways: dict[str, Callable[[Sequence[Video]], int]] = {
            f"{http}{workers} workers": lambda videos, size=size: sum(read_clips_of(videos, workers, size)),  # type: ignore[misc]
            f"{http}1 process, bytes alone": read_bytes_of,
        }
        with served(place, latency) as address:
            for turn in range(rounds):
                next(todo)
                for way, read in ways.items():
                    for name in LISTS[:: 1 if turn % 2 else -1]:
                        videos = read_manifest(place / f"{name}.csv", ["one"], address)
                        of_way[way][name].append(over_http(videos, read))
        measured += [{"kind": kind, "read": way, "per_second": found} for way, found in of_way.items()]
    next(todo, None)
    return measured


def report(measured: Sequence[dict[str, Any]]) -> str:
    """Return a table: medians over the rounds (lowest to highest)."""
    rows = []
    for facts in measured:
        files, shards = (facts["per_second"][name] for name in LISTS)
        ratios = [b / a for a, b in zip(files, shards, strict=True)]
        cells = [f"{median(values):.1f} ({min(values):.1f} to {max(values):.1f})" for values in (files, shards)]
        ratio = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        rows.append((GEOMETRIES[facts["kind"]].title, facts["read"], *cells, ratio))
    return markdown_table(("videos", "read from", "single files, videos/s", "shards, videos/s", "ratio"), rows)
