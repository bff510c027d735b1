"""An uploaded file -> its clips, within limits; read in a worker process, which may crash or hang.

Nothing heavy is imported here, since the worker imports this module.
"""

import contextlib
import os
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from lookupvit_video.decoding.backends import DecodeError, open_video
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


class Upload(NamedTuple):
    """A video within the limits."""

    views: Views
    duration: float
    """Seconds."""


def read_upload(path: str, plan: Plan, limits: Limits) -> Upload:
    """Return the clips of an uploaded file.

    Args:
        plan: its timeout is for inspecting the file, for opening it, and for decoding its clips.

    Raises:
        DecodeError: the file exceeds a limit, cannot be read, or crashes or hangs its reader.
        RunFailure: no process can be started.
        RuntimeError: a bug; the worker has printed its traceback.
    """
    timeout = 3 * plan.timeout + _SLACK
    for outcome in run_isolated(partial(_read_within_limits, plan, limits), [path], processes=1, timeout=timeout):
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


def _read_within_limits(plan: Plan, limits: Limits, path: str) -> Upload | Failure:
    try:
        if os.path.isfile(path) and os.path.getsize(path) > limits.megabytes << 20:
            raise DecodeError(path, f"larger than {limits.megabytes} MB, the limit here (--max-mb)")
        with open_video(path, timeout=plan.timeout) as reader:  # reads packets, decodes nothing
            duration = reader.duration
        if not duration <= limits.seconds:
            raise DecodeError(path, f"lasts {duration:.0f} s; the limit here is {limits.seconds:g} s (--max-seconds)")
        return Upload(read_file(path, plan), duration)
    except UserError as error:
        return Failure(path, error.reason if isinstance(error, DecodeError) else str(error))
