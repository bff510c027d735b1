"""Decode with decord or torchcodec where they are exact; what they would get wrong is decoded with PyAV, and told."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch

from lookupvit_video.decoding.orientation import UPRIGHT
from lookupvit_video.decoding.pyav_reader import PyAVReader
from lookupvit_video.decoding.reader import Box, DecodeError
from lookupvit_video.decoding.timeline import codec_name, format_names
from lookupvit_video.errors import UserError

logger = logging.getLogger(__name__)

# Where every version of libav converts to RGB alike: elsewhere they bring halved colours to full size in several ways.
_PLAIN_PIXELS = frozenset({"yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p"})
_PIECE = 64  # frames asked for at once: between two pieces the time is looked at


class _OtherReader(PyAVReader):
    """What the libraries beside PyAV have in common. They are imported when a video is opened, and each video is
    opened by PyAV first: its packets tell whether the other library can be trusted with it.

    What opening a file shows of damage (a missing end, checksums, packets marked corrupt, its first picture) hands it
    over to PyAV. Damage of a picture further on is noticed by PyAV alone, when it decodes that picture: the others may
    return a neighbour, or a picture concealed in their own way, and say nothing. Use PyAV for files that are not known
    to be sound; docs/reliability.md says how much of the damage it notices, by codec.
    """

    codecs: ClassVar[frozenset[str]]
    containers: ClassVar[frozenset[str]]

    _other: Any = None
    _reported: ClassVar[set[tuple[str, str]]] = set()

    def __init__(
        self, path: str | os.PathLike[str], *, timeout: float = 0.0, index_cache: str | os.PathLike[str] = ""
    ) -> None:
        why_not = self.missing()
        if why_not:
            raise ImportError(f"DATA.DECODING_BACKEND {self.package}: {why_not}; use pyav")
        super().__init__(path, timeout=timeout, index_cache=index_cache)
        try:
            distrust = self._distrust()
            if distrust is None:
                self._other = self._open_other()
                distrust = self._compare()
        except DecodeError:
            self.close()
            raise
        except Exception as error:  # each raises errors of its own and RuntimeError; the messages name C++ lines
            logger.debug("%s: %s: %s", self.path, self.package, error)
            distrust = "it cannot open the file"
        if distrust is not None:
            self._hand_over(distrust)

    def close(self) -> None:
        """See `VideoReader.close`."""
        self._other = None
        super().close()

    def _open_other(self) -> Any:
        """The video, opened by the other library on one thread."""
        raise NotImplementedError

    def _read_other(self, wanted: list[int]) -> np.ndarray:
        """Frames at ascending indices (T,) from the other library: uint8 (T, H, W, 3)."""
        raise NotImplementedError

    def _compare(self) -> str | None:
        """Why the other library's own view of the file is not to be trusted."""
        return None if len(self._other) == len(self.times) else "it counts other frames than the file holds"

    def _distrust(self) -> str | None:
        """Why the other library is not to be trusted with this file, seen from its header and packets."""
        if not format_names(self._container) & self.containers or codec_name(self._stream) not in self.codecs:
            return f"it is not exact on {codec_name(self._stream)} in {self._container.format.name}"
        info = self.info  # decodes a picture: only now the rest is known
        if self._damage:
            return "the file is damaged"
        if self._timeline.sequential or not self._timeline.closed:
            return "it is not exact where key frames or time stamps are irregular"
        if self._timeline.oriented or self._orientation != UPRIGHT or self.remark:
            return "it cannot turn and mirror pictures of every size upright"
        if self._squares != 1:
            return "it does not make oblong pixels square"
        if self._decoder.pix_fmt not in _PLAIN_PIXELS or info.height % 2:
            return "it converts pictures of odd height, or of more than 8 bits, to other colours"
        return None

    def _hand_over(self, reason: str) -> None:
        """From now on PyAV decodes this video; say why, once a reason."""
        self._other = None
        if (self.package, reason) not in self._reported:
            self._reported.add((self.package, reason))
            logger.warning("%s: decoded with pyav, not %s: %s (said once)", self.path, self.package, reason)

    def _pick(self, wanted: list[int], window: Callable[[int, int], Box]) -> np.ndarray:
        if self._other is None or not wanted:
            return super()._pick(wanted, window)
        shape = (self.info.height, self.info.width, 3)
        pieces = []
        try:
            for at in range(0, len(wanted), _PIECE):
                self._deadline.check()
                pieces.append(self._read_other(wanted[at : at + _PIECE]))
                if pieces[-1].shape[1:] != shape:
                    raise UserError(f"frames are {pieces[-1].shape[1:]}, not {shape}")
        except DecodeError:
            raise
        except Exception as error:
            logger.debug("%s: %s: %s", self.path, self.package, error)
            self._hand_over("it fails on some frames")
            return super()._pick(wanted, window)
        box = window(*shape[:2])
        return box.cut(pieces[0] if len(pieces) == 1 else np.concatenate(pieces))


class DecordReader(_OtherReader):
    """Decode with decord, which counts frames from a key frame on and never looks at their times."""

    package: ClassVar[str] = "decord"
    codecs: ClassVar[frozenset[str]] = frozenset({"h264", "vp8", "vp9"})  # those on which tests find it exact
    containers: ClassVar[frozenset[str]] = frozenset({"mov", "mp4", "matroska", "webm"})

    @classmethod
    def missing(cls) -> str | None:
        """See `PyAVReader.missing`."""
        try:
            importlib.import_module("decord")
        except (ImportError, OSError) as error:  # OSError: a wheel for another platform
            return f"its package cannot be used here ({error}; decord has none for Arm)"
        return None

    def _distrust(self) -> str | None:
        if len(self._container.streams.video) > 1:
            return "it may take another of several video streams"
        return super()._distrust()

    def _open_other(self) -> Any:
        decord = importlib.import_module("decord")
        decord.logging.set_level(decord.logging.QUIET)
        # fault_tol: one frame that decord would replace by a copy of another is an error
        return decord.VideoReader(self.path, ctx=decord.cpu(0), num_threads=1, fault_tol=1e-9)

    def _compare(self) -> str | None:
        reason = super()._compare()
        if reason is None:
            starts = np.asarray(self._other.get_frame_timestamp(range(len(self.times))), dtype=np.float64)[:, 0]
            if not np.allclose(starts - starts[0], self.times, rtol=1e-5, atol=1e-3):
                reason = "it reads other time stamps than the file holds"
        return reason

    def _read_other(self, wanted: list[int]) -> np.ndarray:
        frames = self._other.get_batch(wanted)
        # decord.bridge is global: PyTorchVideo switches it to torch
        return frames.numpy() if isinstance(frames, torch.Tensor) else frames.asnumpy()


class TorchCodecReader(_OtherReader):
    """Decode with torchcodec in its exact mode, which looks at every frame's time; so does this reader."""

    package: ClassVar[str] = "torchcodec"
    codecs: ClassVar[frozenset[str]] = frozenset({"h264", "hevc", "vp8", "vp9", "av1", "mpeg4"})
    containers: ClassVar[frozenset[str]] = frozenset({"mov", "mp4", "matroska", "webm"})

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

    def _open_other(self) -> Any:
        return importlib.import_module("torchcodec.decoders").VideoDecoder(
            self.path,
            stream_index=self._stream.index,
            dimension_order="NHWC",
            num_ffmpeg_threads=1,
            seek_mode="exact",
            device="cpu",
        )

    def _read_other(self, wanted: list[int]) -> np.ndarray:
        batch = self._other.get_frames_at(wanted)
        times = batch.pts_seconds.numpy() - self._other.metadata.begin_stream_seconds
        if not np.allclose(times, self.times[wanted], rtol=0, atol=1e-4):
            raise UserError(f"frames {wanted} arrive with the times {times}")
        return batch.data.numpy()
