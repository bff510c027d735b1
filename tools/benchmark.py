#!/usr/bin/env python3
"""Measure how fast the parts of this project run, side by side with what else would do the work.

`loader`: video files to normalised clips. Without --cfg, on videos that are made for it: how many clips one core makes
in a second, with every backend and with other people's ways, and which stage takes how long. With --cfg, on your own
training videos: which stage takes how long, and how many workers a training needs.

`model`: LookupViT beside a dense ViT and what users would pick instead: time, memory, and how much of the saved
operations is saved time.

`block`: a roofline account of one block: operations, bytes, time and the least time of each part.
"""

from lookupvit_video.commands.run_command import run_command  # first: Ctrl-C in a later import gives one line

# isort: split
import argparse
import os
import platform
import runpy
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any
from zlib import crc32

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from fvcore.common.config import CfgNode
from torch import Tensor
from torch.nn import functional as F

from lookupvit_video.arguments import parse_with_settings
from lookupvit_video.config import load_config
from lookupvit_video.data.dataset import Sample, VideoDataset, clip_times, collate, read_crops, seeded
from lookupvit_video.data.loader import TrainBatchSampler, keep_freed_memory
from lookupvit_video.data.manifest import Video, load_classes, load_split
from lookupvit_video.data.sampling import TimeSampler, build_time_sampler
from lookupvit_video.data.transforms import CropTransform, normalize, side_by_side, train_transform
from lookupvit_video.decoding.backends import BACKENDS, DecodeError, check_backend, open_video
from lookupvit_video.errors import UserError
from lookupvit_video.files import atomic_write, write_json
from lookupvit_video.log import setup_logging
from lookupvit_video.progress import progress

EXAMPLE = """examples:
  python tools/benchmark.py loader --json loader.json
  python tools/benchmark.py loader --only webm --rounds 3
  python tools/benchmark.py loader --cfg configs/k400_lvit.yaml --clips-per-second 600 DATA.PATH_TO_DATA_DIR /data/k400
"""
FRAMES, STEP, SIZE = 16, 4 / 30, 224  # of every clip that the made videos give
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
STAGES = ("open", "decode", "convert", "transform", "collate")
BARE, OURS = "bare PyAV", "this loader"  # names of contenders
PYTORCHVIDEO, VIDEOMAE = "PyTorchVideo EncodedVideo", "VideoMAE-style decord"
ACCOUNT = f"""
clips/s: normalised float32 clips of {FRAMES} x {SIZE} x {SIZE} per second of processor time, of all threads; the median
of the rounds (lowest to highest). In each round every way reads the same clips, and the ways take turns.
{BARE}: seek, decode on one thread and convert to RGB, told key frames and frame rate beforehand, with no check, crop,
resize or normalisation.
"""


# Videos to read ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Geometry:
    """A kind of video file; every ``gop``-th picture is a key frame."""

    title: str
    suffix: str
    codec: str
    size: tuple[int, int]
    fps: int
    frames: int
    gop: int
    noise: float  # deviation in grey levels; with it the bit rate comes near that of the data sets' files
    options: dict[str, str] = field(default_factory=dict)


X264 = {"preset": "medium", "crf": "23", "sc_threshold": "0"}
VP9 = {"crf": "31", "b": "0", "deadline": "good", "cpu-used": "4"}
GEOMETRIES = {
    "gop12": Geometry("10 s, 340x256, 30 fps, h264, GOP 12", ".mp4", "libx264", (340, 256), 30, 300, 12, 4.8, X264),
    "gop250": Geometry("10 s, 340x256, 30 fps, h264, GOP 250", ".mp4", "libx264", (340, 256), 30, 300, 250, 4.8, X264),
    "webm": Geometry("4 s, 427x240, 12 fps, vp9, GOP 128", ".webm", "libvpx-vp9", (427, 240), 12, 48, 128, 4.0, VP9),
}


def moving_pictures(geometry: Geometry, seed: int) -> Iterator[np.ndarray]:
    """Yield pictures (H, W, 3) uint8: a camera pans over a scene of all scales, things move, the sensor is noisy."""
    rng = np.random.default_rng(seed)
    (width, height), frames = geometry.size, geometry.frames
    scene = torch.zeros(1, 3, 2 * height, 2 * width)
    for octave in range(2, 8):
        coarse = torch.from_numpy(rng.normal(size=(1, 3, 2**octave, 2**octave)).astype(np.float32))
        scene += F.interpolate(coarse, scene.shape[2:], mode="bicubic") * 96 / 2**octave
    scene_HWC = (scene[0].permute(1, 2, 0) * 2 + 128).numpy()
    things = rng.integers(20, 236, size=(6, 3))
    side, phase, speed = rng.integers(20, 60, 6), rng.uniform(0, 6, (6, 2)), rng.uniform(0.5, 2.5, (6, 2))
    for t in np.arange(frames) / geometry.fps:
        top, left = (round(part * (0.5 + 0.4 * np.sin(0.35 * t + i))) for i, part in enumerate((height, width)))
        picture = scene_HWC[top : top + height, left : left + width].copy()
        for colour, size, at, rate in zip(things, side, phase, speed, strict=True):
            y, x = ((np.sin(at + rate * t) * 0.5 + 0.5) * (height - size, width - size)).astype(int)
            picture[y : y + size, x : x + size] = colour
        picture += rng.normal(0, geometry.noise, (height, width, 1))
        yield picture.clip(0, 255).astype(np.uint8)


def make_video(path: Path, geometry: Geometry, seed: int) -> None:
    """Write one video file, whole or not at all."""
    with atomic_write(path) as temporary, av.open(str(temporary), "w") as container:
        stream: Any = container.add_stream(geometry.codec, rate=geometry.fps, options=geometry.options)
        (stream.width, stream.height), stream.pix_fmt = geometry.size, "yuv420p"
        stream.codec_context.gop_size = geometry.gop
        for number, picture in enumerate(moving_pictures(geometry, seed)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, geometry.fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def make_videos(folder: Path, names: Sequence[str], count: int) -> dict[str, list[Path]]:
    """Make what is not there yet, ``count`` files of each geometry, and return the paths."""
    # The name holds what the file was made from, so that no video of an earlier version is taken for another.
    made_from = {name: crc32(repr(GEOMETRIES[name]).encode()) for name in names}
    paths = {
        name: [folder / f"{name}_{made_from[name]:08x}_{seed}{GEOMETRIES[name].suffix}" for seed in range(count)]
        for name in names
    }
    jobs = [(path, name, seed) for name in names for seed, path in enumerate(paths[name]) if not path.exists()]
    for path, name, seed in progress(jobs, total=len(jobs), label="making videos", unit="videos"):
        make_video(path, GEOMETRIES[name], seed)
    return paths


# Ways from a file to a normalised clip ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Draw:
    """A clip to read: times (T,) in seconds, and a seed for what is random about its pixels."""

    path: str
    geometry: Geometry
    sampling: str
    times: np.ndarray
    seed: int

    @property
    def frames(self) -> list[int]:
        """Numbers of the frames shown at the times."""
        numbers = np.floor(self.times * self.geometry.fps + 1e-6).astype(int)
        return np.minimum(numbers, self.geometry.frames - 1).tolist()


def bare(draw: Draw) -> np.ndarray:
    """The yardstick: frames (T, H, W, 3), uint8, with the least work when all about the file is known."""
    (width, height), gop, fps = draw.geometry.size, draw.geometry.gop, draw.geometry.fps
    frames = np.empty((len(draw.times), height, width, 3), dtype=np.uint8)
    reformatter = VideoReformatter()
    with av.open(draw.path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        stream.codec_context.thread_count = 1
        decoded: Iterator[av.VideoFrame] = iter(())
        at, frame = -1, None
        for slot, number in zip(frames, draw.frames, strict=True):
            if at < 0 or number // gop > at // gop:
                key_seconds = Fraction(number // gop * gop, fps)
                container.seek(round(key_seconds / (stream.time_base or 1)), stream=stream)
                decoded = container.decode(stream)
            while at != number:
                frame = next(decoded)
                at = round((frame.time or 0) * fps)
            assert frame is not None
            slot[...] = reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
    return frames


class GivenTimes:
    """Stands where the loader's own sampler would draw: all ways read the same clips."""

    def __init__(self) -> None:
        self.times = np.empty(0)

    def __call__(self, duration: float) -> np.ndarray:
        """Return the times (1, T) that were set."""
        return self.times[None]


def this_loader(backend: str) -> Callable[[Draw], Tensor]:
    """The whole path of this project: data set, random transform, flip, collate, normalisation."""
    cfg, times = load_config(), GivenTimes()
    transform, shape = train_transform(cfg), (1, 3, FRAMES, SIZE, SIZE)

    def way(draw: Draw) -> Tensor:
        times.times = draw.times
        dataset = VideoDataset(
            [Video(draw.path, 0)], times=times, transform=transform, shape=shape, backend=backend, mirror=[0],  # type: ignore[arg-type]
        )  # fmt: skip
        batch = collate([dataset[draw.seed, 0]])
        if batch.errors:
            raise DecodeError(draw.path, batch.errors[0][1])
        return normalize(batch.clips, MEAN, STD)

    return way


def pytorchvideo(decoder: str) -> Callable[[Draw], Tensor]:
    """PyTorchVideo's EncodedVideo and the transforms of its tutorial, written anew: its own cannot be imported."""
    from pytorchvideo.data.encoded_video import EncodedVideo

    mean, std = torch.tensor(MEAN).view(3, 1, 1, 1), torch.tensor(STD).view(3, 1, 1, 1)

    def way(draw: Draw) -> Tensor:
        random = np.random.default_rng(draw.seed)
        video = EncodedVideo.from_path(draw.path, decode_audio=False, decoder=decoder)
        span = (0.0, video.duration) if draw.sampling == "segments" else (draw.times[0], draw.times[-1] + STEP)
        clip = video.get_clip(*(Fraction(float(at)) for at in span))["video"]  # (C, T, H, W) float32, all frames
        video.close()
        clip = clip[:, torch.linspace(0, clip.shape[1] - 1, FRAMES).long()]  # UniformTemporalSubsample
        clip = (clip / 255 - mean) / std  # Lambda, Normalize
        height, width = clip.shape[2:]
        scale = int(random.integers(256, 321)) / min(height, width)  # RandomShortSideScale
        clip = F.interpolate(clip, (int(height * scale), int(width * scale)), mode="bilinear", align_corners=False)
        top, left = (int(random.integers(0, side - SIZE + 1)) for side in clip.shape[2:])
        clip = clip[:, :, top : top + SIZE, left : left + SIZE]  # RandomCrop, RandomHorizontalFlip
        return (clip.flip(-1) if random.random() < 0.5 else clip)[None].contiguous()

    return way


def videomae() -> Callable[[Draw], Tensor]:
    """As VideoMAE's fine-tuning reads Kinetics: decord's get_batch, floats, normalise, random resized crop, flip."""
    import decord

    mean, std = torch.tensor(MEAN), torch.tensor(STD)

    def way(draw: Draw) -> Tensor:
        random = np.random.default_rng(draw.seed)
        video = decord.VideoReader(draw.path, num_threads=1, ctx=decord.cpu(0))
        frames = video.get_batch(draw.frames)
        frames = frames if isinstance(frames, Tensor) else torch.from_numpy(frames.asnumpy())
        clip = ((frames.float() / 255 - mean) / std).permute(3, 0, 1, 2)
        height, width = clip.shape[2:]
        side = np.sqrt(random.uniform(0.5, 1.0) * height * width)
        ratio = np.sqrt(random.uniform(0.75, 1.3333))
        high, wide = min(height, round(side / ratio)), min(width, round(side * ratio))
        top, left = int(random.integers(0, height - high + 1)), int(random.integers(0, width - wide + 1))
        clip = clip[:, :, top : top + high, left : left + wide]
        clip = F.interpolate(clip, (SIZE, SIZE), mode="bilinear", align_corners=False)
        return (clip.flip(-1) if random.random() < 0.5 else clip)[None].contiguous()

    return way


def usable_backends() -> dict[str, str]:
    """Return each backend and, where it cannot be used here, why."""
    reasons: dict[str, str] = {}
    for backend in BACKENDS:
        try:
            check_backend(backend)
            reasons[backend] = ""
        except UserError as error:
            reasons[backend] = str(error)
    return reasons


def contenders(backends: Sequence[str]) -> dict[str, Callable[[Draw], Any]]:
    """Return every way by its name."""
    ways: dict[str, Callable[[Draw], Any]] = {BARE: bare}
    ways |= {f"{OURS}, {backend}": this_loader(backend) for backend in backends}
    decoders = [name for name in ("pyav", "decord") if name in backends]
    ways |= {f"{PYTORCHVIDEO}, {decoder}": pytorchvideo(decoder) for decoder in decoders}
    if "decord" in backends:
        ways[VIDEOMAE] = videomae()
    return ways


# Measuring --------------------------------------------------------------------------------------------------------


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
    times: TimeSampler,
    transform: CropTransform,
    cfg: CfgNode,
    backend: str,
) -> dict[str, Stopwatch]:
    """Read the clips of one video as a worker does, and return the time of each stage.

    Converting to RGB happens between decoding one frame and the next, so it is measured by itself, where PyAV does it,
    and taken off the decoding; other libraries do both in one call, and "convert" is left out.
    """
    watches = {stage: Stopwatch() for stage in STAGES}
    with watches["open"]:
        reader = open_video(video.path, backend, timeout=cfg.DATA.DECODE_TIMEOUT, index_cache=cfg.DATA.INDEX_CACHE)
    with reader:
        seconds_VT = clip_times(video, times, reader.duration)
        with watches["decode"]:
            crops = read_crops(reader, seconds_VT, transform)
        info = reader.info
    with watches["transform"]:
        clips = [transform.clip(crop) for crop in crops]
    with watches["collate"]:
        batch = collate([Sample(side_by_side(clips), [video.label] * len(clips), 0)])
        normalize(batch.clips, cfg.DATA.MEAN, cfg.DATA.STD)
    if backend != "pyav":
        del watches["convert"]
        return watches
    picture, reformatter = av.VideoFrame(info.width, info.height, "yuv420p"), VideoReformatter()
    with watches["convert"]:
        for _ in range(seconds_VT.size):
            reformatter.reformat(picture, format="rgb24", threads=1)
    for clock in ("cpu", "wall"):
        whole, part = getattr(watches["decode"], clock), getattr(watches["convert"], clock)
        setattr(watches["decode"], clock, max(0.0, whole - part))
    return watches


def draw_clips(paths: Sequence[Path], geometry: Geometry, sampling: str, count: int, seed: int) -> list[Draw]:
    """Return ``count`` clips, from one file after the other."""
    sampler = TimeSampler(FRAMES, STEP, "segments" if sampling == "segments" else "clip", training=True)
    draws = []
    for number in range(count):
        with seeded(seed, number):
            times = sampler(geometry.frames / geometry.fps)[0]
        draws.append(Draw(str(paths[number % len(paths)]), geometry, sampling, times, 1000 * seed + number))
    return draws


def check_same_frames(draw: Draw, backends: Sequence[str]) -> None:
    """Make sure that what is compared decodes the same frames; decoders may round colours in their own ways."""
    expected = bare(draw).astype(np.int16)
    for backend in backends:
        with open_video(draw.path, backend) as reader:
            frames = reader.frames_at(draw.times.tolist()).numpy()
        difference = float(np.abs(frames - expected).mean())
        if difference > 1.5:
            raise RuntimeError(
                f"{draw.path}: {backend} decodes other frames than bare PyAV ({difference:.1f} grey levels)"
            )


def measure(
    ways: dict[str, Callable[[Draw], Any]], rounds: list[list[Draw]], tick: Callable[[], None]
) -> dict[str, list[float]]:
    """Return clips per second of processor time for each way and round; each round begins with another way.

    A way reads all clips of a round in a row: so it finds memory and caches as it left them, as in a worker.
    """
    rates: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for draws in rounds:
        for name in names:
            ways[name](draws[0])  # not counted: imports, memory
            watch = Stopwatch()
            with watch:
                for draw in draws:
                    ways[name](draw)
            rates[name].append(len(draws) / watch.cpu)
            tick()
        names = names[1:] + names[:1]
    return rates


def measure_stages(
    backends: Sequence[str], rounds: list[list[Draw]], tick: Callable[[], None]
) -> dict[str, dict[str, float]]:
    """Return the milliseconds of processor time per clip of each stage: the median over the rounds."""
    cfg, times = load_config(), GivenTimes()
    transform = train_transform(cfg)
    found: dict[str, dict[str, list[float]]] = {backend: {} for backend in backends}
    for draws in rounds:
        sums: dict[tuple[str, str], float] = {}
        for draw in draws:
            times.times = draw.times
            for backend in backends:
                with seeded(draw.seed):
                    watches = stage_seconds(Video(draw.path, 0), times, transform, cfg, backend)
                for stage, watch in watches.items():
                    sums[backend, stage] = sums.get((backend, stage), 0.0) + watch.cpu
        tick()
        for (backend, stage), seconds in sums.items():
            found[backend].setdefault(stage, []).append(1000 * seconds / len(draws))
    return {backend: {stage: median(values) for stage, values in stages.items()} for backend, stages in found.items()}


# What came out ----------------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """Return what the figures belong to."""
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    packages: dict[str, str | None] = {}
    names = ("torch", "torchvision", "av", "decord", "torchcodec", "pytorchvideo", "transformers", "timm", "triton")
    for name in names:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    return {"processor": model, "cores": os.cpu_count(), "python": platform.python_version(), "packages": packages}


def judge(rates: dict[str, list[float]], sampling: str) -> list[dict[str, Any]]:
    """Hold this loader (with PyAV, the default) against its goals; ratios are medians over the rounds."""
    own = rates[f"{OURS}, pyav"]

    def ratio(name: str) -> float:
        return median(a / b for a, b in zip(own, rates[name], strict=True))

    goals = [("of bare PyAV", BARE, 0.85)]
    times = 4.0 if sampling == "segments" else 2.0
    goals += [(f"times {name}", name, times) for name in rates if name.startswith(PYTORCHVIDEO)]
    goals += [(f"times {name}", name, 1.0) for name in rates if name == VIDEOMAE]
    return [
        {"goal": what, "ratio": round(ratio(name), 3), "at_least": goal, "met": ratio(name) >= goal}
        for what, name, goal in goals
    ]


def show_results(results: list[dict[str, Any]]) -> None:
    print("\n| videos | clips | way | clips/s | of bare PyAV |\n|---|---|---|---|---|")
    for result in results:
        bare_rates = result["clips_per_second"][BARE]
        for name, rates in result["clips_per_second"].items():
            share = median(a / b for a, b in zip(rates, bare_rates, strict=True))
            print(
                f"| {result['videos']} | {result['sampling']} | {name} | {median(rates):.1f} ({min(rates):.1f} to "
                f"{max(rates):.1f}) | {100 * share:.0f} % |"
            )
    print(ACCOUNT)
    print(f"| videos | clips | backend | {' | '.join(f'{stage}, ms' for stage in STAGES)} | sum, ms |")
    print(f"|---|---|---|{'---|' * len(STAGES)}---|")
    for result in results:
        for backend, stages in result["stages_ms"].items():
            cells = [f"{stages[stage]:.2f}" if stage in stages else "in decode" for stage in STAGES]
            print(
                f"| {result['videos']} | {result['sampling']} | {backend} | {' | '.join(cells)} "
                f"| {sum(stages.values()):.2f} |"
            )
    print("\n| videos | clips | this loader (pyav) | reached | goal | met |\n|---|---|---|---|---|---|")
    for result in results:
        for goal in result["goals"]:
            print(
                f"| {result['videos']} | {result['sampling']} | {goal['goal']} | {goal['ratio']:.2f} "
                f"| {goal['at_least']:.2f} | {'yes' if goal['met'] else 'no'} |"
            )


def benchmark_made_videos(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure on videos made here."""
    backends = usable_backends()
    for reason in filter(None, backends.values()):
        print(f"left out: {reason}", file=sys.stderr)
    usable = [backend for backend, reason in backends.items() if not reason]
    paths = make_videos(arguments.cache, arguments.only, arguments.videos)
    ways = contenders(usable)
    settings = [(name, sampling) for name in arguments.only for sampling in ("random clip", "segments")]
    total = len(settings) * arguments.rounds * (len(ways) + 1)
    done = progress(range(total), total=total, label="loader", unit="turns")

    def tick() -> None:
        next(done, None)

    results = []
    for name, sampling in settings:
        geometry = GEOMETRIES[name]
        rounds = [
            draw_clips(paths[name], geometry, sampling, arguments.clips, seed) for seed in range(arguments.rounds)
        ]
        check_same_frames(rounds[0][0], usable)
        rates = measure(ways, rounds, tick)
        stages = measure_stages(usable, rounds, tick)
        size = sum(path.stat().st_size for path in paths[name]) / len(paths[name])
        kbits = 8 * size / 1000 / (geometry.frames / geometry.fps)
        results.append(
            {"geometry": name, "videos": f"{geometry.title}, {kbits:.0f} kbit/s", "sampling": sampling,
             "clips_per_second": rates, "stages_ms": stages, "goals": judge(rates, sampling)}
        )  # fmt: skip
    next(done, None)
    show_results(results)
    return {"rounds": arguments.rounds, "clips_a_round": arguments.clips, "results": results}


# One's own videos -------------------------------------------------------------------------------------------------


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
                watches = stage_seconds(videos[row], times, transform, cfg, cfg.DATA.DECODING_BACKEND)
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
    print(f"\n{facts['clips']} clips of {facts['videos']} videos, {facts['backend']}\n")
    print("| stage | ms a clip | % | of it at work, ms |\n|---|---|---|---|")
    for stage, share in facts["stages_ms"].items():
        percent = 100 * share * facts["clips"] / 1000 / wall
        print(f"| {stage} | {share:.2f} | {percent:.0f} | {facts['stages_cpu_ms'][stage]:.2f} |")
    print(f"| sum | {1000 * wall / facts['clips']:.2f} | 100 | {1000 * cpu / facts['clips']:.2f} |")
    print(f"\none worker: {facts['clips_per_second_and_worker']:.1f} clips/s")
    if cpu < 0.8 * wall:
        print(f"{100 * (1 - cpu / wall):.0f} % of the time is spent waiting: for the disk, or for busy cores")
    for rate, workers in facts["workers"].items():
        print(f"{rate} clips/s need {workers} workers, each with a core to itself")
    for reason in facts["bad"]:
        print(f"not read: {reason}")


# Command line -----------------------------------------------------------------------------------------------------


def parse_arguments(others: dict[str, dict[str, Any]]) -> argparse.Namespace:
    def at_least_one(text: str) -> int:
        number = int(text)
        if number < 1:
            raise argparse.ArgumentTypeError(f"{number} is less than 1")
        return number

    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    loader = what.add_parser(
        "loader", help="video files to normalised clips",
        epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    loader.add_argument("--cfg", metavar="FILE", help="measure this config's training videos instead of made ones")
    loader.add_argument("--clips-per-second", nargs="+", type=float, default=[100, 300, 1000], metavar="N",
                        help="with --cfg: tell the workers that so many clips a second need")  # fmt: skip
    loader.add_argument("--videos", type=at_least_one, metavar="N",
                        help="how many videos are read (default: 100 of the config's, 4 of a made kind)")  # fmt: skip
    loader.add_argument(
        "--only", nargs="+", choices=list(GEOMETRIES), default=list(GEOMETRIES), help="kinds of made videos"
    )
    loader.add_argument("--rounds", type=at_least_one, default=7, metavar="N", help="medians are over so many rounds")
    loader.add_argument("--clips", type=at_least_one, default=12, metavar="N", help="clips a round, in every way")
    loader.add_argument(
        "--cache", type=Path, default=Path("runs/benchmark"), metavar="DIR", help="folder of made videos"
    )
    loader.add_argument("--json", type=Path, metavar="FILE", help="write the same as JSON")
    loader.add_argument("overrides", nargs="*", default=[], metavar="KEY VALUE", help="settings over the config's")
    for name, title in (("model", "LookupViT beside other models"), ("block", "where the time of a block goes")):
        other = what.add_parser(
            name, help=title, epilog=others[name]["EXAMPLES"], formatter_class=argparse.RawDescriptionHelpFormatter
        )
        others[name]["add_arguments"](other, at_least_one)
    parser.set_defaults(overrides=[])
    arguments = parse_with_settings(parser)
    if arguments.overrides and arguments.what != "loader":
        parser.error(f"unrecognized arguments: {' '.join(arguments.overrides)}")
    return arguments


def main() -> int:
    others = {
        name: runpy.run_path(str(Path(__file__).with_name(f"benchmark_{name}.py"))) for name in ("model", "block")
    }
    arguments = parse_arguments(others)
    if arguments.what in others:
        code: int = others[arguments.what]["benchmark"](arguments, machine())
        return code
    setup_logging()
    torch.set_num_threads(1)  # as in a worker
    keep_freed_memory()  # likewise; it helps all ways alike
    facts: dict[str, Any] = {"command": " ".join(sys.argv[1:]), **machine()}
    if arguments.cfg:
        cfg = load_config(arguments.cfg, arguments.overrides)
        facts |= benchmark_own_videos(cfg, arguments.videos or 100, arguments.clips_per_second)
    else:
        if arguments.overrides:
            raise UserError(f"settings ({arguments.overrides[0]} ...) are for a config; name it with --cfg")
        arguments.videos = arguments.videos or 4
        facts |= benchmark_made_videos(arguments)
    print(f"\n{facts['processor']}, {facts['cores']} cores, " + ", ".join(
        f"{name} {number}" for name, number in facts["packages"].items() if number))  # fmt: skip
    if arguments.json:
        write_json(arguments.json, facts)
    return 0


if __name__ == "__main__":
    run_command(main)
