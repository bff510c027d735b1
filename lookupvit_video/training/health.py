"""What may happen to a run from outside, or to its numbers, and how it is told: signals, bad numbers, lost data.

docs/reliability.md lists the faults, how each was made, and what happened.
"""

import os
import signal
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, NamedTuple, TypeVar

import torch

from lookupvit_video.distributed.world import World
from lookupvit_video.errors import EXIT_INTERRUPTED, EXIT_STOPPED, RunFailure
from lookupvit_video.processes.children import STOP_SIGNALS, end_children

T = TypeVar("T")
SAME_KEYPRESS = 0.3  # seconds in which Ctrl-C may come twice: from the terminal, and passed on by torchrun
SHOWN_VIDEOS = 8  # of each process, where a message names what a step read


@contextmanager
def memory_failures_told() -> Iterator[None]:
    """Turn what torch raises when the GPU's memory is full into one line that says which settings need less.

    Raises:
        RunFailure: in its place.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        told = str(error).partition("\n")[0]
        raise RunFailure(
            f"the GPU's memory is full ({told.partition('. GPU')[0]}); raise TRAIN.ACCUMULATION_STEPS, or set "
            "TRAIN.ACTIVATION_CHECKPOINTING write_back, selective or full, or TRAIN.PARALLEL fsdp; --dry-run estimates "
            "the need"
        ) from None


class Stopped(RunFailure):
    """The run was asked to stop, and has saved where it stood: the same command resumes it.

    Args:
        interrupted: by Ctrl-C, in some process.
    """

    def __init__(self, message: str, interrupted: bool = False):
        super().__init__(message)
        self.exit_code = EXIT_INTERRUPTED if interrupted else EXIT_STOPPED


class StopSignals:
    """Notes SIGTERM, SIGUSR1 and SIGINT (Ctrl-C) instead of dying of them, while its block is active.

    They do not reach the decoding workers, see ``data.loader.Loader``: a scheduler signals all processes of a job, and
    the step that is to be finished needs them. Other processes that are forked in the block let the first signal pass,
    and die of the second one. In this process a second signal that is a SIGINT ends all at once: whoever presses Ctrl-C
    again does not want to wait.

    Args:
        quiet: say nothing when Ctrl-C comes; for all processes but the main one.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.name = ""
        """Of the signal that came; empty: none did."""
        self._came = 0.0
        self._owner, self._quiet = os.getpid(), quiet
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        for name in STOP_SIGNALS:
            number = getattr(signal, name, None)  # Windows has no SIGUSR1
            if number is not None:
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            if self.name:
                os._exit(128 + number)
        elif self.name and number == signal.SIGINT:
            if time.monotonic() - self._came > SAME_KEYPRESS:
                self._leave()
            return
        elif number == signal.SIGINT and not self._quiet:
            # Not by print: a handler may run within another print.
            os.write(2, b"\ninterrupted: finishing the step and saving; Ctrl-C once more leaves at once\n")
        if not self.name:
            self.name, self._came = signal.Signals(number).name, time.monotonic()

    @property
    def interrupted(self) -> bool:
        """Whether it was Ctrl-C."""
        return self.name == "SIGINT"

    @staticmethod
    def _leave() -> None:
        end_children()
        os.write(2, b"interrupted twice: left without saving; the same command resumes from the newest checkpoint\n")
        os._exit(EXIT_INTERRUPTED)

    def until_stopped(self, items: Iterable[T]) -> Iterator[T]:
        """Pass items through until a signal comes."""
        for item in items:
            yield item
            if self.name:
                return


class Reading(NamedTuple):
    """What one process knows of a step whose numbers went bad."""

    loss: float
    """Its own, before any mean over the processes."""
    videos: list[str]
    """That it read for the step."""


def bad_step_text(step: int, norm: float, readings: Sequence[Reading], world: World) -> str:
    """Say where a loss or gradient became nan or infinite: the step, the processes, and the videos they had.

    Args:
        step: counted as the log lines do.
        norm: of the gradient, the mean over the processes.
        readings: by rank.
    """
    bad = [rank for rank, reading in enumerate(readings) if not torch.isfinite(torch.tensor(reading.loss))]
    if bad:
        what = f"the loss is {readings[bad[0]].loss:g} in " + ", ".join(f"rank {rank}" for rank in bad)
    else:  # the mean over the processes does not tell whose gradient it was
        what, bad = "all losses are finite", list(range(world.size))
    named = []
    for rank in bad:
        names = readings[rank].videos
        more = f" and {len(names) - SHOWN_VIDEOS} more" if len(names) > SHOWN_VIDEOS else ""
        named.append(f"rank {rank} read {', '.join(names[:SHOWN_VIDEOS])}{more}")
    return f"step {step}: {what}, the gradient's norm is {norm:g}; {'; '.join(named)}"


def slow_processes(times: Sequence[tuple[float, float]], world: World, factor: float = 1.5) -> list[str]:
    """Name the processes for which the others wait.

    Args:
        times: by rank, the seconds of a step that went into waiting for data, and into the forward pass.
        factor: to be told, a process must take so much longer for both than the median, and 20 ms.
    """
    totals = [data + forward for data, forward in times]
    usual = statistics.median_low(totals)
    told = []
    for rank, (data, forward) in enumerate(times):
        if data + forward > factor * usual + 0.02:
            cause = "its data" if data > forward else "its forward pass"
            told.append(
                f"{world.name(rank)} is slow: data and forward pass of a step take {1000 * (data + forward):.0f} ms "
                f"({1000 * max(data, forward):.0f} ms are {cause}), the median is {1000 * usual:.0f} ms"
            )
    return told


def lost_folder(paths: Iterable[str]) -> str:
    """Return the folder of the first of some unreadable videos whose folder is gone or empty; "": none is.

    So it is when a disk or a network share is no longer mounted: the videos are not bad then.
    """
    for path in paths:
        folder = os.path.dirname(path) or "."
        try:
            with os.scandir(folder) as entries:
                if next(entries, None) is None:
                    return folder
        except OSError:
            return folder
    return ""
