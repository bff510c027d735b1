"""Sources of live video: what a name on the command line stands for, and how it is opened.

Only what the user named is opened: a file opens no other file and no address, a page of the network no file.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import av

from lookupvit_video.decoding.opening import ANY_TAGS, SAFE, checked_path, open_container
from lookupvit_video.decoding.reader import Deadline, DecodeError
from lookupvit_video.errors import UserError

_HTTP = {
    "protocol_whitelist": "http,https,tcp,tls,crypto,httpproxy",
    "format_whitelist": SAFE["format_whitelist"] + ",hls",
}
_RTSP = {"protocol_whitelist": "rtp,udp,tcp,tls", "rtsp_transport": "tcp"}
_PIPE = {**SAFE, "protocol_whitelist": "pipe"}
_OPTIONS = {"http": _HTTP, "https": _HTTP, "rtsp": _RTSP, "rtsps": _RTSP}
_CAMERAS = {"linux": ("video4linux2", "/dev/video{}"), "darwin": ("avfoundation", "{}")}


@dataclass(frozen=True)
class Source:
    """Where frames come from."""

    name: str
    """As the user wrote it."""
    kind: Literal["file", "camera", "pipe", "http", "rtsp"]

    @property
    def is_live(self) -> bool:
        """Whether it does not wait for its reader, and may be connected to again."""
        return self.kind in ("camera", "http", "rtsp")

    @property
    def shown_name(self) -> str:
        """The name without a password, for logs and events."""
        return re.sub(r"(?<=://)[^/@]*@", "", self.name)


def parse_source(name: str) -> Source:
    """Return what a name stands for: the number of a camera, a URL, "-" for standard input, or a file.

    Raises:
        UserError: another kind of URL, a camera on a system without support, or no such file.
    """
    if name == "-":
        return Source(name, "pipe")
    if name.isdecimal():
        if sys.platform not in _CAMERAS:
            raise UserError(f"--source {name}: cameras are read on Linux and macOS only; give a URL or a file")
        return Source(name, "camera")
    scheme, found, _ = name.partition("://")
    if found:
        if scheme.lower() not in _OPTIONS:
            raise UserError(f"--source {name}: a URL must begin with {', '.join(f'{known}://' for known in _OPTIONS)}")
        return Source(name, "http" if scheme.lower().startswith("http") else "rtsp")
    try:
        return Source(checked_path(name), "file")
    except DecodeError as error:
        raise UserError(f"--source {error}") from None


def open_source(source: Source, timeout: float) -> Any:
    """Open a source, and return PyAV's container.

    Args:
        timeout: seconds to connect, and to wait for data later.

    Raises:
        DecodeError: it cannot be opened.
    """
    if source.kind == "file":
        return open_container(Deadline(source.name, timeout))
    url, container_format, options = source.name, None, _OPTIONS.get(source.name.partition("://")[0].lower(), _PIPE)
    if source.kind == "pipe":
        url = "pipe:0"
    elif source.kind == "camera":
        container_format, pattern = _CAMERAS[sys.platform]
        url, options = pattern.format(source.name), {}
    try:
        return av.open(url, format=container_format, container_options=options, timeout=timeout, **ANY_TAGS)
    except (av.FFmpegError, OSError) as error:
        raise DecodeError(source.shown_name, f"cannot be opened ({_reason(error)})") from None


def _reason(error: Exception) -> str:
    if isinstance(error, av.ExitError):  # libav's word for a time limit of PyAV
        return "no answer in time"
    return str(getattr(error, "strerror", None) or error)


def decoded_frames(container: Any, name: str) -> Iterator[Any]:
    """Yield the frames of the video in an open source; packets that cannot be decoded are skipped, as players do.

    Raises:
        DecodeError: it has no video, or reading fails.
    """
    stream = container.streams.best("video")
    if stream is None or stream.codec_context is None:
        raise DecodeError(name, "holds no video that can be decoded")
    stream.codec_context.thread_type = "SLICE"  # threads by frames would hold frames back
    try:
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except av.InvalidDataError:
                continue
            yield from frames
    except av.FFmpegError as error:
        raise DecodeError(name, f"reading stops ({_reason(error)})") from None


class SourceClock:
    """The time stamps of a source -> seconds since its first frame, ascending, over interruptions."""

    JUMP = 10.0  # seconds

    def __init__(self) -> None:
        self.is_endless = False
        """Whether a jump in the time stamps is an interruption of the source, not a long frame."""
        self.last: float | None = None
        """Seconds of the frame before; None: there was none."""
        self.period = 1 / 25
        """Seconds from frame to frame, of the two before."""
        self._offset = 0.0
        self._waited: float | None = None

    def interrupted(self, seconds: float) -> None:
        """Say that the source was connected to again, after that time without frames; its time stamps begin again."""
        self._waited = seconds

    def seconds(self, stamp: float | None) -> tuple[float | None, bool]:
        """Return the seconds of the next frame, None for one that is shown before the last, and whether it was cut off.

        Args:
            stamp: its own time stamp in seconds; None: it has none.
        """
        if self.last is None:
            self._offset = stamp or 0.0
            self.last, self._waited = 0.0, None
            return 0.0, False
        found = self.last + self.period if stamp is None else stamp - self._offset
        step = found - self.last
        cut = self._waited is not None
        if cut or (self.is_endless and abs(step) > self.JUMP):
            cut, step = True, max(self._waited or 0.0, self.period)
            found, self._waited = self.last + step, None
            self._offset = (stamp or 0.0) - found
        elif step <= 0:
            return None, False
        else:
            self.period = step
        self.last = found
        return found, cut
