"""Signals that ask a run to stop: they are noted, so that it finishes its step and saves."""

import os
import signal
import time
from collections.abc import Iterable, Iterator
from types import FrameType, TracebackType
from typing import Any, TypeVar

from lookupvit_video.errors import EXIT_INTERRUPTED, EXIT_STOPPED, RunFailure
from lookupvit_video.processes.children import STOP_SIGNALS, end_children

T = TypeVar("T")
SAME_KEYPRESS = 0.3  # seconds in which Ctrl-C may come twice: from the terminal, and passed on by torchrun


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
