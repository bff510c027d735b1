"""What the rules are based on: the videos, measured on a sample of them, and the machine."""

import os
import random
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from lookupvit_video.data.manifest import Video
from lookupvit_video.decoding.backends import DecodeError, VideoInfo, open_video
from lookupvit_video.distributed.world import World
from lookupvit_video.errors import RunFailure

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

OPENED = 200
"""Files that are opened at most; of longer lists a sample, drawn by RNG_SEED."""


@dataclass(frozen=True)
class VideoFacts:
    """Numbers of videos, and the median video."""

    train: int
    val: int
    test: int
    classes: int
    seconds: float
    """Of a video, or of the span that a list takes of it."""
    fps: float
    short_side: int
    decoded_bytes: float
    """Of a complete file in RGB, on average."""


class Machine(NamedTuple):
    """What a run may use."""

    device: str
    """"cpu" or "cuda"."""
    cores: int
    memory: int
    """Bytes of RAM that this process can still take."""
    gpu_memory: int = 0
    """Bytes; 0: no GPU."""
    processes: int = 1
    """Of the training, over all machines; cores and memory are one process's share."""


def this_machine(world: World) -> Machine:
    """Return what this machine, its container and this process's limits allow."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    gpu = torch.cuda.get_device_properties(world.device).total_memory if world.device.type == "cuda" else 0
    return Machine(world.device.type, max(1, cores // processes), _free_memory() // processes, gpu, world.size)


def _free_memory() -> int:
    """Return the least of: free RAM, what the container may still take, what this process's address space may."""
    limits = [8 << 30]  # where nothing is known
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        limits = [1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])]
    groups = list[str]()
    with suppress(OSError):
        groups = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    for _, kinds, group in (line.split(":", 2) for line in groups):
        root = "/sys/fs/cgroup/memory" if kinds == "memory" else "/sys/fs/cgroup"
        most, used = ("limit_in_bytes", "usage_in_bytes") if kinds == "memory" else ("max", "current")
        for folder in {root, root + group} if kinds in ("", "memory") else ():
            with suppress(OSError, ValueError):  # "max": no limit
                limits.append(int(Path(folder, f"memory.{most}").read_text()))
                limits[-1] -= int(Path(folder, f"memory.{used}").read_text())
    if resource and (space := resource.getrlimit(resource.RLIMIT_AS)[0]) != resource.RLIM_INFINITY:
        with suppress(OSError, ValueError):
            pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
            limits.append(space - pages * resource.getpagesize())
    return max(0, min(limits))


def open_sample(videos: Sequence[Video], seed: int) -> tuple[dict[str, VideoInfo], dict[str, str]]:
    """Open up to ``OPENED`` files: (path -> what it holds, path -> why it cannot be read).

    Raises:
        RunFailure: none of them can be read.
    """
    paths = sorted({video.path for video in videos})
    paths = random.Random(seed).sample(paths, min(OPENED, len(paths)))

    def look(path: str) -> VideoInfo | str:
        try:
            with open_video(path, timeout=60) as reader:
                return reader.info
        except DecodeError as error:
            return error.reason

    with ThreadPoolExecutor(4) as pool:
        found = dict(zip(paths, pool.map(look, paths), strict=True))
    bad = {path: reason for path, reason in found.items() if isinstance(reason, str)}
    if len(bad) == len(paths):
        raise RunFailure(f"none of {len(paths)} videos can be read, for instance {paths[0]}: {bad[paths[0]]}")
    return {path: info for path, info in found.items() if isinstance(info, VideoInfo)}, bad


def video_facts(splits: Mapping[str, Sequence[Video]], num_classes: int, infos: Mapping[str, VideoInfo]) -> VideoFacts:
    """Return the facts of "train", "val" and "test", from the files that were opened."""
    opened = [(video, infos[video.path]) for videos in splits.values() for video in videos if video.path in infos]
    spans = [video.span(info.duration) for video, info in opened]
    return VideoFacts(
        **{split: len(splits[split]) for split in ("train", "val", "test")},
        classes=num_classes,
        seconds=float(np.median([max(end - start, 0.0) for start, end in spans])),
        fps=float(np.median([info.fps for _, info in opened])),
        short_side=int(np.median([min(info.width, info.height) for _, info in opened])),
        decoded_bytes=float(np.mean([3 * info.width * info.height * info.num_frames for _, info in opened])),
    )
