"""Map-style video data sets: index -> the clips of one video, its label, and why it could not be read if so.

Shape letters: B batch of videos, V clips (views) per video, C channels, T frames, H W pixels.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from lookupvit_video.data.manifest import Video
from lookupvit_video.data.sampling import TimeSampler, within
from lookupvit_video.data.transforms import IGNORED, ClipTransform, CropTransform, mirror_half, side_by_side
from lookupvit_video.decoding.backends import DecodeError, open_video
from lookupvit_video.decoding.reader import Box, DamageList, VideoReader
from lookupvit_video.errors import RunFailure
from lookupvit_video.seeding import mix_seed

Label = int | list[float]
"""Of a clip: its class, or, where it may have several, a row (K,) of zeros and ones."""


@dataclass(frozen=True)
class Sample:
    """The clips of one video."""

    clips: Tensor
    """(V, C, T, H, W) uint8; zeros where the video could not be read."""
    labels: Sequence[Label]
    """Of each clip: a mirrored one may show another class."""
    index: int
    """Row in the list."""
    error: str = ""
    """Why the video could not be read."""
    damage: str = ""
    """What is damaged in the video, whether it was used or not."""


@dataclass(frozen=True)
class Batch:
    """Samples side by side."""

    clips: Tensor
    """(B * V, C, T, H, W) uint8, the views of a video one after the other."""
    labels: Tensor
    """(B * V,) int64, or (B * V, K) float32 of several labels each; ``IGNORED`` for clips that could not be read."""
    indices: Tensor
    """(B,) int64: rows in the list."""
    errors: list[tuple[int, str]]
    """(row, reason) of each video that could not be read, or is skipped for its damage."""
    damaged: list[tuple[int, str]] = field(default_factory=list)
    """(row, what is damaged) of each video with damage, used or skipped."""

    def pin_memory(self) -> "Batch":
        """Copy the tensors to page-locked memory (called by the DataLoader)."""
        return Batch(self.clips.pin_memory(), self.labels.pin_memory(), self.indices, self.errors, self.damaged)


@contextmanager
def seeded(*parts: int) -> Iterator[None]:
    """Seed Python's and torch's CPU random state from integers, and restore the old state afterwards."""
    seed = mix_seed(*parts)
    before, torch_before = random.getstate(), torch.default_generator.get_state()
    random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before)
        torch.default_generator.set_state(torch_before)


class VideoDataset(Dataset[Sample]):
    """Reads the clips of one video for each index: frames at the sampler's times, transformed.

    Args:
        videos: rows of a list.
        times: chooses the clips' times.
        transform: frames (T, H, W, C) -> list of clips.
        shape: (V, C, T, H, W) of the result, also for a video that cannot be read.
        backend: decoder, see ``open_video``.
        cache: keep every decoded video in memory, see ``open_video``; a number: its frames reduced to that short side.
        timeout: seconds that decoding one video may take, see ``open_video``.
        index_cache: folder of time stamps and key frames, see ``open_video``.
        damaged: what to do with a damaged video: "use" its clips, or "skip" it as one that cannot be read ("refuse":
            likewise, and the run stops at its batch).
        seed: with (epoch, index) it decides everything random about a sample.
        mirror: mirror half of the clips, and give those of label i the label ``mirror[i]``; None: mirror none.
        num_classes: K, where a video has several labels; 0: each has one.
    """

    def __init__(
        self,
        videos: Sequence[Video],
        *,
        times: TimeSampler,
        transform: ClipTransform,
        shape: tuple[int, int, int, int, int],
        backend: str = "pyav",
        cache: bool | int = False,
        timeout: float = 60.0,
        index_cache: str = "",
        damaged: str = "use",
        seed: int = 0,
        mirror: Sequence[int] | None = None,
        num_classes: int = 0,
    ):
        self.videos, self.times, self.transform = videos, times, transform
        self.shape, self.backend, self.cache, self.seed = shape, backend, cache, seed
        self.timeout, self.index_cache, self.damaged, self.mirror = timeout, index_cache, damaged, mirror
        self.num_classes = num_classes

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        """Read the video of ``key``: its row, or (epoch, row). A failure is reported in the sample, not raised."""
        epoch, index = key if isinstance(key, tuple) else (0, key)
        video, damage = self.videos[index], DamageList()
        try:
            with seeded(self.seed, epoch, index):
                clips = read_clips(
                    video,
                    self.times,
                    self.transform,
                    self.backend,
                    self.cache,
                    timeout=self.timeout,
                    index_cache=self.index_cache,
                    damage=damage,
                )
                labels = [self._label(video.every_label)] * len(clips)
                if self.mirror is not None:
                    mirrored = self._label([self.mirror[label] for label in video.every_label])
                    clips, labels = mirror_half(clips, labels[0], mirrored)
        except DecodeError as error:
            return self._unread(index, str(error), damage)
        if damage and self.damaged != "use":
            return self._unread(index, f"{video.path}: damaged: {damage}", damage)
        clips_VCTHW = clips[0][None] if len(clips) == 1 else side_by_side(clips)
        return Sample(clips_VCTHW, labels, index, damage=str(damage))

    def _label(self, labels: Sequence[int]) -> Label:
        """The label of a clip of some classes; of several labels, a row with a 1 for each class."""
        if not self.num_classes:
            return labels[0]
        return [float(label in labels) for label in range(self.num_classes)]

    def _unread(self, index: int, reason: str, damage: DamageList) -> Sample:
        clips_VCTHW = torch.zeros(self.shape, dtype=torch.uint8)
        label: Label = [float(IGNORED)] * self.num_classes if self.num_classes else IGNORED
        return Sample(clips_VCTHW, [label] * self.shape[0], index, reason, str(damage))


def read_clips(
    video: Video,
    times: TimeSampler,
    transform: ClipTransform,
    backend: str,
    cache: bool | int = False,
    *,
    timeout: float = 60.0,
    index_cache: str = "",
    damage: DamageList | None = None,
) -> list[Tensor]:
    """Return the clips of one video: all times of all of them in one pass of the decoder, then the transform.

    Args:
        damage: what the reader finds damaged is added here.

    Raises:
        DecodeError: the video cannot be read.
    """
    with open_video(
        video.path, backend, bool(cache), short_side=0 if cache is True else cache, timeout=timeout,
        index_cache=index_cache, frame_rate=video.fps or 0.0, remote=True,
    ) as reader:  # fmt: skip
        seconds_VT = clip_times(video, times, reader.duration)
        if isinstance(transform, CropTransform):
            clips = [transform.clip(crop_THWC) for crop_THWC in read_crops(reader, seconds_VT, transform)]
        else:
            frames_THWC = reader.frames_at(seconds_VT.ravel().tolist())
            clips = [clip for frames in frames_THWC.split(seconds_VT.shape[1]) for clip in transform(frames)]
        if damage is not None:
            damage += reader.damage
        return clips


def clip_times(video: Video, times: Callable[[float], np.ndarray], duration: float) -> np.ndarray:
    """Return the times (V, T) of a row's clips, in seconds of its file, which lasts ``duration`` seconds.

    Raises:
        DecodeError: the row's span begins after the end of the file.
    """
    start, end = video.span(duration)
    if start >= end:
        raise DecodeError(video.path, f"starts at {start:g} s, but the video ends at {end:g} s")
    return within(start + times(end - start), start, end)


def read_crops(reader: VideoReader, seconds_VT: np.ndarray, transform: CropTransform) -> list[Tensor]:
    """Read what lies in the boxes of each of V clips: frames (T, height, width, C) uint8.

    The boxes are drawn before the frames come, so that nothing else of them is copied.

    Raises:
        DecodeError: the video cannot be read.
    """
    boxes: list[list[Box]] = []

    def window(height: int, width: int) -> Box:
        drawn = 1 if transform.one_box else len(seconds_VT)
        boxes.extend([transform.boxes(height, width) for _ in range(drawn)] * (len(seconds_VT) // drawn))
        return Box.around(box for of_clip in boxes for box in of_clip)

    frames_THWC = reader.frames_at(seconds_VT.ravel().tolist(), window)
    around, num_frames = Box.around(box for of_clip in boxes for box in of_clip), seconds_VT.shape[1]
    return [
        box.seen_from(around).cut(frames_THWC[first : first + num_frames])
        for first, of_clip in zip(range(0, len(frames_THWC), num_frames), boxes, strict=True)
        for box in of_clip
    ]


def damage_refused(path: str, damage: str, key: str) -> RunFailure:
    """Return the failure of a run that meets a damaged video where its config refuses them."""
    return RunFailure(
        f"{path}: damaged: {damage}; fetch it again, list it in DATA.SKIP_LIST, or set {key} to use or skip"
    )


def collate(samples: Sequence[Sample]) -> Batch:
    """Put samples side by side; their views one after the other."""
    return Batch(
        # in a worker, torch's own function puts them where the training process reads them, with no copy in between
        clips=side_by_side([sample.clips for sample in samples], default_collate).flatten(0, 1),
        labels=torch.tensor([label for sample in samples for label in sample.labels]),
        indices=torch.tensor([sample.index for sample in samples]),
        errors=[(sample.index, sample.error) for sample in samples if sample.error],
        damaged=[(sample.index, sample.damage) for sample in samples if sample.damage],
    )
