"""An uploaded file -> its clips, within limits; read in a worker process, which may crash or hang.

Nothing heavy is imported here, since the worker imports this module.
"""

import contextlib
import os
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from lookupvit_video.decoding.backends import DecodeError, VideoReader
from lookupvit_video.errors import UserError
from lookupvit_video.inference.views import Failure, Plan, Views, read_file
from lookupvit_video.processes.pool import run_isolated

_SLACK = 5.0  # seconds beyond the decoder's own limits before its process is killed


@dataclass(frozen=True)
class Limits:
    """The largest upload."""

    megabytes: int = 200
    """Of 2^20 bytes."""
    seconds: float = 600.0
    """Duration of the video."""

    @property
    def bytes(self) -> int:
        """Of the largest file."""
        return self.megabytes << 20

    @property
    def too_large(self) -> str:
        """What is said of a larger one."""
        return f"larger than {self.megabytes} MB, the limit here (--max-mb)"


class Upload(NamedTuple):
    """A video within the limits."""

    views: Views
    duration: float
    """Seconds."""


def read_upload(path: str, plan: Plan, limits: Limits) -> Upload:
    """Return the clips of an uploaded file.

    Args:
        plan: its timeout is for opening the file, and for decoding its clips.

    Raises:
        DecodeError: the file exceeds a limit, cannot be read, or crashes or hangs its reader.
        RunFailure: no process can be started.
        RuntimeError: a bug; the worker has printed its traceback.
    """
    read = partial(read_within_limits, plan, limits)
    for outcome in run_isolated(read, [path], processes=1, timeout=worker_timeout(plan)):
        if outcome.lost is not None and outcome.lost.cause == "error":
            raise RuntimeError(outcome.lost.detail)
        if outcome.lost is not None:
            raise DecodeError(path, outcome.lost.detail)
        if isinstance(outcome.answer, Upload):
            return outcome.answer
        if outcome.answer is not None:
            raise DecodeError(path, outcome.answer.error)
    raise DecodeError(path, "was not read")


def warm_up(plan: Plan) -> None:
    """Start the server that forks workers, so that the first upload does not wait for its imports.

    Raises:
        RunFailure: no process can be started.
    """
    with contextlib.suppress(DecodeError):
        read_upload("", plan, Limits())


def worker_timeout(plan: Plan) -> float:
    """Return the seconds that a worker may take for an upload: opening and decoding have a limit each."""
    return 2 * plan.timeout + _SLACK


def read_within_limits(plan: Plan, limits: Limits, path: str) -> Upload | Failure:
    """Return the clips of a file, or the reason for none; the duration is known before anything is decoded."""
    duration = 0.0

    def check(reader: VideoReader) -> None:
        nonlocal duration
        duration = reader.duration
        if not duration <= limits.seconds:
            raise DecodeError(path, f"lasts {duration:.0f} s; the limit here is {limits.seconds:g} s (--max-seconds)")

    try:
        if os.path.isfile(path) and os.path.getsize(path) > limits.bytes:
            raise DecodeError(path, limits.too_large)
        return Upload(read_file(path, plan, check), duration)
    except UserError as error:
        return Failure(path, error.reason if isinstance(error, DecodeError) else str(error))
