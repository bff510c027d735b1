"""A video whose bytes are in memory: a member of a shard, or a remote file. Nothing is written to disk on Linux."""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from lookupvit_video.decoding.reader import Box, Damage, DecodeError, VideoInfo, VideoReader
from lookupvit_video.decoding.sources.remote_files import read_remote
from lookupvit_video.decoding.sources.shards import read_member, split_member
from lookupvit_video.remote import is_remote


def read_held(path: str, remote: bool = True) -> bytes | None:
    """Return the bytes of a member of a shard, or of a remote file; None: the path names a file of this machine.

    Args:
        remote: fetch remote files; if not, their paths are those of files of this machine.

    Raises:
        DecodeError: it cannot be read, or is damaged.
    """
    if is_remote(path) and not remote:
        return None
    member = split_member(path)
    if member:
        return read_member(path, member)
    if not is_remote(path):
        return None
    try:
        data = read_remote(path)
    except OSError as error:
        raise DecodeError(path, f"cannot be fetched ({error})") from error
    if not data:
        raise DecodeError(path, "is empty (0 bytes): fetch it again")
    return data


class HeldReader(VideoReader):
    """Reads a video whose bytes are in memory, with a reader of files: the bytes get a name that only this process has.

    Args:
        path: for messages.
        make: opens a file.
    """

    def __init__(self, path: str, data: bytes, make: Callable[[str], VideoReader]):
        self.path = path
        self._descriptor, self._temporary = _named(data)
        name = self._temporary or f"/proc/self/fd/{self._descriptor}"
        try:
            with self._own_name():
                self._reader = make(name)
        except BaseException:
            self._release()
            raise
        self._copy_facts()

    @property
    def info(self) -> VideoInfo:
        """See `VideoReader.info`."""
        with self._own_name():
            return self._reader.info

    @property
    def damage(self) -> Sequence[Damage]:
        """See `VideoReader.damage`."""
        return self._reader.damage

    def frames_at(self, seconds: Sequence[float], window: Callable[[int, int], Box] | None = None) -> torch.Tensor:
        """See `VideoReader.frames_at`."""
        with self._own_name():
            return self._reader.frames_at(seconds, window)

    def look_at_all(self) -> None:
        """See `VideoReader.look_at_all`."""
        with self._own_name():
            self._reader.look_at_all()

    def close(self) -> None:
        """See `VideoReader.close`."""
        self._reader.close()
        self._release()

    @contextmanager
    def _own_name(self) -> Iterator[None]:
        """Name the video as the list does in what is raised, and take over what a decode corrected."""
        try:
            yield
        except DecodeError as error:
            raise DecodeError(self.path, error.reason) from error.__cause__
        if hasattr(self, "_reader"):
            self._copy_facts()

    def _copy_facts(self) -> None:
        reader = self._reader
        self.times: np.ndarray = reader.times
        self.duration, self.remark, self.interlaced = reader.duration, reader.remark, reader.interlaced

    def _release(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        if self._temporary:
            os.unlink(self._temporary)
            self._temporary = ""


def _named(data: bytes) -> tuple[int, str]:
    """Return a descriptor of a file in memory, or, where the system has none, the name of a temporary file."""
    if hasattr(os, "memfd_create") and os.path.exists("/proc/self/fd"):
        descriptor = os.memfd_create("video", os.MFD_CLOEXEC)
        left = memoryview(data)
        while left:
            left = left[os.write(descriptor, left) :]
        return descriptor, ""
    with tempfile.NamedTemporaryFile(delete=False, suffix=".video") as temporary:
        temporary.write(data)
    return -1, temporary.name
