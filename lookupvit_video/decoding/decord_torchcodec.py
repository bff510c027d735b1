"""Decode with decord or torchcodec where they are exact; elsewhere PyAV decodes, and a warning says why."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from lookupvit_video.decoding.pyav_reader import PyAVReader
from lookupvit_video.decoding.reader import (
    Box,
    Damage,
    Deadline,
    DecodeError,
    VideoInfo,
    VideoReader,
    checked_times,
    shown_at,
)
from lookupvit_video.errors import UserError

logger = logging.getLogger(__name__)

_PIECE = 64  # frames requested at once: between two pieces the time limit is checked


class _LibraryReader(VideoReader):
    """What the readers with decord and torchcodec have in common.

    PyAV opens each video first: its packets show whether the library is exact on it. A library is imported when a
    video is opened.

    What opening a file shows of damage (a missing end, checksums, packets marked corrupt, its first picture) hands it
    over to PyAV. Damage of a later picture is noticed by PyAV alone, when it decodes that picture: the libraries may
    return a neighbor, or a picture concealed in their own way, without a message. Use PyAV for files that are not known
    to be sound; docs/reliability.md reports how much of the damage it notices, by codec.
    """

    package: ClassVar[str]
    codecs: ClassVar[frozenset[str]]
    containers: ClassVar[frozenset[str]] = frozenset({"mov", "mp4", "matroska", "webm"})
    _reported: ClassVar[set[tuple[str, str]]] = set()

    def __init__(
        self, path: str | os.PathLike[str], *, timeout: float = 0.0, index_cache: str | os.PathLike[str] = ""
    ) -> None:
        why_not = self.missing()
        if why_not:
            raise ImportError(f"DATA.DECODING_BACKEND {self.package}: {why_not}; use pyav")
        self._library: Any = None  # the open video of the library; None: PyAV decodes
        self._pyav = PyAVReader(path, timeout=timeout, index_cache=index_cache)
        self.path, self._deadline = self._pyav.path, Deadline(self._pyav.path, timeout)
        try:
            distrust = self._distrust()
        except BaseException:
            self.close()
            raise
        if distrust is None:
            try:
                self._library = self._open_library()
                distrust = self._compare()
            except Exception as error:  # each raises errors of its own and RuntimeError; the messages name C++ lines
                logger.debug("%s: %s: %s", self.path, self.package, error)
                distrust = "it cannot open the file"
        if distrust is not None:
            self._hand_over(distrust)
        self._copy_facts()

    @classmethod
    def missing(cls) -> str | None:
        """See `PyAVReader.missing`."""
        raise NotImplementedError

    @property
    def info(self) -> VideoInfo:
        """See `VideoReader.info`."""
        info = self._pyav.info
        self._copy_facts()
        return info

    @property
    def damage(self) -> Sequence[Damage]:
        """See `VideoReader.damage`."""
        return self._pyav.damage

    def look_at_all(self) -> None:
        """See `VideoReader.look_at_all`."""
        self._pyav.look_at_all()
        self._copy_facts()

    def close(self) -> None:
        """See `VideoReader.close`."""
        self._library = None
        self._pyav.close()

    def _copy_facts(self) -> None:
        """Take over what PyAV knows so far; each decode may correct it."""
        pyav = self._pyav
        self.times, self.duration, self.remark, self.interlaced = (
            pyav.times,
            pyav.duration,
            pyav.remark,
            pyav.interlaced,
        )

    def _open_library(self) -> Any:
        """The video, opened by the library on one thread."""
        raise NotImplementedError

    def _read(self, wanted: list[int]) -> np.ndarray:
        """Frames at ascending indices (T,) from the library: uint8 (T, H, W, 3)."""
        raise NotImplementedError

    def _compare(self) -> str | None:
        """Why the library's own view of the file is not to be trusted."""
        return None if len(self._library) == len(self._pyav.times) else "it counts other frames than the file holds"

    def _distrust(self) -> str | None:
        """Why the library is not to be trusted with this file, from its header and packets."""
        return self._pyav.irregularity(self.codecs, self.containers)

    def _hand_over(self, reason: str) -> None:
        """Let PyAV decode this video from now on; each reason is logged once."""
        self._library = None
        if (self.package, reason) not in self._reported:
            self._reported.add((self.package, reason))
            logger.warning("%s: decoded with pyav, not %s: %s (logged once)", self.path, self.package, reason)

    def frames_at(self, seconds: Sequence[float], window: Callable[[int, int], Box] | None = None) -> torch.Tensor:
        """See `VideoReader.frames_at`."""
        indices = shown_at(self.times, checked_times(self.path, seconds)).tolist()
        frames = self._from_library(sorted(set(indices))) if self._library is not None and indices else None
        if frames is None:
            decoded = self._pyav.frames_at(seconds, window)
            self._copy_facts()
            return decoded
        if window is not None:
            frames = window(*frames.shape[1:3]).cut(frames)
        wanted = sorted(set(indices))
        return torch.from_numpy(frames if indices == wanted else frames[np.searchsorted(wanted, indices)])

    def _from_library(self, wanted: list[int]) -> np.ndarray | None:
        """Frames at ascending indices; None where the library fails, and PyAV has taken over.

        Raises:
            DecodeError: not in the time allowed.
        """
        shape = (self.info.height, self.info.width, 3)
        pieces = []
        self._deadline.restart()
        try:
            for at in range(0, len(wanted), _PIECE):
                self._deadline.check()
                pieces.append(self._read(wanted[at : at + _PIECE]))
                if pieces[-1].shape[1:] != shape:
                    raise UserError(f"frames are {pieces[-1].shape[1:]}, not {shape}")
        except DecodeError:
            raise
        except Exception as error:
            logger.debug("%s: %s: %s", self.path, self.package, error)
            self._hand_over("it fails on some frames")
            return None
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


class DecordReader(_LibraryReader):
    """Decode with decord, which counts frames from a key frame on and never looks at their times."""

    package: ClassVar[str] = "decord"
    codecs: ClassVar[frozenset[str]] = frozenset({"h264", "vp8", "vp9"})  # those on which tests find it exact

    @classmethod
    def missing(cls) -> str | None:
        """See `PyAVReader.missing`."""
        try:
            importlib.import_module("decord")
        except (ImportError, OSError) as error:  # OSError: a wheel for another platform
            return f"its package cannot be used here ({error}; decord has none for Arm)"
        return None

    def _distrust(self) -> str | None:
        if len(self._pyav.file.container.streams.video) > 1:
            return "it may take another of several video streams"
        return super()._distrust()

    def _open_library(self) -> Any:
        decord = importlib.import_module("decord")
        decord.logging.set_level(decord.logging.QUIET)
        # fault_tol: one frame that decord would replace by a copy of another is an error
        return decord.VideoReader(self.path, ctx=decord.cpu(0), num_threads=1, fault_tol=1e-9)

    def _compare(self) -> str | None:
        reason = super()._compare()
        if reason is None:
            starts = np.asarray(self._library.get_frame_timestamp(range(len(self._pyav.times))), dtype=np.float64)[:, 0]
            if not np.allclose(starts - starts[0], self._pyav.times, rtol=1e-5, atol=1e-3):
                reason = "it reads other time stamps than the file holds"
        return reason

    def _read(self, wanted: list[int]) -> np.ndarray:
        frames = self._library.get_batch(wanted)
        # decord.bridge is global: PyTorchVideo switches it to torch
        return frames.numpy() if isinstance(frames, torch.Tensor) else frames.asnumpy()


class TorchCodecReader(_LibraryReader):
    """Decode with torchcodec in its exact mode, which looks at every frame's time; so does this reader."""

    package: ClassVar[str] = "torchcodec"
    codecs: ClassVar[frozenset[str]] = frozenset({"h264", "hevc", "vp8", "vp9", "av1", "mpeg4"})

    @classmethod
    def missing(cls) -> str | None:
        """See `PyAVReader.missing`."""
        try:
            library = importlib.import_module("torchcodec")
        except ModuleNotFoundError as error:
            return f"its package cannot be used here ({error})"
        except Exception as error:  # before 0.17 a missing FFmpeg is a RuntimeError of many lines
            return f"it cannot be loaded: {str(error).strip().splitlines()[0]}"
        if getattr(library, "ffmpeg_major_version", None) is None:
            return (
                "it finds no shared libraries of FFmpeg 4 to 9: install them (conda install ffmpeg, apt install ffmpeg)"
            )
        return None

    def _open_library(self) -> Any:
        return importlib.import_module("torchcodec.decoders").VideoDecoder(
            self.path,
            stream_index=self._pyav.file.stream.index,
            dimension_order="NHWC",
            num_ffmpeg_threads=1,
            seek_mode="exact",
            device="cpu",
        )

    def _read(self, wanted: list[int]) -> np.ndarray:
        batch = self._library.get_frames_at(wanted)
        times = batch.pts_seconds.numpy() - self._library.metadata.begin_stream_seconds
        if not np.allclose(times, self._pyav.times[wanted], rtol=0, atol=1e-4):
            raise UserError(f"frames {wanted} arrive with the times {times}")
        frames: np.ndarray = batch.data.numpy()
        return frames
