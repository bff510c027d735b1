"""A local video file, opened with PyAV: its packets and frames. What cannot be read is a DecodeError in plain words.

A file can name other files or addresses; none of them is opened.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import av
from av.stream import Disposition

from lookupvit_video.decoding.damage import (
    Arm,
    FrameKeeper,
    PictureWatch,
    UnfilledWatch,
    errors_so_far,
    fresh_decoder,
    open_decoder,
)
from lookupvit_video.decoding.encryption import refuse_encrypted, why_not_opened
from lookupvit_video.decoding.reader import CONTAINER, DamageList, Deadline, DecodeError, Mismatch
from lookupvit_video.decoding.timeline import codec_name, nal_layout

logger = logging.getLogger(__name__)
_EBML = b"\x1a\x45\xdf\xa3"  # how .mkv and .webm begin
_STORED_AS_SHOWN = frozenset({"vp8", "vp9", "av1"})
# Codecs of which damage may go unnoticed and show what a buffer held before: each key frame meets a decoder that has
# decoded nothing yet, so that a picture depends on nothing that was read before it.
_FROM_KEY_TO_KEY = frozenset({"hevc", "vp8"})

# Formats that only name other files or addresses, which libav would open instead.
_NAMING_OTHERS = {
    "applehttp",
    "concat",
    "dash",
    "hls",
    "imf",
    "lavfi",
    "rtp",
    "rtsp",
    "sdp",
    "tee",
    "webm_dash_manifest",
}
_SELF_CONTAINED = sorted({name for names in av.formats_available for name in names.split(",")} - _NAMING_OTHERS)

# Options of libav. A playlist must open neither a network address nor another file; nor must references in a .mov.
ONLY_FILES = {"protocol_whitelist": "file"}
SAFE = ONLY_FILES | {"format_whitelist": ",".join(_SELF_CONTAINED)}

# Tags in another encoding than UTF-8 must not keep a file from being opened. PyAV before 19 needs this argument, later
# ones refuse it.
ANY_TAGS: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}


def checked_path(path: str | os.PathLike[str]) -> str:
    """The path of a local file that may be a video; anything else is a DecodeError."""
    name = os.fspath(path)
    if "://" in name:
        raise DecodeError(name, "is a URL; only local files are read: download it first")
    try:
        status = os.stat(name)
    except FileNotFoundError as error:
        raise DecodeError(name, "no such file") from error
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise DecodeError(name, getattr(error, "strerror", None) or str(error)) from error
    if stat.S_ISDIR(status.st_mode):
        raise DecodeError(name, "is a directory, not a video file")
    if not stat.S_ISREG(status.st_mode):
        raise DecodeError(name, "is not a regular file")
    if status.st_size == 0:
        raise DecodeError(name, "is empty (0 bytes): fetch it again")
    return name


def _format_by_head(name: str) -> str | None:
    """The format of a file by its first bytes, where they leave no doubt: trying all of libav's takes longer.

    Raises:
        DecodeError: it is a text file. libav would show it as a picture, or open what a playlist names.
    """
    try:
        with open(name, "rb", buffering=0) as file:
            head = file.read(256)
    except OSError as error:
        raise DecodeError(name, error.strerror or str(error)) from error
    if head.startswith(_EBML):
        return "matroska"
    if head[4:8] == b"ftyp":
        return "mp4"  # libav's name for all of that family
    if head.startswith(b"version https://git-lfs"):
        raise DecodeError(name, "is a git-lfs pointer, not the video: run `git lfs pull`")
    if head[:10] != b"YUV4MPEG2 " and all(byte >= 32 or byte in b"\t\r\n\f" for byte in head):
        start = head[:40].decode("utf-8", "replace").splitlines()[0]
        raise DecodeError(name, f"is text, not a video (it starts with {start!r})")
    return None


@contextmanager
def plain_errors(deadline: Deadline) -> Iterator[None]:
    """Turn what libav raises into DecodeError."""
    try:
        yield
    except av.FFmpegError as error:
        raise DecodeError(deadline.path, f"cannot be decoded: {error.strerror}") from error


def open_container(deadline: Deadline) -> Any:
    """Open a file; where the header is enough, libav is kept from decoding its first picture.

    It would learn the pixels' format from it; in a .webm that takes longer than all else in opening.
    """
    known = _format_by_head(deadline.path)
    if known == "matroska":
        container = opened(deadline, known, codec_whitelist="none")
        if _header_is_enough(container):
            return container
        container.close()
    return opened(deadline, known)


def opened(deadline: Deadline, container_format: str | None = None, **options: str) -> Any:
    """Open a file for reading, with no other file or address behind it; no format given: libav tries all it has."""
    path = deadline.path
    try:
        # "file:" keeps a colon in a name from being read as a protocol; a playlist must not open a network address
        limits = ONLY_FILES if container_format else SAFE
        # libav limits one wait for the disk; `demux` limits all of them together, with the decoding between
        return av.open(
            f"file:{path}",
            format=container_format,
            container_options=limits | options,
            timeout=deadline.seconds or None,
            **ANY_TAGS,
        )
    except av.FFmpegError as error:
        deadline.check()
        raise DecodeError(path, why_not_opened(path) or f"cannot be opened: not a video ({error.strerror})") from error


def _header_is_enough(container: Any) -> bool:
    """Whether the header is enough to decode: one video, its pictures shown in the order stored."""
    videos = container.streams.video
    if len(videos) != 1 or videos[0].codec_context is None:
        return False
    return codec_name(videos[0]) in _STORED_AS_SHOWN and videos[0].codec_context.width > 0


class VideoFile:
    """An open file: container, video stream and decoder of PyAV; None while closed.

    Args:
        damage: what is found damaged in the container is added here.
        threads: of the decoder; 0: as many as libav chooses.
    """

    def __init__(self, deadline: Deadline, damage: DamageList, threads: int) -> None:
        self.path, self.threads = deadline.path, threads
        self.container: Any = None
        self.stream: Any = None
        self.decoder: Any = None  # the stream's own, or that of a stricter library
        self.from_key_to_key = False
        self.has_decoded = False  # since the file was opened
        self._deadline, self._damage = deadline, damage
        self._arm: Arm | None = None  # what packets pass through before they are decoded

    def open(self) -> None:
        """Open the file again, with the decoder in its first state.

        Raises:
            DecodeError: there is no video in it that can be decoded.
        """
        self.close()
        self.container = open_container(self._deadline)
        self.stream = self.container.streams.best("video")
        why_not = None
        if self.stream is None or self.stream.disposition & Disposition.attached_pic:  # an album's cover
            why_not = "holds no video stream"
        elif self.stream.codec_context is None:
            why_not = "its video is in a codec that this build of PyAV cannot decode"
        if why_not:
            refuse_encrypted(self.path, self.container, None)
            raise DecodeError(self.path, why_not)
        self.decoder, self._arm = open_decoder(self.path, self.container, self.stream)
        self.decoder.thread_type = "NONE" if self.threads else "AUTO"
        self.decoder.thread_count = self.threads
        self.from_key_to_key |= codec_name(self.stream) in _FROM_KEY_TO_KEY
        self.has_decoded = False
        self._first_size: tuple[int, int] | None = None
        self.stated_size = (self.stream.codec_context.width, self.stream.codec_context.height)
        self.nal = nal_layout(self.stream)

    def renew_decoder(self) -> None:
        """Take a decoder that has decoded nothing yet. It does not know how the container turns the pictures."""
        self._finish_threads()
        self.decoder = fresh_decoder(self.stream, self.threads)

    def close(self) -> None:
        """Release the file; closing twice is harmless."""
        self._finish_threads()
        container, self.container = self.container, None
        self.stream = self.decoder = None
        if container is not None:
            container.close()

    def _finish_threads(self) -> None:
        """Wait for the decoder's threads without the GIL: PyAV ends them with it, and one that logs errors needs it."""
        if self.decoder is not None and not self.threads:
            self.decoder.flush_buffers()

    def has_first_size(self, frame: av.VideoFrame) -> bool:
        """Whether a picture is of the size of the first one since the file was opened."""
        size = (frame.width, frame.height)
        self._first_size = self._first_size or size
        return self._first_size == size

    def packets(self) -> Iterator[Any]:
        """The packets of the stream, from where the file is read."""
        return demux(self.container, self.stream, self._deadline, self._damage)

    def reread(self, index: int | None, **options: str) -> Iterator[Any]:
        """The packets of a stream (None: of all) from a second reading of the file."""
        with opened(self._deadline, **options) as other:
            yield from demux(other, None if index is None else other.streams[index], self._deadline)

    def decoded(
        self, packets: Iterator[Any], *, forgive: bool, watch: PictureWatch | None = None
    ) -> Iterator[av.VideoFrame]:
        """Frames of packets in the order shown.

        Args:
            forgive: skip packets that cannot be decoded, as players do, and note them in ``watch``.

        Raises:
            Mismatch: a sign of damage, where it is not forgiven.
        """
        self.has_decoded = True
        decode, arm, errors = self.decoder.decode, self._arm, errors_so_far()
        unfilled = UnfilledWatch() if arm else None
        keeper = FrameKeeper() if (forgive or self.from_key_to_key) and not arm else None
        for packet in chain(packets, [None]):  # None: the frames still held back
            try:
                frames = decode(arm(packet) if arm and packet is not None else packet)
            except av.FFmpegError as error:
                if not forgive:
                    raise Mismatch("damaged data") from error
                if watch:
                    watch.failed += 1
                continue
            if not forgive and errors_so_far() != errors:
                raise Mismatch("libav reports an error")
            if unfilled is not None and unfilled.has_unfilled(frames):
                if not forgive:
                    raise Mismatch("a part of a picture is not decoded")
                if watch:
                    watch.unfilled += 1
            if keeper:
                keeper.keep(frames)
            yield from frames
            if self.threads:  # elsewhere the decoder's threads work on in between
                errors = errors_so_far()  # another video may have been decoded in between


def demux(container: Any, stream: Any, deadline: Deadline, damage: DamageList | None = None) -> Iterator[Any]:
    """Packets of one stream (None: of all), up to the end or to where reading fails.

    All decoding uses this, so the time limit is checked here.
    """
    try:
        for packet in container.demux() if stream is None else container.demux(stream):
            deadline.check()
            if packet.size:  # an empty packet would end the stream for the decoder
                yield packet
    except (av.FFmpegError, IndexError) as error:  # IndexError: PyAV, where damage made a stream appear midway
        deadline.check()
        logger.debug("%s: reading stops: %s", container.name, error)
        if damage is not None:
            damage.note(CONTAINER, f"reading stops midway ({getattr(error, 'strerror', 'its streams change')})")
