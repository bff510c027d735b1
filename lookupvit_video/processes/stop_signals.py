"""Signals that ask a run to stop: they are recorded, so that it finishes its step and saves."""

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
    """The run was asked to stop and has saved its state: the same command resumes it.

    Args:
        interrupted: by Ctrl-C, in some process.
    """

    def __init__(self, message: str, interrupted: bool = False):
        super().__init__(message)
        self.exit_code = EXIT_INTERRUPTED if interrupted else EXIT_STOPPED


class StopSignals:
    """Records SIGTERM, SIGUSR1 and SIGINT (Ctrl-C) while its block is active, instead of ending the process.

    They do not reach the decoding workers (``data.loader.Loader``): a scheduler signals all processes of a job, but the
    current step needs the workers. Other processes that are forked in the block ignore the first signal and end at the
    second. In this process a second Ctrl-C ends everything at once.

    Args:
        quiet: print nothing at Ctrl-C; for all processes but the main one.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.name = ""
        """The signal that came; empty: none."""
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
            # not print: a handler may run within another print
            os.write(2, b"\ninterrupted: finishing the step and saving; press Ctrl-C again to leave at once\n")
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
