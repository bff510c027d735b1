"""Video files like those of the data sets, made for measuring."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any
from zlib import crc32

import av
import numpy as np
import torch
from torch.nn import functional as F

from lookupvit_video.files import atomic_write
from lookupvit_video.progress import progress


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
    noise: float  # deviation in gray levels; with it the bit rate comes near that of the data sets' files
    options: dict[str, str] = field(default_factory=dict)


X264 = {"preset": "medium", "crf": "23", "sc_threshold": "0"}
VP9 = {"crf": "31", "b": "0", "deadline": "good", "cpu-used": "4"}
GEOMETRIES = {
    "gop12": Geometry("10 s, 340x256, 30 fps, h264, GOP 12", ".mp4", "libx264", (340, 256), 30, 300, 12, 4.8, X264),
    "gop250": Geometry("10 s, 340x256, 30 fps, h264, GOP 250", ".mp4", "libx264", (340, 256), 30, 300, 250, 4.8, X264),
    "short": Geometry("2 s, 160x120, 15 fps, h264, GOP 12", ".mp4", "libx264", (160, 120), 15, 30, 12, 4.0, X264),
    "webm": Geometry("4 s, 427x240, 12 fps, vp9, GOP 128", ".webm", "libvpx-vp9", (427, 240), 12, 48, 128, 4.0, VP9),
    "tiny": Geometry("2 s, 64x64, 12 fps, h264, GOP 12", ".mp4", "libx264", (64, 64), 12, 24, 12, 0.0, X264),
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
        for color, size, at, rate in zip(things, side, phase, speed, strict=True):
            y, x = ((np.sin(at + rate * t) * 0.5 + 0.5) * (height - size, width - size)).astype(int)
            picture[y : y + size, x : x + size] = color
        picture += rng.normal(0, geometry.noise, (height, width, 1))
        yield picture.clip(0, 255).astype(np.uint8)


def make_video(path: Path, geometry: Geometry, seed: int) -> None:
    """Write one video file, completely or not at all."""
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
    """Make the missing ones of ``count`` files of each geometry, and return the paths."""
    # The name depends on what the file was made from, so that no video of an earlier version is used.
    made_from = {name: crc32(repr(GEOMETRIES[name]).encode()) for name in names}
    paths = {
        name: [folder / f"{name}_{made_from[name]:08x}_{seed}{GEOMETRIES[name].suffix}" for seed in range(count)]
        for name in names
    }
    jobs = [(path, name, seed) for name in names for seed, path in enumerate(paths[name]) if not path.exists()]
    for path, name, seed in progress(jobs, total=len(jobs), label="making videos", unit="videos"):
        make_video(path, GEOMETRIES[name], seed)
    return paths
