"""Pipelines from a video file to a normalized clip: this project's, and what others use."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from torch import Tensor
from torch.nn import functional as F

from lookupvit_video.benchmarks.videos import Geometry
from lookupvit_video.config import load_config
from lookupvit_video.data.dataset import VideoDataset, collate
from lookupvit_video.data.manifest import Video
from lookupvit_video.data.transforms import normalize, train_transform
from lookupvit_video.decoding.backends import BACKENDS, DecodeError, check_backend
from lookupvit_video.errors import UserError

FRAMES, STEP, SIZE = 16, 4 / 30, 224  # of every clip of the made videos
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BASELINE, OURS = "bare PyAV", "this loader"  # names of pipelines
PYTORCHVIDEO, VIDEOMAE = "PyTorchVideo EncodedVideo", "VideoMAE-style decord"


@dataclass(frozen=True)
class ClipRequest:
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


def pyav_baseline(request: ClipRequest) -> np.ndarray:
    """The baseline: frames (T, H, W, 3), uint8, with the least work when all about the file is known."""
    (width, height), gop, fps = request.geometry.size, request.geometry.gop, request.geometry.fps
    frames = np.empty((len(request.times), height, width, 3), dtype=np.uint8)
    reformatter = VideoReformatter()
    with av.open(request.path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        stream.codec_context.thread_count = 1
        decoded: Iterator[av.VideoFrame] = iter(())
        at, frame = -1, None
        for slot, number in zip(frames, request.frames, strict=True):
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
    """Replaces the loader's own sampler, so that all pipelines read the same clips."""

    def __init__(self) -> None:
        self.times = np.empty(0)

    def __call__(self, duration: float) -> np.ndarray:
        """Return the times (1, T) that were set."""
        return self.times[None]


def this_loader(backend: str) -> Callable[[ClipRequest], Tensor]:
    """This project's: data set, random transform, flip, collate, normalisation."""
    cfg, times = load_config(), GivenTimes()
    transform, shape = train_transform(cfg), (1, 3, FRAMES, SIZE, SIZE)

    def pipeline(request: ClipRequest) -> Tensor:
        times.times = request.times
        dataset = VideoDataset(
            [Video(request.path, 0)], times=times, transform=transform, shape=shape, backend=backend, mirror=[0],  # type: ignore[arg-type]
        )  # fmt: skip
        batch = collate([dataset[request.seed, 0]])
        if batch.errors:
            raise DecodeError(request.path, batch.errors[0][1])
        return normalize(batch.clips, MEAN, STD)

    return pipeline


def pytorchvideo(decoder: str) -> Callable[[ClipRequest], Tensor]:
    """PyTorchVideo's EncodedVideo and the transforms of its tutorial, rewritten: its own cannot be imported."""
    from pytorchvideo.data.encoded_video import EncodedVideo

    mean, std = torch.tensor(MEAN).view(3, 1, 1, 1), torch.tensor(STD).view(3, 1, 1, 1)

    def pipeline(request: ClipRequest) -> Tensor:
        random = np.random.default_rng(request.seed)
        video = EncodedVideo.from_path(request.path, decode_audio=False, decoder=decoder)
        span = (0.0, video.duration) if request.sampling == "segments" else (request.times[0], request.times[-1] + STEP)
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

    return pipeline


def videomae() -> Callable[[ClipRequest], Tensor]:
    """As VideoMAE's fine-tuning reads Kinetics: decord's get_batch, floats, normalize, random resized crop, flip."""
    import decord

    mean, std = torch.tensor(MEAN), torch.tensor(STD)

    def pipeline(request: ClipRequest) -> Tensor:
        random = np.random.default_rng(request.seed)
        video = decord.VideoReader(request.path, num_threads=1, ctx=decord.cpu(0))
        frames = video.get_batch(request.frames)
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

    return pipeline


def usable_backends() -> dict[str, str]:
    """Return each backend and why it cannot be used here ("": it can)."""
    reasons: dict[str, str] = {}
    for backend in BACKENDS:
        try:
            check_backend(backend)
            reasons[backend] = ""
        except UserError as error:
            reasons[backend] = str(error)
    return reasons


def all_pipelines(backends: Sequence[str]) -> dict[str, Callable[[ClipRequest], Any]]:
    """Return every pipeline by its name."""
    pipelines: dict[str, Callable[[ClipRequest], Any]] = {BASELINE: pyav_baseline}
    pipelines |= {f"{OURS}, {backend}": this_loader(backend) for backend in backends}
    decoders = [name for name in ("pyav", "decord") if name in backends]
    pipelines |= {f"{PYTORCHVIDEO}, {decoder}": pytorchvideo(decoder) for decoder in decoders}
    if "decord" in backends:
        pipelines[VIDEOMAE] = videomae()
    return pipelines
