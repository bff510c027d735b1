"""Video file -> frames at given times, exactly; by PyAV, or by decord or torchcodec where those are exact."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch
from torch.nn import functional as F

from lookupvit_video.decoding.decord_torchcodec import DecordReader, TorchCodecReader
from lookupvit_video.decoding.pyav_reader import PyAVReader
from lookupvit_video.decoding.reader import Box, Damage, DecodeError, VideoInfo, VideoReader, checked_times, shown_at
from lookupvit_video.decoding.sources.frame_folder import FrameFolder
from lookupvit_video.decoding.sources.held_bytes import HeldReader, read_held
from lookupvit_video.errors import UserError

__all__ = ["BACKENDS", "DecodeError", "VideoInfo", "VideoReader", "check_backend", "open_video"]

BACKENDS: dict[str, type[PyAVReader | DecordReader | TorchCodecReader]] = {
    "pyav": PyAVReader,
    "decord": DecordReader,
    "torchcodec": TorchCodecReader,
}


def check_backend(backend: str) -> None:
    """Find out, before any work, whether a backend can serve here.

    Raises:
        UserError: an unknown backend, or what it needs is not installed.
    """
    if backend not in BACKENDS:
        raise UserError(f"DATA.DECODING_BACKEND is {backend!r}; choose one of: {', '.join(BACKENDS)}")
    why_not = BACKENDS[backend].missing()
    if why_not:
        raise UserError(f"DATA.DECODING_BACKEND {backend}: {why_not}; use pyav")


def open_video(
    path: str | os.PathLike[str],
    backend: str = "pyav",
    in_memory: bool = False,
    *,
    short_side: int = 0,
    timeout: float = 60.0,
    index_cache: str | os.PathLike[str] = "",
    frame_rate: float = 0.0,
    remote: bool = False,
) -> VideoReader:
    """Open a local video file, a member of a tar shard ("a.tar/b.mp4"), or a folder of numbered pictures.

    Args:
        backend: "pyav", "decord" or "torchcodec".
        in_memory: decode all of it the first time and keep it in this process's memory (3 bytes a pixel and frame).
        short_side: pixels to which the frames in memory are reduced; 0: they stay as they are.
        timeout: seconds that opening, or one call of the reader, may take; 0: no limit.
        index_cache: folder that keeps the time stamps and key frames of each video, so that only its first opening
            reads all of its packets; empty: none is kept.
        frame_rate: pictures a second, of a folder; 0: not known.
        remote: also fetch what "https://...", "s3://..." and the like name; off, since addresses may come from anyone.

    Raises:
        DecodeError: the file is missing, not a video, truncated, has no frame that can be decoded, or takes too long.
        UserError: an unknown backend.
        ImportError: the backend's package is not installed.
        OSError: the folder of the index cannot be written to.
    """
    if backend not in BACKENDS:
        check_backend(backend)  # raises
    if in_memory:
        return _in_memory(os.fspath(path), backend, short_side, timeout, frame_rate, remote)
    return _opened(os.fspath(path), backend, timeout, index_cache, frame_rate, remote)


def _opened(
    path: str, backend: str, timeout: float, index_cache: str | os.PathLike[str], frame_rate: float,
    remote: bool,
) -> VideoReader:  # fmt: skip
    if os.path.isdir(path):
        return FrameFolder(path, frame_rate, timeout)
    data = read_held(path, remote)
    if data is not None:  # time stamps are not kept: the bytes are here already
        return HeldReader(path, data, lambda name: BACKENDS[backend](name, timeout=timeout))
    return BACKENDS[backend](path, timeout=timeout, index_cache=index_cache)


class MemoryReader(VideoReader):
    """A decoded video; closing it does nothing, since the next one to ask shares it."""

    def __init__(
        self, path: str, backend: str, short_side: int, timeout: float, frame_rate: float, remote: bool
    ) -> None:
        self.path = path
        with _opened(path, backend, timeout, "", frame_rate, remote) as reader:
            self.times = np.empty(0)
            while self.times is not reader.times:  # a decode that contradicts the packets corrects them
                self.times = reader.times
                self._frames = _all_frames(reader, short_side)
            self.duration, self._info, self._damage = reader.duration, reader.info, reader.damage

    @property
    def info(self) -> VideoInfo:
        """See `VideoReader.info`."""
        return self._info

    @property
    def damage(self) -> Sequence[Damage]:
        """See `VideoReader.damage`."""
        return self._damage

    def frames_at(self, seconds: Sequence[float], window: Callable[[int, int], Box] | None = None) -> torch.Tensor:
        """See `VideoReader.frames_at`."""
        frames = window(*self._frames.shape[1:3]).cut(self._frames) if window else self._frames
        return frames[torch.from_numpy(shown_at(self.times, checked_times(self.path, seconds)))]

    def close(self) -> None:
        """See `VideoReader.close`."""


def _all_frames(reader: VideoReader, short_side: int) -> torch.Tensor:
    """Return every frame (T, H, W, C) of a video, reduced part by part where that is wanted."""
    times, info = reader.times.tolist(), reader.info
    if not 0 < short_side < min(info.width, info.height):
        return reader.frames_at(times)
    scale = short_side / min(info.width, info.height)
    size = [round(info.height * scale), round(info.width * scale)]
    parts = (reader.frames_at(times[first : first + 32]) for first in range(0, len(times), 32))
    return torch.cat([
        F.interpolate(part.permute(0, 3, 1, 2), size, mode="bilinear", antialias=True).permute(0, 2, 3, 1)
        for part in parts
    ])  # fmt: skip


_in_memory = cache(MemoryReader)
