"""Corrupted clips of a list of videos: what a test's data set reads, with a corruption at several severities.

Shape letters: S severities, V views, C channels, T frames, H W pixels.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lookupvit_video.corruptions.table import CLIP, ORDER, Corruption, seed_of
from lookupvit_video.data.dataset import Sample, VideoDataset, clip_times, read_crops
from lookupvit_video.data.manifest import Video
from lookupvit_video.data.transforms import CropTransform, side_by_side
from lookupvit_video.decoding.backends import DecodeError, open_video
from lookupvit_video.decoding.reader import DamageList, VideoReader, shown_at


class CorruptedVideos(VideoDataset):
    """A test's videos, each with the clips of one corruption at several severities, one severity after the other.

    A video is read once for all of them. Its key is (number of the corruption, row).

    Args:
        plain: the data set of the test.
        passes: corruptions, each with its severities.
    """

    def __init__(self, plain: VideoDataset, passes: Sequence[tuple[Corruption, Sequence[int]]]):
        super().__init__(
            plain.videos, times=plain.times, transform=plain.transform, shape=plain.shape, backend=plain.backend,
            cache=plain.cache, timeout=plain.timeout, index_cache=plain.index_cache, damaged=plain.damaged,
        )  # fmt: skip
        self.passes = passes

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        """Read the clips (S V, C, T, H, W) of one video; a failure is reported in the sample, not raised."""
        number, index = key if isinstance(key, tuple) else (0, key)
        (corruption, severities), video, damage = self.passes[number], self.videos[index], DamageList()
        reason = ""
        try:
            clips = self._read(video, corruption, severities, damage)
        except DecodeError as error:
            reason = str(error)
        if damage and self.damaged != "use":
            reason = reason or f"{video.path}: damaged: {damage}"
        if reason:
            clips = [torch.zeros(self.shape[1:], dtype=torch.uint8)] * (len(severities) * self.shape[0])
        return Sample(side_by_side(clips), [video.label] * len(clips), index, reason, str(damage))

    def _read(
        self, video: Video, corruption: Corruption, severities: Sequence[int], damage: DamageList
    ) -> list[Tensor]:
        with open_video(
            video.path, self.backend, bool(self.cache), short_side=0 if self.cache is True else self.cache,
            timeout=self.timeout, index_cache=self.index_cache, frame_rate=video.fps or 0.0, remote=True,
        ) as reader:  # fmt: skip
            clips = corrupted_clips(reader, video, self, corruption, severities)
            damage += reader.damage
            return clips


def corrupted_clips(
    reader: VideoReader, video: Video, test: VideoDataset, corruption: Corruption, severities: Sequence[int]
) -> list[Tensor]:
    """Return the clips (C, T, H, W) of a video: the views at the first severity, those at the second, and so on.

    Args:
        test: its times and transform are used.

    Raises:
        DecodeError: the video cannot be read.
    """
    seconds_VT, transform = clip_times(video, test.times, reader.duration), test.transform
    assert isinstance(transform, CropTransform)
    if corruption.stage == CLIP:
        crops = read_crops(reader, seconds_VT, transform)
        seeds = [seed_of(video.path, corruption.name, view) for view in range(len(crops))]
        views = [transform.clip(crop_THWC) for crop_THWC in crops]
        return [
            _corrupted(view, corruption, severity, seed)
            for severity in severities for view, seed in zip(views, seeds, strict=True)
        ]  # fmt: skip
    seed, num_frames, clips = seed_of(video.path, corruption.name), seconds_VT.shape[1], []
    everything = _all_frames(reader) if corruption.stage != ORDER else None
    for severity in severities:
        if everything is None:
            frames_THWC = _reordered(reader, seconds_VT, corruption, severity, seed)
        else:
            frames = torch.from_numpy(corruption(everything, severity, seed))
            frames_THWC = frames[torch.from_numpy(shown_at(reader.times, seconds_VT.ravel()))]
        clips += [clip for part in frames_THWC.split(num_frames) for clip in transform(part)]
    return clips


def _corrupted(clip_CTHW: Tensor, corruption: Corruption, severity: int, seed: int) -> Tensor:
    pixels_THWC = np.ascontiguousarray(clip_CTHW.permute(1, 2, 3, 0).numpy())
    return torch.from_numpy(corruption(pixels_THWC, severity, seed)).permute(3, 0, 1, 2)


def _all_frames(reader: VideoReader) -> np.ndarray:
    """Return every frame (N, H, W, C) of a video."""
    times = None
    while times is not reader.times:  # a decode that contradicts the packets corrects them
        times = reader.times
        frames_NHWC = reader.frames_at(times.tolist()).numpy()
    return np.ascontiguousarray(frames_NHWC)


def _reordered(reader: VideoReader, seconds_VT: np.ndarray, corruption: Corruption, severity: int, seed: int) -> Tensor:
    """Return the frames (V T, H, W, C) at some times of a video whose frames are shown in another order."""
    times = None
    while times is not reader.times:
        times = reader.times
        order = corruption(np.arange(len(times)), severity, seed)
        shown = order[shown_at(times, seconds_VT.ravel())]
        frames_THWC = reader.frames_at(times[shown].tolist())
    return frames_THWC
