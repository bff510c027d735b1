"""How fast videos become normalized clips: pipelines side by side, and the time of each stage."""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from fvcore.common.config import CfgNode

from lookupvit_video.benchmarks.pipelines import (
    BASELINE,
    FRAMES,
    MEAN,
    OURS,
    PYTORCHVIDEO,
    SIZE,
    STD,
    STEP,
    VIDEOMAE,
    ClipRequest,
    GivenTimes,
    all_pipelines,
    pyav_baseline,
    usable_backends,
)
from lookupvit_video.benchmarks.videos import GEOMETRIES, Geometry, make_videos
from lookupvit_video.config import load_config
from lookupvit_video.data.dataset import Sample, clip_times, collate, read_crops, seeded
from lookupvit_video.data.loader import TrainBatchSampler
from lookupvit_video.data.manifest import Video, load_classes, load_split
from lookupvit_video.data.sampling import TimeSampler, build_time_sampler
from lookupvit_video.data.transforms import CropTransform, normalize, side_by_side, train_transform
from lookupvit_video.decoding.backends import DecodeError, open_video
from lookupvit_video.errors import UserError
from lookupvit_video.progress import progress
from lookupvit_video.text import markdown_table

STAGES = ("open", "decode", "convert", "transform", "collate")
ACCOUNT = f"""
clips/s: normalized float32 clips of {FRAMES} x {SIZE} x {SIZE} per second of processor time, of all threads; the median
of the rounds (lowest to highest). In each round every pipeline reads the same clips, and the pipelines take turns.
{BASELINE}: seek, decode on one thread and convert to RGB, with key frames and frame rate known beforehand, without any
check, crop, resize or normalization.
"""


class Stopwatch:
    """Adds up processor seconds and wall-clock seconds."""

    def __init__(self) -> None:
        self.cpu = self.wall = 0.0

    def __enter__(self) -> "Stopwatch":
        self._cpu, self._wall = time.process_time(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.cpu += time.process_time() - self._cpu
        self.wall += time.perf_counter() - self._wall


def stage_seconds(
    video: Video,
    times: Callable[[float], np.ndarray],
    transform: CropTransform,
    backend: str,
    *,
    timeout: float = 60.0,
    index_cache: str = "",
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
) -> dict[str, Stopwatch]:
    """Read the clips of one video as a worker does, and return the time of each stage.

    Converting to RGB happens between decoding one frame and the next, so it is measured by itself, where PyAV does it,
    and subtracted from the decoding; other libraries do both in one call, and "convert" is left out.
    """
    watches = {stage: Stopwatch() for stage in STAGES}
    with watches["open"]:
        reader = open_video(video.path, backend, timeout=timeout, index_cache=index_cache)
    with reader:
        seconds_VT = clip_times(video, times, reader.duration)
        with watches["decode"]:
            crops = read_crops(reader, seconds_VT, transform)
        info = reader.info
    with watches["transform"]:
        clips = [transform.clip(crop) for crop in crops]
    with watches["collate"]:
        batch = collate([Sample(side_by_side(clips), [video.label] * len(clips), 0)])
        normalize(batch.clips, mean, std)
    if backend != "pyav":
        del watches["convert"]
        return watches
    picture, reformatter = av.VideoFrame(info.width, info.height, "yuv420p"), VideoReformatter()
    with watches["convert"]:
        for _ in range(seconds_VT.size):
            reformatter.reformat(picture, format="rgb24", threads=1)
    for clock in ("cpu", "wall"):
        both, part = getattr(watches["decode"], clock), getattr(watches["convert"], clock)
        setattr(watches["decode"], clock, max(0.0, both - part))
    return watches


def clip_requests(paths: Sequence[Path], geometry: Geometry, sampling: str, count: int, seed: int) -> list[ClipRequest]:
    """Return ``count`` clips, from one file after the other."""
    sampler = TimeSampler(FRAMES, STEP, "segments" if sampling == "segments" else "clip", training=True)
    requests = []
    for number in range(count):
        with seeded(seed, number):
            times = sampler(geometry.frames / geometry.fps)[0]
        requests.append(ClipRequest(str(paths[number % len(paths)]), geometry, sampling, times, 1000 * seed + number))
    return requests


def check_same_frames(request: ClipRequest, backends: Sequence[str]) -> None:
    """Make sure that what is compared decodes the same frames; decoders may round colors in their own ways."""
    expected = pyav_baseline(request).astype(np.int16)
    for backend in backends:
        with open_video(request.path, backend) as reader:
            frames = reader.frames_at(request.times.tolist()).numpy()
        difference = float(np.abs(frames - expected).mean())
        if difference > 1.5:
            raise RuntimeError(
                f"{request.path}: {backend} decodes other frames than bare PyAV ({difference:.1f} gray levels)"
            )


def measure(
    pipelines: dict[str, Callable[[ClipRequest], Any]], rounds: list[list[ClipRequest]], tick: Callable[[], None]
) -> dict[str, list[float]]:
    """Return clips per second of processor time for each pipeline and round; each round begins with another one.

    A pipeline reads all clips of a round in a row: it finds memory and caches as it left them, as in a worker.
    """
    rates: dict[str, list[float]] = {name: [] for name in pipelines}
    names = list(pipelines)
    for requests in rounds:
        for name in names:
            pipelines[name](requests[0])  # not counted: imports, memory
            watch = Stopwatch()
            with watch:
                for request in requests:
                    pipelines[name](request)
            rates[name].append(len(requests) / watch.cpu)
            tick()
        names = names[1:] + names[:1]
    return rates


def measure_stages(
    backends: Sequence[str], rounds: list[list[ClipRequest]], tick: Callable[[], None]
) -> dict[str, dict[str, float]]:
    """Return the milliseconds of processor time per clip of each stage: the median over the rounds."""
    times, transform = GivenTimes(), train_transform(load_config())
    found: dict[str, dict[str, list[float]]] = {backend: {} for backend in backends}
    for requests in rounds:
        sums: dict[tuple[str, str], float] = {}
        for request in requests:
            times.times = request.times
            for backend in backends:
                with seeded(request.seed):
                    watches = stage_seconds(Video(request.path, 0), times, transform, backend)
                for stage, watch in watches.items():
                    sums[backend, stage] = sums.get((backend, stage), 0.0) + watch.cpu
        tick()
        for (backend, stage), seconds in sums.items():
            found[backend].setdefault(stage, []).append(1000 * seconds / len(requests))
    return {backend: {stage: median(values) for stage, values in stages.items()} for backend, stages in found.items()}


# Results --------------------------------------------------------------------------------------------------------------


def compare_with_goals(rates: dict[str, list[float]], sampling: str) -> list[dict[str, Any]]:
    """Compare this loader (with PyAV, the default) with its goals; ratios are medians over the rounds."""
    own = rates[f"{OURS}, pyav"]

    def ratio(name: str) -> float:
        return median(a / b for a, b in zip(own, rates[name], strict=True))

    goals = [("of bare PyAV", BASELINE, 0.85)]
    times = 4.0 if sampling == "segments" else 2.0
    goals += [(f"times {name}", name, times) for name in rates if name.startswith(PYTORCHVIDEO)]
    goals += [(f"times {name}", name, 1.0) for name in rates if name == VIDEOMAE]
    return [
        {"goal": what, "ratio": round(ratio(name), 3), "at_least": goal, "met": ratio(name) >= goal}
        for what, name, goal in goals
    ]


def show_results(results: list[dict[str, Any]]) -> None:
    """Print the tables of speed, of stages and of goals."""
    speeds, stages, goals = [], [], []
    for result in results:
        place = (result["videos"], result["sampling"])
        baseline = result["clips_per_second"][BASELINE]
        for name, rates in result["clips_per_second"].items():
            share = median(a / b for a, b in zip(rates, baseline, strict=True))
            spread = f"{median(rates):.1f} ({min(rates):.1f} to {max(rates):.1f})"
            speeds.append((*place, name, spread, f"{100 * share:.0f} %"))
        for backend, ms in result["stages_ms"].items():
            cells = [f"{ms[stage]:.2f}" if stage in ms else "in decode" for stage in STAGES]
            stages.append((*place, backend, *cells, f"{sum(ms.values()):.2f}"))
        for goal in result["goals"]:
            met = "yes" if goal["met"] else "no"
            goals.append((*place, goal["goal"], f"{goal['ratio']:.2f}", f"{goal['at_least']:.2f}", met))
    print(f"\n{markdown_table(('videos', 'clips', 'pipeline', 'clips/s', 'of bare PyAV'), speeds)}{ACCOUNT}")
    print(markdown_table(("videos", "clips", "backend", *(f"{stage}, ms" for stage in STAGES), "sum, ms"), stages))
    print(markdown_table(("videos", "clips", "this loader (pyav)", "reached", "goal", "met"), goals), end="")


def benchmark_made_videos(cache: Path, kinds: Sequence[str], videos: int, rounds: int, clips: int) -> dict[str, Any]:
    """Measure on videos made here.

    Args:
        cache: folder of the videos.
        videos: files of each kind.
        clips: clips a round.
    """
    backends = usable_backends()
    for reason in filter(None, backends.values()):
        print(f"left out: {reason}", file=sys.stderr)
    usable = [backend for backend, reason in backends.items() if not reason]
    paths = make_videos(cache, kinds, videos)
    pipelines = all_pipelines(usable)
    settings = [(name, sampling) for name in kinds for sampling in ("random clip", "segments")]
    total = len(settings) * rounds * (len(pipelines) + 1)
    done = progress(range(total), total=total, label="loader", unit="turns")

    def tick() -> None:
        next(done, None)

    results = []
    for name, sampling in settings:
        geometry = GEOMETRIES[name]
        requests = [clip_requests(paths[name], geometry, sampling, clips, seed) for seed in range(rounds)]
        check_same_frames(requests[0][0], usable)
        rates = measure(pipelines, requests, tick)
        stages = measure_stages(usable, requests, tick)
        size = sum(path.stat().st_size for path in paths[name]) / len(paths[name])
        kbits = 8 * size / 1000 / (geometry.frames / geometry.fps)
        results.append(
            {"geometry": name, "videos": f"{geometry.title}, {kbits:.0f} kbit/s", "sampling": sampling,
             "clips_per_second": rates, "stages_ms": stages, "goals": compare_with_goals(rates, sampling)}
        )  # fmt: skip
    next(done, None)
    show_results(results)
    return {"rounds": rounds, "clips_a_round": clips, "results": results}


# Own videos -------------------------------------------------------------------------------------------------


def benchmark_own_videos(cfg: CfgNode, count: int, wanted: Sequence[float]) -> dict[str, Any]:
    """Measure what a worker does with a config's training videos, in the order of the first epoch."""
    videos = load_split(cfg, "train", load_classes(cfg))
    sampler = TrainBatchSampler(len(videos), batch_size=1, seed=cfg.RNG_SEED, total_steps=min(count, len(videos)))
    keys = [key for keys in sampler for key in keys]
    times = build_time_sampler(cfg, training=True, num_clips=cfg.AUG.NUM_SAMPLE)
    transform = train_transform(cfg)
    sums: dict[str, Stopwatch] = {}
    bad = []
    read = 0
    for epoch, row in progress(keys, total=len(keys), label="loader", unit="videos"):
        try:
            with seeded(cfg.RNG_SEED, epoch, row):
                watches = stage_seconds(
                    videos[row], times, transform, cfg.DATA.DECODING_BACKEND, timeout=cfg.DATA.DECODE_TIMEOUT,
                    index_cache=cfg.DATA.INDEX_CACHE, mean=cfg.DATA.MEAN, std=cfg.DATA.STD,
                )  # fmt: skip
        except DecodeError as error:
            bad.append(str(error))
            continue
        read += 1
        for stage, watch in watches.items():
            total = sums.setdefault(stage, Stopwatch())
            total.cpu, total.wall = total.cpu + watch.cpu, total.wall + watch.wall
    if not read:
        raise UserError(f"none of {len(keys)} training videos can be read; the first: {bad[0]}")
    clips = read * cfg.AUG.NUM_SAMPLE
    wall, cpu = (sum(getattr(watch, clock) for watch in sums.values()) for clock in ("wall", "cpu"))
    facts = {
        "videos": read, "clips": clips, "bad": bad, "backend": cfg.DATA.DECODING_BACKEND,
        "stages_ms": {stage: 1000 * watch.wall / clips for stage, watch in sums.items()},
        "stages_cpu_ms": {stage: 1000 * watch.cpu / clips for stage, watch in sums.items()},
        "clips_per_second_and_worker": clips / wall,
        "workers": {f"{rate:g}": int(np.ceil(rate * wall / clips)) for rate in wanted},
    }  # fmt: skip
    show_own_videos(facts, wall, cpu)
    return facts


def show_own_videos(facts: dict[str, Any], wall: float, cpu: float) -> None:
    """Print what was measured on a config's videos, in ``wall`` seconds with ``cpu`` seconds of processor time."""
    print(f"\n{facts['clips']} clips of {facts['videos']} videos, {facts['backend']}\n")
    rows: list[tuple[str, ...]] = []
    for stage, ms in facts["stages_ms"].items():
        percent = 100 * ms * facts["clips"] / 1000 / wall
        rows.append((stage, f"{ms:.2f}", f"{percent:.0f}", f"{facts['stages_cpu_ms'][stage]:.2f}"))
    rows.append(("sum", f"{1000 * wall / facts['clips']:.2f}", "100", f"{1000 * cpu / facts['clips']:.2f}"))
    print(markdown_table(("stage", "ms a clip", "%", "CPU time, ms"), rows), end="")
    print(f"\none worker: {facts['clips_per_second_and_worker']:.1f} clips/s")
    if cpu < 0.8 * wall:
        print(f"{100 * (1 - cpu / wall):.0f} % of the time is spent waiting: for the disk, or for busy cores")
    for rate, workers in facts["workers"].items():
        print(f"{rate} clips/s need {workers} workers, each with its own core")
    for reason in facts["bad"]:
        print(f"not read: {reason}")
